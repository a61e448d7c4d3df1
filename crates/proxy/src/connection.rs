//! One accepted connection, from its first byte to its last.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::Poll,
};

use policy::{HostName, InForce, NameSource, Reason};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::tcp::ReadHalf,
    time::Instant,
};

use crate::{
    Egress, Hold, Limits,
    bytes::Way,
    decision::{self, Permit, Refusal},
    dial::{Dialled, dial},
    flows::{Entry, Ongoing, Registration},
    http,
    opening::{self, Hello, Opening},
    refusal::{self, Language},
    relay::{self, Direction, Ended},
    socket::Socket,
};

/// The ports of the web: a server there never speaks first, and nothing but TLS and HTTP is spoken. The busier comes first.
pub const WEB_PORTS: [u16; 2] = [443, 80];

/// An accepted connection and all that its handling needs.
pub(crate) struct Connection<E: Egress> {
    pub(crate) egress: Arc<E>,
    pub(crate) registration: Registration,
    /// Where the client meant to go.
    pub(crate) destination: SocketAddr,
    /// Keeps the binding of the destination: with it the client's own packets would lose their way.
    pub(crate) _hold: Hold,
    pub(crate) limits: Limits,
}

/// What a flow claims to be, and is judged as.
pub(crate) enum Claim {
    /// It names its host.
    Name { name: HostName, source: NameSource, ech: bool },
    /// It names its host by the address it connected to.
    Address,
    /// It names nothing.
    Nothing,
}

impl<E: Egress> Connection<E> {
    /// Handles the connection to its end.
    pub(crate) async fn run(self, mut client: Socket) {
        let in_force = self.egress.in_force();
        if decision::by_entry(&in_force, self.destination).is_some() {
            return self.carry(client, Claim::Nothing, &[]).await;
        }
        if !self.entry().open_half(self.limits.max_half_open) {
            let refusal = self.refusal(Reason::HalfOpen, None, NameSource::None);
            return self.refuse(client, Language::Reset, &refusal).await;
        }
        let server_may_be_first = self.server_may_be_first(&in_force);
        let deadline = Instant::now() + self.limits.peek_timeout;
        let patience = if server_may_be_first { Instant::now() + self.limits.server_first } else { deadline };
        let mut bytes = client.read_at_once();
        let mut opening =
            opening::read(&mut *client, &mut bytes, self.limits.peek_bytes, patience, deadline).await;
        let mut head_deadline = deadline;
        // A stream that ended without a byte may be that of a client which only wants to read.
        if matches!(opening, Opening::Silent | Opening::Closed) && bytes.is_empty() && server_may_be_first {
            // Boxed, as everything that few connections need.
            match Box::pin(self.let_server_begin(client, &mut bytes)).await {
                Some((returned, late)) => (client, opening) = (returned, late),
                None => return,
            }
            head_deadline = Instant::now() + self.limits.peek_timeout;
        }
        self.run_opened(client, opening, bytes, head_deadline).await;
    }

    async fn run_opened(self, client: Socket, opening: Opening, bytes: Vec<u8>, head_deadline: Instant) {
        // Of HTTP, its first bytes are the whole head of a request.
        if opening != Opening::Http {
            self.entry().opened();
        }
        match opening {
            // The client went away, or sent less than can be judged: there is nobody to tell.
            Opening::Closed => {}
            Opening::Tls(hello) => match self.claim(hello) {
                Ok(claim) => self.carry_tls(client, claim, &bytes).await,
                Err(refusal) => self.refuse(client, Language::Tls, &refusal).await,
            },
            Opening::Http => Box::pin(http::run(&self, client, bytes, head_deadline)).await,
            Opening::Unknown if self.is_web_port() => {
                let refusal = self.refusal(Reason::UnknownProtocol, None, NameSource::None);
                self.refuse(client, Language::Reset, &refusal).await;
            }
            Opening::Unknown => self.carry(client, Claim::Nothing, &bytes).await,
            Opening::Silent => {
                let refusal = self.refusal(Reason::PeekTimeout, None, NameSource::None);
                self.refuse(client, Language::Reset, &refusal).await;
            }
            Opening::Refused(reason, language) => {
                let refusal = self.refusal(reason, None, NameSource::None);
                self.refuse(client, language, &refusal).await;
            }
        }
    }

