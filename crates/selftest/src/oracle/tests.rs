use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use policy::{Floor, Policy, PolicySpec, Reason};
use store::Category;

use super::*;
use crate::{
    cases::{Place, User},
    names::Names,
    probe::Bytes,
    sinks::Trace,
};

const CANARY: &str = "0123456789abcdef0123456789abcdef";

fn refused() -> Attempt {
    let address: IpAddr = "185.199.109.66".parse().unwrap();
    Attempt {
        what: "bytes".to_owned(),
        action: Action::Tcp {
            to: (address, 443).into(),
            pieces: vec![Bytes(CANARY.into())],
            from: None,
            wait: Duration::ZERO,
        },
        user: User::User,
        expect: Expect::Refused { rule: "default".to_owned(), reason: Some(Reason::DefaultDeny) },
        trace: Trace::Canary(CANARY.to_owned()),
        place: Some(Place { kind: Kind::Tcp, address, port: Some(443) }),
        lands: vec![address],
        flow: Some(EventKey { protocol: "tcp", address: Some(address), port: Some(443), is_revoked: false }),
        is_recorded: true,
    }
}

fn permitted() -> Attempt {
    let expect = Expect::Permitted { rule: "allow_out[0] *".to_owned() };
    Attempt { expect, place: None, ..refused() }
}

fn seen(address: &str, said: &str) -> Indexed {
    Indexed::new(Sighting {
        kind: Kind::Tcp,
        destination: address.parse().unwrap(),
        port: Some(443),
        query: None,
        bytes: said.into(),
    })
}

fn event(reason: &'static str, decision: Decision, count: u64) -> EventRecord {
    let mut event = EventRecord::new(1, Timestamp::UNIX_EPOCH, Category::Network, "egress_blocked");
    event.protocol = Some("tcp".into());
    event.address = Some("185.199.109.66".parse().unwrap());
    event.port = Some(443);
    event.reason = Some(reason.into());
    event.decision = Some(decision);
    event.count = count;
    event
}

fn judged(attempt: &Attempt, outcome: &probe::Outcome, seen: &[Indexed], events: &[EventRecord]) -> Outcome {
    Records { seen, events, tried: &[(attempt, outcome)] }.judge(attempt, outcome).outcome
}

fn reset() -> probe::Outcome {
    probe::Outcome::Refused("connection refused".to_owned())
}

#[test]
fn what_is_refused_holds_only_if_nothing_was_seen_and_it_was_recorded_once() {
    let right = event("default_deny", Decision::Deny, 1);
    let judge = |outcome: &probe::Outcome, seen: &[Indexed], events: &[EventRecord]| {
        judged(&refused(), outcome, seen, events)
    };
    assert_eq!(judge(&reset(), &[], std::slice::from_ref(&right)), Outcome::Held);
    // Whatever the sandbox was told.
    for address in ["185.199.109.66", "104.16.1.1"] {
        let canary = [seen(address, &format!("GET /{CANARY}"))];
        assert_eq!(judge(&reset(), &canary, std::slice::from_ref(&right)), Outcome::Hole);
    }
    let silent = [seen("185.199.109.66", "")];
    assert_eq!(judge(&reset(), &silent, std::slice::from_ref(&right)), Outcome::Hole);
    assert_eq!(judge(&reset(), &[seen("104.16.1.1", "")], std::slice::from_ref(&right)), Outcome::Held);
    for told in
        [probe::Outcome::ServerHello, probe::Outcome::Http(vec![200]), probe::Outcome::Data(Bytes(vec![1]))]
    {
        assert_eq!(judge(&told, &[], std::slice::from_ref(&right)), Outcome::Hole);
    }
    assert_eq!(judge(&probe::Outcome::Http(vec![403]), &[], &[right]), Outcome::Held);
    for wrong in [
        vec![],
        vec![event("default_deny", Decision::Deny, 2)],
        vec![event("floor", Decision::Deny, 1)],
        vec![event("default_deny", Decision::Deny, 1), event("default_allow", Decision::Allow, 1)],
    ] {
        assert_eq!(judge(&reset(), &[], &wrong), Outcome::Unrecorded, "{wrong:?}");
    }
    assert_eq!(judge(&probe::Outcome::Fault("broken".to_owned()), &[], &[]), Outcome::Failed);
}

#[test]
fn what_is_permitted_has_to_arrive_where_it_is_meant_to() {
    let judge = |seen: &[Indexed]| judged(&permitted(), &reset(), seen, &[]);
    assert_eq!(judge(&[seen("185.199.109.66", CANARY)]), Outcome::Permitted);
    assert_eq!(judge(&[]), Outcome::FalselyBlocked);
    assert_eq!(judge(&[seen("185.199.109.66", "another")]), Outcome::FalselyBlocked);
    assert_eq!(judge(&[seen("104.16.1.1", CANARY)]), Outcome::Hole);
}

#[test]
fn an_answer_that_leads_inside_is_a_hole() {
    let names = Names::default();
    names.give("a.test", &["104.16.1.1".parse().unwrap(), "10.0.0.7".parse().unwrap()]);
    let query = crate::forms::dns::question("a.test", 1);
    let (_, reply) = crate::authority::answer(&query, &names).unwrap();
    let to = "8.8.8.8:53".parse().unwrap();
    let action = Action::Udp { to, data: Bytes(query), from: None, wait: Duration::ZERO };
    let judge = |lands: &[&str]| {
        let lands = lands.iter().map(|text| text.parse().unwrap()).collect();
        let attempt = Attempt { action: action.clone(), lands, trace: Trace::None, ..permitted() };
        judged(&attempt, &probe::Outcome::Data(Bytes(reply.clone())), &[], &[])
    };
    assert_eq!(judge(&["104.16.1.1", "10.0.0.7"]), Outcome::Permitted);
    assert_eq!(judge(&["104.16.1.1"]), Outcome::Hole);
}

#[test]
fn a_connection_that_is_to_be_cut_and_stays_open_is_a_hole() {
    let action = Action::Held { key: 1, data: Bytes(Vec::new()), wait: Duration::ZERO };
    let attempt = Attempt { action, place: None, is_recorded: false, ..refused() };
    assert_eq!(judged(&attempt, &probe::Outcome::Silence, &[], &[]), Outcome::Hole);
    assert_eq!(judged(&attempt, &probe::Outcome::Reset, &[], &[]), Outcome::Held);
}

#[test]
fn what_belongs_to_nothing_that_was_tried_is_a_hole_unless_the_policy_permits_it() {
    let spec = PolicySpec { allow_out: vec!["104.16.1.1".to_owned()], ..PolicySpec::default() };
    let policy = Policy::compile(&spec, Arc::new(Floor::new([]))).unwrap();
    let ground = Ground::find(Arc::new(policy), &Names::default());
    let outcome = |seen: &[Indexed]| {
        let attempt = refused();
        let records = Records { seen, events: &[], tried: &[(&attempt, &reset())] };
        unexplained(&records, &ground).outcome
    };
    assert_eq!(outcome(&[seen("104.16.1.1", "")]), Outcome::Held);
    // Of an attempt: judged with it.
    assert_eq!(outcome(&[seen("185.199.109.66", ""), seen("9.9.9.9", CANARY)]), Outcome::Held);
    assert_eq!(outcome(&[seen("9.9.9.9", "")]), Outcome::Hole);
    let mut node = seen("104.16.1.1", "");
    node.sighting.kind = Kind::Node;
    assert_eq!(outcome(&[node]), Outcome::Hole);
}
