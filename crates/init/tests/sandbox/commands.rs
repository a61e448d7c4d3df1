use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use init_protocol::{ByteBuf, ClientFrame, Exec, FailureKind, InitFrame, MAX_COMMAND, Request, Stream};

use crate::lab::{Lab, PATIENCE, eventually, kind};

fn command(line: &str) -> Exec {
    Exec { command: line.into(), ..Exec::default() }
}

fn envs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn a_command_gives_its_output_by_stream_and_its_exit_code() {
    let lab = Lab::start();
    let outcome = lab.sh("echo out; echo err >&2; exit 7");
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!((outcome.exit.code, outcome.exit.signal, outcome.exit.timed_out), (7, None, false));
    assert_eq!(lab.sh("no-such-program").exit.code, 127);
    let killed = lab.sh("kill -9 $$").exit;
    assert_eq!((killed.code, killed.signal), (137, Some(9)));
}

#[test]
fn a_command_runs_as_its_user_in_their_home() {
    let lab = Lab::start();
    assert_eq!(lab.sh("id -u; id -g; id -G; pwd").stdout, "1000\n1000\n1000 2000\n/home/user\n");
    assert_eq!(lab.root("id -u; pwd"), "0\n/root\n");
    let homeless = Exec { user: Some("homeless".into()), ..command("pwd; echo $HOME") };
    assert_eq!(lab.exec(homeless).stdout, "/\n/nowhere\n");
    let nobody = Exec { user: Some("mallory".into()), ..command("true") };
    assert_eq!(kind(lab.try_exec(nobody)), FailureKind::UnknownUser);
}

#[test]
fn the_working_directory_can_be_chosen_and_a_missing_one_is_named() {
    let lab = Lab::start();
    lab.sh("mkdir work");
    let at = |cwd: &str| lab.try_exec(Exec { cwd: Some(cwd.into()), ..command("pwd") });
    assert_eq!(at("/usr/bin").unwrap().stdout, "/usr/bin\n");
    assert_eq!(at("work").unwrap().stdout, "/home/user/work\n");
    let missing = at("/no/where").unwrap_err();
    assert_eq!(missing.kind, FailureKind::NotFound);
    assert!(missing.message.contains("/no/where"), "{missing}");
    assert_eq!(kind(at("/root")), FailureKind::Permission, "not the user's to enter");
    assert_eq!(kind(at("/etc/passwd")), FailureKind::NotDirectory);
    assert_eq!(kind(at("")), FailureKind::InvalidPath);
}

#[test]
fn the_environment_is_the_sandboxs_and_the_commands_and_nothing_of_the_machines() {
    let lab = Lab::start_with(envs(&[("A", "sandbox"), ("B", "sandbox")]));
    let outcome =
        lab.exec(Exec { envs: envs(&[("B", "command"), ("C", "a=b\nc")]), ..command("env -0 | sort -z") });
    let seen: Vec<&str> = outcome.stdout.split_terminator('\0').collect();
    assert_eq!(
        seen,
        [
            "A=sandbox",
            "B=command",
            "C=a=b\nc",
            "DECLAW_SANDBOX=true",
            "DECLAW_SANDBOX_ID=sbx-test0001",
            "HOME=/home/user",
            "LOGNAME=user",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PWD=/home/user",
            "SHELL=/bin/sh",
            "USER=user",
        ]
    );
    let configure = init_protocol::Configure { sandbox_id: "sbx-other".into(), envs: envs(&[("A", "new")]) };
    assert_eq!(lab.request(Request::Configure(configure)).next(), InitFrame::Done);
    assert_eq!(lab.sh("echo $A $B $DECLAW_SANDBOX_ID").stdout, "new sbx-other\n");
}

#[test]
fn what_cannot_be_a_command_or_a_variable_is_refused() {
    let lab = Lab::start();
    assert_eq!(kind(lab.try_exec(command("echo \0"))), FailureKind::BadRequest);
    assert_eq!(
        kind(lab.try_exec(Exec { envs: envs(&[("A=B", "c")]), ..command("true") })),
        FailureKind::BadRequest
    );
    assert_eq!(
        kind(lab.try_exec(Exec { envs: envs(&[("", "c")]), ..command("true") })),
        FailureKind::BadRequest
    );
    assert_eq!(
        kind(lab.try_exec(Exec { envs: envs(&[("A", "\0")]), ..command("true") })),
        FailureKind::BadRequest
    );
    let longest = format!("true {}", "x".repeat(MAX_COMMAND - 5));
    assert_eq!(lab.sh(&longest).exit.code, 0);
    assert_eq!(kind(lab.try_exec(command(&format!("{longest}x")))), FailureKind::TooLarge);
}

