//! Directories: listing, describing, making, removing, renaming.

use init_protocol::{EntryKind, FailureKind, Request};

use crate::lab::{Lab, kind, target};

fn stat(path: &str) -> Request {
    Request::Stat(target("user", path))
}

fn exists(path: &str) -> Request {
    Request::Exists(target("user", path))
}

fn mkdir(path: &str) -> Request {
    Request::Mkdir(target("user", path))
}

fn remove(path: &str) -> Request {
    Request::Remove(target("user", path))
}

fn rename(from: &str, to: &str) -> Request {
    Request::Rename { from: target("user", from), to: to.into() }
}

#[test]
fn a_listing_is_sorted_and_as_deep_as_asked() {
    let lab = Lab::start();
    lab.sh("mkdir -p b/c/d; echo 12345 > a; touch b/x b/c/y; touch .hidden");
    let names = |depth| -> Vec<String> {
        let entries = lab.list("user", "/home/user", depth).unwrap();
        entries.into_iter().map(|entry| entry.path.replace("/home/user/", "")).collect()
    };
    assert_eq!(names(1), [".hidden", "a", "b"]);
    assert_eq!(names(0), names(1));
    assert_eq!(names(2), [".hidden", "a", "b", "b/c", "b/x"]);
    assert_eq!(names(u32::MAX), [".hidden", "a", "b", "b/c", "b/c/d", "b/c/y", "b/x"]);
    let entries = lab.list("user", "", 1);
    assert_eq!(kind(entries), FailureKind::InvalidPath);
    let a = lab.list("user", ".", 1).unwrap().remove(1);
    assert_eq!((a.name.as_str(), a.path.as_str()), ("a", "/home/user/./a"));
    assert_eq!((a.kind, a.size, a.mode), (EntryKind::File, 6, 0o644));
    assert!(a.modified > 1_700_000_000);
}

#[test]
fn links_are_listed_as_what_they_lead_to_and_never_descended() {
    let lab = Lab::start();
    lab.sh("mkdir dir; echo 123 > dir/file; ln -s dir to-dir; ln -s dir/file to-file; ln -s nowhere broken; ln -s . dir/circle");
    let entries = lab.list("user", "/home/user", 9).unwrap();
    let seen: Vec<(&str, EntryKind)> =
        entries.iter().map(|entry| (&entry.path["/home/user/".len()..], entry.kind)).collect();
    assert_eq!(
        seen,
        [
            ("broken", EntryKind::File),
            ("dir", EntryKind::Directory),
            ("dir/circle", EntryKind::Directory),
            ("dir/file", EntryKind::File),
            ("to-dir", EntryKind::Directory),
            ("to-file", EntryKind::File),
        ]
    );
    assert_eq!(entries[5].size, 4);
}

#[test]
fn a_listing_shows_what_the_user_may_see() {
    let lab = Lab::start();
    lab.root("mkdir /home/user/closed; touch /home/user/closed/x; chmod 700 /home/user/closed");
    lab.sh("mkdir open; touch open/y");
    let seen = |user| lab.list(user, "/home/user", 2).unwrap().len();
    assert_eq!((seen("user"), seen("root")), (3, 4));
    assert_eq!(kind(lab.list("user", "closed", 1)), FailureKind::Permission);
    assert_eq!(kind(lab.list("user", "missing", 1)), FailureKind::NotFound);
    assert_eq!(kind(lab.list("user", "open/y", 1)), FailureKind::NotDirectory);
    assert!(lab.list("user", "/", 1).unwrap().iter().any(|entry| entry.path == "/etc"));
}

#[test]
fn names_that_are_no_text_do_not_stop_a_listing() {
    let lab = Lab::start();
    lab.sh("touch \"$(printf 'a\\377b')\"");
    assert_eq!(lab.list("user", "/home/user", 1).unwrap()[0].name, "a\u{fffd}b");
}

#[test]
fn a_listing_without_end_is_refused() {
    let lab = Lab::start();
    lab.sh("perl -e 'for (0..100000) { open(F, \">\", \"f$_\"); close F }'");
    assert_eq!(kind(lab.list("user", "/home/user", 1)), FailureKind::TooLarge);
    lab.sh("rm f0");
    assert_eq!(lab.list("user", "/home/user", 1).unwrap().len(), 100_000);
}

#[test]
fn what_is_there_is_described_and_what_is_not_is_not_found() {
    let lab = Lab::start();
    lab.sh("mkdir dir; echo 123 > file; chmod 640 file; ln -s file link; ln -s nowhere broken");
    let file = lab.entry(stat("file")).unwrap();
    assert_eq!((file.name.as_str(), file.path.as_str()), ("file", "/home/user/file"));
    assert_eq!((file.kind, file.size, file.mode), (EntryKind::File, 4, 0o640));
    assert_eq!(lab.entry(stat("link")).unwrap().size, 4);
    assert_eq!(lab.entry(stat("dir/")).unwrap().kind, EntryKind::Directory);
    assert_eq!(lab.entry(stat("/")).unwrap().name, "/");
    assert_eq!(lab.entry(stat("broken")).unwrap().kind, EntryKind::File);
    assert_eq!(kind(lab.entry(stat("missing"))), FailureKind::NotFound);
    for (path, there) in
        [("file", true), ("dir", true), ("broken", true), ("missing", false), ("file/x", false), ("/", true)]
    {
        assert_eq!(lab.bool(exists(path)), Ok(there), "{path}");
    }
    lab.root("mkdir /root/d");
    assert_eq!(kind(lab.bool(exists("/root/d"))), FailureKind::Permission);
}

