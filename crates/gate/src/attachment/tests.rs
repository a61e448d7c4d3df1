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
