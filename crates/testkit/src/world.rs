//! The namespaces: a node for the daemon, and a world that answers on every address.

use std::{
    fs,
    future::Future,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use netns::{Connection, LinkIndex, NetNs, Route, RouteKind, Veth, sysctl};
use tokio::net::{TcpListener, UdpSocket};

use crate::{
    Log, Zone, dns,
    sinks::{self, Sinks},
};

/// The node's address towards the world.
pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The node's IPv6 address towards the world.
pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 2);
/// The world's end of the wire, and where its DNS authority answers.
pub(crate) const WORLD_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const WORLD_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1);

/// The name of the world's interface to the node.
const WORLD_LINK: &str = "node";
/// The name of the node's interface to the world.
const NODE_LINK: &str = "eth0";
const HARDWARE_ADDRESS: [u8; 6] = [0x02, 0xba, 0x11, 0x00, 0x00, 0x01];

/// The two namespaces, with everything in them but the daemon.
pub struct World {
    node: NetNs,
    /// Held so that the namespace lives as long as the lab.
    _world: NetNs,
    sinks: Log,
    queries: Log,
    ca_path: PathBuf,
    stop: tokio::sync::watch::Sender<bool>,
}

impl World {
    /// Builds the namespaces and starts the servers; logs go into `directory`.
    pub fn build(zone: Zone, directory: &Path) -> Result<Self> {
        let sink_log = Log::create(&directory.join("sinks.jsonl"))?;
        let query_log = Log::create(&directory.join("dns.jsonl"))?;
        let authority =
            tls::Authority::generate("Bailiwick lab").context("the lab's certificate authority")?;
        let ca_path = directory.join("ca.pem");
        fs::write(&ca_path, authority.pem()).with_context(|| format!("writing {}", ca_path.display()))?;
        let acceptor = authority.into_acceptor()?;

        let (node, loopback) = NetNs::create_and(bring_loopback_up).context("creating the node")?;
        loopback?;
        let (world, linked) =
            NetNs::create_and(|| link_world(&node)).context("creating the world's namespace")?;
        linked.context("linking the world")?;
        node.run(link_node)?.context("linking the node")?;

        // Everything listens before anything is served, so that nobody comes too early.
        let (sinks, (udp, tcp)) = world
            .run(|| anyhow::Ok((Sinks::open()?, dns_sockets()?)))?
            .context("opening the world's sockets")?;

        let (stop, _) = tokio::sync::watch::channel(false);
        let this = Self {
            node,
            _world: world.try_clone()?,
            sinks: sink_log,
            queries: query_log.clone(),
            ca_path,
            stop,
        };
        let log = this.sinks.clone();
        this.spawn_in(world, "lab-world", move || async move {
            sinks.spawn(&acceptor, &log)?;
            let (udp, tcp) = (UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?);
            tokio::spawn(dns::serve(udp, tcp, Arc::new(zone), query_log));
            Ok(())
        })?;
        Ok(this)
    }

    /// The namespace of the daemon.
    pub fn node(&self) -> &NetNs {
        &self.node
    }

    /// What reached the world.
    pub fn sinks(&self) -> &Log {
        &self.sinks
    }

    /// What the DNS authority was asked.
    pub fn queries(&self) -> &Log {
        &self.queries
    }

    /// The certificate of the authority that signs the world's web servers.
    pub fn ca_path(&self) -> &Path {
        &self.ca_path
    }

    /// Runs a task on a thread of its own inside the node, until the world is dropped.
    pub(crate) fn spawn_on_node<F, Fut>(&self, name: &str, task: F) -> Result<()>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<()>>,
    {
        self.spawn_in(self.node.try_clone()?, name, task)
    }

