//! What the server promised (`Sent`), held against what it gives: the history and the devices' streams.

use super::device::{Device, text_of};
use parley_protocol::frame::Sent;
use parley_protocol::{ChatId, ClientMsgId, Event};
use std::collections::{BTreeMap, HashSet};

/// Every acknowledged message, by chat and seq.
#[derive(Default)]
pub(crate) struct Ledger(BTreeMap<(ChatId, u64), (Sent, String)>);

impl Ledger {
    /// Notes an acknowledgement. A second one of the same command must name the same ids.
    pub(crate) fn note(&mut self, sent: Sent, text: &str) {
        let former = self.0.insert((sent.chat_id, sent.seq), (sent, text.to_owned()));
        if let Some(former) = former {
            assert_eq!(former, (sent, text.to_owned()), "one place in a log was promised to two messages");
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn of_chat(&self, chat_id: ChatId) -> impl Iterator<Item = &(Sent, String)> {
        self.0.range((chat_id, 0)..=(chat_id, u64::MAX)).map(|(_, entry)| entry)
    }

    /// Each promise is in the history once, under its ids, and the history has no hole and no double.
    pub(crate) fn check_history(&self, chat_id: ChatId, history: &[Event]) {
        for (index, event) in history.iter().enumerate() {
            assert_eq!(event.seq, index as u64 + 1, "the history of {chat_id} is dense from 1");
        }
        for pair in history.windows(2) {
            assert!(pair[0].message_id < pair[1].message_id, "message ids rise within a chat: {pair:?}");
        }
        let mut names: HashSet<(u64, ClientMsgId)> = HashSet::new();
        for event in history {
            assert!(names.insert((event.sender.0, event.client_msg_id)), "a command took effect twice: {event:?}");
        }
        for (sent, text) in self.of_chat(chat_id) {
            let event = history.get(sent.seq as usize - 1).unwrap_or_else(|| {
                panic!("{sent:?} ({text}) was promised, but the history ends at {}", history.len());
            });
            assert_eq!(
                (event.seq, event.message_id, event.client_msg_id, text_of(event).as_str()),
                (sent.seq, sent.message_id, sent.client_msg_id, text.as_str()),
                "what was promised is not what the history has"
            );
        }
    }

    /// Each promise of a chat reached the device by its stream.
    pub(crate) fn check_device(&self, chat_id: ChatId, device: &Device) {
        for (sent, text) in self.of_chat(chat_id) {
            let event = device.events.get(&(chat_id, sent.seq));
            let event = event.unwrap_or_else(|| panic!("{}: never got {sent:?} ({text})", device.name));
            assert_eq!((event.message_id, text_of(event)), (sent.message_id, text.clone()), "{}", device.name);
        }
    }
}
