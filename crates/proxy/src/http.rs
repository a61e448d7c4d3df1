//! HTTP/1: every request of a connection is judged, and its head written anew.
//!
//! One connection is for one host, the one of its first request. Responses are not read but relayed as they are,
//! except the answer to an offer of WebSocket: only after a 101 may the client go on without being judged. An offer
//! on a later request is not passed on, because where its answer begins is not known then.

use std::{
    future::{Future, poll_fn},
    net::IpAddr,
    pin::pin,
    task::Poll,
    time::Duration,
};

use policy::{HostName, NameSource, Reason};
use sniff::{
    Progress,
    http::{
        Body, BodyEvent, BodyReader, HeadLimits, LAST_CHUNK, RequestHead, RequestReader, ResponseReader,
        Upgrade, chunk_header,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::{Instant, timeout, timeout_at},
};

use crate::{
    Egress,
    bytes::Way,
    connection::{Claim, Connection},
    decision::{self, Permit, Refusal},
    dial::Dialled,
    flows::{Entry, Ongoing},
    opening::{self, read_some},
    refusal::{self, Language},
    relay::{self, Direction, Ended, Failed},
    socket::Socket,
    turns,
};

/// How long the responses to earlier requests may take after a request was refused.
const LAST_RESPONSES: Duration = Duration::from_secs(10);
/// How long a server may take to answer an offer of WebSocket.
const UPGRADE: Duration = Duration::from_secs(60);
/// How many empty lines may come before a request: some clients send one after a body (RFC 9112 section 2.2).
const EMPTY_LINES: usize = 8;
/// What judging and recording a request counts for in its turn, in bytes moved.
const REQUEST: u64 = 32 << 10;
/// What a chunk of a body counts for beside its bytes.
const CHUNK: u64 = 128;

/// Handles a connection that begins with an HTTP/1 request; `bytes` is what was read of it.
///
/// The head of the first request has to be complete by `deadline`.
pub(crate) async fn run<E: Egress>(
    connection: &Connection<E>,
    mut client: Socket,
    mut bytes: Vec<u8>,
    deadline: Instant,
) {
    let first = next_request(&mut *client, &mut bytes, connection, Some(deadline)).await;
    connection.entry().opened();
    let request = match first {
        Ok(Some(request)) => request,
        Ok(None) => return,
        Err(reason) => {
            let refusal = connection.refusal(reason, None, NameSource::None);
            return connection.refuse(client, Language::Http, &refusal).await;
        }
    };
    let judged = match asked_host(connection, &request) {
        Ok(host) => connection.settle(&host.claim()).await.map(|permit| (host, permit)),
        Err(refusal) => Err(refusal),
    };
    let (host, permit) = match judged {
        Ok(judged) => judged,
        Err(refusal) => return connection.refuse(client, Language::Http, &refusal).await,
    };
    let ongoing = Some(Ongoing::start(&connection.egress, connection.entry(), permit.event()));
    let Some(Dialled { socket: server, address, hold: _hold }) = connection.dial(&permit).await else {
        return;
    };
    Session { connection, host, permit, address, bytes, ongoing }.run(client, server, request).await;
}

/// The host that a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Name(HostName),
    /// The address that the client connected to.
    Address,
}

impl Host {
    fn claim(&self) -> Claim {
        match self {
            Self::Name(name) => Claim::Name { name: name.clone(), source: NameSource::Host, ech: false },
            Self::Address => Claim::Address,
        }
    }

    fn name(&self) -> Option<&HostName> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address => None,
        }
    }
}

/// A connection whose first request was permitted.
struct Session<'c, E: Egress> {
    connection: &'c Connection<E>,
    host: Host,
    permit: Permit,
    /// Where the server is.
    address: IpAddr,
    /// What was read from the client and not yet handled.
    bytes: Vec<u8>,
    /// The event of the current request.
    ongoing: Option<Ongoing<E>>,
}

/// How a connection ended.
enum Outcome {
    /// As it should.
    Ended,
    /// With a request that is refused.
    Refused(Refusal),
    /// With a failure.
    Broken,
}

/// Why the client's side of a connection came to its end.
enum UpEnd {
    /// It ended its stream between two requests.
    Closed,
    /// It went away inside a request.
    Broken,
    /// The server takes no more.
    ServerGone,
    /// It sent a request that is refused.
    Refused(Refusal),
}

