//! Transactions: all or nothing, ownership, and errors that name their cause.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests, helpers included")]

mod common;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{commit, in_namespace, output_chain, passes, table};
use nft::{
    Batch, Chain, ChainType, Connection, Error, Field, Hook, Policy, Set, Table, Unreachable, priority, rule,
};

const TARGET: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 7), 9);

fn names(connection: &mut Connection) -> Vec<String> {
    connection.tables().unwrap().into_iter().map(|table| table.name).collect()
}

#[test]
fn a_table_with_the_owner_flag_is_gone_when_its_socket_closes() {
    in_namespace(|| {
        let mut owner = Connection::open().unwrap();
        commit(&mut owner, |batch| {
            batch
                .add_table(&Table::inet("owned").owned())
                .add_chain(&Table::inet("owned"), &output_chain())
                .add_rule(&Table::inet("owned"), "output", rule().udp().drop())
                .add_table(&Table::inet("free"))
        });
        let mut other = Connection::open().unwrap();
        assert_eq!(names(&mut other), ["owned", "free"]);
        assert!(other.tables().unwrap()[0].owner.is_some());
        assert!(!passes(TARGET));

        drop(owner);

        // Not at once: a program that another test is just starting holds a copy of the socket until it runs.
        common::until("the table is gone", || names(&mut other) == ["free"]);
        assert!(passes(TARGET));
    });
}

#[test]
fn an_owned_table_cannot_be_changed_by_another_connection() {
    in_namespace(|| {
        let (mut owner, mut other) = (Connection::open().unwrap(), Connection::open().unwrap());
        let owned = table().owned();
        commit(&mut owner, |batch| batch.add_table(&owned).add_chain(&owned, &output_chain()));

        let mut flush = Batch::new();
        flush.flush_chain(&owned, "output");
        assert!(other.commit(flush.clone()).unwrap_err().is_permission_denied());
        let mut delete = Batch::new();
        delete.del_table(&owned);
        assert!(other.commit(delete).unwrap_err().is_permission_denied());

        owner.commit(flush).unwrap();
    });
}

#[test]
fn a_batch_with_one_bad_rule_changes_nothing() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        let mut batch = Batch::new();
        batch
            .add_table(&table())
            .add_chain(&table(), &output_chain())
            .add_rule(&table(), "output", rule().udp().drop())
            .add_rule(&table(), "output", rule().ipv4().daddr_in("absent").accept());
        let error = connection.commit(batch).unwrap_err();

        assert_eq!(
            error.to_string(),
            "nftables refused to add rule 2 of chain `output` of table `fence` (message 4 of the batch): \
             No such file or directory (os error 2)"
        );
        assert!(error.is_not_found());
        assert!(connection.tables().unwrap().is_empty());
        assert!(passes(TARGET));

        let mut batch = Batch::new();
        batch
            .add_table(&table())
            .add_chain(&table(), &output_chain())
            .add_set(&table(), &Set::new("present", [Field::Ipv4]))
            .add_rule(&table(), "output", rule().ipv4().daddr_in("present").accept())
            .add_rule(&table(), "output", rule().udp().drop());
        connection.commit(batch).unwrap();
        assert!(!passes(TARGET));
    });
}

#[test]
fn the_first_of_several_bad_messages_is_the_one_that_is_named() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        let mut batch = Batch::new();
        batch.add_table(&table());
        // More refusals than the kernel could queue without the room this crate gives it.
        for number in 0..2000 {
            batch.add_rule(&table(), &format!("chain {number}"), rule().accept());
        }
        let error = connection.commit(batch).unwrap_err();
        let Error::Rejected { index, action, .. } = &error else { panic!("{error}") };
        assert_eq!((*index, action.as_str()), (2, "add rule 1 of chain `chain 0` of table `fence`"));
        assert!(connection.tables().unwrap().is_empty());
        // Nothing of it is left in the way of the next transaction.
        commit(&mut connection, |batch| batch.add_table(&table()));
    });
}

#[test]
fn a_replaced_table_has_the_new_content_only() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        let counters = |connection: &mut Connection| {
            connection.counters(&table()).unwrap().into_iter().map(|counter| counter.name).collect::<Vec<_>>()
        };
        commit(&mut connection, |batch| batch.replace_table(&table()).add_counter(&table(), "old"));
        assert_eq!(counters(&mut connection), ["old"]);
        commit(&mut connection, |batch| batch.replace_table(&table()).add_counter(&table(), "new"));
        assert_eq!(counters(&mut connection), ["new"]);
        // Also when what was there had no owner and what comes has one.
        commit(&mut connection, |batch| batch.replace_table(&table().owned()));
        assert!(connection.tables().unwrap()[0].owner.is_some());
        commit(&mut connection, |batch| batch.replace_table(&table().owned()));
        assert!(connection.tables().unwrap()[0].owner.is_some());
    });
}

