//! How long the gateway takes to find, unmask and check a client's WebSocket frame, and to read the frame inside.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gateway_core::ws::{Decoder, Event};
use parley_protocol::frame::Send;
use parley_protocol::wire::{Encoding, access_client_frame, encode_client_frame};
use parley_protocol::{Body, ChatId, ClientFrame, ClientMsgId, MessageBody, UserId};
use std::hint::black_box;

const FRAMES: usize = 64;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A chunk as a socket gives it: `FRAMES` masked binary frames with a message of `payload_bytes` each.
fn chunk(payload_bytes: usize) -> Vec<u8> {
    let body =
        MessageBody { content_type: "text/plain".into(), payload: vec![b'x'; payload_bytes], ..Default::default() };
    let send = Send {
        chat_id: ChatId::direct(UserId(1), UserId(2)).expect("two users"),
        client_msg_id: ClientMsgId(7),
        envelope: Body::Message(body).to_envelope(),
    };
    let mut payload = Vec::new();
    encode_client_frame(Encoding::Rkyv, &ClientFrame::Send(send), &mut payload);
    let mut one = vec![0x82];
    match payload.len() {
        0..=125 => one.push(0x80 | payload.len() as u8),
        126..=0xffff => {
            one.push(0x80 | 126);
            one.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
        _ => {
            one.push(0x80 | 127);
            one.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    one.extend_from_slice(&MASK);
    one.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    one.repeat(FRAMES)
}

/// Hands every frame of the chunk to `take`.
fn decode_all(decoder: &mut Decoder, chunk: &mut [u8], mut take: impl FnMut(&mut [u8])) {
    let (mut at, mut frames) = (0, 0);
    while let Some(event) = decoder.next(chunk, &mut at).expect("the frames are valid") {
        let Event::Binary(payload) = event else { panic!("only binary frames are in the chunk") };
        take(payload);
        frames += 1;
    }
    assert_eq!(frames, FRAMES);
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    for payload_bytes in [128, 4_096] {
        let fresh = chunk(payload_bytes);
        let mut work = fresh.clone();
        group.throughput(Throughput::Elements(FRAMES as u64));
        // Unmasking is in place, so every round needs a fresh copy; this is its share of the figures below.
        group.bench_function(format!("copy_of_{FRAMES}_frames_{payload_bytes}_b"), |b| {
            b.iter(|| black_box(&mut work).copy_from_slice(black_box(&fresh)));
        });
        let mut decoder = Decoder::new(1 << 20);
        group.bench_function(format!("{FRAMES}_frames_{payload_bytes}_b"), |b| {
            b.iter(|| {
                work.copy_from_slice(&fresh);
                decode_all(&mut decoder, &mut work, |payload| {
                    black_box(payload);
                });
            });
        });
        group.bench_function(format!("{FRAMES}_frames_{payload_bytes}_b_with_checked_access"), |b| {
            b.iter(|| {
                work.copy_from_slice(&fresh);
                decode_all(&mut decoder, &mut work, |payload| {
                    black_box(access_client_frame(payload).expect("a valid frame"));
                });
            });
        });
        // Split in the middle of each read: what the copying path costs.
        group.bench_function(format!("{FRAMES}_frames_{payload_bytes}_b_in_two_reads"), |b| {
            b.iter(|| {
                work.copy_from_slice(&fresh);
                let (first, second) = work.split_at_mut(fresh.len() / 2 - 3);
                for half in [first, second] {
                    let mut at = 0;
                    while let Some(event) = decoder.next(half, &mut at).expect("the frames are valid") {
                        black_box(event);
                    }
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
