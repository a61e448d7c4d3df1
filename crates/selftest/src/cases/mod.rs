//! The attacks: what is tried, and what has to become of it under the policy.

mod destinations;
mod dns;
mod http;
mod machine;
mod tls;
mod tunnels;

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use policy::Protocol;

use crate::{
    forms,
    ground::{Expect, Ground},
    names::Names,
    probe::{Action, Bytes},
    report::Group,
    sinks::{Kind, Trace},
};

/// How long an answer is waited for.
pub(crate) const WAIT: Duration = Duration::from_secs(3);
/// How long it is waited for where the gate itself waits for more.
const PATIENCE: Duration = Duration::from_secs(7);
/// How long a reply is waited for that need not come.
const SHORT: Duration = Duration::from_millis(700);
/// The first of the ports that are used for one attempt each.
const FIRST_PORT: u16 = 20_000;

/// Attempts that belong together.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) group: Group,
    pub(crate) title: &'static str,
    pub(crate) attempts: Vec<Attempt>,
}

/// Who tries it inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    User,
    Root,
}

/// A place that nothing may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) kind: Kind,
    pub(crate) address: IpAddr,
    pub(crate) port: Option<u16>,
}

/// How the event of a refusal is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EventKey {
    pub(crate) protocol: &'static str,
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: Option<u16>,
    /// It was permitted before, and cut.
    pub(crate) is_revoked: bool,
}

/// One thing that is tried.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) what: String,
    pub(crate) action: Action,
    pub(crate) user: User,
    pub(crate) expect: Expect,
    /// What is looked for in the world.
    pub(crate) trace: Trace,
    /// Where it is looked for, too, if nothing at all may get there.
    pub(crate) place: Option<Place>,
    /// Where it may arrive if it is permitted; of a look-up, where an answer may lead, if that is known.
    pub(crate) lands: Vec<IpAddr>,
    /// The flow that it is, if it is one that is decided about.
    pub(crate) flow: Option<EventKey>,
    /// Whether each refusal is to have its event.
    pub(crate) is_recorded: bool,
}

impl Attempt {
    /// Waiting this long for an answer.
    pub(crate) fn within(mut self, time: Duration) -> Self {
        match &mut self.action {
            Action::Tcp { wait, .. } | Action::Udp { wait, .. } | Action::Ping { wait, .. } => *wait = time,
            _ => {}
        }
        self
    }

    pub(crate) fn by(mut self, user: User) -> Self {
        self.user = user;
        self
    }

    /// The key of the event that its refusal is to have, if it is to be refused.
    pub(crate) fn event(&self) -> Option<&EventKey> {
        let refused = self.is_recorded && matches!(self.expect, Expect::Refused { .. });
        self.flow.as_ref().filter(|_| refused)
    }

    /// Nothing of its canary gets out, whether or not the flow itself is permitted.
    fn contained(mut self) -> Self {
        self.expect = Expect::Contained;
        self
    }
}

/// Makes attempts.
pub(crate) struct Plan<'a> {
    pub(crate) ground: &'a Ground,
    pub(crate) names: &'a Names,
    /// Addresses of the machine that the test runs on.
    pub(crate) machine: &'a [IpAddr],
    pub(crate) next_port: &'a Cell<u16>,
}

