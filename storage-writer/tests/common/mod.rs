//! Groups as the writer would make them, for tests of an engine.
#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod client;

use parley_protocol::{Body, ChatId, ClientMsgId, Event, MessageBody, MessageId, UserId};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use storage_core::store::{
    Append, CommandName, CommandRow, Entry, EntryRow, Group, Meta, OpId, Outcome, Store, StoreRequest, StoreResult,
};
use storage_writer::metrics::StoreMetrics;
use storage_writer::store::embedded::{EmbeddedOptions, EmbeddedStore, OpenError};

/// The users of every test chat.
pub(crate) const ALICE: UserId = UserId(11);
/// The other one.
pub(crate) const BOB: UserId = UserId(22);

/// An open store that waits for its completions.
pub(crate) struct Opened {
    /// The engine.
    pub(crate) store: EmbeddedStore,
    woken: Receiver<()>,
    op: OpId,
}

/// Small memory, no reserve.
pub(crate) fn options() -> EmbeddedOptions {
    EmbeddedOptions { cache_bytes: 1 << 20, disk_reserve_bytes: 0, ..EmbeddedOptions::default() }
}

impl Opened {
    /// Opens a data directory.
    pub(crate) fn open(dir: &Path) -> Result<Self, OpenError> {
        Self::open_with(dir, &options())
    }

    /// Opens a data directory with options of its own.
    pub(crate) fn open_with(dir: &Path, options: &EmbeddedOptions) -> Result<Self, OpenError> {
        let (wake, woken) = channel();
        let waker = Arc::new(move || wake.send(()).unwrap_or(()));
        let store = EmbeddedStore::open(dir, options, Arc::new(StoreMetrics::default()), waker)?;
        Ok(Self { store, woken, op: 0 })
    }

    /// Submits, and waits for the answer.
    pub(crate) fn ask(&mut self, request: StoreRequest) -> StoreResult {
        self.op += 1;
        self.store.submit(self.op, request);
        let mut done = Vec::new();
        loop {
            self.store.completions(&mut done);
            if let Some((op, result)) = done.pop() {
                assert_eq!((op, done.len()), (self.op, 0));
                return result;
            }
            self.woken.recv_timeout(Duration::from_secs(60)).expect("the store answers");
        }
    }

    /// Commits, and waits.
    pub(crate) fn commit(&mut self, group: Group) -> Outcome {
        match self.ask(StoreRequest::Commit(group)) {
            StoreResult::Committed(outcome) => outcome,
            other => panic!("a commit was answered by {other:?}"),
        }
    }
}

/// The direct chat of the two.
pub(crate) fn chat() -> ChatId {
    ChatId::direct(ALICE, BOB).unwrap()
}

/// Message `seq` of the chat, by Alice.
pub(crate) fn event(seq: u64) -> Event {
    let payload = format!("message {seq}").into_bytes();
    let body = MessageBody { content_type: "text/plain".to_owned(), payload, ..MessageBody::default() };
    Event {
        chat_id: chat(),
        seq,
        ordinal: seq,
        message_id: MessageId(1_000 + seq),
        sender: ALICE,
        sender_sent: seq,
        client_msg_id: ClientMsgId(u128::from(seq)),
        envelope: Body::Message(body).to_envelope(),
    }
}

/// Group `no` of this start with messages `from..=to`, an entry for each of the two, a command row.
pub(crate) fn messages(no: u64, from: u64, to: u64) -> Group {
    let mut append = Append {
        chat_id: chat(),
        events: Vec::new(),
        entries: Vec::new(),
        commands: Vec::new(),
        members: Vec::new(),
        checkpoint: None,
        present: 0,
    };
    for seq in from..=to {
        let event = event(seq);
        for user_id in [ALICE, BOB] {
            append.entries.push(Entry { user_id, inbox_seq: seq, row: EntryRow::Event { chat_id: chat(), seq } });
        }
        let name = CommandName { chat_id: chat(), sender: ALICE, client_msg_id: event.client_msg_id };
        append.commands.push(CommandRow { name, chat_id: chat(), message_id: event.message_id, seq });
        append.events.push(event);
    }
    Group { no, writer_epoch: 1, appends: vec![append], ..Group::default() }
}

/// Group `no` that writes the store's records.
pub(crate) fn records(no: u64, writer_epoch: u64) -> Group {
    let meta = Meta { writer_epoch, ..Meta::default() };
    Group { no, writer_epoch, meta: Some(meta), ..Group::default() }
}
