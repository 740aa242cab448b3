//! What gRPC writes into headers: examples of the specification, and properties over any input.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::time::Duration;

use forebay_native::headers::{
    Encoding, Fault, Value, decode_binary, encode_binary, is_grpc, parse, percent_encode, timeout,
};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let entry = |&(name, value): &(&'static str, &str)| {
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
        (HeaderName::from_static(name), value)
    };
    pairs.iter().map(entry).collect()
}

/// What a caller reads.
fn percent_decode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            let hex = std::str::from_utf8(&tail[..2]).unwrap();
            out.push(u8::from_str_radix(hex, 16).unwrap());
            rest = &tail[2..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

#[test]
fn timeouts_have_up_to_eight_digits_and_a_unit() {
    assert_eq!(timeout(b"1H"), Some(Duration::from_secs(3600)));
    assert_eq!(timeout(b"2M"), Some(Duration::from_secs(120)));
    assert_eq!(timeout(b"03S"), Some(Duration::from_secs(3)));
    assert_eq!(timeout(b"4m"), Some(Duration::from_millis(4)));
    assert_eq!(timeout(b"5u"), Some(Duration::from_micros(5)));
    assert_eq!(timeout(b"99999999n"), Some(Duration::from_nanos(99_999_999)));
    for bad in [
        "",
        "S",
        "1",
        "1s",
        "-1S",
        "+1S",
        " 1S",
        "1.5S",
        "123456789S",
        "1 S",
        "\u{661}S",
    ] {
        assert_eq!(timeout(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn content_types() {
    for good in [
        "application/grpc",
        "application/grpc+proto",
        "application/grpc;charset=utf-8",
    ] {
        assert!(is_grpc(Some(&HeaderValue::from_static(good))), "{good}");
    }
    for bad in ["application/grpc-web", "application/grpcx", "application/json", ""] {
        assert!(!is_grpc(Some(&HeaderValue::from_static(bad))), "{bad}");
    }
    assert!(!is_grpc(None));
}

#[test]
fn only_the_callers_own_keys_are_metadata() {
    let head = parse(
        &map(&[
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("user-agent", "x"),
            ("grpc-timeout", "2S"),
            ("grpc-encoding", "gzip"),
            ("grpc-accept-encoding", "gzip"),
            ("grpc-trace-bin", "AA"),
            ("traceparent", "00-1-2-01"),
            ("x-own", "a, b"),
            ("x-own-bin", "AQI=,AQ"),
        ]),
        10_000,
    )
    .unwrap();
    assert_eq!(head.timeout, Some(Duration::from_secs(2)));
    assert_eq!(head.encoding, Encoding::Gzip);
    let text = |value| Value::Text(HeaderValue::from_static(value));
    let mut found: Vec<_> = head
        .metadata
        .iter()
        .map(|(name, value)| (name.as_str(), value.clone()))
        .collect();
    found.sort_by_key(|(name, _)| (*name).to_owned());
    assert_eq!(
        found,
        [
            ("traceparent", text("00-1-2-01")),
            ("x-own", text("a, b")),
            ("x-own-bin", Value::Binary(vec![1, 2])),
            ("x-own-bin", Value::Binary(vec![1])),
        ]
    );
}

#[test]
fn bad_headers_are_faults() {
    let fault = |pairs: &[(&'static str, &str)], limit| parse(&map(pairs), limit).unwrap_err();
    assert_eq!(fault(&[("grpc-timeout", "1")], 1000), Fault::Timeout);
    assert_eq!(fault(&[("a", "\u{fc}")], 1000), Fault::NotAscii);
    assert_eq!(fault(&[("a-bin", "A")], 1000), Fault::Binary);
    assert_eq!(fault(&[("a-bin", "!!!!")], 1000), Fault::Binary);
    assert_eq!(fault(&[("key", "value")], 39), Fault::TooLarge);
    assert!(parse(&map(&[("key", "value")]), 40).is_ok());
}

fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_text_comes_back_from_percent_encoding(text in any::<String>()) {
        let encoded = percent_encode(&text);
        prop_assert!(encoded.as_bytes().iter().all(|byte| (0x20..0x7f).contains(byte)));
        prop_assert_eq!(percent_decode(encoded.as_bytes()), text.as_bytes());
    }

    #[test]
    fn any_bytes_come_back_from_base64(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let encoded = encode_binary(&bytes);
        prop_assert!(!encoded.as_bytes().contains(&b'='));
        prop_assert_eq!(decode_binary(encoded.as_bytes()), Some(bytes.clone()));
        let mut padded = encoded.as_bytes().to_vec();
        padded.resize(padded.len().div_ceil(4) * 4, b'=');
        prop_assert_eq!(decode_binary(&padded), Some(bytes));
    }

    #[test]
    fn any_timeout_is_read_or_refused(value in prop::collection::vec(any::<u8>(), 0..12)) {
        let _ = timeout(&value);
    }

    #[test]
    fn any_timeout_of_the_grammar_is_read(amount in 0_u64..100_000_000, unit in "[HMSmun]") {
        let text = format!("{amount}{unit}");
        prop_assert!(timeout(text.as_bytes()).is_some());
    }

    #[test]
    fn any_header_is_read_or_refused(name in "[a-z-]{1,12}(-bin)?", value in prop::collection::vec(any::<u8>(), 0..40)) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(&value)) {
            let _ = parse(&HeaderMap::from_iter([(name, value)]), 1000);
        }
    }
}
