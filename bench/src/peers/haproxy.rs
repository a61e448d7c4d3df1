//! HAProxy in TCP mode: transparent, inspects the SNI, splices.

use std::{fs, net::Ipv4Addr};

use anyhow::{Context, Result};

use super::wait_for_tcp;
use crate::{
    child::{Child, Command},
    load::NAME,
    network::{Network, PEER_PORT},
};

/// A running HAProxy.
pub(crate) struct Haproxy {
    _child: Child,
    _directory: tempfile::TempDir,
}

impl Haproxy {
    /// Starts it between its client and the world.
    pub(crate) fn start(network: &Network) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("haproxy.cfg");
        fs::write(&path, configuration())?;
        let mut command = Command::new("haproxy");
        command.args(["-db", "-q", "-f"]).arg(&path);
        let router = &network.proxied.router;
        let child = Child::start(router, command)?;
        router.run(|| wait_for_tcp((Ipv4Addr::LOCALHOST, PEER_PORT).into()))?.context("starting HAProxy")?;
        Ok(Self { _child: child, _directory: directory })
    }
}

/// The server's address is that of the client's connection; the name is looked for within the same time as ours.
/// Buffers and pipes are as large as does it good: with its defaults it moves up to half as much.
fn configuration() -> String {
    format!(
        "global
    nbthread 2
    maxconn 4000
    tune.bufsize 65536
    tune.pipesize 1048576
defaults
    mode tcp
    option splice-auto
    timeout connect 10s
    timeout client 60s
    timeout server 60s
frontend transparent
    bind 127.0.0.1:{PEER_PORT} transparent
    tcp-request inspect-delay 5s
    acl permitted req.ssl_sni -i {NAME}
    tcp-request content accept if {{ req.ssl_hello_type 1 }} permitted
    tcp-request content reject
    default_backend destination
backend destination
    server original 0.0.0.0:0
"
    )
}
