//! A canonical name is canonical.
#![no_main]

use libfuzzer_sys::fuzz_target;
use policy::HostName;

fuzz_target!(|bytes: &[u8]| {
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
    assert!(!name.as_str().is_empty() && name.as_str().len() <= 253);
    assert!(name.as_str().split('.').all(|label| (1..=63).contains(&label.len())));
    assert!(name.as_str().bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.')));
    assert!(name.as_str().parse::<std::net::IpAddr>().is_err());
    assert_eq!(HostName::parse(name.as_str()).as_ref(), Ok(&name));
    assert_eq!(HostName::parse(&name.as_str().to_uppercase()).as_ref(), Ok(&name));
    assert_eq!(HostName::parse(&format!("{name}.")).as_ref(), Ok(&name));
});
