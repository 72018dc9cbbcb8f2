//! The few frames that a generator sends, encoded once and patched in place, and the few that it reads, in place.

use crate::net::frame::{HEAD_BYTES_MAX, Op, apply_mask, write_frame, write_head};
use parley_protocol::event::ArchivedEvent;
use parley_protocol::frame::{ArchivedSent, ArchivedServerFrame, Ping, Position, Send};
use parley_protocol::wire::{Encoding, decode_server_frame, encode_client_frame};
use parley_protocol::{Body, ChatId, ClientFrame, ClientMsgId, Envelope, ErrorCode, MessageBody, ServerFrame, UserId};

/// A masked frame with places to patch.
#[derive(Debug)]
struct Template {
    bytes: Vec<u8>,
    head_bytes: usize,
    mask: [u8; 4],
}

/// Where a little-endian value of `N` bytes lies in a template, and the mask over it.
#[derive(Clone, Copy, Debug)]
struct Slot<const N: usize> {
    at: usize,
    mask: [u8; N],
}

impl Template {
    fn new(payload: &[u8], mask: [u8; 4]) -> Self {
        let mut bytes = Vec::with_capacity(HEAD_BYTES_MAX + payload.len());
        write_frame(Op::Binary, mask, payload, &mut bytes);
        Self { head_bytes: bytes.len() - payload.len(), bytes, mask }
    }

    /// The place where two encodings differ: in all of `N` bytes in a row and nowhere else.
    fn slot<const N: usize>(&self, one: &[u8], other: &[u8]) -> Slot<N> {
        assert_eq!(one.len(), other.len(), "a value in place has one length");
        let differs: Vec<usize> = (0..one.len()).filter(|&at| one[at] != other[at]).collect();
        assert!(differs.len() == N && differs[N - 1] - differs[0] == N - 1, "the value lies in place, once");
        let mut mask = [0; N];
        apply_mask(&mut mask, self.mask, differs[0]);
        Slot { at: self.head_bytes + differs[0], mask }
    }
}

impl<const N: usize> Slot<N> {
    fn patch(&self, frame: &mut [u8], value: [u8; N]) {
        for (index, byte) in frame[self.at..self.at + N].iter_mut().enumerate() {
            *byte = value[index] ^ self.mask[index];
        }
    }
}

/// Writes client frames, masked and framed.
#[derive(Debug)]
pub(crate) struct Encoder {
    encoding: Encoding,
    mask: [u8; 4],
    message: Body,
    send: Template,
    send_chat: Slot<16>,
    send_name: Slot<16>,
    delivered: Template,
    delivered_chat: Slot<16>,
    delivered_seq: Slot<8>,
}

fn rkyv_bytes(frame: &ClientFrame) -> Vec<u8> {
    let mut out = Vec::new();
    encode_client_frame(Encoding::Rkyv, frame, &mut out);
    out
}

impl Encoder {
    /// Messages carry `payload_bytes` of text; `mask` is the key of every frame.
    pub(crate) fn new(encoding: Encoding, payload_bytes: usize, mask: [u8; 4]) -> Self {
        let payload = (b'a'..=b'z').cycle().take(payload_bytes).collect();
        let message =
            Body::Message(MessageBody { content_type: "text/plain".to_owned(), payload, ..MessageBody::default() });
        let send = |chat_id, name| {
            let (chat_id, client_msg_id) = (ChatId(chat_id), ClientMsgId(name));
            rkyv_bytes(&ClientFrame::Send(Send { chat_id, client_msg_id, envelope: message.to_envelope() }))
        };
        let delivered = |chat_id, seq| rkyv_bytes(&ClientFrame::Delivered(Position { chat_id: ChatId(chat_id), seq }));
        let send_bytes = send(0, 0);
        let delivered_bytes = delivered(0, 0);
        let send_template = Template::new(&send_bytes, mask);
        let delivered_template = Template::new(&delivered_bytes, mask);
        Self {
            encoding,
            mask,
            send_chat: send_template.slot(&send_bytes, &send(u128::MAX, 0)),
            send_name: send_template.slot(&send_bytes, &send(0, u128::MAX)),
            send: send_template,
            delivered_chat: delivered_template.slot(&delivered_bytes, &delivered(u128::MAX, 0)),
            delivered_seq: delivered_template.slot(&delivered_bytes, &delivered(0, u64::MAX)),
            delivered: delivered_template,
            message,
        }
    }

