//! `/workspace`, where agents' tools keep their files: one of the published clients makes it as an ordinary user,
//! who may make nothing in `/`.

use std::os::unix::fs::{DirBuilderExt as _, lchown};
use std::path::Path;
use std::{fs, io};

use sys::process::Credentials;

use crate::accounts;

/// Where it is.
const PATH: &str = "/workspace";

/// Makes it and gives it to the default user. What a template has there stays as it is; in a sandbox without that
/// user there is none.
///
/// # Errors
/// When it can be neither made nor given away.
pub(crate) fn make() -> io::Result<()> {
    match accounts::lookup(None) {
        Ok(user) => make_at(Path::new(PATH), &user.credentials),
        Err(_) => Ok(()),
    }
}

fn make_at(path: &Path, owner: &Credentials) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // Nothing else runs yet that could have put something else in its place.
        made => made.and_then(|()| lchown(path, Some(owner.uid), Some(owner.gid))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[test]
    fn it_is_made_for_the_user_and_what_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let owner = Credentials { uid: 1000, gid: 1001, groups: Vec::new() };
        let (new, own, link) = (dir.path().join("new"), dir.path().join("own"), dir.path().join("link"));
        fs::DirBuilder::new().mode(0o700).create(&own).unwrap();
        symlink("nowhere", &link).unwrap();
        for path in [&new, &own, &link] {
            make_at(path, &owner).unwrap();
        }
        let seen =
            |path| fs::symlink_metadata(path).map(|found| (found.uid(), found.gid(), found.mode() & 0o777));
        assert_eq!(seen(new).unwrap(), (1000, 1001, 0o755));
        assert_eq!(seen(own).unwrap(), (0, 0, 0o700));
        assert_eq!(fs::read_link(link).unwrap(), Path::new("nowhere"));
        assert!(!dir.path().join("nowhere").exists());
        assert!(make_at(&dir.path().join("not/there"), &owner).is_err());
    }
}
