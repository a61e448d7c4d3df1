//! Reading and writing files.

use init_protocol::{
    BULK_REVISION, Bulk, ByteBuf, ClientFrame, FailureKind, Hello, InitFrame, MAX_BULK, MAX_CHUNK, MAX_FRAME,
    Request,
};

use crate::lab::{Lab, eventually, kind, target};

#[test]
fn what_is_written_is_read_and_belongs_to_the_user() {
    let lab = Lab::start();
    let content: Vec<u8> = (0..300_000u32).map(|index| (index % 253) as u8).collect();
    assert_eq!(lab.write("user", "new/dir/file", &content), Ok(300_000));
    assert!(lab.read("user", "/home/user/new/dir/file").unwrap() == content);
    assert_eq!(lab.write("user", "/home/user/empty", b""), Ok(0));
    assert_eq!(lab.read("user", "empty"), Ok(vec![]));
    let listing = lab.root("cd /home/user; stat -c '%n %u:%g %a' new new/dir new/dir/file empty");
    assert_eq!(
        listing,
        "new 1000:1000 755\nnew/dir 1000:1000 755\nnew/dir/file 1000:1000 644\nempty 1000:1000 644\n"
    );
}

#[test]
fn files_of_all_lengths_round_a_chunk_go_in_and_out_unchanged() {
    let lab = Lab::start();
    for length in [1, MAX_BULK - 1, MAX_BULK, MAX_BULK + 1, 2 * MAX_BULK + 3, MAX_FRAME + 5] {
        let content: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
        assert_eq!(lab.write("user", "file", &content), Ok(length as u64));
        assert!(lab.read("user", "file").unwrap() == content, "{length}");
    }
}

#[test]
fn a_daemon_from_before_bulk_frames_gets_and_sends_none_and_a_current_one_does() {
    let lab = Lab::start();
    let content: Vec<u8> = (0..300_000u32).map(|index| (index % 253) as u8).collect();
    for revision in [BULK_REVISION - 1, BULK_REVISION] {
        let hello = Hello { revision, ..Hello::CURRENT };
        let bulk = revision == BULK_REVISION;
        let mut client =
            lab.request_as(hello, Request::Write { target: target("user", "file"), limit: u64::MAX });
        for chunk in content.chunks(MAX_CHUNK) {
            if bulk {
                client.try_send_bytes(Bulk::File, chunk).unwrap();
            } else {
                client.send(&ClientFrame::Data(ByteBuf::from(chunk)));
            }
        }
        client.send(&ClientFrame::End);
        assert_eq!(client.next(), InitFrame::Written { path: "/home/user/file".into(), size: 300_000 });
        let (mut read, mut output) = (Vec::new(), Vec::new());
        for (in_bulk, frame) in lab.request_as(hello, Request::Read(target("user", "file"))).rest() {
            if let InitFrame::Data(data) = frame {
                assert_eq!(in_bulk, bulk, "revision {revision}");
                read.extend(data.into_vec());
            }
        }
        assert!(read == content, "revision {revision}");
        let exec = init_protocol::Exec { command: "cat file".into(), ..Default::default() };
        for (in_bulk, frame) in lab.request_as(hello, Request::Exec(exec)).rest() {
            if let InitFrame::Output { data, .. } = frame {
                assert_eq!(in_bulk, bulk, "revision {revision}");
                output.extend(data.into_vec());
            }
        }
        assert!(output == content, "revision {revision}");
    }
}

#[test]
fn a_user_has_their_own_rights_and_root_has_more() {
    let lab = Lab::start();
    lab.write("root", "/root/secret", b"s").unwrap();
    assert_eq!(kind(lab.read("user", "/root/secret")), FailureKind::Permission);
    assert_eq!(lab.read("root", "/root/secret"), Ok(b"s".to_vec()));
    lab.root("echo locked > /home/user/locked; chmod 600 /home/user/locked");
    assert_eq!(kind(lab.read("user", "locked")), FailureKind::Permission);
    assert_eq!(kind(lab.write("user", "locked", b"x")), FailureKind::Permission);
    assert_eq!(lab.read("root", "/home/user/locked"), Ok(b"locked\n".to_vec()));
    for path in ["/home/mine", "/root/mine", "/mine/deeper"] {
        assert_eq!(kind(lab.write("user", path, b"x")), FailureKind::Permission, "{path}");
    }
    assert_eq!(kind(lab.write("mallory", "x", b"x")), FailureKind::UnknownUser);
}

