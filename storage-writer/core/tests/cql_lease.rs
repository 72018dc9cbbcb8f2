//! The lease, one machine by hand: every transition as a table. An accidental edge shows in the diff of the snapshot.

mod lease_world;

use lease_world::{LEASE_MS, options};
use storage_core::cql::lease::{AskId, Lease, LeaseAnswer, LeaseAsk, LeaseKey, LeaseRow, LeaseState};

const MINE: u128 = 7;
const OTHER: u128 = 9;

fn row(writer_epoch: u64, holder: u128, renewal: u64) -> LeaseRow {
    LeaseRow { writer_epoch, holder, renewal, worker: holder as u16, lease_ms: LEASE_MS, address: format!("w{holder}") }
}

/// One machine, by hand.
struct One {
    lease: Lease,
    now: u64,
    flight: Option<(AskId, LeaseAsk)>,
}

impl One {
    fn new() -> Self {
        let mut one = Self { lease: Lease::new(options(MINE), 1, 1_000), now: 1_000, flight: None };
        one.poll();
        one
    }

    fn poll(&mut self) {
        if let Some(asked) = self.lease.poll(self.now) {
            self.flight = Some(asked);
        }
    }

    /// Goes on to the next ask, if none is in flight.
    fn next(&mut self) -> &LeaseAsk {
        for _ in 0..100 {
            if self.flight.is_some() {
                break;
            }
            self.now = self.lease.next_timer(self.now).expect("a timer").max(self.now);
            self.poll();
        }
        &self.flight.as_ref().expect("an ask").1
    }

    fn answer(&mut self, answer: LeaseAnswer) {
        self.now += 1;
        let (id, _) = self.flight.take().expect("an ask in flight");
        self.lease.handle(self.now, id, answer);
        self.poll();
    }

    fn sees(&mut self, found: Option<LeaseRow>) {
        assert_eq!(*self.next(), LeaseAsk::Read);
        self.answer(LeaseAnswer::Row(found));
    }

    /// Where a machine can be, with an ask in flight where there can be one.
    fn at(name: &str) -> Self {
        let mut one = Self::new();
        match name {
            "watching, nothing seen" => {}
            "watching, seen (5, other, 3)" => {
                one.sees(Some(row(5, OTHER, 3)));
                one.next();
            }
            "taking (5, other, 3)" => {
                while *one.next() == LeaseAsk::Read {
                    one.sees(Some(row(5, OTHER, 3)));
                }
            }
            "taking, outcome unknown" => {
                one = Self::at("taking (5, other, 3)");
                one.answer(LeaseAnswer::Unknown("no answer".to_owned()));
                one.next();
            }
            "waiting out" => {
                one = Self::at("taking (5, other, 3)");
                one.answer(LeaseAnswer::Applied);
                one.next();
            }
            "held" => {
                one = Self::at("waiting out");
                while !matches!(one.lease.state(one.now), LeaseState::Held { .. }) {
                    one.next();
                    one.answer(LeaseAnswer::Applied);
                }
                one.next();
            }
            "held, outcome unknown" => {
                one = Self::at("held");
                one.answer(LeaseAnswer::Unknown("no answer".to_owned()));
                one.next();
            }
            "expired" => {
                one = Self::at("held, outcome unknown");
                one.now += u64::from(LEASE_MS);
                one.answer(LeaseAnswer::Unknown("no answer".to_owned()));
                one.next();
            }
            "expired, renewing" => {
                one = Self::at("expired");
                one.sees(Some(row(6, MINE, 8)));
                one.next();
            }
            "giving back" => {
                one = Self::at("held");
                one.answer(LeaseAnswer::Applied);
                one.lease.release(one.now);
                one.poll();
            }
            "giving back, a renewal in flight" => {
                one = Self::at("held");
                one.lease.release(one.now);
            }
            "lost" => {
                one = Self::at("held");
                one.answer(LeaseAnswer::NotApplied(Some(row(7, OTHER, 1))));
            }
            other => panic!("{other}"),
        }
        one
    }

    fn told(&self) -> String {
        let state = match self.lease.state(self.now) {
            LeaseState::Watching { holder } => format!("Watching {holder:?}"),
            LeaseState::WaitingOut { .. } => "WaitingOut".to_owned(),
            LeaseState::Held { epoch, worker, .. } => format!("Held {epoch} as {worker}"),
            other => format!("{other:?}"),
        };
        let over = if self.lease.is_over() { ", over" } else { "" };
        format!("{state}{over}")
    }

    fn asks(&mut self) -> String {
        if self.lease.is_over() {
            return "nothing".to_owned();
        }
        match self.next() {
            LeaseAsk::Read => "read".to_owned(),
            LeaseAsk::Cas { expected, new } => {
                let key = |key: LeaseKey| format!("({}, {}, {})", key.writer_epoch, name(key.holder), key.renewal);
                format!("{} -> {}", expected.map_or("none".to_owned(), key), key(new.key()))
            }
        }
    }
}

fn name(holder: u128) -> &'static str {
    match holder {
        0 => "nobody",
        MINE => "mine",
        OTHER => "other",
        _ => "?",
    }
}

const STATES: [&str; 12] = [
    "watching, nothing seen",
    "watching, seen (5, other, 3)",
    "taking (5, other, 3)",
    "taking, outcome unknown",
    "waiting out",
    "held",
    "held, outcome unknown",
    "expired",
    "expired, renewing",
    "giving back",
    "giving back, a renewal in flight",
    "lost",
];

