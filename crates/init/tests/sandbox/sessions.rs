use init_protocol::{
    ByteBuf, Exec, Exit, Failure, FailureKind, FollowFrom, InitFrame, KEPT_OUTPUT, KEPT_SESSION, Request,
    Session, Stream, TerminalSize,
};

use crate::lab::{Client, Lab, eventually};

const SIZE: TerminalSize = TerminalSize { columns: 91, rows: 17 };

fn start(lab: &Lab, command: &str, terminal: Option<TerminalSize>) -> u32 {
    let exec = Exec { command: command.into(), ..Exec::default() };
    lab.request(Request::Session(Session { exec, terminal })).started().unwrap()
}

fn follow(lab: &Lab, pid: u32, from: FollowFrom) -> Client {
    let mut client = lab.request(Request::Follow { pid, from });
    assert_eq!(client.started().unwrap(), pid);
    client
}

fn refused(lab: &Lab, request: Request) -> FailureKind {
    let Failure { kind, .. } = lab.request(request).failure();
    kind
}

fn say(lab: &Lab, pid: u32, text: &[u8]) {
    assert_eq!(lab.request(Request::Stdin { pid, data: ByteBuf::from(text) }).next(), InitFrame::Done);
}

/// Reads until the text has been put out.
fn until(client: &mut Client, text: &str) -> String {
    let mut seen = Vec::new();
    loop {
        match client.next() {
            InitFrame::Piece { data, .. } => seen.extend(data.into_vec()),
            other => panic!("{other:?} after {}", String::from_utf8_lossy(&seen)),
        }
        let text_so_far = String::from_utf8_lossy(&seen);
        if text_so_far.contains(text) {
            return text_so_far.into_owned();
        }
    }
}