#[test]
fn an_existing_file_keeps_its_mode_and_owner() {
    let lab = Lab::start();
    lab.sh("echo '#!/bin/sh' > tool; chmod 750 tool; echo a > plain");
    lab.write("user", "tool", b"#!/bin/sh\necho new\n").unwrap();
    lab.write("root", "/home/user/plain", b"by root").unwrap();
    assert_eq!(lab.sh("./tool; stat -c '%u:%g %a' tool plain").stdout, "new\n1000:1000 750\n1000:1000 644\n");
    // Somebody else's file that the user may write to, in a directory of theirs and in one of somebody else's.
    lab.root("cd /home/user; echo a > open; chmod 666 open; mkdir /home/theirs; echo a > /home/theirs/open; chmod 666 /home/theirs/open");
    lab.write("user", "open", b"mine").unwrap();
    lab.write("user", "/home/theirs/open", b"mine").unwrap();
    let seen =
        lab.root("cd /home; stat -c '%u %a' user/open theirs/open; cat user/open theirs/open; ls -A theirs");
    assert_eq!(seen, "0 666\n0 666\nminemineopen\n");
}

#[test]
fn a_program_that_runs_can_be_replaced() {
    let lab = Lab::start();
    lab.sh("cp /bin/sleep ./busy");
    let pid = lab.spawn("./busy 1000");
    eventually("it runs", || lab.lives("busy"));
    assert_eq!(lab.write("user", "busy", b"#!/bin/sh\necho replaced\n"), Ok(24));
    assert_eq!(lab.sh("./busy").stdout, "replaced\n");
    assert_eq!(lab.bool(Request::Kill { pid }), Ok(true));
}

#[test]
fn a_file_with_something_mounted_on_it_is_written_in_place() {
    let lab = Lab::start();
    assert_eq!(lab.write("user", "/srv/mounted", &[b'x'; 100_000]), Ok(100_000));
    assert_eq!(lab.write("user", "/srv/mounted", b"shorter"), Ok(7));
    assert_eq!(lab.sh("ls -A /srv; cat /srv/mounted").stdout, "mounted\nshorter");
    // Mounted as well, but not the user's.
    assert_eq!(kind(lab.write("user", "/etc/passwd", b"gone")), FailureKind::Permission);
}

#[test]
fn nothing_is_seen_before_the_last_byte_and_nothing_is_left_of_a_half() {
    let lab = Lab::start();
    lab.write("user", "file", b"old").unwrap();
    let mut client = lab.request(Request::Write { target: target("user", "file"), limit: u64::MAX });
    client.send(&ClientFrame::Data(ByteBuf::from(vec![b'x'; MAX_CHUNK])));
    assert_eq!(lab.read("user", "file"), Ok(b"old".to_vec()));
    drop(client);
    eventually("the rest is cleaned up", || lab.sh("ls -A").stdout == "file\n");
    let mut client = lab.request(Request::Write { target: target("user", "other"), limit: u64::MAX });
    client.send(&ClientFrame::CloseStdin);
    assert_eq!(client.failure().kind, FailureKind::BadRequest);
    eventually("the rest is cleaned up", || lab.sh("ls -A; cat file").stdout == "file\nold");
    // A bulk frame that breaks off, and one of bytes that are not a file's.
    let mut client = lab.request(Request::Write { target: target("user", "other"), limit: u64::MAX });
    client.try_send_bytes(Bulk::File, &[b'x'; MAX_BULK]).unwrap();
    client.send_part(&Bulk::File.header(100).unwrap());
    client.send_part(b"half");
    drop(client);
    eventually("the rest is cleaned up", || lab.sh("ls -A; cat file").stdout == "file\nold");
    let mut client = lab.request(Request::Write { target: target("user", "other"), limit: u64::MAX });
    // Refused by its header alone: whoever goes on sending may find the way closed.
    client.send_part(&Bulk::Stdin.header(1).unwrap());
    assert_eq!(client.failure().kind, FailureKind::BadRequest);
    eventually("the rest is cleaned up", || lab.sh("ls -A; cat file").stdout == "file\nold");
}

#[test]
fn the_limit_holds_to_the_byte() {
    let lab = Lab::start();
    assert_eq!(lab.write_limited("user", "fits", &[0; 100_000], 100_000), Ok(100_000));
    assert_eq!(kind(lab.write_limited("user", "does-not", &[0; 100_001], 100_000)), FailureKind::TooLarge);
    assert_eq!(lab.sh("ls -A").stdout, "fits\n");
}

#[test]
fn a_full_file_system_is_told_and_leaves_nothing() {
    let lab = Lab::start();
    assert_eq!(lab.write("user", "/media/fits", &[1; 500_000]), Ok(500_000));
    assert_eq!(kind(lab.write("user", "/media/too-much", &[1; 2_000_000])), FailureKind::NoSpace);
    assert_eq!(lab.sh("ls -A /media").stdout, "fits\n");
}