impl Plan<'_> {
    /// The attacks of a group.
    pub(crate) fn cases(&self, group: Group) -> Result<Vec<Case>> {
        match group {
            Group::Destinations => destinations::cases(self),
            Group::Tls => tls::cases(self),
            Group::Http => http::cases(self),
            Group::Tunnels => tunnels::cases(self),
            Group::Dns => dns::cases(self),
            Group::Machine => machine::cases(self),
            // These are made while they are tried.
            Group::State => Ok(Vec::new()),
        }
    }

    /// Requests that are permitted, for the beginning and the end of a group: they show that it is not for want of a
    /// way that nothing gets out. Look-ups are first; what they find is what the others go to.
    pub(crate) fn controls(&self) -> Result<[Vec<Attempt>; 2]> {
        let (mut lookups, mut connections) = (Vec::new(), Vec::new());
        if let Some(named) = &self.ground.named {
            let name = named.name.as_str();
            for (kind, word) in [(1, "A"), (28, "AAAA")] {
                lookups.push(self.lookup(name, kind, format!("{word} of {name}"))?);
            }
            for address in named.addresses {
                let canary = canary()?;
                let to = SocketAddr::new(address, named.port_or(80));
                let request = forms::http::request(Some(name), &format!("/{canary}"), "");
                let expect = self.ground.claimed(name.as_bytes(), address, to.port());
                connections.push(self.tcp(
                    format!("HTTP to {name} at {to}"),
                    &canary,
                    to,
                    vec![request],
                    expect,
                ));
            }
        }
        if let Some((address, port)) = self.ground.address {
            let canary = canary()?;
            let to = SocketAddr::new(address, port.unwrap_or(8081));
            let expect = self.ground.other(Protocol::Tcp, address, Some(to.port()));
            connections.push(self.tcp(
                format!("bytes to {to}"),
                &canary,
                to,
                vec![canary.clone().into()],
                expect,
            ));
        }
        if connections.is_empty() {
            // Under a policy that permits nothing that can be found it stays inside.
            connections.push(self.own("a connection to itself", "127.0.0.1:0".parse()?));
        }
        Ok([lookups, connections])
    }

    /// Where the policy permits a name to lead, of the places that its zone says it does.
    pub(crate) fn places_of(&self, name: &str) -> Vec<IpAddr> {
        let mut places = self.names.addresses(name);
        places.retain(|address| self.ground.may_resolve_to(name, *address));
        places
    }

    /// A port that no other attempt uses, where the permitted name is permitted on every port.
    pub(crate) fn port(&self) -> u16 {
        let any = self.fresh_port();
        self.ground.named.as_ref().map_or(any, |named| named.port_or(any))
    }

    /// A port that no other attempt uses.
    pub(crate) fn fresh_port(&self) -> u16 {
        let port = self.next_port.get().max(FIRST_PORT);
        self.next_port.set(port.saturating_add(1));
        port
    }

    /// A connection on which something is said.
    pub(crate) fn tcp(
        &self,
        what: impl Into<String>,
        canary: &str,
        to: SocketAddr,
        pieces: Vec<Vec<u8>>,
        expect: Expect,
    ) -> Attempt {
        let address = to.ip().to_canonical();
        let never = !matches!(self.ground.passage(address, to.port()), crate::ground::Passage::Judged { .. })
            && !expect.is_permitted();
        let pieces = pieces.into_iter().map(Bytes).collect();
        Attempt {
            what: what.into(),
            action: Action::Tcp { to, pieces, from: None, wait: WAIT },
            user: User::User,
            trace: Trace::Canary(canary.to_owned()),
            place: never.then_some(Place { kind: Kind::Tcp, address, port: Some(to.port()) }),
            lands: vec![address],
            flow: flow("tcp", address, Some(to.port())),
            is_recorded: true,
            expect,
        }
    }

    /// A ClientHello that names this server.
    pub(crate) fn hello(&self, what: impl Into<String>, name: &[u8], to: SocketAddr) -> Result<Attempt> {
        let canary = canary()?;
        let expect = self.ground.claimed(name, to.ip(), to.port());
        let bytes = forms::tls::Hello::naming(&canary, &[name]).record();
        let mut attempt = self.tcp(what, &canary, to, vec![bytes], expect);
        attempt.lands.extend(self.places_of(String::from_utf8_lossy(name).trim_end_matches('.')));
        Ok(attempt)
    }

    /// A datagram with a canary in it.
    pub(crate) fn datagram(&self, what: impl Into<String>, to: SocketAddr, data: &[u8]) -> Result<Attempt> {
        let canary = canary()?;
        let address = to.ip().to_canonical();
        let expect = self.ground.other(Protocol::Udp, address, Some(to.port()));
        let mut data = data.to_vec();
        data.extend(canary.as_bytes());
        Ok(Attempt {
            what: what.into(),
            action: Action::Udp { to, data: Bytes(data), from: None, wait: WAIT },
            user: User::User,
            place: (!expect.is_permitted()).then_some(Place {
                kind: Kind::Udp,
                address,
                port: Some(to.port()),
            }),
            lands: vec![address],
            flow: flow("udp", address, Some(to.port())),
            is_recorded: true,
            expect,
            trace: Trace::Canary(canary),
        })
    }

    /// An echo request with a canary in it.
    pub(crate) fn ping(&self, what: impl Into<String>, to: IpAddr) -> Result<Attempt> {
        let canary = canary()?;
        let expect = self.ground.other(Protocol::Icmp, to, None);
        let number = if to.is_ipv4() { 1 } else { 58 };
        Ok(Attempt {
            what: what.into(),
            action: Action::Ping { to, data: Bytes(canary.clone().into_bytes()), wait: WAIT },
            user: User::User,
            place: (!expect.is_permitted()).then_some(Place {
                kind: Kind::Packet(number),
                address: to.to_canonical(),
                port: None,
            }),
            lands: vec![to.to_canonical()],
            flow: flow("icmp", to.to_canonical(), None),
            is_recorded: true,
            expect,
            trace: Trace::Canary(canary),
        })
    }

    /// A look-up of a name at whatever server; nothing of a name that is not permitted may be asked of anybody.
    pub(crate) fn lookup(&self, name: &str, kind: u16, what: impl Into<String>) -> Result<Attempt> {
        let query = forms::dns::question(name, kind);
        let trace = Trace::Query(name.to_owned());
        let expect = self.ground.lookup(name);
        let mut attempt = self.query(what, trace, "8.8.8.8:53".parse()?, query, expect)?;
        attempt.lands = self.places_of(name);
        Ok(attempt)
    }

    /// A query, whatever is in it.
    pub(crate) fn query(
        &self,
        what: impl Into<String>,
        trace: Trace,
        server: SocketAddr,
        query: Vec<u8>,
        expect: Expect,
    ) -> Result<Attempt> {
        // Permitted or not, a query does not reach the server that it was sent to.
        Ok(Attempt {
            what: what.into(),
            action: Action::Udp { to: server, data: Bytes(query), from: None, wait: WAIT },
            user: User::User,
            expect,
            trace,
            place: Some(Place { kind: Kind::Udp, address: server.ip(), port: Some(server.port()) }),
            lands: Vec::new(),
            flow: None,
            is_recorded: false,
        })
    }

    /// Something that is to be refused to everybody, whatever the policy.
    pub(crate) fn never(&self, what: impl Into<String>, why: &str, action: Action) -> Result<Attempt> {
        Ok(Attempt {
            what: what.into(),
            action,
            user: User::User,
            expect: Expect::never(why),
            trace: Trace::Canary(canary()?),
            place: None,
            lands: Vec::new(),
            flow: None,
            is_recorded: false,
        })
    }

    /// A connection of the sandbox to itself.
    pub(crate) fn own(&self, what: impl Into<String>, at: SocketAddr) -> Attempt {
        Attempt {
            what: what.into(),
            action: Action::Own { at },
            user: User::User,
            expect: Expect::Inside,
            trace: Trace::None,
            place: None,
            lands: Vec::new(),
            flow: None,
            is_recorded: false,
        }
    }

    pub(crate) fn case(&self, group: Group, id: &str, title: &'static str, attempts: Vec<Attempt>) -> Case {
        Case { id: id.to_owned(), group, title, attempts }
    }
}

/// 128 random bits, as 32 characters.
pub(crate) fn canary() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// How a look-up of `name` is known again: by the canary in it, if there is one.
fn trace_of(name: &str, canary: &str) -> Trace {
    if name.contains(canary) { Trace::Canary(canary.to_owned()) } else { Trace::Query(name.to_owned()) }
}

/// A flow. What goes to itself is none that is decided about, nor what names no interface and needs one.
fn flow(protocol: &'static str, address: IpAddr, port: Option<u16>) -> Option<EventKey> {
    let is_own = address.is_loopback() || address.is_unspecified();
    let is_nowhere = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    (!is_own && !is_nowhere).then_some(EventKey { protocol, address: Some(address), port, is_revoked: false })
}
