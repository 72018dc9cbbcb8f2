//! Several writers, one of them active: a link tries them in turn, remembers who welcomed it, sends what is unanswered to
//! whoever is active, and never hurries.

use gateway_core::authority::{Authority, Identity, Ticket};
use gateway_core::brain::Brain;
use gateway_core::link::{Link, LinkEvent, Retry, State};
use gateway_core::options::Options;
use gateway_core::output::Output;
use gateway_core::shard::{Out, Shard};
use gateway_core::time::Now;
use parley_protocol::link::{Answer, Ask, LinkWelcome, Reply, ToGateway, ToWriter};
use parley_protocol::{DeviceId, wire};
use std::collections::VecDeque;

type Events = VecDeque<LinkEvent<u32>>;

fn link(writers: u16) -> Link<u32> {
    Link::new(1, 0, 1, 16, writers)
}

/// Connects, and has the writer say this.
fn says(link: &mut Link<u32>, record: &ToGateway, events: &mut Events) -> Vec<ToWriter> {
    let mut bytes = Vec::new();
    wire::encode_record(record, &mut bytes);
    let mut sent = Vec::new();
    link.connecting();
    link.handle_up(&mut sent);
    link.handle_data(&bytes, events).unwrap();
    link.transmit(&mut sent);
    let mut records = Vec::new();
    let mut rest = &sent[..];
    while let Some((record, len)) = wire::split_record(rest).unwrap() {
        records.push(wire::decode_to_writer(record).unwrap());
        rest = &rest[len..];
    }
    records
}

fn welcome() -> ToGateway {
    ToGateway::Welcome(LinkWelcome { home_epoch: 7, writer_epoch: 1 })
}

fn not_active() -> ToGateway {
    ToGateway::NotActive { active: "elsewhere".to_owned() }
}

#[test]
fn all_are_tried_before_a_pause() {
    let mut link = link(3);
    for round in 1..=3 {
        assert_eq!((link.writer(), link.handle_down()), (0, Retry::Now));
        assert_eq!((link.writer(), link.handle_down()), (1, Retry::Now));
        assert_eq!((link.writer(), link.handle_down()), (2, Retry::Paused));
        assert_eq!(link.failures(), round);
    }
}

#[test]
fn who_welcomed_it_is_tried_first_and_then_all_others() {
    let (mut link, mut events) = (link(3), Events::new());
    link.handle_down();
    says(&mut link, &welcome(), &mut events);
    assert_eq!((link.state(), link.writer()), (State::Up, 1));
    assert_eq!((link.handle_down(), link.writer()), (Retry::Paused, 1));
    let tried = [link.handle_down(), link.handle_down(), link.handle_down()];
    assert_eq!((tried, link.writer()), ([Retry::Now, Retry::Now, Retry::Paused], 1));
}

#[test]
fn what_is_unanswered_goes_to_the_new_one_in_order_and_unchanged() {
    let (mut link, mut events) = (link(2), Events::new());
    (0..4).for_each(|tag| link.ask(Ask::Open { partition: tag as u16 }, tag));
    let first = says(&mut link, &welcome(), &mut events);
    assert_eq!(first.len(), 5);
    let mut answer = Vec::new();
    wire::encode_record(&ToGateway::Answer(Answer { no: 2, reply: Reply::Opened }), &mut answer);
    link.handle_data(&answer, &mut events).unwrap();
    link.handle_down();
    // The old one stands by now: nothing is sent to it but the hello.
    assert!(matches!(says(&mut link, &not_active(), &mut events)[..], [ToWriter::Hello(_)]));
    assert_eq!((link.handle_down(), link.writer()), (Retry::Now, 1));
    let again = says(&mut link, &welcome(), &mut events);
    let ToWriter::Hello(hello) = &again[0] else { panic!("{again:?}") };
    assert_eq!(hello.home_epoch, 7);
    assert_eq!(again[1..], [&first[1..2], &first[3..]].concat());
    assert_eq!(link.unanswered(), 3);
}

#[test]
fn who_is_not_active_any_more_gets_nothing_and_is_left() {
    let (mut link, mut events) = (link(2), Events::new());
    says(&mut link, &welcome(), &mut events);
    let mut bytes = Vec::new();
    wire::encode_record(&not_active(), &mut bytes);
    link.handle_data(&bytes, &mut events).unwrap();
    assert!(matches!(events.back(), Some(LinkEvent::NotActive(active)) if active == "elsewhere"));
    link.ask(Ask::Open { partition: 1 }, 1);
    assert!(!link.wants_transmit());
    assert_eq!((link.handle_down(), link.writer()), (Retry::Now, 1));
}

