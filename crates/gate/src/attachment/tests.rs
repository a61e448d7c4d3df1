//! What happens when something that serves a sandbox ends: in namespaces of their own, where nobody is.

use std::io::ErrorKind;

use netns::NetNs;
use policy::Floor;
use tokio::time::timeout;

use super::*;
use crate::fixture::{PATIENCE, allow, on_a_machine, resolver, sandboxes};

#[test]
fn a_sandbox_is_cut_off_when_what_serves_it_panics_fails_or_ends_and_others_are_not() {
    for ending in ["panic", "failure", "end"] {
        on_a_machine(|directory| async move {
            let (_gate, [one, two]) = sandboxes(directory.path(), "good.test").await;
            assert_eq!((resolver(&one).await, resolver(&two).await), (Ok(()), Ok(())));
            one.spawn("a service", async move {
                match ending {
                    "panic" => panic!("on purpose"),
                    "failure" => Err(io::Error::other("on purpose")),
                    _ => Ok(()),
                }
            });
            assert_eq!(timeout(PATIENCE, one.broken()).await.unwrap(), Broken::Service);
            one.detach().await;
            assert_eq!(resolver(&one).await, Err(ErrorKind::ConnectionRefused));
            let again = Arc::new(Policy::compile(&allow(&["x.test"]), Arc::new(Floor::new([]))).unwrap());
            assert!(matches!(one.set_policy(Arc::clone(&again)).await, Err(GateError::Detached)));
            assert_eq!(resolver(&two).await, Ok(()));
            two.set_policy(again).await.unwrap();
            assert!(timeout(Duration::ZERO, two.broken()).await.is_err());
        });
    }
}

#[test]
fn a_sandbox_is_not_cut_off_by_services_that_end_because_it_is_detached() {
    on_a_machine(|directory| async move {
        let (_gate, [one, _two]) = sandboxes(directory.path(), "good.test").await;
        let broken = one.broken();
        one.detach().await;
        assert!(timeout(Duration::ZERO, broken).await.is_err());
        assert!(one.member.broken.borrow().is_none());
    });
}

#[test]
fn rules_that_are_gone_are_noticed_when_a_name_is_bound_and_others_go_on() {
    on_a_machine(|directory| async move {
        let (_gate, [one, two]) = sandboxes(directory.path(), "good.test").await;
        let namespace = NetNs::from(one.netns().try_clone_to_owned().unwrap());
        let delete = || {
            let mut batch = nft::Batch::new();
            batch.del_table(&crate::ruleset::table());
            nft::Connection::open().unwrap().commit(batch).unwrap();
        };
        namespace.run(delete).unwrap();
        let name = policy::HostName::parse("good.test").unwrap();
        let address = ["93.184.216.34".parse().unwrap()];
        let bind = |attachment: &Attachment| {
            dns::Zone::bind(&*attachment.member.sandbox, &name, &address, PATIENCE, 1)
        };
        assert!(matches!(bind(&one), Err(dns::BindRefused::Kernel(_))));
        bind(&two).unwrap();
        assert_eq!(timeout(PATIENCE, one.broken()).await.unwrap(), Broken::Rules);
        assert!(timeout(Duration::ZERO, two.broken()).await.is_err());
    });
}

/// Asks the sandbox's resolver for a name in a stream, or in a datagram: the code of the reply.
fn ask(is_stream: bool) -> io::Result<u8> {
    use std::{
        io::{Read, Write},
        net::{SocketAddr, TcpStream, UdpSocket},
    };

    let query =
        [b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".as_slice(), b"\x03x-y\x04evil\x04test\0\0\x10\0\x01"].concat();
    let resolver = SocketAddr::new(crate::GATE_V4.into(), 53);
    let mut reply = [0; 512];
    if is_stream {
        let mut stream = TcpStream::connect_timeout(&resolver, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&[&[0, u8::try_from(query.len()).unwrap()], &*query].concat())?;
        stream.read_exact(&mut reply[..2 + 12])?;
        return Ok(reply[2 + 3] & 0x0f);
    }
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(resolver)?;
    socket.send(&query)?;
    socket.recv(&mut reply)?;
    Ok(reply[3] & 0x0f)
}

#[test]
fn names_are_answered_in_streams_and_datagrams_by_threads_that_do_nothing_else_for_the_daemon() {
    const REFUSED: u8 = 5;
    on_a_machine(|directory| async move {
        let (_gate, [one, _two]) = sandboxes(directory.path(), "good.test").await;
        // The only thread of the daemon's own runtime is busy until the answers have come.
        let (begun, begins) = std::sync::mpsc::channel();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let busy = tokio::spawn(async move {
            begun.send(()).unwrap();
            ends.recv().unwrap_err();
        });
        begins.recv().unwrap();
        let namespace = NetNs::from(one.netns().try_clone_to_owned().unwrap());
        let answers = namespace.run(|| [ask(false), ask(true)]).unwrap();
        drop(end);
        busy.await.unwrap();
        assert_eq!(answers.map(Result::unwrap), [REFUSED; 2]);
    });
}
