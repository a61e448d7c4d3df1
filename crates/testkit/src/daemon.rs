//! The daemon under test: the built program, started as a user would.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use sys::netns::NetNs;

use crate::{World, world::WORLD_V4};

/// Port of the API inside the node.
pub(crate) const API_PORT: u16 = 8080;

/// A running `bailiwick serve`.
pub struct Daemon {
    program: PathBuf,
    arguments: Vec<String>,
    /// Where it runs; `None` is this machine's own namespace.
    node: Option<NetNs>,
    api: SocketAddr,
    child: Child,
    key: String,
    data_dir: PathBuf,
    log: PathBuf,
}

type Child = std::process::Child;
#[expect(clippy::disallowed_types, reason = "the lab starts the program under test")]
type Command = std::process::Command;

impl Daemon {
    /// Starts the daemon on the node of a world and waits until it listens.
    pub(crate) fn start_on_node(
        program: &Path,
        directory: &Path,
        templates: Option<&Path>,
        world: &World,
    ) -> Result<Self> {
        let api = SocketAddr::from((Ipv4Addr::LOCALHOST, API_PORT));
        let dns = ["--dns".to_owned(), WORLD_V4.to_string()];
        Self::start(program, directory, templates, Some(world.node().try_clone()?), api, &dns)
    }

    /// Starts the daemon in this machine's own namespace, on a free port, and waits until it listens.
    pub fn start_on_machine(program: &Path, directory: &Path, templates: Option<&Path>) -> Result<Self> {
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        Self::start(program, directory, templates, None, free, &[])
    }

    fn start(
        program: &Path,
        directory: &Path,
        templates: Option<&Path>,
        node: Option<NetNs>,
        api: SocketAddr,
        more: &[String],
    ) -> Result<Self> {
        let data_dir = directory.join("data");
        let log = directory.join("daemon.log");
        let mut arguments = vec!["--data-dir".to_owned(), data_dir.display().to_string()];
        let key = create_key(program, &arguments)?;
        arguments.extend(["serve".to_owned(), "--listen".to_owned(), api.to_string()]);
        arguments.extend_from_slice(more);
        if let Some(templates) = templates {
            arguments.extend(["--templates-dir".to_owned(), templates.display().to_string()]);
        }
        let child = spawn(program, &arguments, node.as_ref(), &log)?;
        Ok(Self { program: program.to_owned(), arguments, node, api, child, key, data_dir, log })
    }

    /// Where the API listens, as seen where the daemon runs.
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// The API key of the lab.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The daemon's data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The daemon's log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it without warning (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("killing the daemon")?;
        self.child.wait().context("waiting for the daemon")?;
        Ok(())
    }

    /// Starts it again with the same arguments.
    pub fn restart(&mut self) -> Result<()> {
        self.child = spawn(&self.program, &self.arguments, self.node.as_ref(), &self.log)?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _gone_already = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _gone_already = self.child.wait();
        // Sandboxes survive a daemon by design; those of a lab must not outlive it.
        let data = self.data_dir.as_os_str();
        let ended = Command::new(&self.program).arg("--data-dir").arg(data).args(["gc", "--all"]).output();
        if !ended.as_ref().is_ok_and(|ended| ended.status.success()) {
            crate::log::complain(&format!("ending the sandboxes that are left: {ended:?}"));
        }
    }
}

fn create_key(program: &Path, data: &[String]) -> Result<String> {
    let made = Command::new(program).args(data).args(["keys", "create", "--name", "lab"]).output();
    let made = made.with_context(|| format!("starting {}", program.display()))?;
    let text = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    if !made.status.success() || text.is_empty() {
        bail!("creating an API key: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(text)
}

fn spawn(program: &Path, arguments: &[String], node: Option<&NetNs>, log: &Path) -> Result<Child> {
    let stderr = std::fs::File::options().create(true).append(true).open(log)?;
    let start = || {
        Command::new(program)
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(stderr)
            .spawn()
    };
    let mut child = match node {
        Some(node) => node.run(start)?,
        None => start(),
    }
    .with_context(|| format!("starting {}", program.display()))?;
    let Some(stdout) = child.stdout.take() else { bail!("the daemon has no standard output") };
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if line.contains("listening on") {
                let _nobody_waits_any_more = sender.send(());
            }
        }
    });
    match receiver.recv_timeout(Duration::from_secs(60)) {
        Ok(()) => Ok(child),
        Err(_) => {
            let _gone_already = child.kill();
            let _gone_already = child.wait();
            let said = std::fs::read_to_string(log).unwrap_or_default();
            bail!("the daemon did not start to listen; it said:\n{said}")
        }
    }
}
