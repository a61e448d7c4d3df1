//! Life cycle of sandboxes: root file system, cgroups, spawner, recovery.