#[test]
fn large_files_pass_in_little_memory() {
    let lab = Lab::start();
    let before = lab.init_memory("VmHWM");
    let content = vec![7; 64 << 20];
    assert_eq!(lab.write("user", "large", &content), Ok(64 << 20));
    assert!(lab.read("user", "large").unwrap() == content);
    let grown = lab.init_memory("VmHWM").saturating_sub(before);
    assert!(grown < 6 << 10, "{grown} KiB");
}

#[test]
fn only_regular_files_are_read_and_written() {
    let lab = Lab::start();
    lab.sh("mkdir dir; mkfifo fifo; ln -s fifo to-fifo; ln -s dir to-dir; perl -e 'use Socket; socket(S,AF_UNIX,SOCK_STREAM,0); bind(S,sockaddr_un(\"socket\"))'");
    for (path, expected) in [
        ("fifo", FailureKind::InvalidPath),
        ("to-fifo", FailureKind::InvalidPath),
        ("socket", FailureKind::InvalidPath),
        ("/dev/null", FailureKind::InvalidPath),
        ("dir", FailureKind::IsDirectory),
        ("dir/", FailureKind::IsDirectory),
        ("to-dir", FailureKind::IsDirectory),
        ("/", FailureKind::IsDirectory),
        ("/etc/passwd/x", FailureKind::NotDirectory),
        ("", FailureKind::InvalidPath),
        ("a\0b", FailureKind::InvalidPath),
    ] {
        assert_eq!(kind(lab.read("user", path)), expected, "read {path}");
        assert_eq!(kind(lab.write("user", path, b"x")), expected, "write {path}");
    }
    assert_eq!(kind(lab.read("user", "missing")), FailureKind::NotFound);
    let long = format!("/{}", "x/".repeat(3000));
    assert_eq!(kind(lab.read("user", &long)), FailureKind::InvalidPath);
    assert_eq!(kind(lab.read("user", &"x".repeat(300))), FailureKind::InvalidPath);
}

#[test]
fn a_fifo_with_a_reader_is_not_disturbed() {
    let lab = Lab::start();
    lab.sh("mkfifo fifo");
    let pid = lab.spawn("cat fifo");
    assert_eq!(kind(lab.write("user", "fifo", b"x")), FailureKind::InvalidPath);
    assert_eq!(kind(lab.read("user", "fifo")), FailureKind::InvalidPath);
    lab.sh("echo hello > fifo");
    assert_eq!(lab.wait(pid).stdout, "hello\n");
}

#[test]
fn links_are_followed_and_stay_links() {
    let lab = Lab::start();
    lab.sh("mkdir real; ln -s real alias; ln -s ../user/real/target link; ln -s /home/user/link again; ln -s loop loop");
    assert_eq!(lab.write("user", "again", b"through two links"), Ok(17));
    assert_eq!(lab.read("user", "alias/target"), Ok(b"through two links".to_vec()));
    assert_eq!(lab.sh("readlink link again").stdout, "../user/real/target\n/home/user/link\n");
    assert_eq!(kind(lab.write("user", "loop", b"x")), FailureKind::InvalidPath);
    assert_eq!(kind(lab.read("user", "loop")), FailureKind::InvalidPath);
    // A link is no way past rights.
    lab.root("echo s > /root/secret");
    lab.sh("ln -s /root/secret leak");
    assert_eq!(kind(lab.read("user", "leak")), FailureKind::Permission);
    assert_eq!(kind(lab.write("user", "leak", b"x")), FailureKind::Permission);
}

#[test]
fn init_itself_cannot_be_read_or_written() {
    let lab = Lab::start();
    lab.sh("for name in environ mem maps fd/0 fd/3 exe root/etc/passwd cwd/etc/passwd task/1/environ; do \
        ln -s /proc/self/$name self-$(echo $name | tr / -); ln -s /proc/1/$name one-$(echo $name | tr / -); done");
    let links = lab.sh("ls").stdout;
    assert!(links.lines().count() > 10);
    for link in links.lines() {
        for user in ["user", "root"] {
            let path = format!("/home/user/{link}");
            assert!(lab.read(user, &path).is_err(), "{user} reads {link}");
            assert!(lab.write(user, &path, b"x").is_err(), "{user} writes {link}");
        }
    }
    for path in ["/proc/self", "/proc/1", "/proc/self/fd", "/proc/thread-self/fd"] {
        assert!(lab.list("root", path, 1).is_err(), "{path}");
    }
    for path in ["/proc/self/oom_score_adj", "/proc/sys/kernel/hostname"] {
        assert_eq!(kind(lab.write("root", path, b"1")), FailureKind::Permission, "{path}");
    }
    assert!(
        lab.read("user", "/proc/meminfo").unwrap().starts_with(b"MemTotal"),
        "the rest of procfs is readable"
    );
    assert_eq!(lab.request(Request::Ping).next(), InitFrame::Done);
}