/// What the row can be, seen from this state.
fn rows(ask: &LeaseAsk, lease: &Lease, now: u64) -> Vec<(&'static str, Option<LeaseRow>)> {
    let mut rows = vec![
        ("none", None),
        ("(5, nobody, 4)", Some(row(5, 0, 4))),
        ("(5, other, 3)", Some(row(5, OTHER, 3))),
        ("(5, other, 4)", Some(row(5, OTHER, 4))),
        ("(7, other, 1)", Some(row(7, OTHER, 1))),
    ];
    match (ask, lease.state(now)) {
        (_, LeaseState::Watching { .. }) => {}
        (LeaseAsk::Cas { expected, new }, _) => {
            rows.push(("as was asked for", Some(new.clone())));
            if let Some(expected) = expected {
                rows.push(("as expected", Some(row(expected.writer_epoch, expected.holder, expected.renewal))));
            }
        }
        (LeaseAsk::Read, LeaseState::Taking) => rows.push(("(6, mine, 4)", Some(row(6, MINE, 4)))),
        // The renewal before the one of unknown outcome, and that one.
        (LeaseAsk::Read, _) => {
            rows.push(("mine, before", Some(row(6, MINE, 8))));
            rows.push(("mine, renewed", Some(row(6, MINE, 9))));
        }
    }
    rows
}

#[test]
fn every_transition() {
    let mut table = String::new();
    for state in STATES {
        let mut start = One::at(state);
        let (told, asks) = (start.told(), start.asks());
        table.push_str(&format!("{state}: {told}, asks {asks}\n"));
        let mut line = |what: &str, mut one: One| {
            let (told, asks) = (one.told(), one.asks());
            table.push_str(&format!("    {what:32} {told:24} {asks}\n"));
        };
        let mut one = One::at(state);
        one.lease.release(one.now);
        one.poll();
        line("release", one);
        let Some((_, ask)) = start.flight.clone() else { continue };
        let mut answers = vec![("unknown".to_owned(), LeaseAnswer::Unknown("no answer".to_owned()))];
        let is_read = ask == LeaseAsk::Read;
        if !is_read {
            answers.push(("applied".to_owned(), LeaseAnswer::Applied));
        }
        for (name, row) in rows(&ask, &start.lease, start.now) {
            match is_read {
                true => answers.push((format!("row {name}"), LeaseAnswer::Row(row))),
                false => answers.push((format!("not applied {name}"), LeaseAnswer::NotApplied(row))),
            }
        }
        for (name, answer) in answers {
            let mut one = One::at(state);
            one.answer(answer);
            line(&name, one);
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn an_answer_that_comes_too_late_is_ignored() {
    let mut one = One::at("held");
    let (late, _) = one.flight.take().unwrap();
    one.now += u64::from(LEASE_MS);
    one.poll();
    assert!(matches!(one.lease.state(one.now), LeaseState::Expired { epoch: 6 }));
    one.lease.handle(one.now, late, LeaseAnswer::Applied);
    assert!(matches!(one.lease.state(one.now), LeaseState::Expired { epoch: 6 }));
    assert_eq!(one.lease.valid_until(one.now), None);
    assert_eq!(*one.next(), LeaseAsk::Read);
}

#[test]
fn a_lease_counts_from_the_sending_less_a_tenth() {
    let mut one = One::at("held");
    let sent_at = one.now;
    one.now += 100;
    one.answer(LeaseAnswer::Applied);
    let valid_until = sent_at + u64::from(LEASE_MS) * 9 / 10;
    assert_eq!(one.lease.valid_until(one.now), Some(valid_until));
    assert_eq!(one.lease.valid_until(valid_until - 1), Some(valid_until));
    assert_eq!(one.lease.valid_until(valid_until), None);
}

#[test]
fn a_longer_lease_of_the_old_holder_is_watched_and_waited_out() {
    let long = |renewal| LeaseRow { lease_ms: 5 * LEASE_MS, ..row(5, OTHER, renewal) };
    let mut one = One::new();
    let first = one.now + 1;
    while *one.next() == LeaseAsk::Read {
        one.sees(Some(long(3)));
    }
    assert!(one.now - first >= u64::from(5 * LEASE_MS));
    one.answer(LeaseAnswer::Applied);
    let LeaseState::WaitingOut { until } = one.lease.state(one.now) else { panic!("{}", one.told()) };
    assert!(until - one.now >= u64::from(5 * LEASE_MS));
}

#[test]
fn a_cluster_that_is_away_is_asked_with_pauses_and_never_given_up() {
    let mut one = One::at("held");
    let (start, mut asks) = (one.now, 0);
    while one.now - start < u64::from(100 * LEASE_MS) {
        let before = one.now;
        one.next();
        assert!(one.now - before <= u64::from(LEASE_MS) / 4, "a pause of {}", one.now - before);
        one.answer(LeaseAnswer::Unknown("away".to_owned()));
        asks += 1;
    }
    assert!(asks < 100 * 8, "{asks} asks in 100 leases");
    assert_eq!(one.lease.last_error(), "away");
    // Its row is still its own when the cluster is back: the same epoch goes on.
    one.sees(Some(row(6, MINE, 8)));
    one.next();
    one.answer(LeaseAnswer::Applied);
    assert!(matches!(one.lease.state(one.now), LeaseState::Held { epoch: 6, .. }), "{}", one.told());
}

#[test]
fn a_release_that_nobody_answers_ends() {
    let mut one = One::at("giving back");
    for _ in 0..20 {
        if one.lease.is_over() {
            break;
        }
        one.next();
        one.answer(LeaseAnswer::Unknown("away".to_owned()));
        one.now = one.lease.next_timer(one.now).unwrap_or(one.now).max(one.now);
        one.poll();
    }
    assert!(one.lease.is_over());
}
