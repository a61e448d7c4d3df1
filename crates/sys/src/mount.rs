//! Detached mounts, overlays and idmapped mounts.
