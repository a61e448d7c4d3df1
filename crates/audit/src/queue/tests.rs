use std::net::Ipv4Addr;

use policy::{Decision, NameSource, Verdict};

use super::*;

const LIMITS: Limits = Limits {
    queue: 100,
    folds: 100,
    fold_window: Duration::from_secs(10),
    repeat_every: Duration::from_secs(1),
};

/// A clock that the test moves.
struct Clock(Moment);

impl Clock {
    fn new() -> Self {
        let time = Timestamp::from_microsecond(1_790_000_000_000_000).unwrap();
        Self(Moment { instant: Instant::now(), time })
    }

    fn tick(&mut self, duration: Duration) -> Moment {
        self.0 = Moment { instant: self.0.instant + duration, time: self.0.time + duration };
        self.0
    }
}

fn blocked(host: u32) -> FlowEvent {
    FlowEvent {
        kind: EventKind::EgressBlocked,
        verdict: Verdict { decision: Decision::Deny, rule: Rule::Default, reason: Reason::DefaultDeny },
        name: None,
        name_source: NameSource::None,
        address: Some(Ipv4Addr::from_bits(0x0100_0000 + host).into()),
        port: Some(443),
        protocol: Protocol::Tcp,
        generation: 1,
        count: 1,
    }
}

fn allowed(host: u32) -> FlowEvent {
    let verdict = Verdict { decision: Decision::Allow, rule: Rule::Default, reason: Reason::DefaultAllow };
    FlowEvent { kind: EventKind::EgressAllowed, verdict, ..blocked(host) }
}

fn sandbox(id: &str) -> Arc<str> {
    id.into()
}

fn counts(drained: &Drained) -> Vec<(&str, u64)> {
    drained.events.iter().map(|event| (event.kind.as_ref(), event.count)).collect()
}

#[test]
fn what_is_a_repeat_is_folded_and_what_differs_is_not() {
    let mut queue = Queue::new(LIMITS, 0);
    let mut clock = Clock::new();
    let (a, b) = (sandbox("sbx-a"), sandbox("sbx-b"));
    let first = queue.flow(&a, blocked(1), clock.0);
    assert_eq!(queue.flow(&a, blocked(1), clock.tick(Duration::from_secs(1))), first);
    let other_port = FlowEvent { port: Some(80), ..blocked(1) };
    let other_protocol = FlowEvent { protocol: Protocol::Udp, ..blocked(1) };
    let other_generation = FlowEvent { generation: 2, ..blocked(1) };
    let other_kind = FlowEvent { kind: EventKind::DnsBlocked, ..blocked(1) };
    let other_name = FlowEvent { name: Some("a.example".parse().unwrap()), ..blocked(1) };
    let mut other_rule = blocked(1);
    other_rule.verdict.rule = Rule::Floor("metadata");
    let mut other_reason = blocked(1);
    other_reason.verdict.reason = Reason::NotBound;
    for event in [
        other_port,
        other_protocol,
        other_generation,
        other_kind,
        other_name,
        other_rule,
        other_reason,
        blocked(2),
    ] {
        assert_ne!(queue.flow(&a, event, clock.0), first);
    }
    assert_ne!(queue.flow(&b, blocked(1), clock.0), first);
    let drained = queue.take(clock.0).sort();
    assert_eq!(drained.events.len(), 10);
    assert_eq!(drained.events.iter().map(|event| event.count).sum::<u64>(), 11);
    assert_eq!(drained.events[0].last_time, Some(clock.0.time));
}

#[test]
fn allowed_and_revoked_flows_are_never_folded() {
    let mut queue = Queue::new(LIMITS, 0);
    let clock = Clock::new();
    let a = sandbox("sbx-a");
    for _ in 0..3 {
        queue.flow(&a, allowed(1), clock.0);
        queue.flow(&a, FlowEvent { kind: EventKind::EgressRevoked, ..blocked(1) }, clock.0);
    }
    assert_eq!(queue.take(clock.0).sort().events.len(), 6);
}

