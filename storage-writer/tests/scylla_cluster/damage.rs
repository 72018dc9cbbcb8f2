//! Rows that were damaged while nobody had the lease, on a real node: whoever takes over sets aside what they belong to,
//! counts it, answers `damaged` for it, and serves all else.

use super::scylla_common::{Keyspace, cluster, cql};
use parley_protocol::body::{Envelope, kind};
use parley_protocol::{ChatId, ClientMsgId, Event, MessageId, UserId};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use storage_core::store::{
    Append, Checkpoint, Group, OpId, Outcome, ReadError, Store, StoreRequest, StoreResult, View,
};
use storage_writer::store::scylla::{PlannerMetrics, ScyllaOptions, ScyllaStore, schema};

/// How long anything may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(60);
const LEASE_MS: u32 = 300;

struct Opened {
    store: ScyllaStore,
    metrics: Arc<PlannerMetrics>,
    woken: Receiver<()>,
    op: OpId,
    done: Vec<(OpId, StoreResult)>,
}

impl Opened {
    /// Connects and waits for the lease; who had it before said no farewell.
    fn take(keyspace: &Keyspace) -> Opened {
        let (wake, woken) = channel();
        let waker = Arc::new(move || wake.send(()).unwrap_or(()));
        let metrics = Arc::new(PlannerMetrics::default());
        let options = ScyllaOptions { cluster: keyspace.0.clone(), lease_ms: LEASE_MS, ..ScyllaOptions::default() };
        let store = ScyllaStore::open(options, 1, "here".to_owned(), (Arc::default(), metrics.clone()), waker);
        let mut opened = Opened { store: store.expect("it opens"), metrics, woken, op: 0, done: Vec::new() };
        opened.drive_until(|opened| opened.store.view().is_some());
        opened
    }

    fn drive_until(&mut self, mut is_so: impl FnMut(&mut Opened) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut done = std::mem::take(&mut self.done);
            self.store.completions(&mut done);
            self.done = done;
            if is_so(self) {
                return;
            }
            assert!(Instant::now() < deadline, "it does not come");
            let ms = self.store.timer_in_ms().unwrap_or(100).min(100);
            let _ = self.woken.recv_timeout(Duration::from_millis(ms));
        }
    }

    fn ask(&mut self, request: StoreRequest) -> StoreResult {
        self.op += 1;
        self.store.submit(self.op, request);
        self.drive_until(|opened| !opened.done.is_empty());
        self.done.pop().expect("it came").1
    }

    fn set_aside(&self) -> String {
        let mut text = String::new();
        self.metrics.show(&mut text);
        let line = text.lines().find(|line| line.starts_with("parley_cql_set_aside "));
        line.unwrap_or_else(|| panic!("{text}")).to_owned()
    }
}

fn group(no: u64, writer_epoch: u64, chat_id: ChatId) -> Group {
    let event = Event {
        chat_id,
        seq: 1,
        ordinal: 1,
        message_id: MessageId(100 + no),
        sender: UserId(1),
        sender_sent: 1,
        client_msg_id: ClientMsgId(u128::from(no)),
        envelope: Envelope { kind: kind::MESSAGE, flags: 0, body: vec![1] },
    };
    let checkpoint = Checkpoint { seq: 1, ordinal: 1, message_id: 100 + no, ..Checkpoint::default() };
    let append = Append {
        chat_id,
        events: vec![event],
        entries: Vec::new(),
        commands: Vec::new(),
        members: Vec::new(),
        checkpoint: Some(checkpoint),
        present: 0,
    };
    Group { no, writer_epoch, appends: vec![append], ..Group::default() }
}

#[test]
fn what_is_damaged_at_a_take_over_is_set_aside_and_all_else_is_served() {
    let keyspace = Keyspace(cluster().options("damage"));
    schema::apply(&keyspace.0, &schema::SchemaOptions::default(), &mut |_| {}).expect("tables");
    let [bad, good] = [UserId(2), UserId(3)].map(|other| ChatId::direct(UserId(1), other).expect("two users"));
    let mut first = Opened::take(&keyspace);
    for (no, chat_id) in [(1, bad), (2, good)] {
        let done = first.ask(StoreRequest::Commit(group(no, 1, chat_id)));
        assert_eq!(done, StoreResult::Committed(Outcome::Durable));
    }
    assert_eq!(first.set_aside(), "parley_cql_set_aside 0");
    drop(first);
    let chat = format!("0x{:032x}", bad.0);
    // Above every timestamp of a writer.
    cql(
        &keyspace,
        &format!(
            "UPDATE KS.events USING TIMESTAMP {} SET sender = 99 WHERE chat_id = {chat} AND bucket = 0 AND seq = 1",
            i64::MAX
        ),
    );

    let mut second = Opened::take(&keyspace);
    assert!(matches!(second.ask(StoreRequest::LoadChat(bad)), StoreResult::Damaged(_)));
    assert!(matches!(second.ask(StoreRequest::LoadChat(good)), StoreResult::Chat(Some(_))));
    assert_eq!(second.set_aside(), "parley_cql_set_aside 1");
    let view = second.store.view().expect("it has the lease");
    assert!(matches!(view.head(bad), Err(ReadError::Damaged(_))), "{:?}", view.head(bad));
    assert_eq!(view.head(good).expect("a head").map(|event| event.seq), Some(1));
}
