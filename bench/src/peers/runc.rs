//! runc, with the root file system of a template of ours.

use std::{
    fs,
    io::Read,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::child::Command;

/// A bundle to run.
pub(crate) struct Runc {
    directory: tempfile::TempDir,
    count: u32,
}

impl Runc {
    /// A bundle with this root file system, read-only; with `machine_usr` the machine's `/usr` is mounted in it.
    pub(crate) fn prepare(rootfs: &Path, machine_usr: bool) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let made = Command::new("runc").arg("spec").current_dir(directory.path()).status()?;
        ensure!(made.success(), "runc spec: {made}");
        let path = directory.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/bin/echo", "hi"]);
        config["root"] = json!({ "path": rootfs, "readonly": true });
        if machine_usr && let Some(mounts) = config["mounts"].as_array_mut() {
            let options = ["rbind", "ro"];
            let usr = json!({ "destination": "/usr", "type": "bind", "source": "/usr", "options": options });
            mounts.insert(0, usr);
        }
        fs::write(&path, config.to_string())?;
        Ok(Self { directory, count: 0 })
    }

    /// From starting `runc run` to the first byte that the command in it prints.
    pub(crate) fn first_byte(&mut self) -> Result<Duration> {
        self.count += 1;
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.directory.path().join("state"));
        command.args(["run", "--bundle"]).arg(self.directory.path()).arg(format!("bench-{}", self.count));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let begun = Instant::now();
        let mut process = command.spawn().context("starting runc")?;
        let mut output = process.stdout.take().context("a child without its output")?;
        let read = output.read(&mut [0]);
        let elapsed = begun.elapsed();
        let ended = process.wait()?;
        ensure!(ended.success() && read? == 1, "runc run: {ended}");
        Ok(elapsed)
    }
}
