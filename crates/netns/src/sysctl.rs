//! Parameters of the calling thread's network namespace.

use std::{fs, path::Path};

use crate::Error;

/// Sets the parameter `name` below `/proc/sys/net` (with slashes: `ipv4/ip_forward`) in the namespace of the
/// calling thread.
///
/// # Errors
/// [`Error::Sysctl`] with what the kernel says; a kernel without IPv6 has no `ipv6/…`.
pub fn set(name: &str, value: &str) -> Result<(), Error> {
    fs::write(Path::new("/proc/sys/net").join(name), value).map_err(|source| Error::Sysctl {
        name: name.to_owned(),
        value: value.to_owned(),
        source,
    })
}
