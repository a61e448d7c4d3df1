//! `bailiwick selftest`: what it finds in a sandbox that is as it should be, and in one that is broken.

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

use netns::{Connection, LinkIndex, NetNs};
use serde_json::Value;

/// Runs a selftest on a machine of its own: when the addresses of a machine change, the gate tries the rules of all its
/// sandboxes, and one whose rules were broken on purpose is cut off before the test is over.
fn selftest(data: &Path, arguments: &[&str]) -> Output {
    let up = || Connection::open()?.bring_up(LinkIndex::LOOPBACK);
    let (machine, loopback) = NetNs::create_and(up).unwrap();
    loopback.unwrap();
    machine.run(|| on_this_machine(data, arguments)).unwrap()
}

fn on_this_machine(data: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bailiwick"))
        .arg("--data-dir")
        .arg(data)
        .arg("selftest")
        .args(arguments)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// The report and the exit code of a test under this policy.
fn tested(policy: &str, arguments: &[&str]) -> (Value, i32) {
    let (report, code, said) = tried(policy, arguments);
    (report.unwrap_or_else(|| panic!("{said}")), code)
}

/// As [`tested`], with what it said besides; without a report if it was not finished.
fn tried(policy: &str, arguments: &[&str]) -> (Option<Value>, i32, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.json");
    std::fs::write(&file, policy).unwrap();
    let mut all = vec!["--json", "--policy", file.to_str().unwrap()];
    all.extend(arguments);
    let data = directory.path().join("data");
    let done = selftest(&data, &all);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    let printed: Option<Value> = serde_json::from_slice(&done.stdout).ok();
    assert_eq!(std::fs::read_dir(data.join("runs")).unwrap().count(), 0, "it leaves nothing behind");
    (printed.map(|printed| printed["report"].clone()), done.status.code().unwrap(), said)
}

fn cases<'a>(report: &'a Value, outcome: &str) -> Vec<&'a str> {
    let cases = report["cases"].as_array().unwrap().iter();
    cases.filter(|case| case["outcome"] == outcome).map(|case| case["id"].as_str().unwrap()).collect()
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

/// On a busy machine the gate may find first what was broken, and end the sandbox.
#[track_caller]
fn assert_found_by_the_gate(code: i32, said: &str) {
    assert!(code == 1 && said.contains("the sandbox's rules do not hold"), "{code}: {said}");
}

#[track_caller]
fn assert_good(report: &Value, code: i32) {
    let wrong: Vec<&Value> = report["cases"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|case| !["held", "permitted", "skipped"].contains(&case["outcome"].as_str().unwrap()))
        .collect();
    assert!(wrong.is_empty() && code == 0, "{wrong:#?}");
}

#[test]
fn nothing_gets_out_under_the_default_policy() {
    if !can_run_sandboxes() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let done = selftest(&directory.path().join("data"), &[]);
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(done.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&done.stderr));
    assert!(text.contains("Nothing got out that the policy does not permit."), "{text}");
    assert!(!text.contains('\u{1b}') && done.stderr.is_empty(), "{text}");
    for attack in ["A1 ", "B33", "C56", "E106", "F117", "G138", "G150", "H159"] {
        assert!(text.lines().any(|line| line.contains(attack) && line.contains("held")), "{attack}: {text}");
    }
}

#[test]
fn what_an_open_policy_permits_is_no_hole() {
    if !can_run_sandboxes() {
        return;
    }
    let (report, code) = tested("{}", &[]);
    assert_good(&report, code);
    let permitted = cases(&report, "permitted");
    for attack in ["A1", "A7", "E106", "F117"] {
        assert!(permitted.contains(&attack), "{attack}: {permitted:?}");
    }
    // Some things no policy permits.
    assert!(cases(&report, "held").contains(&"G138"));
}

#[test]
fn policies_of_addresses_of_denied_names_and_of_nothing_hold() {
    if !can_run_sandboxes() {
        return;
    }
    for policy in [
        r#"{"allow_out": ["104.16.0.0/16", "2606:4700::/32", "*.example.com:443"], "deny_out": ["*"]}"#,
        r#"{"deny_out": ["evil.example.com"]}"#,
        r#"{"deny_out": ["0.0.0.0/0"]}"#,
    ] {
        let (report, code) = tested(policy, &[]);
        assert_good(&report, code);
    }
}

