//! The system call filter of a sandbox, from reviewed data to what the kernel takes.
//!
//! `policies/seccomp.json` holds groups of calls with a reason each:
//! - `allow`: the allowlist; with `when`, a call is allowed if one of the alternatives holds, and an alternative
//!   holds if all its conditions do. Conditions compare the lower 32 bits of an argument, as the kernel does for
//!   the calls in question, or all of it, as it does with pointers, where they are `wide`.
//! - `refuse`: calls that are not allowed, and with which error number. An error number other than the default's
//!   wins over `allow`.
//! - `default`: the error number of everything else.
//!
//! A group with `arch` is for that architecture only. Programs of another architecture's system call table
//! (32-bit ones) are killed.

use std::collections::BTreeMap;

use rustix::io::Errno;
use seccompiler::{BpfProgram, TargetArch};
use serde::Deserialize;
use serde_json::{Value, json};

/// Why the filter could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The data is not of the described form.
    #[error("system call policy is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
    /// No filter for this architecture, or a call or condition is not known.
    #[error("system call policy does not compile: {0}")]
    Compile(#[from] seccompiler::Error),
    /// The architecture is not supported.
    #[error("no system call policy for this architecture: {0}")]
    Architecture(seccompiler::BackendError),
}

/// The filters of a sandbox on this machine, as bytes for `init_protocol::Boot::seccomp`, in the order in which
/// they have to be installed.
///
/// # Errors
/// [`SeccompError`]; with the data that was built in, only on an unsupported architecture.
pub fn programs() -> Result<Vec<Vec<u8>>, SeccompError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(SeccompError::Architecture)?;
    let programs = compile(POLICY, architecture)?;
    Ok(programs.iter().map(bytes).collect())
}

/// The reviewed data.
const POLICY: &str = include_str!("../../../policies/seccomp.json");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    default: Unlisted,
    allow: Vec<Group>,
    refuse: Vec<Refusal>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unlisted {
    errno: ErrorName,
    #[expect(dead_code, reason = "required of the data, read by people")]
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    errno: ErrorName,
    #[serde(flatten)]
    group: Group,
}

#[derive(Debug, Deserialize)]
struct Group {
    syscalls: Vec<String>,
    arch: Option<String>,
    when: Option<Vec<Vec<Condition>>>,
    #[cfg_attr(not(test), expect(dead_code, reason = "required of the data, read by people"))]
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    /// Index of the argument, from 0.
    arg: u8,
    /// An operator in seccompiler's JSON form: `"eq"`, `"ne"`, `{"masked_eq": mask}`.
    op: Value,
    value: u32,
    /// Whether all 64 bits are compared.
    #[serde(default)]
    wide: bool,
    #[expect(dead_code, reason = "required of the data, read by people")]
    means: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
enum ErrorName {
    #[serde(rename = "ENOSYS")]
    NoSys,
    #[serde(rename = "EPERM")]
    Perm,
    #[serde(rename = "EPROTONOSUPPORT")]
    ProtoNoSupport,
}

impl ErrorName {
    fn number(self) -> i32 {
        match self {
            Self::NoSys => Errno::NOSYS,
            Self::Perm => Errno::PERM,
            Self::ProtoNoSupport => Errno::PROTONOSUPPORT,
        }
        .raw_os_error()
    }
}

/// One program for the allowlist, and one for each error number under `refuse` that is not the default anyway.
/// A program can give one error number only; of several programs that refuse a call, the kernel takes the number
/// of the last installed.
fn compile(policy: &str, architecture: TargetArch) -> Result<Vec<BpfProgram>, SeccompError> {
    let policy: Policy = serde_json::from_str(policy)?;
    let allowed: Vec<Value> = policy.allow.iter().flat_map(|group| rules(group, architecture)).collect();
    let mut filters = vec![json!({
        "mismatch_action": { "errno": policy.default.errno.number() },
        "match_action": "allow",
        "filter": allowed,
    })];
    let mut refused: BTreeMap<ErrorName, Vec<Value>> = BTreeMap::new();
    for refusal in policy.refuse.iter().filter(|refusal| refusal.errno != policy.default.errno) {
        refused.entry(refusal.errno).or_default().extend(rules(&refusal.group, architecture));
    }
    filters.extend(refused.into_iter().map(|(errno, rules)| {
        json!({
            "mismatch_action": "allow",
            "match_action": { "errno": errno.number() },
            "filter": rules,
        })
    }));
    filters.iter().map(|filter| program(filter, architecture)).collect()
}

/// The group's calls as seccompiler's JSON rules; none when it is for another architecture.
fn rules(group: &Group, architecture: TargetArch) -> Vec<Value> {
    let concerned = match &group.arch {
        Some(name) => TargetArch::try_from(name.as_str()).is_ok_and(|only| only == architecture),
        None => true,
    };
    let alternatives: Vec<Option<Value>> = match &group.when {
        None => vec![None],
        Some(alternatives) => {
            alternatives.iter().map(|all| Some(all.iter().map(condition).collect())).collect()
        }
    };
    let calls = group.syscalls.iter().filter(|_| concerned);
    calls
        .flat_map(|call| {
            alternatives.iter().map(move |conditions| match conditions {
                None => json!({ "syscall": call }),
                Some(conditions) => json!({ "syscall": call, "args": conditions }),
            })
        })
        .collect()
}

fn condition(condition: &Condition) -> Value {
    let width = if condition.wide { "qword" } else { "dword" };
    json!({ "index": condition.arg, "type": width, "op": condition.op, "val": condition.value })
}

/// Compiles one filter in seccompiler's JSON form.
fn program(filter: &Value, architecture: TargetArch) -> Result<BpfProgram, SeccompError> {
    let named = serde_json::to_vec(&json!({ "sandbox": filter }))?;
    let mut programs = seccompiler::compile_from_json(named.as_slice(), architecture)?;
    Ok(programs.remove("sandbox").expect("the one filter that was compiled is in the result"))
}

/// The kernel's encoding of a program.
fn bytes(program: &BpfProgram) -> Vec<u8> {
    let instruction = |instruction: &seccompiler::sock_filter| {
        let [c0, c1] = instruction.code.to_ne_bytes();
        let [k0, k1, k2, k3] = instruction.k.to_ne_bytes();
        [c0, c1, instruction.jt, instruction.jf, k0, k1, k2, k3]
    };
    program.iter().flat_map(instruction).collect()
}

// The explicit path keeps this file usable for the tests of `init`, which include it as it is.
#[cfg(test)]
#[path = "seccomp/tests.rs"]
mod tests;
