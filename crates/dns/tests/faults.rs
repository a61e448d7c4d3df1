//! Faults of the daemon: a query that meets one gets SERVFAIL and is recorded; nothing else notices.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test panics on what it does not expect")]

mod support;

use std::{net::SocketAddr, time::Duration};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use support::{FakeServer, FakeZone, Reply, a, addresses, allow, ask, name, query};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(10);

async fn server() -> FakeServer {
    let host = |name| (name, Reply { code: None, records: vec![a(name, 300, "93.184.216.34")] });
    FakeServer::start([host("good.test"), host("faulty.test")]).await
}

#[tokio::test]
async fn a_query_that_panics_is_answered_and_recorded_looked_up_or_cached() {
    let server = server().await;
    let upstream = server.upstream();
    let zone = FakeZone::new(&allow(&["good.test", "faulty.test"]));
    *zone.panics.lock() = Some(name("faulty.test"));
    // Looked up first, in the cache then: the one panics in a task of its own, the other in the loop that reads.
    for count in 1..3 {
        let reply = ask(&zone, &upstream, "faulty.test.", RecordType::A).await;
        assert_eq!(reply.response_code, ResponseCode::ServFail);
        let events = zone.events.lock().clone();
        assert_eq!(events.len(), count);
        let event = events.last().unwrap();
        assert_eq!(event.verdict.reason.as_str(), "daemon_fault");
        assert_eq!(event.name, Some(name("faulty.test")));
        let reply = ask(&zone, &upstream, "good.test.", RecordType::A).await;
        assert_eq!(addresses(&reply), ["93.184.216.34"]);
    }
    assert_eq!(server.count(), 2);
    *zone.panics.lock() = None;
    let reply = ask(&zone, &upstream, "faulty.test.", RecordType::A).await;
    assert_eq!(addresses(&reply), ["93.184.216.34"]);
}

async fn exchange(client: &UdpSocket, to: SocketAddr, asked: &Message) -> Message {
    client.send_to(&asked.to_vec().unwrap(), to).await.unwrap();
    let mut buffer = [0; 2048];
    let length = timeout(DEADLINE, client.recv(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

#[tokio::test]
async fn the_resolver_of_datagrams_outlives_a_panic() {
    let socket = match sys::net::bind_transparent_udp("0.0.0.0:0".parse().unwrap(), 0) {
        Ok(socket) => socket,
        Err(error) => {
            println!("SKIP no transparent socket: {error}");
            assert!(std::env::var_os("STRICT").is_none());
            return;
        }
    };
    let server = server().await;
    let to = SocketAddr::new("127.0.0.1".parse().unwrap(), socket.local_addr().unwrap().port());
    let (zone, stop) = (FakeZone::new(&allow(&["good.test", "faulty.test"])), CancellationToken::new());
    tokio::spawn(dns::serve_udp(socket, zone.clone(), server.upstream(), stop.clone()));
    *zone.panics.lock() = Some(name("faulty.test"));
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for _ in 0..3 {
        let reply = exchange(&client, to, &query("faulty.test.", RecordType::A)).await;
        assert_eq!(reply.response_code, ResponseCode::ServFail);
        let reply = exchange(&client, to, &query("good.test.", RecordType::A)).await;
        assert_eq!(addresses(&reply), ["93.184.216.34"]);
    }
    assert_eq!(zone.reasons(), ["daemon_fault"; 3]);
    stop.cancel();
}

#[tokio::test]
async fn a_stream_of_queries_outlives_a_panic_of_one_of_them() {
    let server = server().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (zone, stop) = (FakeZone::new(&allow(&["good.test", "faulty.test"])), CancellationToken::new());
    tokio::spawn(dns::serve_tcp(listener, zone.clone(), server.upstream(), stop.clone()));
    *zone.panics.lock() = Some(name("faulty.test"));
    let mut client = TcpStream::connect(address).await.unwrap();
    for (text, code) in [
        ("faulty.test.", ResponseCode::ServFail),
        ("faulty.test.", ResponseCode::ServFail),
        ("good.test.", ResponseCode::NoError),
    ] {
        let bytes = query(text, RecordType::A).to_vec().unwrap();
        client.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
        client.write_all(&bytes).await.unwrap();
        let reply = async {
            let mut bytes = vec![0; usize::from(client.read_u16().await.unwrap())];
            client.read_exact(&mut bytes).await.unwrap();
            Message::from_vec(&bytes).unwrap()
        };
        assert_eq!(timeout(DEADLINE, reply).await.unwrap().response_code, code);
    }
    assert_eq!(zone.reasons(), ["daemon_fault"; 2]);
    stop.cancel();
}