#[test]
fn standard_input_is_what_is_sent_or_nothing() {
    let lab = Lab::start();
    assert_eq!(lab.sh("wc -c; readlink /proc/self/fd/0").stdout, "0\n/dev/null\n");
    let mut client = lab.request(Request::Exec(Exec { stdin: true, ..command("cat; echo end") }));
    client.started().unwrap();
    client.send(&ClientFrame::Stdin(ByteBuf::from(*b"hello ")));
    client.send(&ClientFrame::Stdin(ByteBuf::from(*b"world\n")));
    client.send(&ClientFrame::CloseStdin);
    assert_eq!(client.outcome().stdout, "hello world\nend\n");
}

#[test]
fn input_and_output_larger_than_every_buffer_pass_at_the_same_time() {
    let lab = Lab::start();
    let mut client = lab.request(Request::Exec(Exec { stdin: true, ..command("cat") }));
    client.started().unwrap();
    let mut sender = client.sender();
    let input: Vec<u8> = (0..8u32 << 20).map(|index| (index % 251) as u8).collect();
    let sent = input.clone();
    let sending = std::thread::spawn(move || {
        for chunk in sent.chunks(100_000) {
            sender.send(&ClientFrame::Stdin(ByteBuf::from(chunk)));
        }
        sender.send(&ClientFrame::CloseStdin);
    });
    let mut received = Vec::new();
    loop {
        match client.next() {
            InitFrame::Output { stream: Stream::Stdout, data } => received.extend(data.into_vec()),
            InitFrame::Exit(exit) => break assert_eq!(exit.code, 0),
            other => panic!("{other:?}"),
        }
    }
    sending.join().unwrap();
    assert!(received == input, "{} bytes of {}", received.len(), input.len());
}

#[test]
fn input_nobody_reads_does_not_hold_up_the_end() {
    let lab = Lab::start();
    let mut client = lab.request(Request::Exec(Exec { stdin: true, ..command("exec 0<&-; echo done") }));
    for _ in 0..20 {
        // Fails when the command has ended before: then there is an end to read.
        let _ = client.try_send(&ClientFrame::Stdin(ByteBuf::from(vec![0; 60_000])));
    }
    client.started().unwrap();
    assert_eq!(client.outcome().stdout, "done\n");
}