#[test]
fn no_packet_slips_through_while_a_table_is_replaced() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        let mut replacement = Batch::new();
        replacement
            .replace_table(&table())
            .add_chain(
                &table(),
                &Chain::base("output", ChainType::Filter, Hook::Output, priority::FILTER, Policy::Drop),
            )
            .add_rule(&table(), "output", rule().udp().dport(9).reject(Unreachable::AdminProhibited));
        connection.commit(replacement.clone()).unwrap();

        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (stop, sent, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match socket.send_to(b"?", SocketAddr::from(TARGET)) {
                        Ok(_) => sent.fetch_add(1, Ordering::Relaxed),
                        Err(_) => refused.fetch_add(1, Ordering::Relaxed),
                    };
                }
            });
            for _ in 0..50 {
                let before = refused.load(Ordering::Relaxed);
                connection.commit(replacement.clone()).unwrap();
                common::until("the sender goes on", || refused.load(Ordering::Relaxed) > before);
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(sent.into_inner(), 0);
        assert!(refused.into_inner() >= 50);
    });
}

#[test]
fn ten_thousand_elements_load_in_one_transaction() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        let address = |number: u32| Ipv4Addr::from_bits(0x0b00_0000 + number);
        commit(&mut connection, |batch| {
            batch
                .replace_table(&table())
                .add_chain(&table(), &output_chain())
                .add_set(&table(), &Set::new("many", [Field::Ipv4]))
                .add_rule(&table(), "output", rule().ipv4().daddr_in("many").drop())
                .add_elements(&table(), "many", (0..10_000).map(address))
        });
        assert_eq!(connection.elements(&table(), "many").unwrap().len(), 10_000);
        for number in [0, 4_321, 9_999] {
            assert!(!passes((address(number), 9)));
        }
        assert!(passes((address(10_000), 9)));
    });
}

#[test]
fn a_batch_of_several_megabytes_is_taken_whole() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        commit(&mut connection, |batch| {
            batch.add_table(&table()).add_set(&table(), &Set::new("many", [Field::Ipv4])).add_elements(
                &table(),
                "many",
                (0..200_000).map(Ipv4Addr::from_bits),
            )
        });
        assert_eq!(connection.elements(&table(), "many").unwrap().len(), 200_000);
    });
}

#[test]
fn what_is_in_use_is_not_deleted() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        commit(&mut connection, |batch| {
            batch
                .add_table(&table())
                .add_chain(&table(), &output_chain())
                .add_chain(&table(), &Chain::regular("inner"))
                .add_set(&table(), &Set::new("bound", [Field::Ipv4]))
                .add_counter(&table(), "seen")
                .add_rule(&table(), "output", rule().ipv4().daddr_in("bound").count("seen").jump("inner"))
        });
        let attempts: [fn(&mut Batch) -> &mut Batch; 3] = [
            |batch| batch.del_set(&table(), "bound"),
            |batch| batch.del_chain(&table(), "inner"),
            |batch| batch.del_counter(&table(), "seen"),
        ];
        for attempt in attempts {
            let mut batch = Batch::new();
            attempt(&mut batch);
            let error = connection.commit(batch).unwrap_err();
            assert!(error.is_busy(), "{error}");
        }
        commit(&mut connection, |batch| {
            batch.flush_chain(&table(), "output");
            attempts.iter().fold(batch, |batch, attempt| attempt(batch))
        });
        assert!(connection.counters(&table()).unwrap().is_empty());
    });
}

#[test]
fn what_cannot_be_written_down_is_reported_and_nothing_is_sent() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        let mut batch = Batch::new();
        batch.add_table(&table()).add_counter(&table(), &"n".repeat(70_000));
        assert!(matches!(connection.commit(batch), Err(Error::TooLong { .. })));
        let mut batch = Batch::new();
        batch.add_table(&table()).add_chain(&table(), &output_chain()).add_rule(
            &table(),
            "output",
            rule().oifname("a-name-of-more-than-15-bytes").drop(),
        );
        assert!(matches!(connection.commit(batch), Err(Error::TooLong { .. })));
        assert!(connection.tables().unwrap().is_empty());

        // The kernel's own bound on names is lower: that is its refusal.
        let mut batch = Batch::new();
        batch.add_table(&Table::inet("n".repeat(300)));
        assert!(matches!(connection.commit(batch), Err(Error::Rejected { index: 1, .. })));
    });
}

#[test]
fn an_empty_batch_is_no_transaction() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        assert!(Batch::new().is_empty());
        connection.commit(Batch::new()).unwrap();
        commit(&mut connection, |batch| {
            batch.add_table(&table()).add_set(&table(), &Set::new("bound", [Field::Ipv4]));
            batch.add_elements(&table(), "bound", Vec::<Ipv4Addr>::new())
        });
        assert!(connection.elements(&table(), "bound").unwrap().is_empty());
    });
}

#[test]
fn a_listing_of_what_is_absent_is_an_error() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        assert!(connection.elements(&table(), "bound").unwrap_err().is_not_found());
        commit(&mut connection, |batch| batch.add_table(&table()));
        let error = connection.elements(&table(), "bound").unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot list elements of set `bound` of table `fence`: No such file or directory (os error 2)"
        );
        assert!(connection.counters(&table()).unwrap().is_empty());
    });
}
