//! What a frame costs in both encodings: a `Send` of 128 bytes as a session takes it in, an `Event` as it goes out, and
//! reading a binary frame in place, which is what the gateway does where it needs no value of its own.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use parley_protocol::body::check_message;
use parley_protocol::frame::{ArchivedClientFrame, Send};
use parley_protocol::wire::{Encoding, access_client_frame, decode_client_frame, decode_server_frame};
use parley_protocol::wire::{encode_client_frame, encode_server_frame};
use parley_protocol::{Body, ChatId, ClientFrame, ClientMsgId, Event, MessageBody, MessageId, ServerFrame, UserId};
use std::hint::black_box;

const PAYLOAD_BYTES: usize = 128;
const PAYLOAD_BYTES_MAX: usize = 16 * 1024;
const ENCODINGS: [(&str, Encoding); 2] = [("rkyv", Encoding::Rkyv), ("json", Encoding::Json)];

fn chat() -> ChatId {
    ChatId::direct(UserId(1_001), UserId(1_002)).expect("two users")
}

fn body() -> Body {
    let payload = b"0123456789abcdef".repeat(PAYLOAD_BYTES / 16);
    Body::Message(MessageBody { content_type: "text/plain".into(), payload, ..Default::default() })
}

fn send() -> ClientFrame {
    ClientFrame::Send(Send { chat_id: chat(), client_msg_id: ClientMsgId(42), envelope: body().to_envelope() })
}

fn event() -> ServerFrame {
    ServerFrame::Event(Event {
        chat_id: chat(),
        seq: 42,
        ordinal: 40,
        message_id: MessageId(7_266_900_000_000_000_042),
        sender: UserId(1_001),
        sender_sent: 17,
        client_msg_id: ClientMsgId(42),
        envelope: body().to_envelope(),
    })
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("codec_encode");
    group.throughput(Throughput::Elements(1));
    let (send, event) = (send(), event());
    for (name, encoding) in ENCODINGS {
        let mut out = Vec::with_capacity(4096);
        group.bench_function(BenchmarkId::new("send_128", name), |b| {
            b.iter(|| {
                out.clear();
                encode_client_frame(encoding, black_box(&send), &mut out);
                black_box(out.len())
            });
        });
        group.bench_function(BenchmarkId::new("event_128", name), |b| {
            b.iter(|| {
                out.clear();
                encode_server_frame(encoding, black_box(&event), &mut out);
                black_box(out.len())
            });
        });
    }
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("codec_decode");
    group.throughput(Throughput::Elements(1));
    for (name, encoding) in ENCODINGS {
        let (mut from_client, mut from_server) = (Vec::new(), Vec::new());
        encode_client_frame(encoding, &send(), &mut from_client);
        encode_server_frame(encoding, &event(), &mut from_server);
        group.bench_function(BenchmarkId::new("send_128", name), |b| {
            b.iter(|| decode_client_frame(encoding, black_box(&from_client)).expect("a frame"));
        });
        group.bench_function(BenchmarkId::new("event_128", name), |b| {
            b.iter(|| decode_server_frame(encoding, black_box(&from_server)).expect("a frame"));
        });
    }
}

/// Checked access to the frame and to the body inside it, with all its limits: no allocation, no copy.
fn in_place(c: &mut Criterion) {
    let mut group = c.benchmark_group("codec_in_place");
    group.throughput(Throughput::Elements(1));
    let mut bytes = Vec::new();
    encode_client_frame(Encoding::Rkyv, &send(), &mut bytes);
    group.bench_function("access_send_128", |b| {
        b.iter(|| access_client_frame(black_box(&bytes)).is_ok());
    });
    group.bench_function("access_and_check_send_128", |b| {
        b.iter(|| match access_client_frame(black_box(&bytes)) {
            Ok(ArchivedClientFrame::Send(send)) => check_message(&send.envelope.body, PAYLOAD_BYTES_MAX).is_ok(),
            _ => false,
        });
    });
}

criterion_group!(benches, encode, decode, in_place);
criterion_main!(benches);
