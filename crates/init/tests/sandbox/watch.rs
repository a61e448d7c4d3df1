use init_protocol::{Change, ChangeKind, FailureKind, InitFrame, MAX_WATCHED, Request};

use crate::lab::{Client, Lab, target};

fn watch(lab: &Lab, path: &str, recursive: bool) -> Client {
    let mut client = lab.request(Request::Watch { target: target("user", path), recursive });
    assert_eq!(client.next(), InitFrame::Watching);
    client
}

/// Reads until something is told of a path.
fn until(client: &mut Client, wanted: &str) -> Vec<Change> {
    let mut seen = Vec::new();
    loop {
        match client.next() {
            InitFrame::Change(change) => {
                let last = change.path == wanted;
                seen.push(change);
                if last {
                    return seen;
                }
            }
            other => panic!("{other:?} after {seen:?}"),
        }
    }
}

#[test]
fn changes_are_told_where_it_was_asked_and_below_only_if_that_was_asked() {
    let lab = Lab::start();
    lab.sh("mkdir -p /tmp/w/below");
    let (mut flat, mut deep) = (watch(&lab, "/tmp/w", false), watch(&lab, "/tmp/w", true));
    lab.sh("mkdir -p /tmp/w/below/new; echo x > /tmp/w/below/new/f; echo x > /tmp/w/end");
    let shown = until(&mut deep, "/tmp/w/below/new");
    assert!(shown.iter().all(|change| change.kind == ChangeKind::Create && change.directory), "{shown:?}");
    until(&mut deep, "/tmp/w/below/new/f");
    let shown = until(&mut flat, "/tmp/w/end");
    let file = Change { kind: ChangeKind::Create, path: "/tmp/w/end".to_owned(), directory: false };
    let below = shown.iter().filter(|change| change.path.starts_with("/tmp/w/below/"));
    assert_eq!((below.count(), shown.last()), (0, Some(&file)));
    lab.sh("rm -r /tmp/w");
    while !matches!(flat.next(), InitFrame::End) {}
}

#[test]
fn a_user_watches_only_what_they_may_read_and_nobody_inits_own_files() {
    let lab = Lab::start();
    lab.root("mkdir -m 700 /tmp/secret");
    let refused = |user: &str, path: &str| {
        lab.request(Request::Watch { target: target(user, path), recursive: true }).failure().kind
    };
    assert_eq!(refused("user", "/tmp/secret"), FailureKind::Permission);
    assert_eq!(refused("root", "/proc/1/fd"), FailureKind::Permission);
    assert_eq!(refused("user", "/no/such"), FailureKind::NotFound);
    assert_eq!(refused("user", "/etc/passwd"), FailureKind::NotDirectory);
    let many = MAX_WATCHED + 1;
    lab.sh(&format!("mkdir /tmp/many; cd /tmp/many; seq {many} | xargs mkdir"));
    assert_eq!(refused("user", "/tmp/many"), FailureKind::TooLarge);
    let mut secret = lab.request(Request::Watch { target: target("root", "/tmp/secret"), recursive: true });
    assert_eq!(secret.next(), InitFrame::Watching);
}
