//! How much memory sandboxes take, wherever it is.

use std::{collections::HashMap, fs};

use anyhow::{Context, Result};

/// What is in use, in KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// What the kernel holds for itself and cannot give back, tmpfs included.
    pub(crate) kernel: u64,
    /// The proportional set size of a process and all its descendants.
    pub(crate) processes: u64,
    /// What the kernel says is available to new programs: of the whole machine, whatever else happens on it.
    pub(crate) available: u64,
}

impl Usage {
    /// What is in use now by the kernel, and by the process with this id and its descendants.
    pub(crate) fn read(root: u32) -> Result<Self> {
        let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
        let field = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(first_number).unwrap_or_default()
        };
        Ok(Self {
            kernel: ["SUnreclaim", "KernelStack", "PageTables", "Percpu", "Shmem"].map(field).iter().sum(),
            processes: family(root)?.into_iter().map(proportional_set_size).sum(),
            available: field("MemAvailable"),
        })
    }
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

fn proportional_set_size(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    text.lines().find_map(|line| first_number(line.strip_prefix("Pss:")?)).unwrap_or_default()
}

/// A process and its descendants, as far as they are there.
fn family(root: u32) -> Result<Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(parent) = parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut family, mut next) = (vec![root], 0);
    while let Some(&parent) = family.get(next) {
        family.extend(children.remove(&parent).unwrap_or_default());
        next += 1;
    }
    Ok(family)
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything, brackets and spaces included.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_counted() {
        let usage = Usage::read(std::process::id()).unwrap();
        assert!(usage.processes > 0 && usage.kernel > 0 && usage.available > 0, "{usage:?}");
    }
}