#[test]
fn a_repeat_after_the_window_is_an_event_of_its_own() {
    let mut queue = Queue::new(LIMITS, 0);
    let mut clock = Clock::new();
    let a = sandbox("sbx-a");
    let first = queue.flow(&a, blocked(1), clock.0);
    // The window begins with the first, so a steady stream is one event in ten seconds.
    assert_eq!(queue.flow(&a, blocked(1), clock.tick(Duration::from_millis(9_999))), first);
    let second = queue.flow(&a, blocked(1), clock.tick(Duration::from_millis(1)));
    assert_ne!(second, first);
    assert_eq!(queue.flow(&a, blocked(1), clock.tick(Duration::from_millis(9_999))), second);
    assert_eq!(counts(&queue.take(clock.0).sort()), [("egress_blocked", 2), ("egress_blocked", 2)]);
}

#[test]
fn a_repeat_of_an_event_that_was_taken_away_is_a_change() {
    let mut queue = Queue::new(LIMITS, 0);
    let mut clock = Clock::new();
    let a = sandbox("sbx-a");
    let id = queue.flow(&a, blocked(1), clock.0);
    assert_eq!(queue.take(clock.0).sort().events.len(), 1);
    let now = clock.tick(Duration::from_secs(1));
    queue.flow(&a, FlowEvent { count: 5, ..blocked(1) }, now);
    queue.flow(&a, blocked(1), now);
    // It may wait for others, so that it is not a write each time.
    assert!(queue.take(clock.tick(Duration::from_millis(999))).sort().changes.is_empty());
    assert_eq!(queue.next_repeat(), Some(now.instant + Duration::from_secs(1)));
    let drained = queue.take(clock.tick(Duration::from_millis(1))).sort();
    assert!(drained.events.is_empty());
    let update = EventUpdate::Repeated { id, count: 7, last_time: now.time };
    assert_eq!(drained.changes, [Change { owner: Some(a), update, added: 6 }]);
    assert_eq!((queue.waiting(), queue.next_repeat()), (0, None));
}

#[test]
fn a_flush_waits_for_what_was_recorded_before_and_not_for_what_came_after() {
    let mut queue = Queue::new(LIMITS, 0);
    let clock = Clock::new();
    let a = sandbox("sbx-a");
    queue.flow(&a, blocked(1), clock.0);
    assert_eq!(queue.take(clock.0).sort().sequence, 1);
    queue.flow(&a, blocked(1), clock.0);
    queue.flow(&a, allowed(1), clock.0);
    assert_eq!(queue.take(clock.0).sort().sequence, 1, "the repeat is still waiting");
    let target = queue.request_flush();
    let drained = queue.take(clock.0).sort();
    assert_eq!((drained.changes.len(), drained.sequence), (1, target));
}

#[test]
fn the_totals_of_a_flow_find_its_event_in_the_queue_and_after_it() {
    let mut queue = Queue::new(LIMITS, 0);
    let clock = Clock::new();
    let a = sandbox("sbx-a");
    let totals = FlowTotals { bytes_up: 1, bytes_down: 2, duration: Duration::from_millis(3) };
    let (short, long) = (queue.flow(&a, allowed(1), clock.0), queue.flow(&a, allowed(1), clock.0));
    queue.finish(&a, short, totals);
    let drained = queue.take(clock.0).sort();
    assert_eq!(drained.events[0].bytes_down, Some(2));
    assert_eq!(drained.events[1].bytes_down, None);
    queue.finish(&a, long, totals);
    let change = EventUpdate::Finished { id: long, bytes_up: 1, bytes_down: 2, duration_ms: 3 };
    assert_eq!(queue.take(clock.0).sort().changes, [Change { owner: Some(a), update: change, added: 0 }]);
}