    /// Appends a message to a chat.
    pub(crate) fn send(&self, chat_id: ChatId, client_msg_id: ClientMsgId, out: &mut Vec<u8>) {
        if self.encoding == Encoding::Json {
            let envelope = self.message.to_envelope();
            return self.frame(&ClientFrame::Send(Send { chat_id, client_msg_id, envelope }), out);
        }
        let at = out.len();
        out.extend_from_slice(&self.send.bytes);
        self.send_chat.patch(&mut out[at..], chat_id.0.to_le_bytes());
        self.send_name.patch(&mut out[at..], client_msg_id.0.to_le_bytes());
    }

    /// What each message carries.
    pub(crate) fn envelope(&self) -> Envelope {
        self.message.to_envelope()
    }

    /// Appends a delivered mark.
    pub(crate) fn delivered(&self, chat_id: ChatId, seq: u64, out: &mut Vec<u8>) {
        if self.encoding == Encoding::Json {
            return self.frame(&ClientFrame::Delivered(Position { chat_id, seq }), out);
        }
        let at = out.len();
        out.extend_from_slice(&self.delivered.bytes);
        self.delivered_chat.patch(&mut out[at..], chat_id.0.to_le_bytes());
        self.delivered_seq.patch(&mut out[at..], seq.to_le_bytes());
    }

    /// Appends a sign of life, which is answered with its nonce.
    pub(crate) fn ping(&self, nonce: u32, out: &mut Vec<u8>) {
        self.frame(&ClientFrame::Ping(Ping { nonce }), out);
    }

    /// Appends any frame, encoded on the spot.
    pub(crate) fn frame(&self, frame: &ClientFrame, out: &mut Vec<u8>) {
        let mut payload = Vec::new();
        encode_client_frame(self.encoding, frame, &mut payload);
        let op = if self.encoding == Encoding::Json { Op::Text } else { Op::Binary };
        write_head(op, self.mask, payload.len(), out);
        let at = out.len();
        out.append(&mut payload);
        apply_mask(&mut out[at..], self.mask, 0);
    }
}

/// What a generator wants to know of a server frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    Welcome { user_id: UserId },
    Sent { chat_id: ChatId, name: ClientMsgId, seq: u64 },
    Event { chat_id: ChatId, name: ClientMsgId, seq: u64 },
    Error { code: ErrorCode, message: String, name: Option<ClientMsgId> },
    Receipt,
    Pong { nonce: u32 },
    Reconnect,
    Other,
}

/// Reads a server frame; the rkyv encoding in place.
pub(crate) fn read(encoding: Encoding, payload: &[u8]) -> Result<Incoming, String> {
    if encoding == Encoding::Json {
        return decode_server_frame(encoding, payload).map(from_model).map_err(|error| error.to_string());
    }
    let frame = rkyv::access::<ArchivedServerFrame, rkyv::rancor::Error>(payload).map_err(|error| error.to_string())?;
    Ok(match frame {
        ArchivedServerFrame::Sent(ArchivedSent { chat_id, client_msg_id, seq, .. }) => {
            Incoming::Sent { chat_id: chat_id.into(), name: client_msg_id.into(), seq: seq.to_native() }
        }
        ArchivedServerFrame::Event(ArchivedEvent { chat_id, client_msg_id, seq, .. }) => {
            Incoming::Event { chat_id: chat_id.into(), name: client_msg_id.into(), seq: seq.to_native() }
        }
        ArchivedServerFrame::Receipt(_) => Incoming::Receipt,
        ArchivedServerFrame::Pong(pong) => Incoming::Pong { nonce: pong.nonce.to_native() },
        ArchivedServerFrame::Mark(_) | ArchivedServerFrame::Own(_) => Incoming::Other,
        _ => from_model(decode_server_frame(encoding, payload).map_err(|error| error.to_string())?),
    })
}

