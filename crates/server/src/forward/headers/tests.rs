use super::*;

const PREFIX: &str = "/sandboxes/sbx-1/ports/3000";

fn at(asked: &Uri) -> Address<'_> {
    Address { prefix: PREFIX, port: NonZeroU16::new(3000).unwrap(), asked }
}

fn map(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
    }
    headers
}

#[test]
fn a_request_loses_what_is_not_for_the_service_and_keeps_the_rest() {
    let asked = Uri::from_static("/a");
    let client = map(&[
        ("host", "api.example.com:8080"),
        ("connection", "keep-alive, X-Hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("te", "trailers"),
        ("transfer-encoding", "chunked"),
        ("content-length", "7"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABk"),
        ("proxy-authorization", "Basic eA=="),
        ("expect", "100-continue"),
        ("x-api-key", "dcl_secret"),
        ("cookie", "console=secret"),
        ("x-forwarded-for", "203.0.113.7"),
        ("authorization", "Bearer of-the-service"),
        ("accept", "text/event-stream"),
        ("mcp-session-id", "one"),
        ("x-twice", "a"),
        ("x-twice", "b"),
    ]);
    let inside = inward(&at(&asked), &client, &Uri::from_static("/whatever"));
    let expected = map(&[
        ("authorization", "Bearer of-the-service"),
        ("accept", "text/event-stream"),
        ("mcp-session-id", "one"),
        ("x-twice", "a"),
        ("x-twice", "b"),
        ("host", "localhost:3000"),
        ("x-forwarded-host", "api.example.com:8080"),
        ("x-forwarded-prefix", PREFIX),
    ]);
    assert_eq!(inside, expected);
}

#[test]
fn nothing_that_a_client_says_of_who_forwarded_its_request_goes_inside() {
    let asked = Uri::from_static("/");
    let forwarded = ["forwarded", "x-real-ip", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-ssl"];
    let more = [
        "x-forwarded-host",
        "x-forwarded-prefix",
        "x-forwarded-by",
        "x-forwarded-",
        "x-forwarded-client-cert",
    ];
    let mut client: Vec<_> = forwarded.into_iter().chain(more).map(|name| (name, "of-the-client")).collect();
    client.extend([("host", "api.test"), ("x-forwarder", "kept")]);
    let inside = inward(&at(&asked), &map(&client), &Uri::from_static("/"));
    let ours = [("host", "localhost:3000"), ("x-forwarded-host", "api.test"), ("x-forwarded-prefix", PREFIX)];
    assert_eq!(inside, map(&[ours.as_slice(), &[("x-forwarder", "kept")]].concat()));
}

#[test]
fn an_answer_gives_no_orders_to_a_web_server_before_this_one() {
    let asked = Uri::from_static("/");
    for order in [
        "X-Accel-Redirect",
        "X-Accel-Expires",
        "X-Accel-Limit-Rate",
        "X-Sendfile",
        "X-Sendfile2",
        "X-LIGHTTPD-send-file",
        "X-LIGHTTPD-send-tempfile",
        "X-LiteSpeed-Location",
        "X-LiteSpeed-Purge",
        "X-REPROXY-URL",
        "X-REPROXY-FILE",
        "X-Envoy-Immediate-Health-Check-Fail",
        "Surrogate-Control",
    ] {
        let inner =
            map(&[(order, "/internal/secret"), ("x-accelerator", "kept"), ("x-accel-buffering", "no")]);
        let outside = outward(&at(&asked), &Method::GET, None, StatusCode::OK, &inner);
        let kept = map(&[("x-accelerator", "kept"), ("x-accel-buffering", "no")]);
        assert_eq!(outside, kept, "{order}");
    }
}

#[test]
fn a_request_over_http2_tells_its_host_too() {
    let asked = Uri::from_static("/");
    let uri = Uri::from_static("https://api.example.com/sandboxes/sbx-1/ports/3000");
    let inside = inward(&at(&asked), &HeaderMap::new(), &uri);
    assert_eq!(inside[&FORWARDED_HOST], "api.example.com");
}

#[test]
fn an_answer_loses_what_would_act_on_the_whole_site_and_keeps_the_rest() {
    let asked = Uri::from_static("/");
    let mut all: Vec<_> = FOR_THE_SITE.iter().map(|(name, _)| (*name, "x")).collect();
    all.extend([
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("transfer-encoding", "chunked"),
        ("content-length", "5"),
    ]);
    all.extend([
        ("x-sandbox-location", "http://evil.test/"),
        ("content-type", "text/html"),
        ("etag", "\"1\""),
    ]);
    let outside = |method, status| outward(&at(&asked), &method, None, status, &map(&all));
    let kept = [("content-type", "text/html"), ("etag", "\"1\"")];
    assert_eq!(outside(Method::GET, StatusCode::OK), map(&kept));
    let with_length = map(&[kept[0], kept[1], ("content-length", "5")]);
    assert_eq!(outside(Method::HEAD, StatusCode::OK), with_length);
    assert_eq!(outside(Method::GET, StatusCode::NOT_MODIFIED), with_length);
}

#[test]
fn a_length_that_is_none_is_not_told() {
    let asked = Uri::from_static("/");
    for length in ["", "-1", "+1", "0x10", "99999999999999999999999", "1, 2"] {
        let inner = map(&[("content-length", length)]);
        assert!(outward(&at(&asked), &Method::HEAD, None, StatusCode::OK, &inner).is_empty(), "{length}");
    }
}

#[test]
fn a_redirection_stays_below_the_address_of_its_port() {
    let asked = Uri::from_static("/app/page?q=1");
    for (location, expected) in [
        ("/login?next=%2F#top", "/login?next=%2F#top"),
        ("other", "/app/other"),
        ("../../../../kill-many", "/kill-many"),
        ("/../../kill-many", "/kill-many"),
        ("/%2e%2e/%2E./kill-many", "/kill-many"),
        ("/..\\..\\kill-many", "/kill-many"),
        ("?q=2", "/app/page?q=2"),
        ("http://localhost:3000/x", "/x"),
        ("http://127.0.0.1:3000", "/"),
        ("http://[::1]:3000/x", "/x"),
        ("http://0.0.0.0:3000/x", "/x"),
        // As services write it that know what they are called outside.
        ("http://api.test:8080/x", "/x"),
        ("http://api.test:8080/sandboxes/sbx-1/ports/3000/x", "/x"),
        ("/sandboxes/sbx-1/ports/3000", ""),
        ("http://api.test:8080/sandboxes/sbx-2/commands", "/sandboxes/sbx-2/commands"),
        ("/sandboxes/sbx-1/ports/30001/x", "/sandboxes/sbx-1/ports/30001/x"),
        ("http://api.test:8080/sandboxes/sbx-1/ports/3000/../../../../kill-many", "/kill-many"),
    ] {
        let inner = map(&[("location", location)]);
        let outside = outward(&at(&asked), &Method::GET, Some("api.test:8080"), StatusCode::FOUND, &inner);
        assert_eq!(outside[header::LOCATION], format!("{PREFIX}{expected}"), "{location}");
        assert_eq!(outside.len(), 1);
    }
}

#[test]
fn a_redirection_that_leads_elsewhere_is_told_and_never_followed() {
    let asked = Uri::from_static("/");
    for location in [
        "http://evil.test/",
        "//evil.test/x",
        "\\\\evil.test/x",
        "http://localhost:3001/",
        "http://localhost/",
        "http://api.test/",
        "http://api.test:8080@evil.test/",
        "javascript:alert(1)",
        "ftp://localhost:3000/",
        "http://[",
        "http://localhost:3000.evil.test/",
    ] {
        let inner = map(&[("location", location)]);
        let outside = outward(&at(&asked), &Method::GET, Some("api.test:8080"), StatusCode::FOUND, &inner);
        assert_eq!(outside, map(&[("x-sandbox-location", location)]), "{location}");
    }
}

#[test]
fn tokens_are_found_in_lists_whatever_their_case() {
    let headers = map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
    assert!(has_token(&headers, &header::CONNECTION, "upgrade"));
    assert!(!has_token(&headers, &header::CONNECTION, "close"));
    assert!(!has_token(&headers, &header::UPGRADE, "web"));
}
