//! Giving up everything init does not need, before it serves.

use std::io;

use init_protocol::ByteBuf;
use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getpid, getrlimit, set_child_subreaper, set_dumpable_behavior,
    setrlimit, umask,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use crate::StartError;

/// Resource limits of commands: `RLIMIT_…`, soft, hard.
pub(crate) type Limits = Vec<(u32, u64, u64)>;

/// What init and root inside keep: what package managers and file operations on behalf of a user need. In
/// particular neither `CAP_SYS_ADMIN` nor `CAP_NET_*` over anything, nor `CAP_SYS_PTRACE`, with which root
/// inside could enter init.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SETFCAP);

/// Gives up rights for good and installs the system call filters, for this process and everything it starts.
/// Returns the resource limits that commands get.
///
/// # Errors
/// [`StartError`]: whatever cannot be given up keeps init from starting.
pub(crate) fn harden(filters: &[ByteBuf]) -> Result<Limits, StartError> {
    if filters.is_empty() {
        return Err(StartError::NoFilter);
    }
    step("change to the root directory", rustix::process::chdir("/"))?;
    umask(Mode::from_raw_mode(0o022));
    // Its memory holds other users' data, and its descriptors are the way to the daemon.
    step("become undumpable", set_dumpable_behavior(DumpableBehavior::NotDumpable))?;
    // Without effect for PID 1, who is everybody's parent in the end anyway.
    step("become subreaper", set_child_subreaper(Some(getpid())))?;
    let limits = limits()?;
    capabilities()?;
    step("set no_new_privs", set_no_new_privs(true))?;
    for filter in filters {
        sys::seccomp::install(filter)
            .map_err(|source| StartError::Harden { what: "install a system call filter", source })?;
    }
    Ok(limits)
}

/// Raises init's own limit of descriptors (connections and kept commands) and gives what commands get: the
/// original one, because programs that use select(2) or close all descriptors one by one suffer from a high
/// one; and no core dumps, which would leave the sandbox.
fn limits() -> Result<Limits, StartError> {
    let original = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: original.maximum, maximum: original.maximum };
    step("raise the limit of descriptors", setrlimit(Resource::Nofile, raised))?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    step("forbid core dumps", setrlimit(Resource::Core, none))?;
    let number = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    Ok(vec![
        (Resource::Nofile as u32, number(original.current), number(original.maximum)),
        (Resource::Core as u32, 0, 0),
    ])
}

fn capabilities() -> Result<(), StartError> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !KEPT.contains(capability) => {
                step("drop a capability", remove_capability_from_bounding_set(capability))?;
            }
            Ok(_) => {}
            // The kernel knows no more capabilities.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return step("read the capability bounding set", Err(error)),
        }
    }
    step("clear ambient capabilities", clear_ambient_capability_set())?;
    let sets = CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: CapabilitySet::empty() };
    step("drop capabilities", set_capabilities(None, sets))
}

fn step(what: &'static str, result: rustix::io::Result<()>) -> Result<(), StartError> {
    result.map_err(|error| StartError::Harden { what, source: io::Error::from(error) })
}