fn from_model(frame: ServerFrame) -> Incoming {
    match frame {
        ServerFrame::Welcome(welcome) => Incoming::Welcome { user_id: welcome.user_id },
        ServerFrame::Sent(sent) => Incoming::Sent { chat_id: sent.chat_id, name: sent.client_msg_id, seq: sent.seq },
        ServerFrame::Event(event) => {
            Incoming::Event { chat_id: event.chat_id, name: event.client_msg_id, seq: event.seq }
        }
        ServerFrame::Error(error) => {
            Incoming::Error { code: error.code, message: error.message, name: error.client_msg_id }
        }
        ServerFrame::Receipt(_) => Incoming::Receipt,
        ServerFrame::Pong(pong) => Incoming::Pong { nonce: pong.nonce },
        ServerFrame::Reconnect(_) => Incoming::Reconnect,
        _ => Incoming::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parley_protocol::wire::{decode_client_frame, encode_server_frame};
    use parley_protocol::{Event, MessageId};

    const MASK: [u8; 4] = [0xa1, 0x5b, 0x07, 0xee];

    /// The payload of the one client frame in `bytes`.
    fn unmasked(bytes: &[u8]) -> Vec<u8> {
        let head = match bytes[1] & 0x7f {
            126 => 8,
            127 => 14,
            _ => 6,
        };
        assert_eq!(bytes[head - 4..head], MASK);
        let mut payload = bytes[head..].to_vec();
        apply_mask(&mut payload, MASK, 0);
        payload
    }

    #[test]
    fn a_patched_message_is_the_encoded_message() {
        let chat_id = ChatId::direct(UserId(77), UserId(1 << 62)).unwrap();
        let client_msg_id = ClientMsgId(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210);
        for payload_bytes in [0, 1, 128, 70_000] {
            let encoder = Encoder::new(Encoding::Rkyv, payload_bytes, MASK);
            let frame = ClientFrame::Send(Send { chat_id, client_msg_id, envelope: encoder.message.to_envelope() });
            let mut out = Vec::new();
            encoder.send(chat_id, client_msg_id, &mut out);
            assert_eq!(unmasked(&out), rkyv_bytes(&frame), "{payload_bytes} bytes");
            let mut slow = Vec::new();
            encoder.frame(&frame, &mut slow);
            assert_eq!(out, slow);
        }
    }

    #[test]
    fn a_patched_mark_is_the_encoded_mark() {
        let chat_id = ChatId::direct(UserId(5), UserId(6)).unwrap();
        let mut out = Vec::new();
        Encoder::new(Encoding::Rkyv, 128, MASK).delivered(chat_id, 0x0102_0304_0506_0708, &mut out);
        let frame = ClientFrame::Delivered(Position { chat_id, seq: 0x0102_0304_0506_0708 });
        assert_eq!(unmasked(&out), rkyv_bytes(&frame));
    }

    #[test]
    fn json_frames_are_text_and_decode() {
        let encoder = Encoder::new(Encoding::Json, 16, MASK);
        let mut out = Vec::new();
        encoder.send(ChatId::group(9), ClientMsgId(1), &mut out);
        assert_eq!(out[0], 0x81);
        assert!(matches!(decode_client_frame(Encoding::Json, &unmasked(&out)), Ok(ClientFrame::Send(_))));
    }

    #[test]
    fn both_encodings_read_alike() {
        let chat_id = ChatId::direct(UserId(1), UserId(2)).unwrap();
        let (message_id, client_msg_id) = (MessageId(10), ClientMsgId(11));
        let envelope = Body::Message(MessageBody { content_type: "text/plain".into(), ..Default::default() });
        let event = Event {
            chat_id,
            seq: 3,
            ordinal: 3,
            message_id,
            sender: UserId(1),
            sender_sent: 2,
            client_msg_id,
            envelope: envelope.to_envelope(),
        };
        let sent = parley_protocol::frame::Sent { chat_id, client_msg_id, message_id, seq: 3 };
        let error = parley_protocol::frame::Error {
            code: ErrorCode::RateLimited,
            message: "slow down".into(),
            client_msg_id: Some(client_msg_id),
            request_id: None,
            chat_id: None,
            retry_after_ms: Some(5),
        };
        let expected = [
            (ServerFrame::Event(event), Incoming::Event { chat_id, name: client_msg_id, seq: 3 }),
            (ServerFrame::Sent(sent), Incoming::Sent { chat_id, name: client_msg_id, seq: 3 }),
            (
                ServerFrame::Error(error),
                Incoming::Error {
                    code: ErrorCode::RateLimited,
                    message: "slow down".into(),
                    name: Some(client_msg_id),
                },
            ),
            (ServerFrame::Pong(parley_protocol::frame::Pong { nonce: 12 }), Incoming::Pong { nonce: 12 }),
        ];
        for (frame, incoming) in expected {
            for encoding in [Encoding::Rkyv, Encoding::Json] {
                let mut bytes = Vec::new();
                encode_server_frame(encoding, &frame, &mut bytes);
                assert_eq!(read(encoding, &bytes).as_ref(), Ok(&incoming), "{encoding:?}");
            }
        }
        assert!(read(Encoding::Rkyv, &[1, 2, 3]).is_err());
    }
}