    /// Starts `task` on a thread with a runtime of its own in `namespace`, and waits until it is under way. What it
    /// has spawned goes on when it has returned; the thread ends with the world.
    fn spawn_in<F, Fut>(&self, namespace: NetNs, name: &str, task: F) -> Result<()>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<()>>,
    {
        let mut stop = self.stop.subscribe();
        let thread = std::thread::Builder::new().name(name.to_owned());
        let name = name.to_owned();
        thread.spawn(move || {
            let ended = namespace.run(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async move {
                    let running = async {
                        task().await?;
                        std::future::pending().await
                    };
                    tokio::select! {
                        ended = running => ended,
                        _ = stop.changed() => Ok(()),
                    }
                })
            });
            if let Err(error) = ended.map_err(anyhow::Error::from).and_then(|ended| ended) {
                crate::log::complain(&format!("{name}: {error:#}"));
            }
        })?;
        Ok(())
    }
}

fn bring_loopback_up() -> Result<()> {
    Ok(Connection::open()?.bring_up(LinkIndex::LOOPBACK)?)
}

/// Inside the world: every address is local, so that whatever is connected to answers.
fn link_world(node: &NetNs) -> Result<()> {
    bring_loopback_up()?;
    let mut connection = Connection::open()?;
    let link = connection.create_veth(&Veth {
        name: WORLD_LINK,
        peer_name: NODE_LINK,
        peer_namespace: node.as_fd(),
        hardware_address: HARDWARE_ADDRESS,
    })?;
    connection.bring_up(link)?;
    for address in [format!("{WORLD_V4}/30"), format!("{WORLD_V6}/64")] {
        connection.add_address(link, address.parse()?)?;
    }
    for everything in ["0.0.0.0/0", "::/0"] {
        connection.set_route(&Route {
            kind: RouteKind::Local,
            ..Route::direct(everything.parse()?, LinkIndex::LOOPBACK)
        })?;
    }
    // The sinks have to see what a strict machine would drop as implausible: such as packets to 127.0.0.1.
    for interface in ["all", WORLD_LINK] {
        sysctl::set(&format!("ipv4/conf/{interface}/rp_filter"), "0")?;
        sysctl::set(&format!("ipv4/conf/{interface}/route_localnet"), "1")?;
    }
    sinks::divert(WORLD_LINK)
}

fn dns_sockets() -> Result<(std::net::UdpSocket, std::net::TcpListener)> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 53));
    let udp = std::net::UdpSocket::bind(any).context("the DNS authority")?;
    let tcp = std::net::TcpListener::bind(any).context("the DNS authority")?;
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok((udp, tcp))
}

fn link_node() -> Result<()> {
    let mut connection = Connection::open()?;
    let link = connection.link_index(NODE_LINK)?.context("the wire to the world is not there")?;
    connection.bring_up(link)?;
    for address in [format!("{NODE_V4}/30"), format!("{NODE_V6}/64")] {
        connection.add_address(link, address.parse()?)?;
    }
    for everything in ["0.0.0.0/0", "::/0"] {
        connection.set_route(&Route::direct(everything.parse()?, link))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
    };

    use super::*;

    #[test]
    fn whatever_address_is_connected_to_answers_and_is_logged() {
        let directory = tempfile::tempdir().unwrap();
        let world = World::build(Zone::standard(), directory.path()).unwrap();
        let targets = ["8.8.8.8:80", "169.254.169.254:8080", "10.1.2.3:31337", "[2a0a:66::66]:80"];
        for target in targets {
            let answer = world.node().run(|| -> std::io::Result<String> {
                let mut stream = TcpStream::connect(target)?;
                stream.write_all(b"GET /canary HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                Ok(answer)
            });
            let answer = answer.unwrap().unwrap_or_else(|error| panic!("{target}: {error}"));
            assert!(answer.contains("200 OK"), "{target}: {answer}");
        }
        let lines = world.sinks().lines().unwrap();
        let seen = lines.iter().filter(|line| line["target"] == "/canary").count();
        assert_eq!(seen, targets.len(), "{lines:?}");
    }
}
