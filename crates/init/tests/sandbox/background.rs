use init_protocol::{ByteBuf, Exec, FailureKind, InitFrame, KEPT_COMMANDS, KEPT_OUTPUT, Request};

use crate::lab::{Client, Lab, eventually};

fn failure(mut client: Client) -> FailureKind {
    client.failure().kind
}

#[test]
fn a_background_command_outlives_its_connection_and_can_be_waited_for_twice() {
    let lab = Lab::start();
    let pid = lab.spawn("read line; echo got $line; echo err >&2; exit 9");
    assert_eq!(lab.request(Request::Stdin { pid, data: ByteBuf::from(*b"it\n") }).next(), InitFrame::Done);
    for _ in 0..2 {
        let outcome = lab.wait(pid);
        assert_eq!(
            (outcome.stdout.as_str(), outcome.stderr.as_str(), outcome.exit.code),
            ("got it\n", "err\n", 9)
        );
        assert!(!outcome.exit.stdout_truncated && !outcome.exit.timed_out);
    }
}

#[test]
fn several_can_wait_at_a_time_and_one_that_leaves_changes_nothing() {
    let lab = Lab::start();
    let pid = lab.spawn("cat");
    let mut first = lab.request(Request::Wait { pid });
    drop(lab.request(Request::Wait { pid }));
    let mut second = lab.request(Request::Wait { pid });
    assert_eq!(lab.request(Request::Stdin { pid, data: ByteBuf::from(*b"x") }).next(), InitFrame::Done);
    assert_eq!(lab.request(Request::CloseStdin { pid }).next(), InitFrame::Done);
    assert_eq!((first.outcome().stdout, second.outcome().stdout), ("x".to_owned(), "x".to_owned()));
}

