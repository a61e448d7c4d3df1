//! How long a resolver takes to answer.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
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

/// Asks for one name as often as possible, with `parallel` questions open at a time.
pub(super) fn rate(server: SocketAddr, parallel: u16, time: Duration) -> Result<Outcome> {
    let socket = open(server)?;
    let mut question = query(0, NAME)?;
    let mut ask_again = |number: u16| {
        if let Some(id) = question.first_chunk_mut() {
            *id = number.to_be_bytes();
        }
        socket.send(&question)
    };
    for number in 0..parallel {
        ask_again(number)?;
    }
    let (begun, mut done, mut failed) = (Instant::now(), 0_u32, 0);
    let mut buffer = [0; 1500];
    while begun.elapsed() < time {
        // What was answered is asked again, with the number it had.
        let length = socket.recv(&mut buffer)?;
        let reply = buffer.get(..length).unwrap_or_default();
        let number = reply.first_chunk().copied().map_or(0, u16::from_be_bytes);
        match answers(reply) {
            0 => failed += 1,
            _ => done += 1,
        }
        ask_again(number)?;
    }
    Ok(Outcome { value: f64::from(done) / begun.elapsed().as_secs_f64(), p99: None, failed })
}

/// How many answers a reply says it has (RFC 1035 section 4.1.1): reading all of it would cost more than sending it.
fn answers(reply: &[u8]) -> u16 {
    reply.get(6..8).and_then(|count| count.first_chunk().copied()).map_or(0, u16::from_be_bytes)
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
