//! How long a resolver takes to answer.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RData, RecordType},
};

use super::{NAME, Outcome, PATIENCE};
use crate::statistics::{median, percentile};

/// Asks for `count` names, one after the other.
pub(super) fn run(server: SocketAddr, first: u16, count: u16) -> Result<Outcome> {
    let socket = open(server)?;
    let (mut times, mut failed) = (Vec::new(), 0);
    for number in first..first.saturating_add(count) {
        let query = query(number, &format!("n{number}.{NAME}"))?;
        let begun = Instant::now();
        let reply = ask(&socket, &query);
        let elapsed = begun.elapsed().as_secs_f64() * 1e6;
        match reply.map_err(anyhow::Error::from).and_then(|reply| address_in(&reply)) {
            Ok(_) => times.push(elapsed),
            Err(_) => failed += 1,
        }
    }
    Ok(Outcome { value: median(&times), p99: Some(percentile(&times, 0.99)), failed })
}

/// The first address of a name.
pub(crate) fn look_up(server: SocketAddr, name: &str) -> Result<Ipv4Addr> {
    let reply = ask(&open(server)?, &query(1, name)?)?;
    address_in(&reply)
}

fn open(server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn query(id: u16, name: &str) -> Result<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name)?, RecordType::A));
    Ok(message.to_vec()?)
}

fn ask(socket: &UdpSocket, query: &[u8]) -> io::Result<Vec<u8>> {
    socket.send(query)?;
    let mut buffer = [0; 1500];
    let length = socket.recv(&mut buffer)?;
    Ok(buffer.get(..length).unwrap_or_default().to_vec())
}

fn address_in(reply: &[u8]) -> Result<Ipv4Addr> {
    let reply = Message::from_vec(reply).context("reading a reply")?;
    let address = reply.answers.iter().find_map(|record| match &record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    });
    match address {
        Some(address) => Ok(address),
        None => bail!("the answer has no address: {}", reply.metadata.response_code),
    }
}
