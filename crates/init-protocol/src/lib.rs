//! Frames between the daemon and the init of a sandbox.
