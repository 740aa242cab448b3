//! Properties of the framing: how a body is split into chunks never matters.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use bytes::Bytes;
use forebay_native::framing::{Assembler, Fault, InflateFault, PREFIX, Payload, inflate, prefix};
use proptest::prelude::*;

fn bytes(payload: &Payload) -> Vec<u8> {
    let mut bytes = vec![0; payload.len()];
    payload.copy_to(&mut bytes);
    bytes
}

fn body(messages: &[Vec<u8>]) -> Vec<u8> {
    let framed = |message: &Vec<u8>| [&prefix(message.len())[..], message].concat();
    messages.iter().flat_map(framed).collect()
}

fn feed(assembler: &mut Assembler, chunk: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
    assembler.push(Bytes::copy_from_slice(chunk));
    let mut out = Vec::new();
    while let Some(message) = assembler.next_message()? {
        assert!(!message.compressed);
        out.push(bytes(&message.payload));
    }
    Ok(out)
}

fn split(mut body: &[u8], sizes: &[usize]) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    for &size in sizes.iter().cycle() {
        if body.is_empty() {
            break;
        }
        let (chunk, rest) = body.split_at(size.min(body.len()));
        chunks.push(chunk.to_vec());
        body = rest;
    }
    chunks
}

/// As many cases as `PROPTEST_CASES` says; some hundred without it.
fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_split_gives_the_same_messages(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12_000), 0..6),
        sizes in prop::collection::vec(1_usize..9_000, 1..8),
    ) {
        let mut assembler = Assembler::new(12_000);
        let mut out = Vec::new();
        for chunk in split(&body(&messages), &sizes) {
            out.extend(feed(&mut assembler, &chunk).unwrap());
        }
        prop_assert_eq!(out, messages);
        prop_assert!(assembler.at_boundary());
    }

    #[test]
    fn a_cut_body_is_not_at_a_boundary(
        message in prop::collection::vec(any::<u8>(), 1..100),
        part in 0.0..1.0,
    ) {
        let whole = body(&[message]);
        let cut = 1 + ((whole.len() - 2) as f64 * part) as usize;
        let mut assembler = Assembler::new(100);
        prop_assert_eq!(feed(&mut assembler, &whole[..cut]), Ok(vec![]));
        prop_assert!(!assembler.at_boundary());
    }

    #[test]
    fn any_bytes_are_messages_or_a_fault(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..20),
    ) {
        let mut assembler = Assembler::new(40);
        for chunk in chunks {
            assembler.push(chunk.into());
            loop {
                match assembler.next_message() {
                    Ok(Some(message)) => prop_assert!(message.payload.len() <= 40),
                    Ok(None) => break,
                    Err(_) => return Ok(()),
                }
            }
        }
    }

    #[test]
    fn any_bytes_inflate_or_are_corrupt(packed in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(payload) = inflate(&Bytes::from(packed).into(), 1000) {
            prop_assert!(payload.len() <= 1000);
        }
    }
}

#[test]
fn a_message_over_the_limit_is_refused_at_its_prefix() {
    let mut assembler = Assembler::new(10);
    assembler.push(Bytes::copy_from_slice(&prefix(10)));
    assert!(assembler.next_message().unwrap().is_none());
    let mut assembler = Assembler::new(10);
    assembler.push(Bytes::copy_from_slice(&prefix(11)));
    assert_eq!(assembler.next_message().unwrap_err(), Fault::TooLarge);
}

#[test]
fn flags_are_0_or_1() {
    let mut assembler = Assembler::new(10);
    assembler.push(Bytes::from_static(&[1, 0, 0, 0, 1]));
    assert!(assembler.next_message().unwrap().is_none());
    assert!(assembler.pending_compressed());
    assembler.push(Bytes::from_static(&[7, 2, 0, 0, 0, 0]));
    assert!(assembler.next_message().unwrap().unwrap().compressed);
    assert_eq!(assembler.next_message().unwrap_err(), Fault::Flag);
}

#[test]
fn a_message_in_one_chunk_is_not_copied() {
    let chunk = Bytes::from(body(&[vec![7; 100]]));
    let at = chunk[PREFIX..].as_ptr();
    let mut assembler = Assembler::new(100);
    assembler.push(chunk);
    let message = assembler.next_message().unwrap().unwrap();
    assert_eq!(message.payload.contiguous().unwrap().as_ptr(), at);
}

#[test]
fn inflating_is_bounded() {
    use std::io::Write;
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    writer.write_all(&vec![0; 1_000_000]).unwrap();
    let packed: Payload = Bytes::from(writer.finish().unwrap()).into();
    assert_eq!(inflate(&packed, 1_000_000).unwrap().len(), 1_000_000);
    assert_eq!(inflate(&packed, 999_999).unwrap_err(), InflateFault::TooLarge);
}