#[test]
fn a_full_queue_drops_the_oldest_refusals_and_counts_each_for_what_it_stood_for() {
    let mut queue = Queue::new(LIMITS, 0);
    let clock = Clock::new();
    let a = sandbox("sbx-a");
    for _ in 0..7 {
        queue.flow(&a, blocked(0), clock.0);
    }
    for host in 1..=99 {
        queue.flow(&a, allowed(host), clock.0);
    }
    queue.push(Some(&a), EventRecord::new(0, clock.0.time, Category::Lifecycle, "sandbox_killed"), clock.0);
    assert_eq!(queue.take(clock.0).sort().events.len(), 101, "what is always kept needs no room");

    for _ in 0..7 {
        queue.flow(&a, blocked(200), clock.0);
    }
    for host in 1..=100 {
        queue.flow(&a, allowed(host), clock.0);
    }
    let again = queue.flow(&a, blocked(200), clock.0);
    let drained = queue.take(clock.0).sort();
    let gap = drained.events.last().unwrap();
    assert_eq!((gap.kind.as_ref(), gap.reason.as_deref(), gap.count), ("audit_gap", Some(QUEUE_FULL), 8));
    assert_eq!(gap.sandbox_id.as_deref(), Some("sbx-a"));
    let refusal = drained.events.iter().find(|event| event.kind == "egress_blocked").unwrap();
    assert_eq!((refusal.id, refusal.count), (again, 1), "a repeat of what was dropped is an event again");
    assert_eq!(drained.events.len(), 101);
}

#[test]
fn a_sandbox_that_makes_noise_does_not_push_out_what_another_did() {
    for noise in [blocked, allowed] {
        let mut queue = Queue::new(LIMITS, 0);
        let clock = Clock::new();
        let (quiet, loud) = (sandbox("sbx-quiet"), sandbox("sbx-loud"));
        queue.flow(&quiet, blocked(1), clock.0);
        queue.flow(&quiet, allowed(1), clock.0);
        for host in 0..1000 {
            queue.flow(&loud, noise(host), clock.0);
        }
        let drained = queue.take(clock.0).sort();
        assert_eq!(
            drained.events.iter().filter(|event| event.sandbox_id.as_deref() == Some("sbx-quiet")).count(),
            2
        );
        let gap = drained.events.last().unwrap();
        assert_eq!((gap.sandbox_id.as_deref(), gap.count), (Some("sbx-loud"), 902));
        assert_eq!(drained.events.len(), 101);
    }
}

#[test]
fn the_memory_of_folds_and_changes_is_bounded() {
    let mut queue = Queue::new(LIMITS, 0);
    let clock = Clock::new();
    let a = sandbox("sbx-a");
    for host in 0..10_000 {
        let id = queue.flow(&a, blocked(host), clock.0);
        if host % 50 == 0 {
            queue.take(clock.0).sort();
        }
        assert!(queue.folds.len() <= 100 && queue.fold_ends.len() <= 100 && queue.pending() <= 102, "{id}");
    }
    queue.take(clock.0).sort();
    for id in 1..=150 {
        queue.finish(&a, id, FlowTotals::default());
    }
    assert_eq!(queue.finished.len(), 100);
    let drained = queue.take(clock.0).sort();
    assert_eq!(
        drained.events.last().map(|gap| (gap.reason.as_deref(), gap.count)),
        Some((Some(TOTALS_LOST), 50))
    );
}

#[test]
fn a_gap_needs_no_room_in_the_queue() {
    let mut queue = Queue::new(LIMITS, 0);
    let clock = Clock::new();
    let a = sandbox("sbx-a");
    for host in 0..1000 {
        queue.flow(&a, allowed(host), clock.0);
        queue.gap(Some(Arc::clone(&a)), "kernel_log_limit", 3);
    }
    let drained = queue.take(clock.0).sort();
    let gaps: Vec<_> = drained.events.iter().filter(|event| event.kind == GAP).collect();
    let gaps: Vec<_> = gaps.iter().map(|gap| (gap.reason.as_deref(), gap.count)).collect();
    assert_eq!(gaps, [(Some("kernel_log_limit"), 3000), (Some(QUEUE_FULL), 900)]);
    let dropped = BTreeMap::from([("kernel_log_limit", 3000), (QUEUE_FULL, 900)]);
    assert_eq!((queue.counters().recorded, &queue.counters().dropped), (1000, &dropped));
}