impl<E: Egress> Session<'_, E> {
    async fn run(mut self, mut client: Socket, mut server: Socket, request: RequestHead) {
        let outcome = self.converse(&mut client, &mut server, request).await;
        // The event ends with the conversation, not with what lingers of the connection.
        self.ongoing = None;
        match outcome {
            Outcome::Broken => {}
            Outcome::Ended => {
                server.finish();
                // Whatever the client is still sending, it can read the last response.
                client.finish_with(b"").await;
            }
            Outcome::Refused(refusal) => {
                server.finish();
                refusal::tell(client, Language::Http, &refusal).await;
            }
        }
    }

    async fn converse(
        &mut self,
        client: &mut TcpStream,
        server: &mut TcpStream,
        request: RequestHead,
    ) -> Outcome {
        let entry = self.connection.entry();
        let (mut client_read, mut client_write) = client.split();
        let (mut server_read, mut server_write) = server.split();
        let mut first = Some(request);
        if let Some(request) = first.take_if(|request| is_offer(request)) {
            match self.offer(&request, &mut server_read, &mut server_write, &mut client_write).await {
                Some(Answer::Switched) => {
                    let up = Direction::new(&mut client_read, &mut server_write, entry, Way::Up);
                    let mut down = Direction::new(&mut server_read, &mut client_write, entry, Way::Down);
                    return match relay::both(up, &mut down).await {
                        Ended::Cleanly => Outcome::Ended,
                        Ended::Broken => Outcome::Broken,
                    };
                }
                Some(Answer::Declined) => {}
                None => return Outcome::Broken,
            }
        }
        let mut down = Direction::new(&mut server_read, &mut client_write, entry, Way::Down).without_end();
        let end = {
            let up = pin!(self.requests(first, &mut client_read, &mut server_write));
            until_either(up, &mut down).await
        };
        self.conclude(end, &mut server_write, &mut down).await
    }

    /// Lets the responses that are still due come to their end.
    async fn conclude(
        &self,
        end: Either,
        server: &mut WriteHalf<'_>,
        down: &mut Direction<'_, '_, '_>,
    ) -> Outcome {
        let responses = match end {
            // The server has closed, as it may after any response.
            Either::Down(result) => result,
            Either::Up(UpEnd::Broken) => Err(Failed::Read),
            Either::Up(UpEnd::Closed) => match server.shutdown().await {
                Ok(()) => down.run().await,
                Err(_) => Err(Failed::Write),
            },
            // It may have said why before it stopped reading.
            Either::Up(UpEnd::ServerGone) => down.run().await,
            Either::Up(UpEnd::Refused(refusal)) => {
                self.connection.egress.record(refusal.event());
                // A server that is gone already has nothing more to say.
                let _ = server.shutdown().await;
                return match timeout(LAST_RESPONSES, down.run()).await {
                    Ok(Err(Failed::Write)) => Outcome::Broken,
                    _ => Outcome::Refused(refusal),
                };
            }
        };
        match responses {
            Ok(()) => Outcome::Ended,
            Err(_) => Outcome::Broken,
        }
    }

    /// Judges and forwards requests until there are no more.
    async fn requests(
        &mut self,
        first: Option<RequestHead>,
        client: &mut ReadHalf<'_>,
        server: &mut WriteHalf<'_>,
    ) -> UpEnd {
        if let Some(request) = first
            && let Err(end) = self.forward(&request, client, server).await
        {
            return end;
        }
        loop {
            let request = match next_request(client, &mut self.bytes, self.connection, None).await {
                Ok(Some(request)) => request,
                Ok(None) if self.bytes.is_empty() => return UpEnd::Closed,
                Ok(None) => return UpEnd::Broken,
                Err(reason) => {
                    return UpEnd::Refused(self.connection.refusal(reason, None, NameSource::None));
                }
            };
            let entry = self.connection.entry();
            entry.wait_to_ask(&self.connection.limits.new_requests).await;
            turns::take(&entry.turns, REQUEST).await;
            if let Err(refusal) = self.judge_again(&request) {
                return UpEnd::Refused(refusal);
            }
            if let Err(end) = self.forward(&request, client, server).await {
                return end;
            }
        }
    }

    /// Judges a later request of the connection, and records it.
    fn judge_again(&mut self, request: &RequestHead) -> Result<(), Refusal> {
        let connection = self.connection;
        let host = asked_host(connection, request)?;
        let in_force = connection.egress.in_force();
        let port = connection.destination.port();
        let address = (host == self.host).then_some(self.address);
        let verdict = decision::judge(&in_force, host.name(), address, port);
        if !verdict.is_allowed() || host != self.host {
            let reason = Reason::HttpHostChanged;
            let mut refusal = connection.refusal(reason, host.name().cloned(), NameSource::Host);
            if !verdict.is_allowed() {
                refusal.verdict = verdict;
            }
            refusal.address = self.address;
            return Err(refusal);
        }
        self.permit.verdict = verdict;
        self.permit.generation = in_force.generation;
        self.permit.addresses = vec![self.address];
        // The one before ends where this one begins.
        self.ongoing = None;
        self.ongoing = Some(Ongoing::start(&connection.egress, connection.entry(), self.permit.event()));
        Ok(())
    }

    /// Writes a request's head and moves its body.
    async fn forward(
        &mut self,
        request: &RequestHead,
        client: &mut ReadHalf<'_>,
        server: &mut WriteHalf<'_>,
    ) -> Result<(), UpEnd> {
        let entry = self.connection.entry();
        let mut out = self.head(request, false);
        match request.body {
            Body::None => write(server, &out, entry).await,
            Body::Length(length) => {
                let there = usize::try_from(length).unwrap_or(usize::MAX).min(self.bytes.len());
                out.extend(self.bytes.drain(..there));
                write(server, &out, entry).await?;
                let missing = length.saturating_sub(relay::count(there));
                let mut rest = Direction::new(client, server, entry, Way::Up).limited(missing);
                rest.run().await.map_err(|failed| match failed {
                    Failed::Read => UpEnd::Broken,
                    Failed::Write => UpEnd::ServerGone,
                })
            }
            Body::Chunked => self.forward_chunks(out, client, server).await,
        }
    }

    /// Moves a chunked body, in chunks of our own: one for all that was read at once. `out` goes before it.
    async fn forward_chunks(
        &mut self,
        mut out: Vec<u8>,
        client: &mut ReadHalf<'_>,
        server: &mut WriteHalf<'_>,
    ) -> Result<(), UpEnd> {
        let entry = self.connection.entry();
        let mut reader = BodyReader::new(Body::Chunked);
        let mut data = Vec::new();
        loop {
            let mut input = self.bytes.as_slice();
            let mut chunks = 0;
            data.clear();
            let ended = loop {
                match reader.next(&mut input) {
                    Ok(BodyEvent::Data(part)) => {
                        data.extend_from_slice(part);
                        chunks += 1;
                    }
                    Ok(BodyEvent::End) => break true,
                    Ok(BodyEvent::NeedMore) => break false,
                    Err(refused) => {
                        let reason = opening::reason(refused.kind);
                        let name = self.host.name().cloned();
                        return Err(UpEnd::Refused(self.connection.refusal(reason, name, NameSource::Host)));
                    }
                }
            };
            let used = self.bytes.len() - input.len();
            self.bytes.drain(..used);
            if !data.is_empty() {
                out.extend(chunk_header(data.len()));
                out.extend_from_slice(&data);
                out.extend_from_slice(b"\r\n");
            }
            if ended {
                out.extend_from_slice(LAST_CHUNK);
            }
            turns::take(&entry.turns, relay::count(used).saturating_add(CHUNK.saturating_mul(chunks))).await;
            write(server, &out, entry).await?;
            if ended {
                return Ok(());
            }
            out.clear();
            if !matches!(read_some(client, &mut self.bytes).await, Ok(1..)) {
                return Err(UpEnd::Broken);
            }
        }
    }

    /// The head for the server; what it takes of the buffer is gone then.
    fn head(&mut self, request: &RequestHead, keep_upgrade: bool) -> Vec<u8> {
        let consumed = request.consumed.min(self.bytes.len());
        self.bytes.drain(..consumed);
        let in_force = self.connection.egress.in_force();
        request.write(in_force.policy.spec().mask_request_host.as_deref(), keep_upgrade)
    }

    /// Forwards a first request that offers WebSocket, and the answer to it. `None` when a connection failed.
    async fn offer(
        &mut self,
        request: &RequestHead,
        server_read: &mut ReadHalf<'_>,
        server_write: &mut WriteHalf<'_>,
        client: &mut WriteHalf<'_>,
    ) -> Option<Answer> {
        let entry = self.connection.entry();
        let head = self.head(request, true);
        write(server_write, &head, entry).await.ok()?;
        let answer = timeout(UPGRADE, pass_answer(server_read, client, entry)).await.ok()??;
        if answer == Answer::Switched {
            // What the client sent ahead of the answer is the other protocol now.
            let ahead = std::mem::take(&mut self.bytes);
            write(server_write, &ahead, entry).await.ok()?;
        }
        Some(answer)
    }
}

