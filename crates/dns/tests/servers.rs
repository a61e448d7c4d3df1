//! The loops over real sockets.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test panics on what it does not expect")]

mod support;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use policy::{PolicySpec, RefusedNames};
use support::{FakeServer, FakeZone, Reply, a, addresses, allow, ede, query};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(10);

fn spec() -> PolicySpec {
    PolicySpec { refused_names: RefusedNames::Refused, ..allow(&["*.good.test", "good.test"]) }
}

async fn server() -> FakeServer {
    let reply = Reply { code: None, records: vec![a("good.test", 300, "93.184.216.34")] };
    FakeServer::start([("good.test", reply)]).await
}

/// A server on every loopback address, as the packet filter would make it; `None` where that needs more rights.
fn udp(server: &FakeServer) -> Option<(SocketAddr, Arc<FakeZone>, CancellationToken)> {
    let socket = match sys::net::bind_transparent_udp("0.0.0.0:0".parse().unwrap(), 0) {
        Ok(socket) => socket,
        Err(error) => {
            println!("SKIP no transparent socket: {error}");
            assert!(std::env::var_os("STRICT").is_none());
            return None;
        }
    };
    let address = socket.local_addr().unwrap();
    let (zone, stop) = (FakeZone::new(&spec()), CancellationToken::new());
    tokio::spawn(dns::serve_udp(socket, zone.clone(), server.upstream(), stop.clone()));
    Some((address, zone, stop))
}

async fn exchange(client: &UdpSocket, to: SocketAddr, asked: &Message) -> (Message, SocketAddr) {
    client.send_to(&asked.to_vec().unwrap(), to).await.unwrap();
    receive(client).await
}

async fn receive(client: &UdpSocket) -> (Message, SocketAddr) {
    let mut buffer = [0; 2048];
    let (length, from) = timeout(DEADLINE, client.recv_from(&mut buffer)).await.unwrap().unwrap();
    (Message::from_vec(&buffer[..length]).unwrap(), from)
}

#[tokio::test]
async fn a_datagram_is_answered_from_the_address_it_was_sent_to_whichever_that_is() {
    let server = server().await;
    let Some((address, zone, _)) = udp(&server) else { return };
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for ip in ["127.0.0.53", "127.8.8.8"] {
        let to = SocketAddr::new(ip.parse().unwrap(), address.port());
        let (reply, from) = exchange(&client, to, &query("good.test.", RecordType::A)).await;
        assert_eq!(from, to);
        assert_eq!(addresses(&reply), ["93.184.216.34"]);
        let (reply, from) = exchange(&client, to, &query("evil.test.", RecordType::A)).await;
        assert_eq!((reply.response_code, from), (ResponseCode::Refused, to));
    }
    assert_eq!(zone.bound.lock().len(), 2);
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn a_sandbox_with_too_many_lookups_under_way_is_told_and_refusals_still_come() {
    let server = server().await;
    server.open.send(false).unwrap();
    let Some((address, zone, stop)) = udp(&server) else { return };
    let to = SocketAddr::new("127.0.0.1".parse().unwrap(), address.port());
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for i in 0..64 {
        let asked = query(&format!("n{i}.good.test."), RecordType::A);
        client.send_to(&asked.to_vec().unwrap(), to).await.unwrap();
    }
    let (reply, _) = exchange(&client, to, &query("n64.good.test.", RecordType::A)).await;
    assert_eq!(reply.response_code, ResponseCode::Refused);
    assert_eq!(ede(&reply).unwrap(), (15, "over a limit of the sandbox: dns_lookups (default)".to_owned()));
    assert_eq!(zone.reasons(), ["dns_lookups"]);
    let (reply, _) = exchange(&client, to, &query("evil.test.", RecordType::A)).await;
    assert_eq!(reply.response_code, ResponseCode::Refused);
    server.open.send(true).unwrap();
    for _ in 0..64 {
        assert_eq!(receive(&client).await.0.response_code, ResponseCode::NXDomain);
    }
    // With the lookups, the limit is over.
    let (reply, _) = exchange(&client, to, &query("n64.good.test.", RecordType::A)).await;
    assert_eq!(reply.response_code, ResponseCode::NXDomain);
    stop.cancel();
}

#[tokio::test]
async fn queries_in_one_stream_are_answered_though_one_of_them_is_slow() {
    let server = server().await;
    server.open.send(false).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (zone, stop) = (FakeZone::new(&spec()), CancellationToken::new());
    tokio::spawn(dns::serve_tcp(listener, zone, server.upstream(), stop.clone()));
    let mut client = TcpStream::connect(address).await.unwrap();
    let mut both = Vec::new();
    for text in ["good.test.", "evil.test."] {
        let bytes = query(text, RecordType::A).to_vec().unwrap();
        both.extend_from_slice(&u16::try_from(bytes.len()).unwrap().to_be_bytes());
        both.extend_from_slice(&bytes);
    }
    // In pieces, to see that messages are put together.
    for piece in both.chunks(7) {
        client.write_all(piece).await.unwrap();
    }
    assert_eq!(read(&mut client).await.response_code, ResponseCode::Refused);
    server.open.send(true).unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(addresses(&read(&mut client).await), ["93.184.216.34"]);
    assert_eq!(timeout(DEADLINE, client.read(&mut [0])).await.unwrap().unwrap(), 0);
    stop.cancel();
}

async fn read(client: &mut TcpStream) -> Message {
    let message = async {
        let length = client.read_u16().await.unwrap();
        let mut bytes = vec![0; usize::from(length)];
        client.read_exact(&mut bytes).await.unwrap();
        Message::from_vec(&bytes).unwrap()
    };
    timeout(DEADLINE, message).await.unwrap()
}

#[tokio::test]
async fn connections_that_are_too_many_are_closed_and_recorded_until_one_has_ended() {
    let server = server().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (zone, stop) = (FakeZone::new(&spec()), CancellationToken::new());
    tokio::spawn(dns::serve_tcp(listener, zone.clone(), server.upstream(), stop.clone()));
    let asked = query("good.test.", RecordType::A).to_vec().unwrap();
    let framed = [&u16::try_from(asked.len()).unwrap().to_be_bytes()[..], &asked].concat();
    let mut open = Vec::new();
    for _ in 0..16 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&framed).await.unwrap();
        assert_eq!(addresses(&read(&mut client).await), ["93.184.216.34"]);
        open.push(client);
    }
    let mut client = TcpStream::connect(address).await.unwrap();
    assert_eq!(timeout(DEADLINE, client.read(&mut [0])).await.unwrap().unwrap(), 0);
    assert_eq!(zone.reasons(), ["flow_limit"]);

    let mut first = open.pop().unwrap();
    first.shutdown().await.unwrap();
    assert_eq!(timeout(DEADLINE, first.read(&mut [0])).await.unwrap().unwrap(), 0);
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(&framed).await.unwrap();
    assert_eq!(addresses(&read(&mut client).await), ["93.184.216.34"]);
    stop.cancel();
}

