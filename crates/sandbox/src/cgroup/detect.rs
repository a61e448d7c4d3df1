//! Which hierarchies the machine has and where in them this process may make groups.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{Controller, Parent, Version, make_directory, write};
use crate::fault::{Context as _, Fault};

/// The directory `name` in every hierarchy that is needed, made if necessary.
///
/// Limits that no hierarchy can enforce are an error: a sandbox without them could stop the machine.
pub(super) fn parents(name: &str) -> Result<Vec<Parent>, Fault> {
    let read = |path: &str| fs::read_to_string(path).during("read", path);
    let hierarchies = hierarchies(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
    let mut parents = Vec::new();
    for hierarchy in hierarchies {
        parents.extend(match hierarchy.version {
            Version::One => version_1(&hierarchy, name)?,
            Version::Two => Some(version_2(&hierarchy, name)?),
        });
    }
    for controller in [Controller::Cpu, Controller::Memory, Controller::Pids] {
        if !parents.iter().any(|parent| parent.controls.contains(&controller)) {
            return Err(Fault::new("find a control group hierarchy with the controller", controller.name()));
        }
    }
    Ok(parents)
}

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Cpu, Self::Memory, Self::Pids].into_iter().find(|controller| controller.name() == name)
    }

    /// The ones of a list of names.
    fn among<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<Self> {
        names.filter_map(Self::named).collect()
    }
}

/// A mounted hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    /// Where it is mounted.
    mount: PathBuf,
    /// This process's group, as a path below the mount.
    own: PathBuf,
    /// Of version 1 only; version 2's are in a file.
    controls: BTreeSet<Controller>,
}

fn hierarchies(mountinfo: &str, own_groups: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some(mount) = Mount::parse(line) else { continue };
        let (version, own) = match mount.kind {
            "cgroup2" => (Version::Two, own_group(own_groups, |controllers| controllers.is_empty())),
            "cgroup" => {
                let same =
                    |names: &str| !names.is_empty() && names.split(',').all(|name| mount.has_option(name));
                (Version::One, own_group(own_groups, same))
            }
            _ => continue,
        };
        let Some(own) = own.and_then(|own| below_mount(&own, mount.root)) else { continue };
        // A hierarchy mounted twice is one.
        let controls = Controller::among(mount.options.split(','));
        if !found.iter().any(|other| other.version == version && other.controls == controls) {
            found.push(Hierarchy { version, mount: PathBuf::from(mount.point), own, controls });
        }
    }
    found
}

/// The parts of a line of mountinfo that matter here (proc(5)).
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let mut after = after.split(' ');
        Some(Self {
            root: before.next()?,
            point: before.next()?,
            kind: after.next()?,
            options: after.nth(1)?,
        })
    }

    fn has_option(&self, name: &str) -> bool {
        self.options.split(',').any(|option| option == name)
    }
}

/// The path of this process's group in the hierarchy whose controllers `matches` (cgroups(7)).
fn own_group(own_groups: &str, matches: impl Fn(&str) -> bool) -> Option<String> {
    own_groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        matches(controllers).then(|| path.to_owned())
    })
}

/// Relative to a mount of which only the part below `root` is visible.
fn below_mount(own: &str, root: &str) -> Option<PathBuf> {
    let below = Path::new(own).strip_prefix(root).ok()?;
    let plain = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    plain.then(|| below.to_owned())
}

fn version_1(hierarchy: &Hierarchy, name: &str) -> Result<Option<Parent>, Fault> {
    if hierarchy.controls.is_empty() {
        return Ok(None);
    }
    let path = hierarchy.mount.join(&hierarchy.own).join(name);
    make_directory(&path)?;
    Ok(Some(Parent { path, version: Version::One, controls: hierarchy.controls.clone() }))
}

fn version_2(hierarchy: &Hierarchy, name: &str) -> Result<Parent, Fault> {
    let own = hierarchy.mount.join(&hierarchy.own);
    let available = available(&own)?;
    let parent = if available.is_empty() || enable(&own, &available).is_ok() {
        own
    } else {
        // A group with processes of its own cannot pass controllers on. If all of them are this program, it
        // moves into a group beside the sandboxes'; otherwise the top of the tree, which has no such rule.
        move_aside(&own, name)
            .and_then(|()| enable(&own, &available))
            .map(|()| own)
            .or_else(|_| enable(&hierarchy.mount, &available).map(|()| hierarchy.mount.clone()))?
    };
    let path = parent.join(name);
    make_directory(&path)?;
    enable(&path, &available)?;
    Ok(Parent { path, version: Version::Two, controls: available })
}

/// Which of the needed controllers a group could pass on. None on a hybrid machine.
fn available(group: &Path) -> Result<BTreeSet<Controller>, Fault> {
    let path = group.join("cgroup.controllers");
    let names = fs::read_to_string(&path).during("read", &path)?;
    Ok(Controller::among(names.split_whitespace()))
}

fn enable(group: &Path, controllers: &BTreeSet<Controller>) -> Result<(), Fault> {
    if controllers.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = controllers.iter().map(|controller| format!("+{}", controller.name())).collect();
    write(group, "cgroup.subtree_control", &names.join(" "))
}

fn move_aside(own: &Path, name: &str) -> Result<(), Fault> {
    let path = own.join("cgroup.procs");
    let processes = fs::read_to_string(&path).during("read", &path)?;
    let this = std::process::id().to_string();
    if processes.lines().any(|process| process != this) {
        return Err(Fault::new("share", own.display().to_string()));
    }
    let aside = own.join(format!("{name}-daemon"));
    make_directory(&aside)?;
    write(&aside, "cgroup.procs", &this)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_machine_has_its_controllers_in_version_1() {
        let mountinfo = "\
14 35 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
15 35 0:33 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
18 31 0:36 / /sys/fs/cgroup/pids rw,relatime shared:9 - cgroup cgroup rw,pids
19 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
20 41 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
21 41 0:39 / /proc rw - proc proc rw
";
        let own = "9:name=systemd:/\n8:pids:/\n4:memory:/a/b\n2:cpu,cpuacct:/\n1:freezer:/\n0::/user.slice\n";
        let found = hierarchies(mountinfo, own);
        let memory = Hierarchy {
            version: Version::One,
            mount: "/sys/fs/cgroup/memory".into(),
            own: "a/b".into(),
            controls: [Controller::Memory].into(),
        };
        assert_eq!(found.first(), Some(&memory));
        let controls: Vec<_> = found.iter().map(|hierarchy| hierarchy.controls.len()).collect();
        assert_eq!(controls, [1, 1, 1, 0, 0], "memory, cpu, pids, the named one, version 2");
        assert_eq!(found.last().map(|last| last.own.clone()), Some("user.slice".into()));
    }

    #[test]
    fn a_unified_machine_has_one_hierarchy() {
        let mountinfo = "25 24 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = hierarchies(mountinfo, "0::/system.slice/bailiwick.service\n");
        assert_eq!(found.len(), 1);
        assert_eq!(found.first().map(|only| only.version), Some(Version::Two));
    }

    #[test]
    fn a_group_outside_of_what_is_mounted_is_not_guessed_at() {
        assert_eq!(below_mount("/docker/abc/x", "/docker/abc"), Some("x".into()));
        assert_eq!(below_mount("/docker/abc", "/docker/abc"), Some("".into()));
        assert_eq!(below_mount("/other", "/docker/abc"), None);
        assert_eq!(below_mount("/../other", "/"), None);
    }
}