/// What a server says to an offer of another protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It goes on with that.
    Switched,
    /// It goes on with HTTP.
    Declined,
}

/// Passes interim responses (1xx) and the head of the final one, with whatever came along with it.
async fn pass_answer(server: &mut ReadHalf<'_>, client: &mut WriteHalf<'_>, entry: &Entry) -> Option<Answer> {
    let mut bytes = Vec::new();
    let mut reader = ResponseReader::new(HeadLimits::default());
    loop {
        if !matches!(read_some(server, &mut bytes).await, Ok(1..)) {
            return None;
        }
        let answer = loop {
            match reader.read(&bytes) {
                Progress::NeedMore => break None,
                Progress::Done(head) if head.status == 101 => break Some(Answer::Switched),
                Progress::Done(head) if head.status < 200 => {
                    let rest = bytes.split_off(head.consumed.min(bytes.len()));
                    pass_down(client, &bytes, entry).await?;
                    bytes = rest;
                    reader = ResponseReader::new(HeadLimits::default());
                }
                // A head that cannot be read is for the client to deal with; it was not switched by it.
                Progress::Done(_) | Progress::Refused(_) => break Some(Answer::Declined),
            }
        };
        if answer.is_some() {
            pass_down(client, &bytes, entry).await?;
            return answer;
        }
    }
}

