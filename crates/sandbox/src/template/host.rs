//! The skeleton of the `host` template: an `/etc` from an allow-list, empty directories, links into `/usr`.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use jiff::Timestamp;

use super::{
    error::{Doing as _, TemplateError},
    root::Root,
};

/// What of `/etc` programs in `/usr` need. Nothing that could hold a credential is here: no package sources, no
/// tool configuration of root's.
const ETC: &[&str] = &[
    "alternatives",
    "bash.bashrc",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "debian_version",
    "fonts",
    "gai.conf",
    "inputrc",
    "java-17-openjdk",
    "java-21-openjdk",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "lsb-release",
    "magic",
    "mime.types",
    "os-release",
    "perl",
    "pki/ca-trust/extracted",
    "pki/tls/certs",
    "profile",
    "profile.d",
    "protocols",
    "python3",
    "rpc",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
    "xattr.conf",
];

/// Directories of the skeleton with their modes.
const DIRECTORIES: &[(&str, u32)] = &[
    ("etc", 0o755),
    ("home", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("run/lock", 0o1777),
    ("srv", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
";

const GROUP: &str = "\
root:x:0:
daemon:x:1:
adm:x:4:
tty:x:5:
mail:x:8:
utmp:x:43:
staff:x:50:
users:x:100:
nogroup:x:65534:
";

const SHADOW: &str = "root:!:::::::\ndaemon:!:::::::\nnobody:!:::::::\n";

/// The machine's own may name services that are not in the sandbox.
const NSSWITCH: &str = "\
passwd: files
group: files
shadow: files
hosts: files dns
networks: files
protocols: files
services: files
";

/// Fills `rootfs`.
pub(super) fn build(rootfs: &Path) -> Result<(), TemplateError> {
    let root = Root::open(rootfs)?;
    for (path, mode) in DIRECTORIES {
        root.directory_with_mode(path, *mode)?;
    }
    link_into_usr(rootfs)?;
    symlink("/run", rootfs.join("var/run")).doing("make", rootfs.join("var/run"))?;
    symlink("/run/lock", rootfs.join("var/lock")).doing("make", rootfs.join("var/lock"))?;
    for name in ETC {
        let from = Path::new("/etc").join(name);
        if let Some(parent) = Path::new(name).parent().filter(|parent| !parent.as_os_str().is_empty()) {
            root.directory(&Path::new("etc").join(parent))?;
        }
        copy(&from, &rootfs.join("etc").join(name))?;
    }
    root.write("etc/passwd", 0o644, PASSWD)?;
    root.write("etc/group", 0o644, GROUP)?;
    root.write("etc/shadow", 0o640, SHADOW)?;
    root.write("etc/nsswitch.conf", 0o644, NSSWITCH)?;
    root.complete()
}

/// Whether the machine's part of the skeleton has changed since.
pub(super) fn is_outdated(created_at: Timestamp) -> bool {
    ETC.iter().any(|name| {
        let changed = fs::symlink_metadata(Path::new("/etc").join(name)).map(|metadata| metadata.ctime());
        changed.is_ok_and(|changed| changed >= created_at.as_second())
    })
}

/// `/bin`, `/lib` and their like, which are links into `/usr` on every machine this template works on.
fn link_into_usr(rootfs: &Path) -> Result<(), TemplateError> {
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let path = Path::new("/").join(name);
        match fs::read_link(&path) {
            Ok(target) if target.starts_with("usr") || target.starts_with("/usr") => {
                symlink(&target, rootfs.join(name)).doing("make", rootfs.join(name))?;
            }
            _ if !path.exists() => {}
            _ => return Err(TemplateError::Machine(format!("{} is not a link into /usr", path.display()))),
        }
    }
    Ok(())
}

/// Copies a file, a link as a link, or a directory with what is in it. What does not exist, what is neither, and
/// what not everybody may read is left out.
fn copy(from: &Path, to: &Path) -> Result<(), TemplateError> {
    let Ok(metadata) = fs::symlink_metadata(from) else { return Ok(()) };
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(from).doing("read", from)?;
        return symlink(target, to).doing("make", to);
    }
    let special = kind.is_block_device() || kind.is_char_device() || kind.is_fifo() || kind.is_socket();
    if special || metadata.mode() & 0o004 == 0 {
        return Ok(());
    }
    if kind.is_dir() {
        fs::create_dir(to).doing("make", to)?;
        for entry in fs::read_dir(from).doing("list", from)? {
            let name = entry.doing("list", from)?.file_name();
            copy(&from.join(&name), &to.join(&name))?;
        }
    } else {
        fs::copy(from, to).map(drop).doing("copy", from)?;
    }
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o755)).doing("open", to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_skeleton_has_certificates_and_no_credentials() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let built = build(dir.path());
        if let Err(TemplateError::Machine(why)) = &built {
            eprintln!("SKIP {why}");
            return;
        }
        built.expect("skeleton");
        assert!(dir.path().join("bin").is_symlink());
        assert!(fs::read_dir(dir.path().join("usr")).expect("usr").next().is_none());
        for name in
            ["apt", "hostname", "machine-id", "ssh", "ssl/private", "sudoers", "gitconfig", "pip.conf"]
        {
            assert!(fs::symlink_metadata(dir.path().join("etc").join(name)).is_err(), "{name}");
        }
        let shadow = fs::read_to_string(dir.path().join("etc/shadow")).expect("shadow");
        assert!(shadow.lines().all(|line| line.contains(":!:")), "no password");
        if Path::new("/etc/ssl/certs").is_dir() {
            assert!(dir.path().join("etc/ssl/certs").is_dir());
        }
    }

    #[test]
    fn what_not_everybody_may_read_is_left_out() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let from = dir.path().join("from");
        fs::create_dir(&from).expect("directory");
        for (name, mode) in [("public", 0o644), ("secret", 0o640)] {
            fs::write(from.join(name), name).expect("file");
            fs::set_permissions(from.join(name), fs::Permissions::from_mode(mode)).expect("mode");
        }
        fs::set_permissions(&from, fs::Permissions::from_mode(0o755)).expect("mode");
        copy(&from, &dir.path().join("to")).expect("copy");
        assert!(dir.path().join("to/public").exists());
        assert!(!dir.path().join("to/secret").exists());
    }
}
