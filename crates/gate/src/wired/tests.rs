use super::*;

fn slot(number: u32) -> Slot {
    Slot::new(number).unwrap()
}

fn flow(port: u16) -> Tuple {
    Tuple {
        source: slot(0).v4().into(),
        destination: "10.1.2.3".parse().unwrap(),
        protocol: 6,
        ports: Some((port, 80)),
        icmp: None,
    }
}

fn totals(bytes_up: u64) -> FlowTotals {
    FlowTotals { bytes_up, ..FlowTotals::default() }
}

fn wired(max_flows: usize) -> Wired<&'static str> {
    let mut wired = Wired::new(max_flows, usize::MAX);
    wired.add(slot(0), "one");
    wired.add(slot(1), "other");
    wired
}

fn ended(sandbox: &'static str, event: u64, bytes_up: u64) -> Option<Ended<&'static str>> {
    Some(Ended { sandbox, event, totals: totals(bytes_up) })
}

#[test]
fn the_totals_of_a_flow_go_to_the_event_of_its_beginning() {
    let now = Instant::now();
    let mut wired = wired(10);
    assert_eq!(wired.begin(slot(0), flow(1), 11, now).0, Begun::Remembered);
    assert_eq!(wired.begin(slot(1), flow(1), 12, now).0, Begun::Remembered);
    let mut end = |number| wired.end(slot(number), flow(1), |_| totals(7), now).0;
    assert_eq!(end(1), ended("other", 12, 7));
    assert_eq!(end(1), None);
    assert_eq!(
        wired.remove(slot(0)),
        Some(Removed { sandbox: "one", waiting: 1, missing: 0, was_full: false })
    );
    assert_eq!(wired.end(slot(0), flow(1), |_| totals(7), now), (None, Room::Unchanged));
}

#[test]
fn a_flow_that_ended_before_it_was_known_to_have_begun_has_its_totals() {
    let now = Instant::now();
    let mut wired = wired(10);
    assert_eq!(wired.end(slot(0), flow(1), |_| totals(7), now), (None, Room::Unchanged));
    assert_eq!(wired.begin(slot(0), flow(1), 11, now).0, Begun::Over(totals(7)));
    // A later one with the same ports is another.
    assert_eq!(wired.begin(slot(0), flow(1), 12, now).0, Begun::Remembered);
    assert_eq!(wired.end(slot(0), flow(2), |_| totals(7), now).0, None);
    assert_eq!(wired.begin(slot(0), flow(2), 13, now + EARLY).0, Begun::Remembered);
}

#[test]
fn a_flow_that_is_over_has_its_totals_then_and_not_those_of_the_next_with_its_ports() {
    let now = Instant::now();
    let mut wired = wired(10);
    let _ = wired.begin(slot(0), flow(1), 11, now);
    assert_eq!(wired.over(slot(0), (flow(1), 5), |_| totals(7), now).0, ended("one", 11, 7));
    assert_eq!(wired.over(slot(0), (flow(1), 5), |_| totals(7), now), (None, Room::Unchanged, Vec::new()));
    // The next begins before the kernel has said that it has forgotten this one.
    let _ = wired.begin(slot(0), flow(1), 12, now);
    assert_eq!(wired.end(slot(0), flow(1), |_| totals(7), now).0, None);
    assert_eq!(wired.end(slot(0), flow(1), |_| totals(8), now).0, ended("one", 12, 8));
}

#[test]
fn a_flow_whose_ports_the_next_has_before_its_end_is_told_has_its_own_totals() {
    let now = Instant::now();
    let mut wired = wired(10);
    for event in 11..=13 {
        assert_eq!(wired.begin(slot(0), flow(1), event, now).0, Begun::Remembered);
    }
    let mut end = |bytes| wired.end(slot(0), flow(1), |_| totals(bytes), now).0;
    assert_eq!(
        [end(1), end(2), end(3), end(4)],
        [ended("one", 11, 1), ended("one", 12, 2), ended("one", 13, 3), None]
    );
}

#[test]
fn a_flow_that_makes_room_for_the_next_was_not_told_to_and_one_that_is_over_was() {
    let now = Instant::now();
    let mut wired = wired(4);
    let _ = wired.begin(slot(0), flow(1), 11, now);
    assert_eq!(wired.over(slot(0), (flow(1), 5), |_| totals(7), now).2, []);
    assert!(!wired.is_told(slot(0), &flow(1)));
    let _ = wired.begin(slot(0), flow(2), 12, now);
    assert_eq!(wired.over(slot(0), (flow(2), 5), |_| totals(7), now).2, [(flow(1), 5)]);
    assert!(wired.is_told(slot(0), &flow(1)) && !wired.is_told(slot(0), &flow(2)));
}

#[test]
fn a_flow_of_datagrams_whose_first_packet_was_logged_twice_is_one() {
    let now = Instant::now();
    let mut wired = wired(10);
    let datagrams = Tuple { protocol: 17, ..flow(1) };
    assert_eq!(wired.begin(slot(0), datagrams, 11, now).0, Begun::Remembered);
    assert_eq!(wired.begin(slot(0), datagrams, 12, now).0, Begun::Forgotten);
    assert_eq!(wired.end(slot(0), datagrams, |_| totals(7), now).0, ended("one", 11, 7));
    assert!(wired.wires[&slot(0)].open.is_empty());
    assert_eq!(wired.begin(slot(0), datagrams, 13, now).0, Begun::Remembered);
    assert_eq!(wired.begin(slot(0), datagrams, 14, now + EARLY).0, Begun::Remembered);
}

#[test]
fn of_the_flows_that_are_over_the_kernel_keeps_some() {
    let now = Instant::now();
    let mut wired = wired(16);
    let mut over = |port| {
        let _ = wired.begin(slot(0), flow(port), 1, now);
        wired.over(slot(0), (flow(port), 5), |_| totals(1), now).2
    };
    assert!((0..4).all(|port| over(port).is_empty()));
    assert_eq!((over(4), over(5)), (vec![(flow(0), 5)], vec![(flow(1), 5)]));
    for port in [0, 1, 2, 3] {
        let _ = wired.end(slot(0), flow(port), |_| totals(1), now);
    }
    let mut over = |port| {
        let _ = wired.begin(slot(0), flow(port), 1, now);
        wired.over(slot(0), (flow(port), 5), |_| totals(1), now).2
    };
    assert!((6..8).all(|port| over(port).is_empty()));
    assert_eq!(over(8), [(flow(4), 5)]);
    let over = &wired.wires[&slot(0)].over;
    assert_eq!((over.kept, over.order.len(), over.seen.len()), (4, 4, 5));
}

#[test]
fn a_wire_is_full_at_its_limit_until_an_eighth_is_free_and_others_are_not() {
    let now = Instant::now();
    let mut wired = wired(16);
    let begin = |wired: &mut Wired<_>, number, ports: std::ops::Range<u16>| {
        ports.map(|port| wired.begin(slot(number), flow(port), 1, now).1).collect::<Vec<_>>()
    };
    assert!(begin(&mut wired, 0, 0..15).iter().all(|room| *room == Room::Unchanged));
    assert_eq!(begin(&mut wired, 0, 15..17), [Room::Full, Room::Unchanged]);
    assert_eq!(begin(&mut wired, 1, 0..1), [Room::Unchanged]);
    let end = |wired: &mut Wired<_>, port| wired.end(slot(0), flow(port), |_| totals(1), now).1;
    assert_eq!([end(&mut wired, 0), end(&mut wired, 1)], [Room::Unchanged; 2]);
    assert_eq!(wired.over(slot(0), (flow(2), 5), |_| totals(1), now).1, Room::Free);
}

#[test]
fn many_wires_share_what_there_is() {
    let mut wired = Wired::new(5_000, 8_000);
    let mut shares = (0..10).map(|number| {
        wired.add(slot(number), "");
        wired.share()
    });
    assert_eq!(shares.next(), Some(5_000));
    assert_eq!(shares.next(), Some(4_000));
    assert_eq!(shares.last(), Some(MIN_SHARE));
}

#[test]
fn what_is_remembered_is_bounded() {
    let now = Instant::now();
    let mut wired = wired(4);
    let begun: Vec<_> = (0..9).map(|port| wired.begin(slot(0), flow(port), 1, now).0).collect();
    assert_eq!(begun.iter().filter(|begun| **begun == Begun::Remembered).count(), 8);
    assert_eq!(begun[8], Begun::Forgotten);
    for port in 0..2000 {
        let _ = wired.end(slot(1), flow(port), |_| totals(1), now);
    }
    assert_eq!(wired.wires[&slot(1)].early.len(), MAX_EARLY);
    for number in 0..=MAX_EARLY + 1 {
        let begun = wired.begin(slot(1), flow(5000), 1, now).0;
        assert_eq!(begun, if number <= MAX_EARLY { Begun::Remembered } else { Begun::InPlaceOf(1) });
    }
    assert_eq!(wired.wires[&slot(1)].displaced.len(), MAX_EARLY);
    // New ones count all the same.
    let rooms = (0..3).map(|port| wired.begin(slot(1), flow(5001 + port), 1, now).1);
    assert_eq!(rooms.collect::<Vec<_>>(), [Room::Unchanged, Room::Unchanged, Room::Full]);
}

#[test]
fn a_flow_is_looked_at_less_and_less_often_while_it_is_open() {
    let start = Instant::now();
    let mut wired = wired(10);
    for port in [1, 2, 3] {
        let _ = wired.begin(slot(0), flow(port), 1, start);
    }
    let _ = wired.end(slot(0), flow(2), |_| totals(1), start);
    let _ = wired.end(slot(0), flow(3), |_| totals(1), start);
    let later = start + Duration::from_secs(1);
    let _ = wired.begin(slot(0), flow(3), 1, later);
    let mut looked = HashMap::<_, Vec<_>>::new();
    for second in 0..100 {
        for tuple in wired.due(start + Duration::from_secs(second)) {
            looked.entry(tuple).or_default().push(second);
        }
    }
    assert_eq!(looked.remove(&flow(1)).unwrap(), [2, 4, 8, 16, 32, 64, 96]);
    // Once for each of its incarnations that lives.
    assert_eq!(looked.remove(&flow(3)).unwrap(), [3, 5, 9, 17, 33, 65, 97]);
    assert!(looked.is_empty());
    for port in [1, 3] {
        let _ = wired.end(slot(0), flow(port), |_| totals(1), start);
    }
    assert!(wired.due(start + Duration::from_secs(200)).is_empty());
    assert!(wired.looks.iter().all(VecDeque::is_empty));
}

#[test]
fn after_a_loss_what_is_not_there_any_more_is_counted_and_what_is_there_counts() {
    let start = Instant::now();
    let mut wired = wired(2);
    let asked = start + Duration::from_millis(1);
    for (port, event, begun) in [(1, 11, start), (2, 12, start), (3, 0, start), (4, 14, asked)] {
        let _ = wired.begin(slot(0), flow(port), event, begun);
    }
    let there = [(slot(0), flow(2)), (slot(1), flow(8)), (slot(1), flow(9))].into();
    let Reconciled { lost, rooms } = wired.reconcile(&there, asked);
    // The first ended unseen, the third had no event, and the fourth began later.
    assert_eq!(lost, [("one", 1)]);
    assert_eq!(rooms, [(slot(1), Room::Full)]);
    assert_eq!(wired.refused(slot(0), |_| false).len(), 2);
    assert_eq!(wired.end(slot(1), flow(8), |_| totals(1), asked).0, None);
    assert_eq!(wired.end(slot(0), flow(2), |_| totals(5), asked).0, ended("one", 12, 5));
}

#[test]
fn the_flows_to_be_cut_are_those_that_are_not_permitted() {
    let now = Instant::now();
    let mut wired = wired(10);
    for port in 0..4 {
        let _ = wired.begin(slot(0), flow(port), 1, now);
    }
    let refused = wired.refused(slot(0), |tuple| tuple.ports.unwrap().0 > 0);
    assert_eq!(refused, [flow(0)]);
    assert!(wired.refused(slot(1), |_| false).is_empty());
}

#[test]
fn what_was_counted_and_not_read_from_the_log_is_missing_at_whose_wire_it_was() {
    let mut wired = wired(10);
    for (number, read) in [(0, 5), (1, 3)] {
        let ledger = wired.ledger(slot(number)).unwrap();
        ledger.counted(5);
        ledger.accounted(read);
    }
    assert_eq!(wired.find_missing(), [], "it may be under way");
    assert_eq!(wired.find_missing(), [("other", 2)]);
    assert_eq!(wired.find_missing(), []);
    // What is still under way when the wire goes does not come any more.
    wired.ledger(slot(0)).unwrap().counted(1);
    assert_eq!(wired.remove(slot(0)).unwrap().missing, 1);
    assert_eq!(wired.remove(slot(1)).unwrap().missing, 0);
    assert!(wired.ledger(slot(0)).is_none());
}

#[test]
fn what_a_wire_has_moved_is_told_once_and_a_wire_laid_again_begins_anew() {
    let mut wired = wired(10);
    let mut moved = |received, sent| wired.moved(slot(0), LinkBytes { received, sent });
    assert_eq!(moved(100, 50), Some(("one", 100, 50)));
    assert_eq!(moved(100, 50), Some(("one", 0, 0)));
    assert_eq!(moved(130, 50), Some(("one", 30, 0)));
    wired.laid(slot(0));
    let mut moved = |received, sent| wired.moved(slot(0), LinkBytes { received, sent });
    assert_eq!(moved(5, 70), Some(("one", 5, 70)));
    assert_eq!(moved(6, 70), Some(("one", 1, 0)));
    assert_eq!(wired.moved(slot(7), LinkBytes { received: 1, sent: 1 }), None);
}

#[test]
fn what_a_wire_has_moved_is_not_told_twice_by_a_reading_that_comes_late() {
    let mut wired = wired(10);
    let mut moved = |received, sent| wired.moved(slot(0), LinkBytes { received, sent });
    assert_eq!(moved(100, 50), Some(("one", 100, 50)));
    assert_eq!(moved(60, 50), Some(("one", 0, 0)));
    assert_eq!(moved(60, 70), Some(("one", 0, 20)));
    assert_eq!(moved(110, 70), Some(("one", 10, 0)));
}

#[test]
fn a_wire_that_could_not_be_cut_is_to_be_cut_until_it_was() {
    let mut wired = wired(10);
    assert_eq!(wired.spend(slot(0)), (true, Room::Full));
    wired.was_not_told(slot(0), Room::Full);
    assert_eq!(wired.spend(slot(0)), (true, Room::Full));
    assert_eq!(wired.spend(slot(0)), (true, Room::Unchanged));
    wired.was_cut(slot(0));
    assert_eq!(wired.spend(slot(0)), (false, Room::Unchanged));
    for round in 0..2 {
        for _ in 1..TRIES {
            assert_eq!(wired.limited(slot(0), false), None, "round {round}");
        }
        assert_eq!(wired.limited(slot(1), true), None);
        if round == 0 {
            assert_eq!(wired.limited(slot(0), true), None);
        }
    }
    assert_eq!(wired.limited(slot(0), false), Some("one"));
}

#[test]
fn a_change_of_the_room_that_the_kernel_was_not_told_comes_again() {
    let now = Instant::now();
    let mut wired = wired(1);
    assert_eq!(wired.begin(slot(0), flow(1), 11, now).1, Room::Full);
    wired.was_not_told(slot(0), Room::Full);
    assert_eq!(wired.begin(slot(0), flow(2), 12, now).1, Room::Full);
    assert_eq!(wired.end(slot(0), flow(2), |_| totals(1), now).1, Room::Unchanged);
    assert_eq!(wired.end(slot(0), flow(1), |_| totals(1), now).1, Room::Free);
    wired.was_not_told(slot(0), Room::Free);
    assert_eq!(wired.begin(slot(0), flow(3), 13, now).1, Room::Unchanged);
    assert_eq!(wired.end(slot(0), flow(3), |_| totals(1), now).1, Room::Free);
}

#[test]
fn a_wire_whose_sandbox_has_moved_what_it_may_is_full_whatever_ends() {
    let now = Instant::now();
    let mut wired = wired(10);
    let _ = wired.begin(slot(0), flow(1), 11, now);
    assert_eq!(wired.spend(slot(0)), (true, Room::Full));
    wired.was_cut(slot(0));
    assert_eq!(wired.spend(slot(0)), (false, Room::Unchanged));
    assert_eq!(wired.end(slot(0), flow(1), |_| totals(7), now), (ended("one", 11, 7), Room::Unchanged));
    assert_eq!(wired.begin(slot(1), flow(1), 12, now), (Begun::Remembered, Room::Unchanged));
    assert_eq!(
        wired.remove(slot(0)),
        Some(Removed { sandbox: "one", waiting: 0, missing: 0, was_full: true })
    );
    assert_eq!(wired.spend(slot(0)), (false, Room::Unchanged));
}
