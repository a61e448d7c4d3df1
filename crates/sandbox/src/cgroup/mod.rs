//! Control groups: limits, killing and counting, on machines with version 1, both, or version 2 only.
//!
//! On a hybrid machine the limits are version 1's and the version 2 tree, which has no controllers there, still
//! gives `cgroup.kill`, `cgroup.freeze`, CPU time, and processes that are born in their group.

mod detect;
mod freeze;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    process::Pid,
};
use serde::{Deserialize, Serialize};

use crate::fault::{Context as _, Fault};

/// What a sandbox may use of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory in bytes, caches and shared memory included. There is no swap beyond it.
    pub memory_bytes: u64,
    /// Processor time in thousandths of one processor.
    pub cpu_millis: u32,
    /// Processes and threads, init included.
    pub processes: u32,
}

impl Default for Limits {
    /// 2 GiB, two processors, 1024 processes.
    fn default() -> Self {
        Self { memory_bytes: 2 << 30, cpu_millis: 2000, processes: 1024 }
    }
}

/// What a sandbox uses at the moment, and has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time so far, in microseconds.
    pub cpu_micros: u64,
    /// Memory now, in bytes, without file caches that could be dropped at once.
    pub memory_bytes: u64,
    /// Processes and threads now.
    pub processes: u64,
    /// How many processes were killed because memory ran out.
    pub out_of_memory_kills: u64,
}

/// The places on this machine below which sandboxes get their groups.
#[derive(Debug)]
pub(crate) struct Hierarchies {
    /// One directory per hierarchy, with what it controls.
    parents: Vec<Parent>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Parent {
    path: PathBuf,
    version: Version,
    controls: BTreeSet<Controller>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    One,
    Two,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Controller {
    Cpu,
    Memory,
    Pids,
}

/// The groups of one sandbox, one per hierarchy. Stored with the sandbox: a later daemon may live elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cgroups {
    groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Group {
    path: PathBuf,
    version: Version,
    controls: BTreeSet<Controller>,
}

impl Hierarchies {
    /// Whether processes can be stopped: only the version 2 tree can.
    pub(crate) fn can_freeze(&self) -> bool {
        self.parents.iter().any(|parent| parent.version == Version::Two)
    }

    /// Finds (and makes) the directory `name` below this process's own group of each hierarchy.
    pub(crate) fn detect(name: &str) -> Result<Self, Fault> {
        detect::parents(name).map(|parents| Self { parents })
    }

    /// The groups that a sandbox has or is going to have.
    pub(crate) fn groups_of(&self, id: &str) -> Cgroups {
        let groups = self.parents.iter().map(|parent| Group {
            path: parent.path.join(id),
            version: parent.version,
            controls: parent.controls.clone(),
        });
        Cgroups { groups: groups.collect() }
    }

    /// Makes the groups of a sandbox, unless they exist, and sets its limits.
    pub(crate) fn create(&self, id: &str, limits: &Limits) -> Result<Cgroups, Fault> {
        let cgroups = self.groups_of(id);
        let make = |group: &Group| make_directory(&group.path).and_then(|()| group.limit(limits));
        match cgroups.groups.iter().try_for_each(make) {
            Ok(()) => Ok(cgroups),
            Err(fault) => {
                let _ = cgroups.remove();
                Err(fault)
            }
        }
    }

    /// The groups of every sandbox that has any, by the sandbox's name.
    pub(crate) fn existing(&self) -> Result<Vec<(String, Cgroups)>, Fault> {
        let mut found = BTreeMap::<String, Cgroups>::new();
        for parent in &self.parents {
            for entry in fs::read_dir(&parent.path).during("list", &parent.path)? {
                let entry = entry.during("list", &parent.path)?;
                if !entry.file_type().during("examine", entry.path())?.is_dir() {
                    continue;
                }
                let id = entry.file_name().to_string_lossy().into_owned();
                let group =
                    Group { path: entry.path(), version: parent.version, controls: parent.controls.clone() };
                found.entry(id).or_default().groups.push(group);
            }
        }
        Ok(found.into_iter().collect())
    }
}

impl Drop for Hierarchies {
    /// Removes the directories of this daemon, which succeeds when no sandbox is left in them.
    fn drop(&mut self) {
        for parent in &self.parents {
            let _ = fs::remove_dir(&parent.path);
        }
    }
}

impl Cgroups {
    /// The version 2 group, for a process to be born in.
    pub(crate) fn open_version_2(&self) -> Result<Option<OwnedFd>, Fault> {
        let Some(group) = self.version_2() else { return Ok(None) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, &group.path, flags, Mode::empty()).map(Some).during("open", &group.path)
    }

    /// The version 1 groups, for a process to move into.
    pub(crate) fn version_1(&self) -> Vec<PathBuf> {
        let groups = self.groups.iter().filter(|group| group.version == Version::One);
        groups.map(|group| group.path.clone()).collect()
    }

    /// Kills every process in the groups: at once where the kernel can, one by one elsewhere.
    pub(crate) fn kill(&self) {
        for group in &self.groups {
            if group.version == Version::One || write(&group.path, "cgroup.kill", "1").is_err() {
                kill_one_by_one(&group.path);
            }
        }
    }

    /// Removes the groups; what is gone already is no failure. They must have no processes.
    ///
    /// # Errors
    /// With `EBUSY` while a process is in one. All others are removed nevertheless.
    pub(crate) fn remove(&self) -> Result<(), Fault> {
        let mut result = Ok(());
        for group in &self.groups {
            match fs::remove_dir(&group.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    result = Err(error).during("remove", &group.path);
                }
                _ => {}
            }
        }
        result
    }

    /// What the sandbox uses. Parts that the machine does not count are 0.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for Group { path, version, controls } in &self.groups {
            let read = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
            let number = |name: &str| read(name).trim().parse::<u64>().unwrap_or(0);
            if *version == Version::Two {
                usage.cpu_micros = field(&read("cpu.stat"), "usage_usec");
            }
            if controls.contains(&Controller::Pids) {
                usage.processes = number("pids.current");
            }
            if controls.contains(&Controller::Memory) {
                let (current, inactive, events) = match version {
                    Version::One => ("memory.usage_in_bytes", "total_inactive_file", "memory.oom_control"),
                    Version::Two => ("memory.current", "inactive_file", "memory.events"),
                };
                let droppable = field(&read("memory.stat"), inactive);
                usage.memory_bytes = number(current).saturating_sub(droppable);
                usage.out_of_memory_kills = field(&read(events), "oom_kill");
            }
        }
        usage
    }

    fn version_2(&self) -> Option<&Group> {
        self.groups.iter().find(|group| group.version == Version::Two)
    }
}

