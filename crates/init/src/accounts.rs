//! Users as the sandbox's own `/etc/passwd` and `/etc/group` have them.

use std::io::Read;

use init_protocol::{DEFAULT_USER, Failure, FailureKind};
use sys::process::Credentials;

use crate::failure::Result;
use crate::files;

/// A user of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) credentials: Credentials,
    pub(crate) home: String,
    pub(crate) shell: String,
}

/// Looks a user up; `None` is the default user. `root` exists even where there is no `/etc/passwd`.
///
/// # Errors
/// [`FailureKind::UnknownUser`].
pub(crate) fn lookup(name: Option<&str>) -> Result<Account> {
    let name = name.unwrap_or(DEFAULT_USER);
    let account = find(&table("/etc/passwd"), &table("/etc/group"), name);
    account.ok_or_else(|| Failure::new(FailureKind::UnknownUser, format!("no user {name:?} in the sandbox")))
}

/// Longest part of a table that is read: it is the sandbox's file, and anything may be in it.
const TABLE: u64 = 1 << 20;

/// Most supplementary groups of a user.
const GROUPS: usize = 1024;

/// A table's text, as far as there is one.
fn table(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = files::open_regular(path) {
        let _ = file.take(TABLE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn find(passwd: &str, group: &str, name: &str) -> Option<Account> {
    let account = passwd.lines().filter_map(account).find(|account| account.name == name);
    let mut account = account.or_else(|| (name == "root").then(root))?;
    let members = group.lines().filter_map(|line| membership(line, name));
    account.credentials.groups.extend(members.take(GROUPS));
    Some(account)
}

/// `name:password:uid:gid:comment:home:shell`; lines of another form are nobody.
fn account(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let _password = fields.next()?;
    let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
    let _comment = fields.next()?;
    let home = fields.next().filter(|home| home.starts_with('/')).unwrap_or("/").to_owned();
    let shell = fields.next().filter(|shell| shell.starts_with('/')).unwrap_or("/bin/sh").to_owned();
    Some(Account { name, credentials: Credentials { uid, gid, groups: vec![gid] }, home, shell })
}

/// `name:password:gid:member,member`: the group's id if `name` is a member.
fn membership(line: &str, name: &str) -> Option<u32> {
    let mut fields = line.split(':').skip(2);
    let gid = id(fields.next()?)?;
    fields.next()?.split(',').any(|member| member == name).then_some(gid)
}

/// An id; the highest number stands for "none" in system calls and is no id.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|&id| id != u32::MAX)
}

fn root() -> Account {
    Account {
        name: "root".to_owned(),
        credentials: Credentials { uid: 0, gid: 0, groups: vec![0] },
        home: "/root".to_owned(),
        shell: "/bin/sh".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\nuser:x:1000:1001::/home/user:/bin/sh\n\
        user:x:0:0::/second:/bin/sh\nodd:x:4294967295:0::/:/bin/sh\nbare:x:5:6:::\nhigh:x:99999999999:0::/:\n";
    const GROUP: &str =
        "root:x:0:\nuser:x:1001:\ndocker:x:999:other,user\nstaff:x:50:user2\naudio:x:29:user\n";

    #[test]
    fn a_user_has_the_ids_home_and_groups_of_the_tables() {
        let user = find(PASSWD, GROUP, "user").unwrap();
        assert_eq!((user.home.as_str(), user.shell.as_str()), ("/home/user", "/bin/sh"));
        assert_eq!(user.credentials, Credentials { uid: 1000, gid: 1001, groups: vec![1001, 999, 29] });
    }

    #[test]
    fn unknown_and_malformed_users_do_not_exist() {
        for name in ["nobody", "", "broken", "odd", "high", "user:x", "us"] {
            assert_eq!(find(PASSWD, GROUP, name), None, "{name}");
        }
    }

    #[test]
    fn missing_home_and_shell_have_defaults() {
        let bare = find(PASSWD, GROUP, "bare").unwrap();
        assert_eq!((bare.home.as_str(), bare.shell.as_str()), ("/", "/bin/sh"));
    }

    #[test]
    fn root_exists_without_tables_and_nobody_else_does() {
        assert_eq!(find("", "", "root"), Some(root()));
        assert_eq!(find("", "", "user"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_tables_never_panic(passwd in "(\\PC|[:,\n])*", group in "(\\PC|[:,\n])*", name in "\\PC{0,5}") {
            if let Some(account) = find(&passwd, &group, &name) {
                prop_assert!(account.name == name && account.credentials.uid != u32::MAX);
            }
        }
    }
}