#[test]
fn running_commands_are_listed_with_what_they_were_given() {
    let lab = Lab::start();
    let list = || {
        let mut client = lab.request(Request::Commands);
        let mut commands = Vec::new();
        loop {
            match client.next() {
                InitFrame::Command(command) => commands.push(command),
                InitFrame::Done => return commands,
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(list(), []);
    let exec = Exec {
        command: "sleep 1000".into(),
        envs: [("A".to_owned(), "b".to_owned())].into(),
        background: true,
        ..Exec::default()
    };
    let pid = lab.request(Request::Exec(exec.clone())).started().unwrap();
    let mut foreground = lab.request(Request::Exec(Exec { background: false, ..exec }));
    let other = foreground.started().unwrap();
    let listed = list();
    assert_eq!(
        listed.iter().map(|command| (command.pid, command.background)).collect::<Vec<_>>(),
        [(pid, true), (other, false)]
    );
    assert_eq!(listed[0].command, "sleep 1000");
    assert_eq!(listed[0].envs["A"], "b");
    assert_eq!(lab.bool(Request::Kill { pid: other }), Ok(true));
    assert_eq!(foreground.outcome().exit.signal, Some(9));
    eventually("only one is left", || list().len() == 1);
}

#[test]
fn killing_tells_whether_there_was_something_to_kill() {
    let lab = Lab::start();
    let pid = lab.spawn("sleep 1000 & sleep 1000");
    assert_eq!(lab.bool(Request::Kill { pid }), Ok(true));
    let exit = lab.wait(pid).exit;
    assert_eq!((exit.code, exit.signal, exit.timed_out), (137, Some(9), false));
    assert_eq!(lab.bool(Request::Kill { pid }), Ok(false));
    for stranger in [1, 0, 99_999, u32::MAX] {
        assert_eq!(lab.bool(Request::Kill { pid: stranger }), Ok(false), "{stranger}");
    }
    assert!(!lab.lives("sleep"));
}

#[test]
fn a_command_is_killed_once_even_if_it_is_not_reaped_yet() {
    let lab = Lab::start();
    for _ in 0..20 {
        // Its end is noticed by a thread of its own, some time after the kill.
        let pid = lab.spawn("sleep 1000 & sleep 1000 & sleep 1000");
        assert_eq!(lab.bool(Request::Kill { pid }), Ok(true));
        assert_eq!(lab.bool(Request::Kill { pid }), Ok(false));
        assert_eq!(lab.wait(pid).exit.signal, Some(9));
    }
}

#[test]
fn requests_about_unknown_commands_say_so() {
    let lab = Lab::start();
    let pid = 4711;
    assert_eq!(failure(lab.request(Request::Wait { pid })), FailureKind::NoSuchCommand);
    assert_eq!(failure(lab.request(Request::CloseStdin { pid })), FailureKind::NoSuchCommand);
    assert_eq!(
        failure(lab.request(Request::Stdin { pid, data: ByteBuf::new() })),
        FailureKind::NoSuchCommand
    );
}

#[test]
fn input_goes_only_where_there_is_a_pipe() {
    let lab = Lab::start();
    let exec = Exec { command: "sleep 1000".into(), background: true, ..Exec::default() };
    let pid = lab.request(Request::Exec(exec)).started().unwrap();
    let data = ByteBuf::from(*b"x");
    assert_eq!(failure(lab.request(Request::Stdin { pid, data: data.clone() })), FailureKind::StdinClosed);
    let pid = lab.spawn("cat; sleep 1000");
    assert_eq!(lab.request(Request::CloseStdin { pid }).next(), InitFrame::Done);
    assert_eq!(lab.request(Request::CloseStdin { pid }).next(), InitFrame::Done);
    assert_eq!(failure(lab.request(Request::Stdin { pid, data })), FailureKind::StdinClosed);
}

#[test]
fn input_larger_than_the_pipe_waits_for_its_reader() {
    let lab = Lab::start();
    let pid = lab.spawn("while ! test -e go; do sleep 0.01; done; wc -c");
    let mut writing = lab.request(Request::Stdin { pid, data: ByteBuf::from(vec![b'x'; 500_000]) });
    lab.sh("touch go");
    assert_eq!(writing.next(), InitFrame::Done);
    lab.request(Request::CloseStdin { pid }).next();
    assert_eq!(lab.wait(pid).stdout, "500000\n");
}

#[test]
fn a_timeout_holds_in_the_background_too() {
    let lab = Lab::start();
    let exec = Exec {
        command: "echo early; sleep 1000".into(),
        timeout_ms: Some(200),
        background: true,
        ..Exec::default()
    };
    let pid = lab.request(Request::Exec(exec)).started().unwrap();
    let outcome = lab.wait(pid);
    assert_eq!((outcome.stdout.as_str(), outcome.exit.code, outcome.exit.timed_out), ("early\n", 124, true));
}

#[test]
fn of_too_much_output_the_end_is_kept_and_the_loss_is_told() {
    let lab = Lab::start();
    let pid = lab.spawn(&format!("head -c {KEPT_OUTPUT} /dev/zero; echo the end; echo small >&2"));
    let outcome = lab.wait(pid);
    assert_eq!(outcome.stdout.len(), KEPT_OUTPUT);
    assert!(outcome.stdout.ends_with("the end\n"));
    assert!(outcome.exit.stdout_truncated && !outcome.exit.stderr_truncated);
}

#[test]
fn the_oldest_ended_commands_are_forgotten() {
    let lab = Lab::start();
    let pids: Vec<u32> = (0..=KEPT_COMMANDS)
        .map(|number| {
            let pid = lab.spawn(&format!("echo {number}"));
            lab.wait(pid);
            pid
        })
        .collect();
    assert_eq!(failure(lab.request(Request::Wait { pid: pids[0] })), FailureKind::NoSuchCommand);
    assert_eq!(lab.wait(pids[1]).stdout, "1\n");
    assert_eq!(lab.wait(pids[KEPT_COMMANDS]).stdout, format!("{KEPT_COMMANDS}\n"));
}