#[test]
fn a_wire_past_the_gate_is_found() {
    if !can_run_sandboxes() {
        return;
    }
    let policy = r#"{"allow_out": ["api.example.com"]}"#;
    let (report, code, said) =
        tried(policy, &["--sabotage", "wire", "--only", "destinations", "--only", "E"]);
    if let Some(report) = report {
        assert_eq!((code, &report["sabotage"]), (1, &"wire".into()));
        let holes = cases(&report, "hole");
        for attack in ["A1", "A4", "A7", "A134", "E106", "E107"] {
            assert!(holes.contains(&attack), "{attack}: {report:#}");
        }
    } else {
        assert_found_by_the_gate(code, &said);
    }
    // The twin, with nothing broken.
    let (report, code) = tested(policy, &["--only", "destinations", "--only", "E"]);
    assert_good(&report, code);
}

#[test]
fn without_its_rules_a_sandbox_without_a_wire_reaches_nothing_and_that_is_found_too() {
    if !can_run_sandboxes() {
        return;
    }
    let policy = r#"{"allow_out": ["api.example.com"]}"#;
    let (report, code, said) = tried(policy, &["--sabotage", "rules", "--only", "dns"]);
    let Some(report) = report else { return assert_found_by_the_gate(code, &said) };
    assert_eq!((code, cases(&report, "hole").len()), (1, 0), "{report:#}");
    assert!(cases(&report, "falsely_blocked").contains(&"F0"), "{report:#}");
}

#[test]
fn a_report_is_signed_and_a_changed_one_is_found() {
    if !can_run_sandboxes() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (data, file) = (directory.path().join("data"), directory.path().join("report.json"));
    let path = file.to_str().unwrap();
    let done = selftest(&data, &["--only", "dns", "--output", path]);
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    let verify = |data: &Path, arguments: &[&str]| {
        let mut all = vec!["verify", path];
        all.extend(arguments);
        let done = selftest(data, &all);
        (done.status.code().unwrap(), String::from_utf8_lossy(&done.stdout).into_owned())
    };
    let (code, said) = verify(&data, &[]);
    assert!(code == 0 && said.starts_with("genuine") && said.contains("Nothing got out"), "{said}");
    let verify_json = |arguments: &[&str]| {
        let (code, said) = verify(&data, &[&["--json"], arguments].concat());
        (code, serde_json::from_str::<Value>(&said).unwrap())
    };
    let (code, said) = verify_json(&[]);
    assert!(code == 0 && said["genuine"] == true && said["report"]["good"] == true, "{said}");
    assert!(said["report"]["machine"]["kernel"].is_string() && said["problem"].is_null(), "{said}");
    // Elsewhere the key has to be named.
    let elsewhere = directory.path().join("elsewhere");
    let text = std::fs::read_to_string(&file).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let key = report["signature"]["public_key"].as_str().unwrap();
    assert_eq!(verify(&elsewhere, &[]).0, 2);
    assert_eq!(verify(&elsewhere, &["--key", key]).0, 0);
    let other = key.replacen(&key[..1], if key.starts_with('A') { "B" } else { "A" }, 1);
    assert_eq!(verify(&data, &["--key", &other]).0, 1);
    assert_eq!(verify(&data, &["--key", "no key"]).0, 2);

    std::fs::write(&file, text.replacen("\"outcome\": \"held\"", "\"outcome\": \"permitted\"", 1)).unwrap();
    let (code, said) = verify(&data, &[]);
    assert!(code == 1 && said.starts_with("NOT GENUINE"), "{said}");
    let (code, said) = verify_json(&[]);
    assert!(code == 1 && said["genuine"] == false && said["problem"].is_string(), "{said}");
    assert!(said["report"].is_null(), "what is not genuine says nothing: {said}");
    std::fs::write(&file, "{}").unwrap();
    assert_eq!(verify(&data, &[]).0, 2);
}

#[test]
fn bad_input_is_named_before_anything_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let file = directory.path().join("policy.json");
    for (policy, named) in [
        (r#"{"allow_out": ["ok.example.com", "*.com"]}"#, "allow_out[1]"),
        (r#"{"allow": []}"#, "allow"),
        ("not a policy", "policy.json"),
    ] {
        std::fs::write(&file, policy).unwrap();
        let done = selftest(&data, &["--policy", file.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(2), "{said}");
        assert!(said.contains(named), "{said}");
    }
    let missing = selftest(&data, &["--policy", "/no/such/file"]);
    assert_eq!(missing.status.code(), Some(2));
    let missing = selftest(&data, &["--sandbox", "sbx-00000000"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("--sandbox sbx-00000000"));
    assert_eq!(selftest(&data, &["--only", "everything"]).status.code(), Some(2));
    assert!(!data.exists());
}