async fn pass_down(client: &mut WriteHalf<'_>, bytes: &[u8], entry: &Entry) -> Option<()> {
    let count = relay::count(bytes.len());
    entry.spend(Way::Down, count).ok()?;
    client.write_all(bytes).await.ok()?;
    entry.count(Way::Down, count);
    Some(())
}

/// Reads the next head; `None` when the stream ends before it is complete. Without a `deadline` only the time from its
/// first byte on is bounded, so that a connection may stay open between requests.
async fn next_request<E: Egress>(
    client: &mut (impl AsyncRead + Unpin),
    bytes: &mut Vec<u8>,
    connection: &Connection<E>,
    mut deadline: Option<Instant>,
) -> Result<Option<RequestHead>, Reason> {
    let limits = HeadLimits { bytes: connection.limits.peek_bytes, ..HeadLimits::default() };
    let mut reader = RequestReader::new(limits);
    let mut empty_lines = 0;
    loop {
        let there = bytes.chunks_exact(2).take(EMPTY_LINES + 1).take_while(|pair| pair == b"\r\n").count();
        empty_lines += there;
        if empty_lines > EMPTY_LINES {
            return Err(Reason::MalformedHttp);
        }
        bytes.drain(..2 * there);
        if !bytes.is_empty() && bytes != b"\r" {
            match reader.read(bytes) {
                Progress::Done(head) => return Ok(Some(head)),
                Progress::Refused(refusal) => return Err(opening::reason(refusal.kind)),
                Progress::NeedMore => {}
            }
            deadline.get_or_insert_with(|| Instant::now() + connection.limits.peek_timeout);
        }
        let read = match deadline {
            None => read_some(client, bytes).await,
            Some(deadline) => {
                timeout_at(deadline, read_some(client, bytes)).await.map_err(|_| Reason::PeekTimeout)?
            }
        };
        if !matches!(read, Ok(1..)) {
            return Ok(None);
        }
    }
}

/// Whether a request offers to go on with WebSocket.
fn is_offer(request: &RequestHead) -> bool {
    request.upgrade == Some(Upgrade::WebSocket) && request.body == Body::None
}

/// The host that a request names.
fn asked_host<E: Egress>(connection: &Connection<E>, request: &RequestHead) -> Result<Host, Refusal> {
    let refuse = |name| Err(connection.refusal(Reason::InvalidHost, name, NameSource::Host));
    let destination = connection.destination;
    let literal = request.host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let host = match (literal, HostName::from_wire(request.host.as_bytes())) {
        (Ok(address), _) if address.to_canonical() == destination.ip() => Host::Address,
        (Ok(_), _) | (_, Err(_)) => return refuse(None),
        (Err(_), Ok(name)) => Host::Name(name),
    };
    // Another port than the one connected to would be somebody else's service to the server behind it.
    if request.port.is_some_and(|port| port != destination.port()) {
        return refuse(host.name().cloned());
    }
    Ok(host)
}

/// What ended first.
enum Either {
    Up(UpEnd),
    Down(Result<(), Failed>),
}

async fn until_either(
    mut up: std::pin::Pin<&mut impl Future<Output = UpEnd>>,
    down: &mut Direction<'_, '_, '_>,
) -> Either {
    poll_fn(|cx| {
        if let Poll::Ready(result) = down.poll_run(cx) {
            return Poll::Ready(Either::Down(result));
        }
        up.as_mut().poll(cx).map(Either::Up)
    })
    .await
}

async fn write(server: &mut (impl AsyncWrite + Unpin), bytes: &[u8], entry: &Entry) -> Result<(), UpEnd> {
    if bytes.is_empty() {
        return Ok(());
    }
    let count = relay::count(bytes.len());
    entry.spend(Way::Up, count).map_err(|_| UpEnd::Broken)?;
    server.write_all(bytes).await.map_err(|_| UpEnd::ServerGone)?;
    entry.count(Way::Up, count);
    Ok(())
}