#[test]
fn directories_are_made_with_their_parents_and_belong_to_the_user() {
    let lab = Lab::start();
    assert_eq!(lab.bool(mkdir("a/b/../b/c")), Ok(true));
    assert_eq!(lab.bool(mkdir("/home/user/a/b/c/")), Ok(false));
    assert_eq!(lab.bool(mkdir("/")), Ok(false));
    assert_eq!(lab.sh("stat -c '%u:%g %a' a a/b a/b/c").stdout, "1000:1000 755\n".repeat(3));
    lab.sh("touch file; ln -s nowhere broken");
    assert_eq!(kind(lab.bool(mkdir("file"))), FailureKind::NotDirectory);
    assert_eq!(kind(lab.bool(mkdir("file/x"))), FailureKind::NotDirectory);
    assert_eq!(kind(lab.bool(mkdir("broken/x"))), FailureKind::NotFound);
    assert_eq!(kind(lab.bool(mkdir("/root/x"))), FailureKind::Permission);
    assert_eq!(kind(lab.bool(mkdir("/new"))), FailureKind::Permission);
}

#[test]
fn removing_takes_everything_below_and_nothing_beside() {
    let lab = Lab::start();
    lab.sh("mkdir -p keep tree/a/b/c tree/d; touch keep/file tree/a/x tree/a/b/c/y; ln -s ../keep tree/link; ln -s keep link; touch file");
    assert_eq!(lab.bool(remove("tree")), Ok(true));
    assert_eq!(lab.bool(remove("tree")), Ok(false));
    assert_eq!(lab.bool(remove("link")), Ok(true));
    assert_eq!(lab.bool(remove("file")), Ok(true));
    assert_eq!(lab.bool(remove("no/where/at/all")), Ok(false));
    assert_eq!(lab.sh("find | sort").stdout, ".\n./keep\n./keep/file\n");
    for path in ["/", "keep/..", "."] {
        assert_eq!(kind(lab.bool(remove(path))), FailureKind::InvalidPath, "{path}");
    }
}

#[test]
fn removing_many_and_deep_directories_ends() {
    let lab = Lab::start();
    lab.sh("mkdir wide; for i in $(seq 3000); do echo wide/$i; done | xargs mkdir; \
        p=deep; for i in $(seq 400); do p=$p/d; done; mkdir -p $p");
    assert_eq!(lab.bool(remove("wide")), Ok(true));
    assert_eq!(lab.bool(remove("deep")), Ok(true));
    lab.sh("p=deep; for i in $(seq 600); do p=$p/d; done; mkdir -p $p");
    assert_eq!(kind(lab.bool(remove("deep"))), FailureKind::InvalidPath);
}

#[test]
fn a_user_removes_and_renames_only_what_they_may() {
    let lab = Lab::start();
    lab.root("mkdir /home/theirs; touch /home/theirs/file; mkdir -p /home/user/closed/x");
    assert_eq!(kind(lab.bool(remove("/home/theirs/file"))), FailureKind::Permission);
    assert_eq!(kind(lab.bool(remove("closed"))), FailureKind::Permission);
    assert_eq!(kind(lab.entry(rename("/home/theirs/file", "mine"))), FailureKind::Permission);
    lab.sh("touch own");
    assert_eq!(kind(lab.entry(rename("own", "/home/theirs/own"))), FailureKind::Permission);
    assert_eq!(
        lab.root("find /home/theirs /home/user | sort"),
        "/home/theirs\n/home/theirs/file\n/home/user\n/home/user/closed\n/home/user/closed/x\n/home/user/own\n"
    );
}

#[test]
fn renaming_moves_and_replaces_and_describes_the_new() {
    let lab = Lab::start();
    lab.sh("mkdir -p dir/sub other/full; echo one > a; echo two > b; ln -s a link");
    let entry = lab.entry(rename("a", "dir/c")).unwrap();
    assert_eq!((entry.path.as_str(), entry.size), ("/home/user/dir/c", 4));
    assert_eq!(lab.entry(rename("dir/c", "b")).unwrap().name, "b");
    assert_eq!(lab.sh("cat b; readlink link").stdout, "one\na\n");
    assert_eq!(lab.entry(rename("dir", "renamed")).unwrap().kind, EntryKind::Directory);
    assert_eq!(kind(lab.entry(rename("missing", "x"))), FailureKind::NotFound);
    assert_eq!(kind(lab.entry(rename("b", "no/where"))), FailureKind::NotFound);
    assert_eq!(kind(lab.entry(rename("renamed", "other"))), FailureKind::AlreadyExists);
    assert_eq!(kind(lab.entry(rename("renamed", "renamed/sub/x"))), FailureKind::InvalidPath);
    assert_eq!(kind(lab.entry(rename("b", "other"))), FailureKind::IsDirectory);
}

#[test]
fn a_file_can_be_renamed_into_another_file_system() {
    let lab = Lab::start();
    lab.sh("echo '#!/bin/sh' > /tmp/tool; chmod 755 /tmp/tool; mkdir /tmp/dir; mkfifo /tmp/fifo");
    let entry = lab.entry(rename("/tmp/tool", "/home/user/tool")).unwrap();
    assert_eq!((entry.size, entry.mode), (10, 0o755));
    assert_eq!(lab.sh("ls -A /tmp").stdout, "dir\nfifo\n");
    assert_eq!(kind(lab.entry(rename("/tmp/dir", "dir"))), FailureKind::Io);
    assert_eq!(kind(lab.entry(rename("/tmp/fifo", "fifo"))), FailureKind::Io);
    assert_eq!(lab.sh("ls -A /tmp .").stdout, ".:\ntool\n\n/tmp:\ndir\nfifo\n");
}
