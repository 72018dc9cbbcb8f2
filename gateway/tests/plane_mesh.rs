//! The mesh under all-to-all load, with queues of four: every request is answered, in order, without a deadlock, and
//! every fan-out message arrives or comes back; none overtakes one of its turn that came back.

mod plane_support;

use gateway::plane::{self, Brain, Exit, MeshClass, MeshMessage};
use gateway_core::output::{ConnId, Output, Outputs};
use gateway_core::time::Now;
use plane_support::{DRIVERS, options};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SHARDS: u16 = 4;
const CREDITS: u64 = 4;
const REQUESTS: u64 = 5_000;
const FANOUTS_PER_REQUEST: u64 = 3;

#[derive(Debug)]
enum Message {
    Request(u64),
    Answer(u64),
    /// The sender's turn, and a number that rises with every fan-out message to the same shard.
    Fanout(u64, u64),
}

impl MeshMessage for Message {
    fn class(&self) -> MeshClass {
        match self {
            Self::Request(_) => MeshClass::Request,
            Self::Answer(_) => MeshClass::Answer,
            Self::Fanout(..) => MeshClass::Fanout,
        }
    }
}

#[derive(Debug, Default)]
struct Totals {
    answers: AtomicU64,
    fanouts_sent: AtomicU64,
    fanouts_received: AtomicU64,
    fanouts_returned: AtomicU64,
    /// By sender, target and the sender's turn: the first fan-out message that came back.
    first_returned: Mutex<HashMap<(u16, u16, u64), u64>>,
    /// By the same: the last one that arrived.
    last_received: Mutex<HashMap<(u16, u16, u64), u64>>,
}

/// Asks every shard, itself included, as fast as its credits allow, from the drain on.
struct Asker {
    me: u16,
    /// Turns since the drain began: `is_drained` is asked at the end of each.
    turn: AtomicU64,
    totals: Arc<Totals>,
    /// By target.
    asked: Vec<u64>,
    answered: Vec<u64>,
    /// By asker.
    heard: Vec<u64>,
    /// By target.
    fanouts: Vec<u64>,
}

type Out = Outputs<Message, ()>;

impl Asker {
    fn ask(&mut self, shard: u16, out: &mut Out) {
        let at = usize::from(shard);
        while self.asked[at] < REQUESTS && self.asked[at] - self.answered[at] < CREDITS {
            out.push(Output::Mesh { shard, message: Message::Request(self.asked[at]) });
            self.asked[at] += 1;
        }
    }
}

impl Brain for Asker {
    type Mesh = Message;
    type Seat = ();

    fn handle_accept(&mut self, _: Now, _: ConnId, _: SocketAddr, _: &mut Out) {}
    fn handle_data(&mut self, _: Now, _: ConnId, _: &mut [u8], _: &mut Out) {}
    fn handle_sent(&mut self, _: Now, _: ConnId, _: usize, _: usize, _: &mut Out) {}
    fn handle_closed(&mut self, _: Now, _: ConnId, _: &mut Out) {}
    fn handle_seated(&mut self, _: Now, _: ConnId, (): (), _: &mut Out) {}

    fn handle_mesh(&mut self, _: Now, from: u16, message: Message, out: &mut Out) {
        let at = usize::from(from);
        match message {
            Message::Request(n) => {
                assert_eq!(n, self.heard[at], "requests of {from} in order");
                self.heard[at] += 1;
                out.push(Output::Mesh { shard: from, message: Message::Answer(n) });
                for _ in 0..FANOUTS_PER_REQUEST {
                    let message = Message::Fanout(self.turn.load(Ordering::Relaxed), self.fanouts[at]);
                    self.fanouts[at] += 1;
                    out.push(Output::Mesh { shard: from, message });
                }
                self.totals.fanouts_sent.fetch_add(FANOUTS_PER_REQUEST, Ordering::Relaxed);
            }
            Message::Answer(n) => {
                assert_eq!(n, self.answered[at], "answers of {from} in order");
                self.answered[at] += 1;
                self.totals.answers.fetch_add(1, Ordering::Relaxed);
                self.ask(from, out);
            }
            Message::Fanout(turn, n) => {
                self.totals.fanouts_received.fetch_add(1, Ordering::Relaxed);
                let last = self.totals.last_received.lock().expect("a lock").insert((from, self.me, turn), n);
                assert!(last.is_none_or(|last| last < n), "fan-out of {from} in order");
            }
        }
    }

    fn handle_mesh_full(&mut self, _: Now, shard: u16, message: Message, _: &mut Out) {
        let Message::Fanout(turn, n) = message else { panic!("only fan-out comes back") };
        self.totals.first_returned.lock().expect("a lock").entry((self.me, shard, turn)).or_insert(n);
        self.totals.fanouts_returned.fetch_add(1, Ordering::Relaxed);
    }

    fn handle_link_up(&mut self, _: Now, _: &mut Out) {}
    fn handle_link_data(&mut self, _: Now, _: &mut [u8], _: &mut Out) {}
    fn handle_link_down(&mut self, _: Now, _: &mut Out) {}
    fn handle_timer(&mut self, _: Now, _: &mut Out) {}

    fn next_timer(&self) -> Option<u64> {
        None
    }

    fn handle_drain(&mut self, _: Now, out: &mut Out) {
        for shard in 0..SHARDS {
            self.ask(shard, out);
        }
    }

    fn is_drained(&self) -> bool {
        self.turn.fetch_add(1, Ordering::Relaxed);
        // The last fan-out of a shard is pushed with its last answer, so it is on its way when all are answered.
        self.answered.iter().chain(&self.heard).all(|n| *n == REQUESTS)
    }
}

#[test]
fn all_to_all_load_over_queues_of_four_loses_no_request_and_no_answer() {
    for driver in DRIVERS {
        let totals = Arc::new(Totals::default());
        let shared = totals.clone();
        let shards = usize::from(SHARDS);
        let running = plane::run(options(driver, SHARDS), move |me| Asker {
            me,
            turn: AtomicU64::new(0),
            totals: shared.clone(),
            asked: vec![0; shards],
            answered: vec![0; shards],
            heard: vec![0; shards],
            fanouts: vec![0; shards],
        })
        .expect("starts");
        let counters = running.counters().to_vec();
        running.drain(Duration::from_secs(60));
        assert_eq!(running.join(), Exit::Drained, "{driver:?}");
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let pairs = u64::from(SHARDS) * u64::from(SHARDS);
        assert_eq!(get(&totals.answers), pairs * REQUESTS);
        assert_eq!(get(&totals.fanouts_sent), pairs * REQUESTS * FANOUTS_PER_REQUEST);
        let (received, returned) = (get(&totals.fanouts_received), get(&totals.fanouts_returned));
        // Those in the queues when the last shard was done were never taken: at most four a pair.
        let taken = received + returned;
        assert!(taken <= get(&totals.fanouts_sent) && taken + pairs * CREDITS >= get(&totals.fanouts_sent));
        assert!(returned > 0, "twelve fan-out messages a turn do not fit into a queue of four");
        assert_eq!(returned, counters.iter().map(|shard| shard.mesh_full.get()).sum::<u64>());
        let returned = totals.first_returned.lock().expect("a lock");
        for (turn, last) in &*totals.last_received.lock().expect("a lock") {
            let first = returned.get(turn);
            assert!(first.is_none_or(|first| last < first), "{last} of {turn:?} overtook {first:?}");
        }
    }
}
