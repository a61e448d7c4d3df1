//! The whole laboratory: the world, the node, and the daemon on it.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener as StdListener},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream};

use crate::{
    Log, World, Zone,
    daemon::{API_PORT, Daemon},
    world::NODE_V4,
};

/// A port of the node that a service of the machine listens on, for attacks on it.
const NODE_SERVICE_PORT: u16 = 9100;

/// What a lab is made of.
#[derive(Debug)]
pub struct LabConfig {
    /// The names of the world.
    pub zone: Zone,
    /// The built `bailiwick`.
    pub program: PathBuf,
    /// Templates to share with other labs; otherwise the daemon has none but `host`.
    pub templates: Option<PathBuf>,
    /// Directory for logs and the daemon's data; removed by the caller.
    pub directory: PathBuf,
    /// Where the API is reachable from the machine; port 0 picks one.
    pub listen: SocketAddr,
}

/// A running lab. Dropping it ends the daemon and removes the namespaces.
pub struct Lab {
    daemon: Daemon,
    api: SocketAddr,
    world: World,
}

impl Lab {
    /// Builds the world and starts the daemon in it.
    pub fn start(config: LabConfig) -> Result<Self> {
        let world = World::build(config.zone, &config.directory).context("building the world")?;
        let service = world.node().run(|| {
            // Every address of the node, so that a hole to any of them shows.
            StdListener::bind((Ipv4Addr::UNSPECIFIED, NODE_SERVICE_PORT))
        })??;
        let listener =
            StdListener::bind(config.listen).with_context(|| format!("listening on {}", config.listen))?;
        let api = listener.local_addr()?;
        let daemon =
            Daemon::start_on_node(&config.program, &config.directory, config.templates.as_deref(), &world)?;
        spawn_node_thread(&world, listener, service)?;
        Ok(Self { daemon, api, world })
    }

    /// The world.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Where the API is reachable from the machine.
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// The API key.
    pub fn key(&self) -> &str {
        self.daemon.key()
    }

    /// The daemon.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// What a client needs to know, as environment variables.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let path = |log: &Log| log.path().display().to_string();
        vec![
            ("DECLAW_DOMAIN", self.api.to_string()),
            ("DECLAW_API_URL", format!("http://{}", self.api)),
            ("DECLAW_API_KEY", self.daemon.key().to_owned()),
            ("BAILIWICK_LAB_SINKS", path(self.world.sinks())),
            ("BAILIWICK_LAB_DNS", path(self.world.queries())),
            ("BAILIWICK_LAB_CA", self.world.ca_path().display().to_string()),
            ("BAILIWICK_LAB_NODE", NODE_V4.to_string()),
            ("BAILIWICK_LAB_NODE_API", format!("127.0.0.1:{API_PORT}")),
            ("BAILIWICK_LAB_PROGRAM", self.daemon.program().display().to_string()),
            ("BAILIWICK_LAB_DATA", self.daemon.data_dir().display().to_string()),
            ("BAILIWICK_LAB_LOG", self.daemon.log().display().to_string()),
            ("BAILIWICK_LAB_DAEMON_PID", self.daemon.pid().to_string()),
        ]
    }
}

/// A thread inside the node: carries API connections of the machine to the daemon, and is a service of the machine.
fn spawn_node_thread(world: &World, listener: StdListener, service: StdListener) -> Result<()> {
    let log = world.sinks().clone();
    world.spawn_on_node("lab-node", move || async move {
        listener.set_nonblocking(true)?;
        service.set_nonblocking(true)?;
        let service = TcpListener::from_std(service)?;
        tokio::spawn(async move {
            while let Ok((stream, source)) = service.accept().await {
                let destination = stream.local_addr().map(|address| address.to_string()).unwrap_or_default();
                log.line(&serde_json::json!({
                    "kind": "node", "protocol": "tcp", "destination": destination, "source": source.to_string(),
                }));
            }
        });
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (mut outside, _) = listener.accept().await?;
            tokio::spawn(async move {
                let mut inside = TcpStream::connect((Ipv4Addr::LOCALHOST, API_PORT)).await?;
                outside.set_nodelay(true)?;
                inside.set_nodelay(true)?;
                tokio::io::copy_bidirectional(&mut outside, &mut inside).await
            });
        }
    })
}

/// The path of a program built beside this one.
pub fn sibling(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let directory = own.parent().map(Path::to_owned).unwrap_or_default();
    let path = directory.join(name);
    anyhow::ensure!(path.exists(), "{} is not there: run `cargo build` first", path.display());
    Ok(path)
}
