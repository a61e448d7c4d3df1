//! Parameters of the calling thread's network namespace.

use std::{fs, path::Path};

use crate::Error;

/// Sets the parameter `name` below `/proc/sys/net` (with slashes: `ipv4/ip_forward`) in the namespace of the
/// calling thread.
///
/// # Errors
/// [`Error::Sysctl`] with what the kernel says; a kernel without IPv6 has no `ipv6/…`.
pub fn set(name: &str, value: &str) -> Result<(), Error> {
    fs::write(Path::new(BASE).join(name), value).map_err(|source| Error::Sysctl {
        name: name.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// The value of a parameter, without the line's end.
///
/// # Errors
/// [`Error::ReadSysctl`] with what the kernel says.
pub fn get(name: &str) -> Result<String, Error> {
    let read = fs::read_to_string(Path::new(BASE).join(name));
    let value = read.map_err(|source| Error::ReadSysctl { name: name.to_owned(), source })?;
    Ok(value.trim_end().to_owned())
}

/// The names below a parameter directory, such as the interfaces in `ipv6/conf`.
///
/// # Errors
/// [`Error::ReadSysctl`] with what the kernel says.
pub fn names(directory: &str) -> Result<Vec<String>, Error> {
    let refused = |source| Error::ReadSysctl { name: directory.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(Path::new(BASE).join(directory)).map_err(refused)? {
        names.extend(entry.map_err(refused)?.file_name().into_string());
    }
    Ok(names)
}

const BASE: &str = "/proc/sys/net";
