use policy::{Floor, PolicySpec};

use super::*;

fn ground(allow: &[&str], deny: &[&str]) -> Ground {
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    let spec = PolicySpec { allow_out: texts(allow), deny_out: texts(deny), ..PolicySpec::default() };
    let policy = Policy::compile(&spec, Arc::new(Floor::new([]))).unwrap();
    Ground::find(Arc::new(policy), &Names::default())
}

#[test]
fn a_permitted_name_is_found_whatever_the_form_of_its_entry() {
    for (entry, name, port) in [
        ("api.example.com", "api.example.com", None),
        ("api.example.com:8443", "api.example.com", Some(8443)),
        ("*.example.com", "selftest.example.com", None),
        (r"~.*\.example\.com", "selftest.example.com", None),
        (r"~[a-z]+\.example\.com:443", "selftest.example.com", Some(443)),
        ("*", ANYBODY, None),
        ("*:443", ANYBODY, Some(443)),
    ] {
        let named = ground(&[entry], &[]).named.unwrap_or_else(|| panic!("{entry}"));
        assert_eq!((named.name.as_str(), named.port), (name, port), "{entry}");
    }
    assert_eq!(ground(&[], &[]).named.unwrap().name.as_str(), ANYBODY);
    assert!(ground(&[], &["*"]).named.is_none());
    assert!(ground(&["203.0.113.0/24"], &[]).named.is_none());
}

#[test]
fn a_place_that_the_policy_denies_is_not_where_a_permitted_name_is() {
    let named = ground(&[], &["104.16.0.0/12", "2606:4700::/32"]).named.unwrap();
    assert_eq!(named.addresses[0], "23.32.7.7".parse::<IpAddr>().unwrap());
}

#[test]
fn what_is_refused_is_found_under_a_list_and_under_an_open_policy() {
    let listed = ground(&["api.example.com"], &[]);
    assert_eq!(listed.refused.as_str(), NOBODY);
    assert_eq!(listed.refused_with("canary"), format!("canary.{NOBODY}"));
    let open = ground(&[], &["evil.example.com", "198.41.0.0/24"]);
    assert_eq!(open.refused_with("canary"), "evil.example.com");
    assert_eq!(open.refused_addresses[0], "198.41.0.1".parse::<IpAddr>().unwrap());
}

#[test]
fn what_is_expected_is_what_the_policy_says() {
    let listed = ground(&["api.example.com"], &[]);
    let named = listed.named.clone().unwrap();
    let (at, elsewhere) = (named.addresses[0], listed.refused_addresses[0]);
    assert!(listed.claimed(b"api.example.com", at, 443).is_permitted());
    assert!(!listed.claimed(b"evil.example.com", at, 443).is_permitted());
    assert!(!listed.claimed(b"api.example.com", elsewhere, 443).is_permitted());
    assert!(!listed.unknown(at, 443).is_permitted());
    assert!(listed.unknown(at, 5432).is_permitted());
    assert!(!listed.other(Protocol::Udp, at, Some(443)).is_permitted());
    assert!(!listed.lookup("evil.example.com").is_permitted());
    let open = ground(&[], &[]);
    assert!(open.claimed(b"evil.example.com", elsewhere, 443).is_permitted());
    assert!(open.other(Protocol::Udp, elsewhere, Some(443)).is_permitted());
    assert!(!open.other(Protocol::Udp, "169.254.169.254".parse().unwrap(), Some(80)).is_permitted());
    let named = ground(&[], &["evil.example.com"]);
    assert_eq!(named.passage(elsewhere, 443), Passage::Judged { is_bound: false });
    assert!(!named.claimed(b"evil.example.com", elsewhere, 443).is_permitted());
    assert!(!named.unknown(elsewhere, 5432).is_permitted());
}
