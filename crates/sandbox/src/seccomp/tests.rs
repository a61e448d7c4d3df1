use std::collections::BTreeSet;

use super::*;

const ARCHITECTURES: [TargetArch; 2] = [TargetArch::x86_64, TargetArch::aarch64];

fn policy() -> Policy {
    serde_json::from_str(POLICY).unwrap()
}

/// What the kernel would do with a call under all programs: the error number, or `None` for allow.
fn verdict(programs: &[BpfProgram], architecture: TargetArch, call: i64, args: [u64; 6]) -> Option<u32> {
    let results = programs.iter().map(|program| run(program, architecture, call, args));
    // The smallest action wins; among errors the number of the program installed last.
    let refused = results.rev().find(|result| *result != ALLOW)?;
    assert_eq!(refused & 0xffff_0000, 0x0005_0000, "an error, not a kill");
    Some(refused & 0xffff)
}

/// `SECCOMP_RET_ALLOW`.
const ALLOW: u32 = 0x7fff_0000;

/// A classic BPF machine, as far as the compiler uses it.
fn run(program: &BpfProgram, architecture: TargetArch, call: i64, args: [u64; 6]) -> u32 {
    let audit: u32 = match architecture {
        TargetArch::x86_64 => 0xc000_003e,
        _ => 0xc000_00b7,
    };
    let mut data = Vec::new();
    data.extend((call as u32).to_ne_bytes());
    data.extend(audit.to_ne_bytes());
    data.extend([0; 8]);
    data.extend(args.iter().flat_map(|arg| arg.to_ne_bytes()));
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let instruction = &program[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { instruction.jt } else { instruction.jf });
        match instruction.code {
            0x20 => {
                let from = instruction.k as usize;
                accumulator = u32::from_ne_bytes(data[from..from + 4].try_into().unwrap());
            }
            0x54 => accumulator &= instruction.k,
            0x05 => at += instruction.k as usize,
            0x15 => at += jump(accumulator == instruction.k),
            0x25 => at += jump(accumulator > instruction.k),
            0x35 => at += jump(accumulator >= instruction.k),
            0x06 => return instruction.k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

/// A call's number, from the compiler's own table: it is the first operand compared in a filter of one call.
fn number(name: &str, architecture: TargetArch) -> i64 {
    let filter = json!({ "mismatch_action": "allow", "match_action": { "errno": 1 }, "filter": [{ "syscall": name }] });
    let program = program(&filter, architecture).unwrap();
    let found = (0..600).find(|&call| run(&program, architecture, call, [0; 6]) != ALLOW);
    found.unwrap_or_else(|| panic!("{name} has no number"))
}

fn x86_64() -> Vec<BpfProgram> {
    compile(POLICY, TargetArch::x86_64).unwrap()
}

fn refused(name: &str, args: [u64; 6]) -> Option<u32> {
    verdict(&x86_64(), TargetArch::x86_64, number(name, TargetArch::x86_64), args)
}

const EPERM: Option<u32> = Some(1);
const ENOSYS: Option<u32> = Some(38);
const EPROTONOSUPPORT: Option<u32> = Some(93);

#[test]
fn every_entry_is_known_on_both_architectures() {
    for architecture in ARCHITECTURES {
        let programs = compile(POLICY, architecture).unwrap();
        assert_eq!(programs.len(), 3, "each program costs every sandbox kernel memory");
        assert!(programs.iter().all(|program| program.len() <= 4096));
    }
}

#[test]
fn no_call_is_listed_twice_and_only_conditional_ones_on_both_sides() {
    let policy = policy();
    let mut allowed = BTreeSet::new();
    for group in &policy.allow {
        for call in &group.syscalls {
            assert!(allowed.insert(call), "{call} is allowed twice");
        }
    }
    let unconditional = |groups: &mut dyn Iterator<Item = &Group>| -> BTreeSet<String> {
        groups.filter(|group| group.when.is_none()).flat_map(|group| group.syscalls.clone()).collect()
    };
    let always = unconditional(&mut policy.allow.iter());
    let mut never = BTreeSet::new();
    for refusal in &policy.refuse {
        for call in &refusal.group.syscalls {
            assert!(!always.contains(call), "{call} is always allowed and refused");
            let known = refusal.group.when.is_some() || never.insert(call);
            assert!(known, "{call} is refused twice");
            assert!(
                refusal.group.when.is_some() || !allowed.contains(call),
                "{call} is never and sometimes allowed"
            );
        }
    }
}

#[test]
fn every_entry_has_a_reason() {
    let policy = policy();
    let groups = policy.allow.iter().chain(policy.refuse.iter().map(|refusal| &refusal.group));
    for group in groups {
        assert!(group.reason.len() >= 8 && !group.syscalls.is_empty(), "{:?}", group.syscalls);
    }
}

#[test]
fn what_the_data_allows_passes_and_what_it_refuses_does_not() {
    for architecture in ARCHITECTURES {
        let programs = compile(POLICY, architecture).unwrap();
        let concerns = |group: &Group| match &group.arch {
            Some(arch) => TargetArch::try_from(arch.as_str()).unwrap() == architecture,
            None => true,
        };
        let policy = policy();
        for group in policy.allow.iter().filter(|group| concerns(group) && group.when.is_none()) {
            for call in &group.syscalls {
                let verdict = verdict(&programs, architecture, number(call, architecture), [u64::MAX; 6]);
                assert_eq!(verdict, None, "{call}");
            }
        }
        for refusal in policy.refuse.iter().filter(|refusal| concerns(&refusal.group)) {
            for call in refusal.group.syscalls.iter().filter(|_| refusal.group.when.is_none()) {
                let verdict = verdict(&programs, architecture, number(call, architecture), [0; 6]);
                assert_eq!(verdict, Some(refusal.errno.number().unsigned_abs()), "{call}");
            }
        }
    }
}

#[test]
fn sockets_of_the_governed_kinds_pass_and_all_others_are_refused() {
    let (unix, inet, inet6, netlink) = (1, 2, 10, 16);
    let (stream, dgram, raw) = (1, 2, 3);
    let flags = 0o2_004_000; // SOCK_CLOEXEC | SOCK_NONBLOCK
    let socket = |family: u64, kind: u64, protocol: u64| refused("socket", [family, kind, protocol, 0, 0, 0]);
    for permitted in [
        [unix, stream, 0],
        [unix, 5, 0],
        [inet, stream, 0],
        [inet, stream | flags, 6],
        [inet, dgram, 17],
        [inet, dgram | flags, 0],
        [inet, dgram, 1],
        [inet6, stream, 0],
        [inet6, dgram | flags, 17],
        [inet6, dgram, 58],
        [netlink, raw | flags, 0],
    ] {
        assert_eq!(socket(permitted[0], permitted[1], permitted[2]), None, "{permitted:?}");
    }
    for family in (0..64).filter(|family| ![unix, inet, inet6, netlink].contains(family)) {
        assert_eq!(socket(family, stream, 0), EPERM, "family {family}");
        assert_eq!(refused("socketpair", [family, stream, 0, 0, 0, 0]), EPERM, "pair of family {family}");
    }
    for raw_socket in [[inet, raw, 1], [inet, raw, 0], [inet6, raw | flags, 58]] {
        assert_eq!(socket(raw_socket[0], raw_socket[1], raw_socket[2]), EPERM, "{raw_socket:?}");
    }
    // SCTP, MPTCP, UDP-Lite; netfilter, socket diagnosis, audit.
    for other in [
        [inet, stream, 132],
        [inet, stream, 262],
        [inet6, dgram, 136],
        [netlink, raw, 12],
        [netlink, raw, 4],
        [netlink, raw, 9],
    ] {
        assert_eq!(socket(other[0], other[1], other[2]), EPROTONOSUPPORT, "{other:?}");
    }
    for odd in [[inet, 5, 0], [inet, 6, 0], [inet, 10, 0], [inet, stream, 17], [inet, dgram, 6]] {
        assert!(socket(odd[0], odd[1], odd[2]).is_some(), "{odd:?}");
    }
    // The kernel looks at the lower half of these arguments only, and so does the filter.
    assert_eq!(socket(40 | 1 << 32, stream, 0), EPERM);
    assert_eq!(socket(inet | 7 << 32, stream, 0), None);
}

#[test]
fn threads_and_forks_pass_and_new_namespaces_do_not() {
    let clone = |flags: u64| refused("clone", [flags, 0, 0, 0, 0, 0]);
    assert_eq!(clone(17), None, "fork");
    assert_eq!(clone(0x003d_0f00), None, "pthread_create");
    assert_eq!(clone(0x4100 | 17), None, "vfork, posix_spawn");
    for namespace in [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        assert_eq!(clone(namespace | 17), EPERM, "{namespace:#x}");
    }
    assert_eq!(refused("clone3", [0; 6]), ENOSYS, "C libraries fall back to clone on this error only");
    assert_eq!(refused("unshare", [0x1000_0000, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(refused("setns", [3, 0, 0, 0, 0, 0]), EPERM);
}

#[test]
fn limits_of_other_processes_are_read_and_not_set_and_those_of_the_caller_are_set() {
    const NOFILE: u64 = 7;
    // Zero in the lower half, and in the upper half.
    for limit in [0x7fff_0000_1000, 0x1_0000_0000, 0x1000] {
        assert_eq!(refused("prlimit64", [0, NOFILE, limit, 0, 0, 0]), None);
        for process in [1, 42, u64::from(u32::MAX)] {
            assert_eq!(
                refused("prlimit64", [process, NOFILE, limit, 0, 0, 0]),
                EPERM,
                "{process} {limit:#x}"
            );
        }
    }
    // The kernel takes a process for a number of 32 bits.
    assert_eq!(refused("prlimit64", [1 << 32 | 1, NOFILE, 0x1000, 0, 0, 0]), EPERM);
    for process in [0, 1, 42] {
        assert_eq!(refused("prlimit64", [process, NOFILE, 0, 0x1000, 0, 0]), None);
    }
    assert_eq!(refused("setrlimit", [NOFILE, 0x1000, 0, 0, 0, 0]), None);
}

#[test]
fn typing_into_a_terminal_is_refused_and_other_requests_pass() {
    let ioctl = |request: u64| refused("ioctl", [0, request, 0, 0, 0, 0]);
    for permitted in [0x5401, 0x5413, 0x541b, 0x8912] {
        assert_eq!(ioctl(permitted), None, "{permitted:#x}");
    }
    for request in [0x5412, 0x541c, 0x5423] {
        assert_eq!(ioctl(request), EPERM);
        assert_eq!(ioctl(request | 1 << 40), EPERM, "the kernel ignores the upper half");
    }
}

#[test]
fn numbers_nobody_has_heard_of_do_not_exist() {
    let programs = x86_64();
    for call in [463, 500, 1_000, 0x4000_0000, 0x4000_0029, -1] {
        assert_eq!(verdict(&programs, TargetArch::x86_64, call, [0; 6]), ENOSYS, "{call:#x}");
    }
}

#[test]
fn another_table_of_system_calls_kills() {
    for program in x86_64() {
        let killed = run(&program, TargetArch::aarch64, 0, [0; 6]);
        assert_eq!(killed, 0x8000_0000);
    }
}

#[test]
fn an_unknown_call_or_a_group_without_a_reason_does_not_compile() {
    let with = |group: Value| {
        let policy =
            json!({ "default": { "errno": "ENOSYS", "reason": "r" }, "allow": [group], "refuse": [] });
        compile(&policy.to_string(), TargetArch::x86_64)
    };
    assert!(with(json!({ "syscalls": ["read"], "reason": "r" })).is_ok());
    assert!(matches!(with(json!({ "syscalls": ["raed"], "reason": "r" })), Err(SeccompError::Compile(_))));
    assert!(matches!(with(json!({ "syscalls": ["read"] })), Err(SeccompError::Malformed(_))));
}

#[test]
fn the_bytes_are_whole_instructions() {
    for program in programs().unwrap() {
        assert!(!program.is_empty() && program.len() % 8 == 0);
    }
}
