//! The authority of the small internet: answers for a [`Zone`] and logs every query.

use std::{io, net::SocketAddr, sync::Arc};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
    serialize::binary::BinEncodable,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

use crate::{
    log::Log,
    zone::{Data, Stray, Zone},
};

/// The time to live of stray records in seconds: long, as somebody who wants to poison a cache would have it.
const STRAY_TTL: u32 = 86_400;
/// Longest chain of aliases that is followed.
const MAX_ALIASES: usize = 8;

/// Serves `zone` on the given sockets until the task is dropped; every query becomes a line of `log`.
pub(crate) async fn serve(udp: UdpSocket, tcp: TcpListener, zone: Arc<Zone>, log: Log) -> io::Result<()> {
    let over_tcp = tokio::spawn({
        let (zone, log) = (zone.clone(), log.clone());
        async move {
            while let Ok((stream, peer)) = tcp.accept().await {
                let (zone, log) = (zone.clone(), log.clone());
                tokio::spawn(async move { serve_stream(stream, peer, &zone, &log).await });
            }
        }
    });
    let mut buffer = [0; 4096];
    loop {
        let (length, peer) = udp.recv_from(&mut buffer).await?;
        let query = buffer.get(..length).unwrap_or_default();
        if let Some(reply) = answer(query, peer, "udp", &zone, &log) {
            udp.send_to(&reply, peer).await?;
        }
        if over_tcp.is_finished() {
            return Ok(());
        }
    }
}

async fn serve_stream(mut stream: TcpStream, peer: SocketAddr, zone: &Zone, log: &Log) -> io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut query = vec![0; usize::from(length)];
        stream.read_exact(&mut query).await?;
        let Some(reply) = answer(&query, peer, "tcp", zone, log) else { return Ok(()) };
        stream.write_u16(u16::try_from(reply.len()).unwrap_or(u16::MAX)).await?;
        stream.write_all(&reply).await?;
    }
}

fn answer(query: &[u8], peer: SocketAddr, transport: &str, zone: &Zone, log: &Log) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    let question = query.queries.first()?.clone();
    let name = question.name.to_ascii().trim_end_matches('.').to_owned();
    log.line(&serde_json::json!({
        "kind": "query", "id": query.metadata.id, "name": name, "type": question.query_type.to_string(),
        "peer": peer.to_string(), "transport": transport,
    }));
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = true;
    reply.add_query(question.clone());
    match records(zone, &question.name, question.query_type) {
        Some(records) => {
            reply.add_answers(records);
        }
        None => reply.metadata.response_code = ResponseCode::NXDomain,
    }
    let strays = strays(zone, &name);
    reply.add_answers(strays.clone());
    reply.add_additionals(strays);
    reply.to_vec().ok()
}

fn records(zone: &Zone, name: &Name, wanted: RecordType) -> Option<Vec<Record>> {
    let mut answers = Vec::new();
    let mut owner = name.clone();
    for _ in 0..MAX_ALIASES {
        let text = owner.to_ascii();
        if let Some((apex, ttl, target)) = zone.moved(&text) {
            // Both records, as RFC 6672 section 3.1 has it: the one that says so, and the alias that follows from it.
            let below = text.trim_end_matches('.').strip_suffix(apex.as_str())?;
            let alias = Name::from_ascii(format!("{below}{target}.")).ok()?;
            let moved = rdata::NULL::with(Name::from_ascii(format!("{target}.")).ok()?.to_bytes().ok()?);
            let moved = RData::Unknown { code: RecordType::DNAME, rdata: moved };
            answers.push(Record::from_rdata(Name::from_ascii(format!("{apex}.")).ok()?, ttl, moved));
            answers.push(Record::from_rdata(owner, ttl, RData::CNAME(rdata::CNAME(alias.clone()))));
            owner = alias;
            continue;
        }
        let Some(found) = zone.lookup(&text) else {
            return if answers.is_empty() { None } else { Some(answers) };
        };
        let mut alias = None;
        for (ttl, data) in found {
            let (kind, rdata) = match data {
                Data::A(address) => (RecordType::A, RData::from(address)),
                Data::Aaaa(address) => (RecordType::AAAA, RData::from(address)),
                // Of the name itself nobody asks for it; below it, see above.
                Data::Dname(_) => continue,
                Data::Txt(text) => (RecordType::TXT, RData::TXT(rdata::TXT::new(vec![text]))),
                Data::Cname(target) => {
                    let target = Name::from_ascii(format!("{target}.")).ok()?;
                    alias = Some(target.clone());
                    (wanted, RData::CNAME(rdata::CNAME(target)))
                }
            };
            if kind == wanted {
                answers.push(Record::from_rdata(owner.clone(), ttl, rdata));
            }
        }
        match alias {
            Some(target) => owner = target,
            None => break,
        }
    }
    Some(answers)
}

/// Records about other names that are added to an answer about `name`.
fn strays(zone: &Zone, name: &str) -> Vec<Record> {
    let record = |stray: &Stray| {
        let owner = Name::from_ascii(format!("{}.", stray.owner)).ok()?;
        Some(Record::from_rdata(owner, STRAY_TTL, RData::from(stray.address)))
    };
    zone.strays(name).iter().filter_map(record).collect()
}