struct Nobody;

impl Authority for Nobody {
    fn verify_token(&self, _: &str, _: Now, _: bool) -> Result<Identity, String> {
        Err("nobody".to_owned())
    }

    fn issue_ticket(&self, _: &Ticket) -> String {
        String::new()
    }

    fn verify_ticket(&self, _: &str, _: DeviceId, _: Now, _: bool) -> Option<Ticket> {
        None
    }
}

/// What each writer does with a connection.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    Refuses,
    StandsBy,
    SaysNothing,
    Welcomes,
}

/// A shard that only links: whom it tried, and when.
fn tries(writers: &[Does], until_ms: u64) -> Vec<(u64, u16)> {
    let options = Options { link_writers: writers.len() as u16, gateway: 12_345, ..Options::default() };
    let mut shard = Shard::new(options, Box::new(Nobody), Now::default());
    let (mut tries, mut out, mut events) = (Vec::new(), Out::default(), 0);
    let mut now = Now::default();
    while now.mono_ms < until_ms {
        events += 1;
        assert!(events < 10_000, "it does not rest");
        shard.handle_timer(now, &mut out);
        while !out.is_empty() {
            let mut taken = std::mem::take(&mut out);
            for output in taken.items.drain(..) {
                match output {
                    Output::LinkConnect { writer } => {
                        tries.push((now.mono_ms, writer));
                        let mut says = |record: Option<ToGateway>| {
                            shard.handle_link_up(now, &mut out);
                            if let Some(record) = record {
                                let mut bytes = Vec::new();
                                wire::encode_record(&record, &mut bytes);
                                shard.handle_link_data(now, &mut bytes, &mut out);
                            }
                        };
                        match writers[usize::from(writer)] {
                            Does::Refuses => shard.handle_link_down(now, &mut out),
                            Does::StandsBy => says(Some(not_active())),
                            Does::SaysNothing => says(None),
                            Does::Welcomes => says(Some(welcome())),
                        }
                    }
                    Output::LinkClose => shard.handle_link_down(now, &mut out),
                    _ => {}
                }
            }
        }
        match shard.next_timer() {
            Some(next) => now.mono_ms = now.mono_ms.max(next),
            None => break,
        }
    }
    tries
}

/// How coarse the shard's timers are.
const TICK_MS: u64 = 8;

fn is_about(ms: u64, expected: u64) -> bool {
    (expected..=expected + 2 * TICK_MS).contains(&ms)
}

#[test]
fn none_is_tried_more_often_than_the_pauses_allow() {
    let tries = tries(&[Does::Refuses, Does::StandsBy, Does::Refuses], 60_000);
    let rounds: Vec<_> = tries.chunks(3).map(|round| round[0].0).collect();
    assert!(tries.iter().enumerate().all(|(at, (_, writer))| *writer == at as u16 % 3), "{tries:?}");
    // 50, 100, 200 ... 2,000 milliseconds, each up to a quarter less; from the last of a round.
    for (pause, round) in [50, 100, 200, 400, 800, 1_600].into_iter().chain([2_000; 25]).zip(rounds.windows(2)) {
        let paused = round[1] - round[0];
        assert!((pause * 3 / 4..=pause + 3 * TICK_MS).contains(&paused), "{paused} for {pause}");
    }
    assert!((30..50).contains(&rounds.len()), "{rounds:?}");
}

#[test]
fn one_that_says_nothing_is_left_for_the_one_that_welcomes() {
    let tries = tries(&[Does::SaysNothing, Does::StandsBy, Does::Welcomes], 60_000);
    assert_eq!(tries.iter().map(|(_, writer)| *writer).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(is_about(tries[1].0 - tries[0].0, 1_000) && is_about(tries[2].0 - tries[1].0, 0), "{tries:?}");
}

#[test]
fn slow_ones_are_waited_for_longer_each_round() {
    let tries = tries(&[Does::SaysNothing, Does::SaysNothing], 60_000);
    let waits = tries.chunks_exact(2).map(|round| round[1].0 - round[0].0);
    let expected = [1_000, 2_000, 4_000, 8_000, 10_000];
    assert!(tries.len() >= 8 && waits.clone().zip(expected).all(|(waited, wait)| is_about(waited, wait)), "{tries:?}");
}

#[test]
fn the_only_one_is_waited_for_as_long_as_an_answer() {
    let tries = tries(&[Does::SaysNothing], 25_000);
    assert_eq!(tries.len(), 3, "{tries:?}");
    assert!(is_about(tries[1].0 - tries[0].0, 10_050) && is_about(tries[2].0 - tries[1].0, 10_100), "{tries:?}");
}