#[test]
fn a_client_that_does_not_read_makes_the_command_wait_and_not_init_grow() {
    let lab = Lab::start();
    let before = lab.init_memory("VmRSS");
    let mut client = lab.request(Request::Exec(command("head -c 50000000 /dev/zero; echo done > finished")));
    client.started().unwrap();
    // Two more commands go through meanwhile: nothing but this one waits.
    let grown = lab.init_memory("VmRSS").saturating_sub(before);
    assert!(grown < 4096, "{grown} KiB");
    assert_eq!(lab.sh("test -e finished").exit.code, 1);
    let mut received = 0;
    loop {
        match client.next() {
            InitFrame::Output { data, .. } => received += data.len(),
            InitFrame::Exit(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(received, 50_000_000);
    assert_eq!(lab.sh("cat finished").stdout, "done\n");
}

#[test]
fn a_timeout_kills_the_whole_session_and_keeps_the_output() {
    let lab = Lab::start();
    let line = "cp /bin/sleep /tmp/sleeper; echo before; /tmp/sleeper 1000 & (setsid /tmp/sleeper 1000 &) ; \
        setsid /tmp/sleeper 1000 & sh -c '/tmp/sleeper 1000; echo never'";
    let began = Instant::now();
    let outcome = lab.exec(Exec { timeout_ms: Some(1500), ..command(line) });
    assert!(began.elapsed() >= Duration::from_millis(1500) && began.elapsed() < PATIENCE);
    assert_eq!((outcome.stdout.as_str(), outcome.exit.code, outcome.exit.timed_out), ("before\n", 124, true));
    // One of the four had cut the tie to its parent and left the session: a daemon, which may stay.
    let left = lab.sh("grep -lx sleeper /proc/[0-9]*/comm | wc -l").stdout;
    assert_eq!(left, "1\n");
}

#[test]
fn a_command_in_time_is_not_touched() {
    let lab = Lab::start();
    let outcome = lab.exec(Exec { timeout_ms: Some(60_000), ..command("echo fine") });
    assert_eq!((outcome.stdout.as_str(), outcome.exit.code, outcome.exit.timed_out), ("fine\n", 0, false));
    let endless = lab.exec(Exec { timeout_ms: Some(u64::MAX), ..command("true") });
    assert_eq!(endless.exit.code, 0);
}

#[test]
fn a_process_left_behind_does_not_hold_up_the_end_and_lives_on() {
    let lab = Lab::start();
    lab.sh("cp /bin/sleep /tmp/server");
    let began = Instant::now();
    let outcome = lab.sh("/tmp/server 1000 & echo started");
    assert_eq!((outcome.stdout.as_str(), outcome.exit.code), ("started\n", 0));
    assert!(began.elapsed() < PATIENCE);
    assert!(lab.lives("server"));
}

#[test]
fn a_process_left_behind_survives_writing_to_where_nobody_listens() {
    let lab = Lab::start();
    let line =
        "(while ! test -e go; do sleep 0.01; done; echo late; echo late; echo late > written) & echo started";
    assert_eq!(lab.sh(line).stdout, "started\n");
    lab.sh("touch go");
    eventually("the process goes on after its output", || lab.sh("cat written").stdout == "late\n");
}

#[test]
fn output_written_just_before_the_end_is_not_lost() {
    let lab = Lab::start();
    for _ in 0..20 {
        let outcome = lab.sh("head -c 65536 /dev/zero; head -c 1000 /dev/zero >&2; exit 3");
        assert_eq!((outcome.stdout.len(), outcome.stderr.len(), outcome.exit.code), (65536, 1000, 3));
    }
}

#[test]
fn closing_the_connection_kills_the_command() {
    let lab = Lab::start();
    lab.sh("cp /bin/sleep /tmp/sleeper");
    let mut client = lab.request(Request::Exec(command("/tmp/sleeper 1000 & /tmp/sleeper 1000")));
    client.started().unwrap();
    eventually("the command runs", || lab.lives("sleeper"));
    drop(client);
    eventually("the command is gone", || !lab.lives("sleeper"));
}

#[test]
fn a_signal_reaches_the_process_group() {
    let lab = Lab::start();
    let line = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.02; done";
    let mut client = lab.request(Request::Exec(command(line)));
    client.started().unwrap();
    assert!(matches!(client.next(), InitFrame::Output { .. }));
    client.send(&ClientFrame::Signal(15));
    let outcome = client.outcome();
    assert_eq!((outcome.stdout.as_str(), outcome.exit.code), ("caught\n", 5));
    let mut client = lab.request(Request::Exec(command("sleep 1000")));
    client.started().unwrap();
    client.send(&ClientFrame::Signal(4711));
    assert_eq!(client.failure().kind, FailureKind::BadRequest);
}

#[test]
fn orphans_are_reaped() {
    let lab = Lab::start();
    lab.sh("for i in 1 2 3 4 5 6 7 8; do (sleep 0.0$i &) ; done");
    eventually("no zombie is left", || {
        lab.sh("grep -l '^State:.Z' /proc/[0-9]*/status | wc -l").stdout == "0\n"
    });
}

#[test]
fn a_user_can_open_their_output_again_by_name() {
    let lab = Lab::start();
    let outcome = lab.sh("echo a > /dev/stdout; echo b > /dev/stderr");
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("a\n", "b\n"));
}

#[test]
fn many_commands_at_a_time_do_not_mix_up_their_ends() {
    let lab = Lab::start();
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let lab = &lab;
            scope.spawn(move || {
                for round in 0..25 {
                    let code = (worker * 25 + round) % 256;
                    let outcome = lab.sh(&format!("echo {code}; exit {code}"));
                    assert_eq!((outcome.stdout, outcome.exit.code), (format!("{code}\n"), code));
                }
            });
        }
    });
}
