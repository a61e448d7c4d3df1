//! Queries in streams (RFC 7766).

use std::{io, sync::Arc, time::Duration};

use policy::{Decision, Reason, Rule, Verdict};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, mpsc},
    task::{JoinSet, yield_now},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Transport, Upstream, Zone,
    answer::{self, Step},
};

/// The largest query that is read in bytes; of a longer one only the header is kept, and found malformed.
const MAX_QUERY: usize = 4096;
/// The length of a message header in bytes (RFC 1035 section 4.1.1).
const HEADER: usize = 12;
/// The most connections of one sandbox; further ones are closed.
const MAX_CONNECTIONS: usize = 16;
/// The most lookups of one connection at the same time; more queries wait unread.
const MAX_PIPELINED: usize = 16;
/// How long a client may take for its next complete query, and for taking a reply.
const IDLE: Duration = Duration::from_secs(10);
/// How long to wait after a failed `accept`, so that a lack of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers the queries of the connections that `listener` accepts until `stop`. A connection that cannot be accepted
/// because the process has no descriptor left is reset and recorded.
///
/// It belongs on a runtime whose other tasks can bear to wait: what a sandbox asks is answered on the thread that reads it.
///
/// # Errors
/// None at present: a connection that cannot be accepted is tried again.
pub async fn serve_tcp<Z: Zone>(
    listener: TcpListener,
    zone: Arc<Z>,
    upstream: Upstream,
    stop: CancellationToken,
) -> io::Result<()> {
    if let Err(error) = sys::spare::reserve() {
        tracing::warn!(%error, "there is no descriptor in reserve: connections over the limit have to wait");
    }
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Dropping the set on the way out closes the connections.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) if sys::spare::is_exhausted(&error) && sys::spare::turn_away(&listener).is_ok() => {
                answer::record_daemon_fault(&*zone, None, Transport::Tcp);
                yield_now().await;
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "a DNS connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            let verdict =
                Verdict { decision: Decision::Deny, rule: Rule::Default, reason: Reason::FlowLimit };
            zone.record(answer::event(zone.in_force().generation, verdict, None, Transport::Tcp));
            continue;
        };
        let (zone, upstream) = (zone.clone(), upstream.clone());
        connections.spawn(async move {
            if let Err(error) = connection(stream, zone, upstream).await {
                tracing::debug!(%error, "a DNS connection failed");
            }
            drop(permit);
        });
    }
}

async fn connection<Z: Zone>(stream: TcpStream, zone: Arc<Z>, upstream: Upstream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    let (replies, queue) = mpsc::channel(MAX_PIPELINED);
    // Both ends run in this task, so that closing the connection ends everything that belongs to it.
    let mut lookups = JoinSet::new();
    let reading = read_queries(BufReader::new(reader), zone, upstream, replies, &mut lookups);
    tokio::try_join!(reading, write_replies(writer, queue))?;
    Ok(())
}

async fn read_queries<Z: Zone>(
    mut reader: BufReader<OwnedReadHalf>,
    zone: Arc<Z>,
    upstream: Upstream,
    replies: mpsc::Sender<Vec<u8>>,
    lookups: &mut JoinSet<()>,
) -> io::Result<()> {
    let permits = Arc::new(Semaphore::new(MAX_PIPELINED));
    while let Some(query) = timeout(IDLE, read_query(&mut reader)).await?? {
        // A read brings many queries, and those of others come between.
        yield_now().await;
        let reply = match answer::begin(&query, &*zone, &upstream, Transport::Tcp) {
            Step::Done(reply) => reply,
            Step::Lookup(pending) => {
                let Ok(permit) = permits.clone().acquire_owned().await else { break };
                let (zone, upstream, replies) = (zone.clone(), upstream.clone(), replies.clone());
                while lookups.try_join_next().is_some() {}
                lookups.spawn(async move {
                    let reply = pending.finish(&*zone, &upstream).await;
                    drop(permit);
                    if let Some(reply) = reply {
                        // An error means that the client is gone.
                        let _ = replies.send(reply).await;
                    }
                });
                continue;
            }
        };
        if let Some(reply) = reply
            && replies.send(reply).await.is_err()
        {
            break;
        }
    }
    drop(replies);
    // The client may have shut down its side only; it still gets what it asked for.
    while lookups.join_next().await.is_some() {}
    Ok(())
}

/// One length-prefixed message, or the header of one that is too long; `None` at the end of the stream.
async fn read_query(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Vec<u8>>> {
    let length = match reader.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let kept = if usize::from(length) > MAX_QUERY { HEADER } else { usize::from(length) };
    let mut query = vec![0; kept];
    reader.read_exact(&mut query).await?;
    let mut rest = usize::from(length) - kept;
    while rest > 0 {
        let passed = reader.fill_buf().await?.len().min(rest);
        if passed == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        reader.consume(passed);
        rest -= passed;
    }
    Ok(Some(query))
}

async fn write_replies(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(reply) = queue.recv().await {
        let Ok(length) = u16::try_from(reply.len()) else { continue };
        // In one segment: some clients take only one read for both (RFC 7766 section 8).
        let mut frame = Vec::with_capacity(reply.len() + 2);
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&reply);
        timeout(IDLE, writer.write_all(&frame)).await??;
    }
    Ok(())
}