#[test]
fn a_gap_that_was_given_up_keeps_its_cause_and_is_counted_once() {
    let mut queue = Queue::new(LIMITS, 0);
    let clock = Clock::new();
    let a = sandbox("sbx-a");
    queue.gap(Some(Arc::clone(&a)), "kernel_log_limit", 3);
    for _ in 0..5 {
        let drained = queue.take(clock.0).sort();
        queue.give_up(drained.events, drained.changes);
    }
    queue.gap(Some(a), "kernel_log_limit", 4);
    assert_eq!(counts(&queue.take(clock.0).sort()), [(GAP, 7)]);
    assert_eq!(queue.counters().dropped, BTreeMap::from([("kernel_log_limit", 7)]));
}

#[test]
fn ids_grow_when_the_clock_jumps_back() {
    let mut queue = Queue::new(LIMITS, 0);
    let mut clock = Clock::new();
    let a = sandbox("sbx-a");
    let before = queue.flow(&a, allowed(1), clock.0);
    assert_eq!(before, 1_790_000_000_000_000);
    let hour = Duration::from_secs(3600);
    clock.0.time -= hour;
    let after = queue.flow(&a, allowed(1), clock.0);
    assert_eq!(after, before + 1);
    let later = queue.flow(&a, allowed(1), clock.tick(2 * hour));
    assert!(later > after);
    for event in queue.take(clock.0).sort().events {
        assert!(event.id >= u64::try_from(event.time.as_microsecond()).unwrap());
    }
    let mut restarted = Queue::new(LIMITS, later + 77);
    assert_eq!(restarted.flow(&a, allowed(1), clock.0), later + 78);
}

#[test]
fn of_many_refused_attempts_of_a_sandbox_the_first_are_recorded_and_the_others_counted() {
    let mut queue = Queue::new(LIMITS, 0);
    let mut clock = Clock::new();
    let (a, b) = (sandbox("sbx-a"), sandbox("sbx-b"));
    let attempt = |queue: &mut Queue, of: &Arc<str>, now: Moment| {
        queue.attempt(of, EventRecord::new(0, now.time, Category::Lifecycle, "policy_change_refused"), now);
    };
    for _ in 0..ATTEMPTS + 5 {
        attempt(&mut queue, &a, clock.tick(Duration::from_millis(10)));
    }
    attempt(&mut queue, &b, clock.tick(Duration::from_millis(10)));
    let of = |drained: &Drained, id: &str| -> Vec<(String, Option<String>, u64)> {
        let of = drained.events.iter().filter(|event| event.sandbox_id.as_deref() == Some(id));
        of.map(|event| (event.kind.to_string(), event.reason.as_deref().map(str::to_owned), event.count))
            .collect()
    };
    let drained = queue.take(clock.0).sort();
    let recorded = ("policy_change_refused".to_owned(), None, 1);
    let mut expected = vec![recorded.clone(); ATTEMPTS as usize];
    expected.push((GAP.to_owned(), Some(ATTEMPT_LIMIT.to_owned()), 5));
    assert_eq!(of(&drained, "sbx-a"), expected);
    assert_eq!(of(&drained, "sbx-b"), std::slice::from_ref(&recorded));

    attempt(&mut queue, &a, clock.tick(ATTEMPTS_WINDOW));
    assert_eq!(of(&queue.take(clock.0).sort(), "sbx-a"), [recorded]);
    assert_eq!(queue.attempts.len(), 1, "windows that are over are not kept");
}