    /// What a ClientHello claims; refused if it names no host, or hides that it may mean another one.
    fn claim(&self, hello: Hello) -> Result<Claim, Refusal> {
        let in_force = self.egress.in_force();
        let Some(raw) = hello.server_name else {
            return Err(self.refusal(Reason::NoSni, None, NameSource::None));
        };
        let Ok(name) = HostName::from_wire(&raw) else {
            return Err(self.refusal(Reason::InvalidSni, None, NameSource::None));
        };
        if hello.has_ech && decision::refused_ech(&in_force) {
            return Err(self.refusal(Reason::Ech, Some(name), NameSource::Sni));
        }
        Ok(Claim::Name { name, source: NameSource::Sni, ech: hello.has_ech })
    }

    async fn carry_tls(&self, client: Socket, claim: Claim, hello: &[u8]) {
        match self.settle(&claim).await {
            Ok(permit) => self.relay(client, permit, hello).await,
            Err(refusal) => self.refuse(client, Language::Tls, &refusal).await,
        }
    }

    /// Judges and relays a flow whose protocol is not understood.
    async fn carry(&self, client: Socket, claim: Claim, first: &[u8]) {
        match self.settle(&claim).await {
            Ok(permit) => self.relay(client, permit, first).await,
            Err(refusal) => self.refuse(client, Language::Reset, &refusal).await,
        }
    }

    /// Relays a permitted flow as it is: `first` has been read from the client already.
    async fn relay(&self, mut client: Socket, permit: Permit, first: &[u8]) {
        let entry = self.entry();
        let _ongoing = Ongoing::start(&self.egress, entry, permit.event());
        let Some(Dialled { socket: mut server, hold: _hold, .. }) = self.dial(&permit).await else { return };
        if !send_first(&mut server, first, entry).await {
            return;
        }
        if relay::relay(&mut client, &mut server, entry).await == Ended::Cleanly {
            client.finish();
            server.finish();
        }
    }

    /// Connects before the client has said anything, and relays what the server says. The client's own first bytes
    /// are examined when they come: silence must not be a way around it. If they turn out to be TLS or HTTP before
    /// the server said anything, the client comes back to be judged by them.
    async fn let_server_begin(&self, mut client: Socket, bytes: &mut Vec<u8>) -> Option<(Socket, Opening)> {
        let permit = match self.settle(&Claim::Nothing).await {
            Ok(permit) => permit,
            Err(refusal) => {
                self.refuse(client, Language::Reset, &refusal).await;
                return None;
            }
        };
        let entry = self.entry();
        entry.opened();
        let _ongoing = Ongoing::start(&self.egress, entry, permit.event());
        let Dialled { socket: mut server, hold: _hold, .. } = self.dial(&permit).await?;
        let (mut client_read, mut client_write) = client.split();
        let (mut server_read, mut server_write) = server.split();
        let mut down = Direction::new(&mut server_read, &mut client_write, entry, Way::Down);
        let opening = {
            let opening = self.read_late(&mut client_read, bytes);
            let mut opening = pin!(opening);
            poll_fn(|cx| {
                if let Poll::Ready(Err(_)) = down.poll_run(cx) {
                    return Poll::Ready(None);
                }
                opening.as_mut().poll(cx).map(Some)
            })
            .await?
        };
        down.rest();
        match opening {
            // Its end without a byte is passed on by the relay, which reads it again.
            Opening::Unknown | Opening::Silent | Opening::Closed => {
                entry.opened();
                if !send(&mut server_write, bytes, entry).await {
                    return None;
                }
                let up = Direction::new(&mut client_read, &mut server_write, entry, Way::Up);
                if relay::both(up, &mut down).await == Ended::Cleanly {
                    client.finish();
                    server.finish();
                }
                None
            }
            late if entry.passed_down() == 0 => {
                entry.set_subject(None);
                server.finish();
                Some((client, late))
            }
            late => {
                let reason = match late {
                    Opening::Refused(Reason::HalfOpen, _) => Reason::HalfOpen,
                    _ => Reason::UnknownProtocol,
                };
                let refusal = self.refusal(reason, permit.name.clone(), permit.source);
                self.refuse(client, Language::Reset, &refusal).await;
                None
            }
        }
    }

