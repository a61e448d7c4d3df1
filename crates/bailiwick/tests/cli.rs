//! The program as its users see it: what it prints, and its exit codes.

#![expect(
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test: it starts the program, says why it skips, and fails by panicking"
)]

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

fn bailiwick(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bailiwick"))
        .args(arguments)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether sandboxes can be run here. With `STRICT=1` they must.
fn can_run_sandboxes() -> bool {
    let can = rustix::process::geteuid().is_root()
        && Path::new(env!("CARGO_BIN_EXE_bailiwick")).with_file_name("bailiwick-init").exists();
    if !can {
        assert!(std::env::var_os("STRICT").is_none(), "needs root, and bailiwick-init beside bailiwick");
        println!("SKIP: needs root, and bailiwick-init beside bailiwick");
    }
    can
}

/// `bailiwick run` with a data directory of its own.
fn run(arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let mut all = vec!["--data-dir", data.to_str().unwrap(), "run", "--dns", "127.0.0.1:9"];
    all.extend(arguments);
    bailiwick(&all)
}

#[test]
fn explain_says_the_verdict_with_its_rule_and_exits_accordingly() {
    let permitted =
        bailiwick(&["policy", "explain", "--allow-out", "*.openai.com:443", "api.openai.com:443"]);
    assert_eq!(permitted.status.code(), Some(0));
    assert!(text(&permitted.stdout).contains("allow_out[0] *.openai.com:443"), "{}", text(&permitted.stdout));
    let refused =
        bailiwick(&["policy", "explain", "--allow-out", "*.openai.com:443", "openai.com:443", "--json"]);
    assert_eq!(refused.status.code(), Some(3));
    let verdict: serde_json::Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!((&verdict["decision"], &verdict["reason"]), (&"deny".into(), &"default_deny".into()));
}

#[test]
fn explain_names_the_entry_that_is_wrong() {
    let bad =
        bailiwick(&["policy", "explain", "--allow-out", "ok.example.com", "--allow-out", "*.com", "x:1"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(text(&bad.stderr).contains("allow_out[1]"), "{}", text(&bad.stderr));
    assert_eq!(bailiwick(&["policy", "explain", "a b:443"]).status.code(), Some(2));
    assert_eq!(bailiwick(&["policy", "explain"]).status.code(), Some(2));
}

#[test]
fn the_command_gets_its_streams_and_gives_its_exit_code() {
    if !can_run_sandboxes() {
        return;
    }
    let done = run(&["--deny-out", "*", "--env", "WORD=here", "--", "echo out $WORD; echo err >&2; exit 7"]);
    assert_eq!(done.status.code(), Some(7), "{}", text(&done.stderr));
    assert_eq!(text(&done.stdout), "out here\n");
    assert_eq!(text(&done.stderr), "err\n");
    assert_eq!(run(&["--", "no-such-program"]).status.code(), Some(127));
    assert_eq!(run(&["--timeout", "0.2", "--", "sleep", "60"]).status.code(), Some(124));
}

#[test]
fn what_was_refused_is_summed_up_in_one_line() {
    if !can_run_sandboxes() {
        return;
    }
    let attempt = "exec 2>/dev/null; exec 3<>/dev/tcp/1.1.1.1/443";
    let done = run(&["--allow-out", "api.github.com", "--", "bash", "-c", attempt]);
    let lines: Vec<String> = text(&done.stderr).lines().map(str::to_owned).collect();
    assert_eq!(lines, ["bailiwick: refused 1: tcp 1.1.1.1:443 (default)"]);
    let done = run(&["--json", "--allow-out", "api.github.com", "--", "bash", "-c", attempt]);
    let events: Vec<serde_json::Value> =
        text(&done.stderr).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.iter().filter(|event| event["type"] == "egress_blocked").count(), 1);
}

#[test]
fn a_directory_of_the_machine_can_be_shown_read_only() {
    if !can_run_sandboxes() {
        return;
    }
    let shared = tempfile::tempdir().unwrap();
    std::fs::write(shared.path().join("file"), "content").unwrap();
    let mount = format!("{}:/data:ro", shared.path().display());
    let command = "cat /data/file; touch /data/new 2>/dev/null && echo written";
    let done = run(&["--user", "root", "--mount", &mount, "--", command]);
    assert_eq!(text(&done.stdout), "content", "{}", text(&done.stderr));
    let mount = format!("{}:/data", shared.path().display());
    let done = run(&["--user", "root", "--mount", &mount, "--", command]);
    assert_eq!(text(&done.stdout), "contentwritten\n", "{}", text(&done.stderr));
}

#[test]
fn bad_input_of_run_is_found_before_anything_is_made() {
    for bad in [
        &["--allow-out", "not a host", "--", "true"][..],
        &["--mount", "/no/such/place:/data", "--", "true"],
        &["--env", "BAILIWICK_NO_SUCH_VARIABLE", "--", "true"],
        &["--timeout", "soon", "--", "true"],
        &[],
    ] {
        assert_eq!(run(bad).status.code(), Some(2), "{bad:?}");
    }
}

#[test]
fn a_run_leaves_nothing_behind() {
    if !can_run_sandboxes() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let arguments = ["--data-dir", data.to_str().unwrap(), "run", "--deny-out", "*", "--", "true"];
    assert_eq!(bailiwick(&arguments).status.code(), Some(0));
    assert_eq!(std::fs::read_dir(data.join("runs")).unwrap().count(), 0);
}

#[test]
fn a_limit_that_is_no_limit_is_refused_by_its_name_before_anything_starts() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    let data = directory.path().join("data");
    let serve = |limits: &str, flags: &[&str]| {
        std::fs::write(&file, format!("[limits]\n{limits}\n")).unwrap();
        let files = ["--config", file.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
        bailiwick(&[&files[..], &["doctor", "--json"], flags].concat())
    };
    for (limits, flags, named) in [
        ("half_open = 0", &[][..], "limits.half_open"),
        ("flow = 1", &[], "limits.flow"),
        ("", &["--limit", "flows=many"], "--limit flows"),
    ] {
        let refused = serve(limits, flags);
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
        assert!(text(&refused.stderr).contains(named), "{}", text(&refused.stderr));
    }
    let taken = serve("half_open = 7", &["--limit", "flows=70,pids=77"]);
    assert!(text(&taken.stdout).contains("pids=77 flows=70 "), "{}", text(&taken.stdout));
    assert!(text(&taken.stdout).contains(" half_open=7 "), "{}", text(&taken.stdout));
}

#[test]
fn doctor_says_what_is_not_stopped_and_how_far_that_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let data = ["--data-dir", directory.path().to_str().unwrap(), "doctor"];
    let answer = bailiwick(&[&data[..], &["--json", "--limit", "zone_bytes=77"]].concat());
    let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert!(answer["checks"].as_array().unwrap().iter().any(|check| check["check"] == "kernel"), "{answer}");
    let limits = answer["limits"].as_array().unwrap();
    let zone = limits.iter().find(|limit| limit["id"] == "zone_names").unwrap();
    assert_eq!(zone["bounds"]["zone_bytes"], 77);
    assert_eq!(zone["applies"], "under policies with wildcards or expressions");
    let fields = ["id", "title", "applies", "detail"];
    assert!(
        limits.iter().all(|limit| fields
            .iter()
            .all(|field| limit[field].as_str().is_some_and(|text| !text.is_empty())))
    );
    assert!(text(&bailiwick(&data).stdout).contains("permitted_host"));
}
