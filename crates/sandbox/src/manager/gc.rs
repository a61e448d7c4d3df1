//! Finding and removing what no living sandbox owns.

use std::{collections::BTreeSet, fs};

use serde::Serialize;

use super::{
    Manager, blocking,
    create::chain,
    end::remove_groups,
    prepare::{self, Directory},
};
use crate::{error::SandboxError, ids::SandboxId, remove::remove_tree};

/// What a collection has found and removed, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Directories of sandboxes that do not exist.
    pub directories: Vec<String>,
    /// Control groups of sandboxes that do not exist.
    pub cgroups: Vec<String>,
    /// Records of sandboxes that were said to live and do not.
    pub records: Vec<String>,
    /// Half-made and replaced templates.
    pub templates: Vec<String>,
    /// What could not be removed, with the reason.
    pub failures: Vec<String>,
}

impl GcReport {
    /// Whether there was nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Manager {
    /// Removes directories, control groups and records of sandboxes that do not exist, processes that are left in
    /// those groups, and templates that nobody uses any more. Safe beside everything else.
    pub async fn gc(&self) -> Result<GcReport, SandboxError> {
        let mut report = GcReport::default();
        self.collect_groups(&mut report).await?;
        self.collect_directories(&mut report).await?;
        report.records = self.record_ends().await?;
        let templates = self.inner.templates.clone();
        match blocking(move || templates.sweep()).await? {
            Ok(swept) => report.templates.extend(swept.iter().map(|path| path.display().to_string())),
            Err(error) => report.failures.push(chain(&error)),
        }
        if !report.is_empty() {
            tracing::info!(?report, "collected remains");
        }
        Ok(report)
    }

    /// Groups before directories: a process that is left in one may still have mounted the other.
    async fn collect_groups(&self, report: &mut GcReport) -> Result<(), SandboxError> {
        // What exists is looked at before what lives, so that a sandbox made meanwhile is not taken for remains.
        for (id, cgroups) in self.inner.hierarchies.existing()? {
            if self.lives(&id) {
                continue;
            }
            let killing = cgroups.clone();
            blocking(move || killing.kill()).await?;
            match remove_groups(&cgroups).await {
                Ok(()) => report.cgroups.push(id),
                Err(fault) => report.failures.push(fault.to_string()),
            }
        }
        Ok(())
    }

    async fn collect_directories(&self, report: &mut GcReport) -> Result<(), SandboxError> {
        let dir = &self.inner.sandboxes_dir;
        let entries = fs::read_dir(dir).map_err(|source| prepare::failed("list", dir, source))?;
        let names: BTreeSet<_> = entries.filter_map(Result::ok).map(|entry| entry.file_name()).collect();
        for name in names {
            let name = name.to_string_lossy().into_owned();
            if self.lives(&name) {
                continue;
            }
            let path = Directory::of(dir, &name).path().to_owned();
            match blocking(move || remove_tree(&path)).await? {
                Ok(()) => report.directories.push(name),
                Err(fault) => report.failures.push(fault.to_string()),
            }
        }
        Ok(())
    }

    pub(super) fn lives(&self, id: &str) -> bool {
        self.inner.shells.has_reserved(id)
            || id.parse::<SandboxId>().is_ok_and(|id| self.inner.living.lock().contains_key(&id))
    }
}
