//! The authority of the small internet: answers for a [`Zone`] and logs every query.

use std::{io, net::SocketAddr, sync::Arc};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

use crate::{
    log::Log,
    zone::{Data, Zone},
};

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
        "kind": "query", "name": name, "type": question.query_type.to_string(),
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
    reply.to_vec().ok()
}

fn records(zone: &Zone, name: &Name, wanted: RecordType) -> Option<Vec<Record>> {
    let mut answers = Vec::new();
    let mut owner = name.clone();
    for _ in 0..MAX_ALIASES {
        let text = owner.to_ascii();
        let Some(found) = zone.lookup(&text) else {
            return if answers.is_empty() { None } else { Some(answers) };
        };
        let mut alias = None;
        for (ttl, data) in found {
            let (kind, rdata) = match data {
                Data::A(address) => (RecordType::A, RData::from(address)),
                Data::Aaaa(address) => (RecordType::AAAA, RData::from(address)),
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
