use super::*;

fn v4(protocol: u8, destination: [u8; 4], rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 100, 80, 0, 1];
    packet.extend(destination);
    packet.extend(rest);
    packet
}

#[test]
fn a_ping_and_a_datagram_to_everybody_are_seen_and_the_wires_own_life_is_not() {
    let ping = describe(&v4(1, [185, 199, 108, 66], b"\x08\0\0\0\0\x01\0\x01canary")).unwrap();
    assert_eq!(ping.kind, Kind::Packet(1));
    let (ping, text) = (Indexed::new(ping), |text: &str| Trace::Text(text.to_owned()));
    assert!(ping.has(&text("canary")) && !ping.has(&text("other")) && !ping.has(&Trace::None));
    let group = describe(&v4(17, [239, 255, 255, 250], b"\x10\0\x07\x6c\0\0\0\0canary")).unwrap();
    assert_eq!(group.port, Some(1900));
    for own in [
        v4(1, [198, 51, 100, 1], b"\x03\x03"),
        v4(2, [224, 0, 0, 22], b"\x22"),
        v4(6, [104, 16, 1, 1], b"\0\x50"),
        Vec::new(),
    ] {
        assert!(describe(&own).is_none(), "{own:?}");
    }
}

#[test]
fn a_text_is_found_over_the_bounds_of_records() {
    let canary = "c".repeat(32);
    let bytes = crate::forms::tls::records(format!("before {canary} after").as_bytes(), 5);
    let destination = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let seen = Indexed::new(Sighting { kind: Kind::Tcp, destination, port: Some(1), query: None, bytes });
    assert!(seen.has(&Trace::Canary(canary)) && !seen.has(&Trace::Canary("d".repeat(32))));
}

#[test]
fn what_is_said_in_pieces_is_found_as_a_whole() {
    let seen = Sightings::default();
    let tcp = Sighting {
        kind: Kind::Tcp,
        destination: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: Some(1),
        query: None,
        bytes: Vec::new(),
    };
    let index = seen.add(tcp);
    seen.extend(index, b"GET /can");
    seen.extend(index, b"ARY");
    let all: Vec<Indexed> = seen.all().unwrap().into_iter().map(Indexed::new).collect();
    assert!(all.iter().any(|seen| seen.has(&Trace::Text("canary".to_owned()))));
    seen.fail("it broke".to_owned());
    assert!(seen.all().unwrap_err().to_string().contains("it broke"));
}