/// A message as it goes in a stream.
fn framed(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

#[tokio::test]
async fn a_query_in_a_stream_that_is_too_long_is_malformed_and_the_next_is_answered() {
    let server = server().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (zone, stop) = (FakeZone::new(&spec()), CancellationToken::new());
    tokio::spawn(dns::serve_tcp(listener, zone.clone(), server.upstream(), stop.clone()));
    let mut client = TcpStream::connect(address).await.unwrap();
    let good = query("good.test.", RecordType::A).to_vec().unwrap();
    for (length, code) in [
        (4096, ResponseCode::NoError),
        (4097, ResponseCode::FormErr),
        (usize::from(u16::MAX), ResponseCode::FormErr),
        (good.len(), ResponseCode::NoError),
    ] {
        let mut long = good.clone();
        long.resize(length, 0);
        client.write_all(&framed(&long)).await.unwrap();
        assert_eq!(read(&mut client).await.response_code, code, "{length}");
    }
    assert_eq!(zone.reasons(), ["malformed_dns"; 2]);
    stop.cancel();
}

#[tokio::test]
async fn what_else_is_to_be_done_has_its_turn_after_each_query_of_a_stream() {
    const QUERIES: usize = 500;
    let server = server().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (zone, stop) = (FakeZone::new(&spec()), CancellationToken::new());
    tokio::spawn(dns::serve_tcp(listener, zone.clone(), server.upstream(), stop.clone()));
    let client = TcpStream::connect(address).await.unwrap();
    let (mut replies, mut queries) = client.into_split();
    // All of them are there when the first is read.
    let bytes = framed(&query("evil.test.", RecordType::A).to_vec().unwrap()).repeat(QUERIES);
    queries.write_all(&bytes).await.unwrap();
    let reading = tokio::spawn(async move { tokio::io::copy(&mut replies, &mut tokio::io::sink()).await });
    let turns = async {
        let (mut answered, mut most) = (0, 0);
        while answered < QUERIES {
            tokio::task::yield_now().await;
            let now = zone.events.lock().len();
            most = most.max(now - answered);
            answered = now;
        }
        most
    };
    // On this one thread, so that nothing is done beside. Without turns, as many are answered as a read brings.
    let most = timeout(DEADLINE, turns).await.unwrap();
    assert!(most < 10, "{most}");
    drop(queries);
    stop.cancel();
    reading.await.unwrap().unwrap();
}
