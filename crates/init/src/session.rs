//! Killing a command with everything it has started.

use std::collections::{HashMap, HashSet};
use std::fs;

use rustix::process::{Pid, Signal, getpid, kill_process, kill_process_group};

use crate::children::Children;

/// Times the table of processes is read: each time finds what was forked while the last one was read.
const ROUNDS: usize = 16;

/// Kills the process group and session of a command that is not reaped yet, and its descendants that have left
/// the session. Gives whether the command was there. Daemons that also cut the tie to their parent stay.
pub(crate) fn kill(children: &Children, command: u32) -> bool {
    let mut doomed = HashSet::new();
    let there = children.if_unreaped(command, |pid| {
        // Before the group dies: then its children would be init's and no longer be recognised.
        doomed = with_descendants(HashSet::from([command]), &processes());
        let _ = kill_process_group(pid, Signal::KILL);
    });
    if !there {
        return false;
    }
    for _ in 0..ROUNDS {
        let processes = processes();
        let session = processes.iter().filter(|(_, process)| process.session == command).map(|(&pid, _)| pid);
        doomed = with_descendants(doomed.into_iter().chain(session).collect(), &processes);
        let alive = doomed.iter().filter(|pid| processes.get(pid).is_some_and(|process| process.alive));
        let killed = alive.filter(|pid| {
            let pid = Pid::from_raw(pid.cast_signed());
            // Not init, whatever the table says.
            pid.is_some_and(|pid| pid != getpid() && kill_process(pid, Signal::KILL).is_ok())
        });
        if killed.count() == 0 {
            break;
        }
    }
    true
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    parent: u32,
    session: u32,
    /// Neither a zombie nor dead.
    alive: bool,
}

/// The processes of the sandbox by pid.
fn processes() -> HashMap<u32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, process(&fs::read(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// From `/proc/PID/stat`: `pid (name) state parent group session …`; the name can contain anything.
fn process(stat: &[u8]) -> Option<Process> {
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let mut fields = std::str::from_utf8(stat.get(after_name..)?).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Process { parent, session, alive: !matches!(state, "Z" | "X" | "x") })
}

/// These processes and all that descend from them.
fn with_descendants(mut family: HashSet<u32>, processes: &HashMap<u32, Process>) -> HashSet<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (&pid, process) in processes {
        children.entry(process.parent).or_default().push(pid);
    }
    let mut parents: Vec<u32> = family.iter().copied().collect();
    while let Some(parent) = parents.pop() {
        let children = children.remove(&parent).unwrap_or_default();
        parents.extend(children.into_iter().filter(|&pid| family.insert(pid)));
    }
    family
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_confuse() {
        let stat = b"7 (a) S 1 (b) Z) R 5 6 4 0 -1 4194304 1";
        assert_eq!(process(stat), Some(Process { parent: 5, session: 4, alive: true }));
        assert_eq!(process(b"7 (x) Z 5 6 4 0"), Some(Process { parent: 5, session: 4, alive: false }));
        assert_eq!(process(b"7 (x) R 5"), None);
    }

    #[test]
    fn descendants_are_found_through_all_generations_and_others_are_not() {
        let process = |parent| Process { parent, session: 0, alive: true };
        // 9 and 10 are each other's parent: a table that is not read at once can say so.
        let table = HashMap::from(
            [(2, 1), (3, 2), (4, 3), (5, 1), (9, 10), (10, 9)].map(|(pid, parent)| (pid, process(parent))),
        );
        assert_eq!(with_descendants(HashSet::from([2]), &table), HashSet::from([2, 3, 4]));
        assert_eq!(with_descendants(HashSet::from([9]), &table), HashSet::from([9, 10]));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(stat in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = process(&stat);
        }
    }
}
