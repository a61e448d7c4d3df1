//! A canonical name is canonical: parsing it again, in any case or with a final dot, changes nothing.

use std::net::IpAddr;

use policy::HostName;

pub fn check(bytes: &[u8]) {
    let wire = HostName::from_wire(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        assert!(wire.is_err());
        return;
    };
    let name = HostName::parse(text);
    if text.is_ascii() {
        assert_eq!(wire, name);
    } else {
        assert!(wire.is_err());
    }
    let Ok(name) = name else { return };
    assert!((1..=253).contains(&name.as_str().len()));
    assert!(name.as_str().split('.').all(|label| (1..=63).contains(&label.len())));
    assert!(name.as_str().bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.')));
    assert!(name.as_str().parse::<IpAddr>().is_err());
    for again in [name.to_string(), name.as_str().to_uppercase(), format!("{name}.")] {
        assert_eq!(HostName::parse(&again).as_ref(), Ok(&name), "{again}");
        assert_eq!(HostName::from_wire(again.as_bytes()).as_ref(), Ok(&name), "{again}");
    }
}
