//! What the probe tries on the machine it is on.

use std::{
    fs::OpenOptions,
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
};

use netns::{Connection, Family, LinkIndex, NetNs, Route, RouteKind};
use rustix::{
    io::Errno,
    net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with},
};
use serde::{Deserialize, Serialize};
use sys::forbidden::Call;

use super::Outcome;

/// Something that only the owner of the network may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change {
    /// An address for the loopback interface.
    Address,
    /// A route.
    Route,
    /// A rule that chooses another table of routes.
    Rule,
    /// The loopback interface, up.
    Link,
    /// The wire, gone.
    RemoveWire,
    /// The packet filter's rules, gone.
    Filter,
    /// A network namespace of one's own.
    Namespace,
    /// A parameter of the network.
    Parameter,
}

impl Change {
    pub(crate) const ALL: [Self; 8] = [
        Self::Address,
        Self::Route,
        Self::Rule,
        Self::Link,
        Self::RemoveWire,
        Self::Filter,
        Self::Namespace,
        Self::Parameter,
    ];
}

pub(super) fn listen(at: SocketAddr) -> Outcome {
    done(TcpListener::bind(at).map(drop))
}

/// Listens, and hands the listener on.
pub(super) fn listener(at: SocketAddr, keep: impl FnOnce(TcpListener)) -> Outcome {
    let opened = TcpListener::bind(at).and_then(|listener| {
        listener.set_nonblocking(true)?;
        keep(listener);
        Ok(())
    });
    done(opened)
}

/// Whether anybody has connected.
pub(super) fn awaited(listener: &TcpListener) -> Outcome {
    done(listener.accept().map(drop))
}

pub(super) fn socket(family: u16, kind: u32, protocol: u32) -> Outcome {
    let protocol = std::num::NonZeroU32::new(protocol).map(Protocol::from_raw);
    let opened = socket_with(
        AddressFamily::from_raw(family),
        SocketType::from_raw(kind),
        SocketFlags::CLOEXEC,
        protocol,
    );
    done(opened.map(drop).map_err(io::Error::from))
}

/// Whether the kernel got to look at the arguments, which are useless.
pub(super) fn call(name: &str) -> Outcome {
    let Some(call) = Call::named(name) else {
        return Outcome::Fault(format!("there is no system call {name}"));
    };
    let refusals = [Errno::PERM, Errno::ACCESS, Errno::NOSYS].map(Errno::raw_os_error);
    match call.attempt() {
        Err(error) if error.raw_os_error().is_some_and(|number| refusals.contains(&number)) => {
            Outcome::Refused(error.to_string())
        }
        Ok(()) | Err(_) => Outcome::Done,
    }
}

pub(super) fn change(change: Change) -> Outcome {
    let changed = || -> anyhow::Result<()> {
        let everywhere = "203.0.113.0/24".parse()?;
        match change {
            Change::Address => Connection::open()?.add_address(LinkIndex::LOOPBACK, everywhere)?,
            Change::Route => {
                let route =
                    Route { kind: RouteKind::Local, ..Route::direct(everywhere, LinkIndex::LOOPBACK) };
                Connection::open()?.set_route(&route)?;
            }
            Change::Rule => Connection::open()?.add_mark_rule(Family::V4, 7, 254)?,
            Change::Link => Connection::open()?.bring_up(LinkIndex::LOOPBACK)?,
            Change::RemoveWire => {
                let mut connection = Connection::open()?;
                let wire = connection.link_index("eth0")?;
                connection.delete_link(wire.ok_or(io::Error::from(io::ErrorKind::NotFound))?)?;
            }
            Change::Filter => {
                let mut batch = nft::Batch::new();
                batch.replace_table(&nft::Table::inet("bailiwick"));
                nft::Connection::open()?.commit(batch)?;
            }
            Change::Namespace => drop(NetNs::create_and(|| ())?),
            Change::Parameter => netns::sysctl::set("ipv4/ip_forward", "1")?,
        }
        Ok(())
    };
    match changed() {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Refused(format!("{error:#}")),
    }
}

pub(super) fn open(path: &Path, write: bool) -> Outcome {
    use std::io::Read;
    let opened = OpenOptions::new().read(!write).write(write).open(path).and_then(|mut file| {
        if write {
            return Ok(());
        }
        // Some can be opened and not read.
        let mut byte = [0];
        match file.read(&mut byte)? {
            0 => Err(io::Error::other("it is empty")),
            _ => Ok(()),
        }
    });
    done(opened)
}

fn done(result: io::Result<()>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Refused(error.to_string()),
    }
}