    /// The first bytes of a client that may stay silent as long as it likes. What it begins counts as half open, and has
    /// to be complete in time.
    async fn read_late(&self, client: &mut ReadHalf<'_>, bytes: &mut Vec<u8>) -> Opening {
        if !matches!(opening::read_some(client, bytes).await, Ok(1..)) {
            return Opening::Closed;
        }
        if !self.entry().open_half(self.limits.max_half_open) {
            return Opening::Refused(Reason::HalfOpen, Language::Reset);
        }
        let deadline = Instant::now() + self.limits.peek_timeout;
        opening::finish(client, bytes, self.limits.peek_bytes, deadline).await
    }

    /// Judges a claim by the policy in force, and registers what it was permitted as: from then on every new policy
    /// judges it again. A policy that came in between is read here.
    pub(crate) async fn settle(&self, claim: &Claim) -> Result<Permit, Refusal> {
        loop {
            let in_force = self.egress.in_force();
            let permit = self.judge(&in_force, claim).await?;
            let address = permit.addresses.first().copied().unwrap_or(self.destination.ip());
            self.entry().set_subject(Some(permit.subject(address)));
            if self.egress.in_force().generation == in_force.generation {
                return Ok(permit);
            }
            self.entry().set_subject(None);
        }
    }

    async fn judge(&self, in_force: &InForce, claim: &Claim) -> Result<Permit, Refusal> {
        match claim {
            Claim::Address => decision::by_named_address(&*self.egress, in_force, self.destination),
            Claim::Nothing => match decision::by_entry(in_force, self.destination) {
                Some(permit) => Ok(permit),
                None => decision::by_binding(&*self.egress, in_force, self.destination),
            },
            Claim::Name { name, source, ech } => {
                let name = name.clone();
                let mut permit =
                    decision::by_name(&*self.egress, in_force, name, *source, self.destination).await?;
                permit.ech = *ech;
                Ok(permit)
            }
        }
    }

    /// Connects to where the flow goes. A failure is logged; the client, dropped, gets a reset.
    pub(crate) async fn dial(&self, permit: &Permit) -> Option<Dialled> {
        let entry = self.entry();
        let may_try = |address| {
            let subject = permit.subject(address);
            entry.set_subject(Some(subject.clone()));
            let now = self.egress.in_force();
            now.generation == permit.generation || subject.refused_by(&now).is_none()
        };
        match dial(&*self.egress, permit, self.limits.dial_timeout, may_try).await {
            Ok(dialled) => Some(dialled),
            Err(error) => {
                let name = permit.name.as_ref().map(tracing::field::display);
                tracing::info!(name, destination = %self.destination, %error, "connecting failed");
                None
            }
        }
    }

    /// Records a refusal and tells the client.
    pub(crate) async fn refuse(&self, client: Socket, language: Language, refusal: &Refusal) {
        self.egress.record(refusal.event());
        refusal::tell(client, language, refusal).await;
    }

    /// A refusal for a reason that lies in the bytes.
    pub(crate) fn refusal(&self, reason: Reason, name: Option<HostName>, source: NameSource) -> Refusal {
        Refusal::of_bytes(reason, name, source, self.destination, self.egress.in_force().generation)
    }

    pub(crate) fn entry(&self) -> &Arc<Entry> {
        self.registration.entry()
    }

    fn is_web_port(&self) -> bool {
        WEB_PORTS.contains(&self.destination.port())
    }

    fn server_may_be_first(&self, in_force: &InForce) -> bool {
        !self.is_web_port() && decision::by_binding(&*self.egress, in_force, self.destination).is_ok()
    }
}

/// As [`send`], to a server that nothing was sent to.
async fn send_first(server: &mut Socket, bytes: &[u8], entry: &Entry) -> bool {
    if bytes.is_empty() {
        return true;
    }
    let count = relay::count(bytes.len());
    if entry.spend(Way::Up, count).is_err() {
        return false;
    }
    let rest = bytes.get(server.write_at_once(bytes)..).unwrap_or_default();
    if !rest.is_empty() && server.write_all(rest).await.is_err() {
        return false;
    }
    entry.count(Way::Up, count);
    true
}

/// Sends bytes that were read before there was a server; whether it took them.
pub(crate) async fn send(server: &mut (impl AsyncWrite + Unpin), bytes: &[u8], entry: &Entry) -> bool {
    let count = relay::count(bytes.len());
    if entry.spend(Way::Up, count).is_err() || server.write_all(bytes).await.is_err() {
        return false;
    }
    entry.count(Way::Up, count);
    true
}
