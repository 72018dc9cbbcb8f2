//! How the values of the model look in JSON where serde's derived form does not serve: payloads, bytes, envelopes.

use crate::body::{Body, Envelope};
use crate::frame::Send;
use crate::{ChatId, ClientMsgId};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) fn text_plain() -> String {
    "text/plain".to_owned()
}

/// Bytes as standard base64 with padding.
pub(crate) mod base64_bytes {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        STANDARD.decode(&*text).map_err(D::Error::custom)
    }
}

/// A payload: `{"text": ...}` where the bytes are UTF-8, else `{"base64": ...}`. Both are taken.
pub(crate) mod payload {
    use super::*;

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    enum Payload<'a> {
        Text(std::borrow::Cow<'a, str>),
        Base64(std::borrow::Cow<'a, str>),
    }

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Payload::Text(text.into()).serialize(serializer),
            Err(_) => Payload::Base64(STANDARD.encode(bytes).into()).serialize(serializer),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        match Payload::deserialize(deserializer)? {
            Payload::Text(text) => Ok(text.into_owned().into_bytes()),
            Payload::Base64(text) => STANDARD.decode(&*text).map_err(D::Error::custom),
        }
    }
}

/// A `send` as it comes in. serde cannot refuse unknown fields beside a flattened one, so the fields stand here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SendIn {
    chat_id: ChatId,
    client_msg_id: ClientMsgId,
    #[serde(default)]
    kind: Option<u16>,
    #[serde(default)]
    flags: u16,
    body: Body,
}

impl TryFrom<SendIn> for Send {
    type Error = &'static str;
    fn try_from(send: SendIn) -> Result<Self, Self::Error> {
        let mut envelope = send.body.to_envelope();
        envelope.flags = send.flags;
        if send.kind.is_some_and(|kind| kind != envelope.kind) {
            return Err("kind is not that of the body; it may be left out");
        }
        Ok(Send { chat_id: send.chat_id, client_msg_id: send.client_msg_id, envelope })
    }
}

#[derive(Deserialize)]
struct EnvelopeIn {
    #[serde(default)]
    flags: u16,
    body: Body,
}

#[derive(Serialize)]
struct EnvelopeOut {
    kind: u16,
    flags: u16,
    body: Body,
}

impl Serialize for Envelope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Bytes of a known kind that do not decode are shown as what they are, so that a reader can go on.
        let unknown = || Body::Unknown { kind: self.kind, base64: self.body.clone() };
        let body = self.to_body().unwrap_or_else(|_| unknown());
        EnvelopeOut { kind: self.kind, flags: self.flags, body }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Envelope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let EnvelopeIn { flags, body } = EnvelopeIn::deserialize(deserializer)?;
        let mut envelope = body.to_envelope();
        envelope.flags = flags;
        Ok(envelope)
    }
}