/// Everything to the end: the pieces' numbers, both streams, the exit.
fn rest(client: &mut Client) -> (Vec<u64>, Vec<u8>, Vec<u8>, Exit) {
    let (mut ids, mut out, mut err) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        match client.next() {
            InitFrame::Piece { id, stream, data } => {
                ids.push(id);
                if stream == Stream::Stdout { &mut out } else { &mut err }.extend(data.into_vec());
            }
            InitFrame::Exit(exit) => return (ids, out, err, exit),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn output_is_kept_in_order_from_the_start_and_can_be_read_again_after_the_end() {
    let lab = Lab::start();
    let pid = start(&lab, "echo one; read a; echo two >&2; read b; echo three; exit 5", None);
    let mut first = follow(&lab, pid, FollowFrom::Piece(0));
    until(&mut first, "one");
    say(&lab, pid, b"\n");
    until(&mut first, "two");
    say(&lab, pid, b"\n");
    let (ids, out, _, exit) = rest(&mut first);
    assert_eq!((ids, out.as_slice(), exit.code), (vec![3], b"three\n".as_slice(), 5));
    for (after, numbers, stdout, stderr) in [
        (0, vec![1, 2, 3], "one\nthree\n", "two\n"),
        (1, vec![2, 3], "three\n", "two\n"),
        (3, vec![], "", ""),
    ] {
        let (ids, out, err, exit) = rest(&mut follow(&lab, pid, FollowFrom::Piece(after)));
        assert_eq!((ids, exit.code), (numbers, 5));
        assert_eq!((out.as_slice(), err.as_slice()), (stdout.as_bytes(), stderr.as_bytes()));
    }
    assert_eq!(lab.request(Request::CloseStdin { pid }).next(), InitFrame::Done);
}

#[test]
fn a_reader_that_stands_still_holds_up_a_session_and_one_that_leaves_or_reads_lets_it_go_on() {
    let lab = Lab::start();
    let much = KEPT_SESSION * 2;
    let pid = start(&lab, &format!("head -c {much} /dev/zero; echo over >&2; read end"), None);
    let mut still = follow(&lab, pid, FollowFrom::Piece(0));
    let (mut seen, mut is_over) = (0, false);
    // Each stream is in order, and not the two together.
    while seen < much || !is_over {
        match still.next() {
            InitFrame::Piece { stream: Stream::Stderr, .. } => is_over = true,
            InitFrame::Piece { data, .. } => seen += data.len(),
            other => panic!("{other:?} after {seen} bytes"),
        }
    }
    assert_eq!(seen, much, "one that reads gets all of it, however much it is");
    say(&lab, pid, b"\n");
    assert_eq!(rest(&mut still).3.code, 0);

    let pid = start(&lab, &format!("head -c {much} /dev/zero; echo over > /tmp/over; read end"), None);
    let still = follow(&lab, pid, FollowFrom::Piece(0));
    assert_eq!(lab.sh("cat /tmp/over").exit.code, 1, "nobody takes what it puts out");
    drop(still);
    eventually("the session goes on", || lab.sh("cat /tmp/over").exit.code == 0);
    say(&lab, pid, b"\n");
    let (ids, out, _, _) = rest(&mut follow(&lab, pid, FollowFrom::Piece(0)));
    assert!(ids.first() > Some(&1) && out.len() < KEPT_SESSION, "the oldest is gone, and its number tells");
}

#[test]
fn waiting_for_a_session_gives_its_output_and_its_end_and_takes_nothing_from_who_follows() {
    let lab = Lab::start();
    let pid = start(&lab, "echo one; echo two >&2; read a; echo three; exit 5", None);
    let mut waiting = lab.request(Request::Wait { pid });
    say(&lab, pid, b"\n");
    let outcome = waiting.outcome();
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("one\nthree\n", "two\n"));
    assert_eq!((outcome.exit.code, outcome.exit.stdout_truncated), (5, false));
    assert_eq!(rest(&mut follow(&lab, pid, FollowFrom::Piece(0))).1, b"one\nthree\n");
    let terminal = start(&lab, "echo seen; exit 6", Some(SIZE));
    let outcome = lab.wait(terminal);
    assert_eq!((outcome.stdout.as_str(), outcome.exit.code), ("seen\r\n", 6));
    let long = start(&lab, &format!("head -c {KEPT_OUTPUT} /dev/zero; echo end"), None);
    let outcome = lab.wait(long);
    assert_eq!((outcome.stdout.len(), outcome.stdout.ends_with("end\n")), (KEPT_OUTPUT, true));
    assert!(outcome.exit.stdout_truncated && !outcome.exit.stderr_truncated);
}

#[test]
fn a_session_for_which_there_are_no_descriptors_is_refused_and_leaves_no_process() {
    let lab = Lab::start();
    for terminal in [None, Some(SIZE)] {
        let exec = Exec { command: "exec sleep 1000".into(), ..Exec::default() };
        let session = Request::Session(Session { exec, terminal });
        let mut refusals = 0;
        // One for the connection.
        for more in 2.. {
            lab.limit_descriptors(Some(more));
            let mut client = lab.request(session.clone());
            let answer = client.next();
            drop(client);
            lab.limit_descriptors(None);
            match answer {
                InitFrame::Failed(_) => {
                    refusals += 1;
                    assert!(!lab.lives("sleep"), "{more} descriptors, {terminal:?}");
                }
                InitFrame::Started { pid } => {
                    assert!(lab.bool(Request::Kill { pid }).unwrap());
                    eventually("it has ended", || !lab.lives("sleep"));
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(refusals > 2);
    }
}

#[test]
fn a_terminal_is_one_with_its_size_and_resizing_is_told_to_its_programs() {
    let lab = Lab::start();
    let command = "trap 'go=1' WINCH; tty; stty size; echo ready; while [ -z $go ]; do sleep 0.01; done; stty size; while read line; do echo got $line; done";
    let pid = start(&lab, command, Some(SIZE));
    let mut watcher = follow(&lab, pid, FollowFrom::Now);
    let begun = until(&mut watcher, "ready");
    assert!(begun.contains("/dev/pts/") && begun.contains("17 91"), "{begun}");
    let size = TerminalSize { columns: 132, rows: 50 };
    assert_eq!(lab.request(Request::Resize { pid, size }).next(), InitFrame::Done);
    until(&mut watcher, "50 132");
    say(&lab, pid, b"hello\n");
    let echoed = until(&mut watcher, "got hello");
    assert!(echoed.contains("hello\r\ngot hello"), "what is typed is shown: {echoed:?}");
    say(&lab, pid, b"\x03");
    assert_eq!(rest(&mut watcher).3.signal, Some(2), "typing ^C is the signal");
}

#[test]
fn several_watch_a_terminal_and_what_nobody_saw_waits_for_the_next() {
    let lab = Lab::start();
    let pid = start(&lab, "stty -echo; echo first; while read line; do echo $line; done; exit 3", Some(SIZE));
    let threads = || lab.root("ls /proc/1/task | wc -l");
    let unwatched = threads();
    let mut one = follow(&lab, pid, FollowFrom::Now);
    until(&mut one, "first");
    let mut two = follow(&lab, pid, FollowFrom::Now);
    say(&lab, pid, b"both\n");
    until(&mut one, "both");
    assert_eq!(until(&mut two, "both"), "both\r\n", "only what came after it did");
    drop((one, two));
    eventually("both are gone", || threads() == unwatched);
    say(&lab, pid, b"unseen\n");
    let mut again = follow(&lab, pid, FollowFrom::Now);
    assert_eq!(until(&mut again, "unseen"), "unseen\r\n");
    say(&lab, pid, b"\x04");
    assert_eq!(rest(&mut again).3.code, 3);
}

#[test]
fn what_is_no_session_or_no_terminal_cannot_be_followed_or_resized() {
    let lab = Lab::start();
    let pipes = start(&lab, "read end", None);
    let terminal = start(&lab, "read end", Some(SIZE));
    let plain = lab.spawn("read end");
    for pid in [plain, terminal, 4242] {
        let refusal = refused(&lab, Request::Follow { pid, from: FollowFrom::Piece(0) });
        assert_eq!(refusal, FailureKind::NoSuchCommand);
    }
    for pid in [plain, pipes, 4242] {
        assert_eq!(refused(&lab, Request::Follow { pid, from: FollowFrom::Now }), FailureKind::NoSuchCommand);
        assert_eq!(refused(&lab, Request::Resize { pid, size: SIZE }), FailureKind::NoSuchCommand);
    }
    let none = TerminalSize { columns: 0, rows: 1 };
    assert_eq!(refused(&lab, Request::Resize { pid: terminal, size: none }), FailureKind::BadRequest);
    let session = Session { exec: Exec { command: "true".into(), ..Exec::default() }, terminal: Some(none) };
    assert_eq!(refused(&lab, Request::Session(session)), FailureKind::BadRequest);
    for pid in [pipes, terminal, plain] {
        assert!(lab.bool(Request::Kill { pid }).unwrap());
    }
    assert_eq!(rest(&mut follow(&lab, terminal, FollowFrom::Now)).3.code, 137);
}