fn kill_one_by_one(path: &Path) {
    let processes = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        // Ended already, or it would have been said where it matters: when the group is removed.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// The period over which processor time is limited, in microseconds: the kernel's default.
const CPU_PERIOD: u64 = 100_000;

impl Group {
    fn limit(&self, limits: &Limits) -> Result<(), Fault> {
        let quota = (u64::from(limits.cpu_millis) * CPU_PERIOD / 1000).max(1000);
        let memory = limits.memory_bytes.to_string();
        for controller in &self.controls {
            match (controller, self.version) {
                (Controller::Pids, _) => write(&self.path, "pids.max", &limits.processes.to_string())?,
                (Controller::Cpu, Version::One) => {
                    write(&self.path, "cpu.cfs_period_us", &CPU_PERIOD.to_string())?;
                    write(&self.path, "cpu.cfs_quota_us", &quota.to_string())?;
                }
                (Controller::Cpu, Version::Two) => {
                    write(&self.path, "cpu.max", &format!("{quota} {CPU_PERIOD}"))?
                }
                (Controller::Memory, Version::One) => {
                    limit_memory_version_1(&self.path, &memory)?;
                }
                (Controller::Memory, Version::Two) => {
                    write(&self.path, "memory.max", &memory)?;
                    write_if_there(&self.path, "memory.swap.max", "0")?;
                    // A command that takes too much dies alone; the sandbox lives on.
                    write_if_there(&self.path, "memory.oom.group", "0")?;
                }
            }
        }
        Ok(())
    }
}

/// Memory together with swap must never be below memory alone, so the order depends on the direction.
fn limit_memory_version_1(path: &Path, memory: &str) -> Result<(), Fault> {
    const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";
    if write(path, "memory.limit_in_bytes", memory).is_err() {
        write_if_there(path, WITH_SWAP, memory)?;
        write(path, "memory.limit_in_bytes", memory)?;
    }
    write_if_there(path, WITH_SWAP, memory)
}

fn make_directory(path: &Path) -> Result<(), Fault> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.during("make the control group", path),
    }
}

/// One write without creating the file: these are the kernel's, and there or not.
fn write(path: &Path, file: &str, value: &str) -> Result<(), Fault> {
    let path = path.join(file);
    let open = openat(CWD, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    open.and_then(|fd| rustix::io::write(fd, value.as_bytes()))
        .map(drop)
        .during(&format!("write {value} to"), path)
}

fn write_if_there(path: &Path, file: &str, value: &str) -> Result<(), Fault> {
    match write(path, file, value) {
        Err(fault) if fault.errno == rustix::io::Errno::NOENT.raw_os_error() => Ok(()),
        other => other,
    }
}

/// The number after `name` in a file of "name number" lines; 0 when it is not there.
fn field(text: &str, name: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "oom 3\noom_kill 2\noom_kill_disable 0\n";
        assert_eq!((field(text, "oom_kill"), field(text, "oom"), field(text, "none")), (2, 3, 0));
    }

    #[test]
    fn groups_are_limited_counted_and_removed_without_a_trace() {
        let hierarchies = Hierarchies::detect(&format!("bailiwick-test-{}", std::process::id()));
        let Ok(hierarchies) = hierarchies else {
            eprintln!("SKIP no control groups to be made here: {hierarchies:?}");
            return;
        };
        let limits = Limits { memory_bytes: 64 << 20, cpu_millis: 500, processes: 10 };
        let groups = hierarchies.create("one", &limits).expect("groups");
        assert!(groups.groups.iter().all(|group| group.path.is_dir()));
        hierarchies.create("one", &Limits { memory_bytes: 32 << 20, ..limits }).expect("lower limits");
        hierarchies.create("one", &limits).expect("higher limits");
        assert_eq!(groups.usage().processes, 0);
        let found = hierarchies.existing().expect("listing");
        assert_eq!(found, [("one".to_owned(), groups.clone())]);
        groups.remove().expect("removal");
        groups.remove().expect("a second removal");
        assert!(groups.groups.iter().all(|group| !group.path.exists()));
        let parents = hierarchies.parents.clone();
        drop(hierarchies);
        assert!(parents.iter().all(|parent| !parent.path.exists()), "they go with the last sandbox");
    }
}
