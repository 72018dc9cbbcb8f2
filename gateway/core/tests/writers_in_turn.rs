//! Several writers, one of them active: a link tries them in turn, remembers who welcomed it, sends what is unanswered to
//! whoever is active, and never hurries.

use gateway_core::authority::{Authority, Identity, Ticket};
use gateway_core::brain::Brain;
use gateway_core::link::{Link, LinkEvent, Retry, State};
use gateway_core::mesh::{Fanout, Mesh};
use gateway_core::options::Options;
use gateway_core::output::Output;
use gateway_core::shard::{Out, Seat, Shard};
use gateway_core::time::Now;
use parley_protocol::link::{Answer, Ask, LinkWelcome, Reply, Request, ToGateway, ToWriter};
use parley_protocol::{ChatId, DeviceId, wire};
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

/// Sent ones keep their numbers; who takes the place of a refused one takes its number, which no writer heard of.
#[test]
fn what_was_never_sent_is_taken_back_and_the_rest_stays_in_order() {
    let (mut link, mut events) = (Link::<u32>::new(1, 0, 1, 3, 2), Events::new());
    (0..5).for_each(|tag| link.ask(Ask::Open { partition: tag as u16 }, tag));
    // Three fit the window.
    let first = says(&mut link, &welcome(), &mut events);
    assert_eq!(first.len(), 4);
    link.handle_down();
    link.ask(Ask::LoadChat { chat_id: ChatId(5) }, 5);
    link.ask(Ask::Open { partition: 6 }, 6);
    events.clear();
    link.take_back(|ask| matches!(ask, Ask::Open { .. }), &mut events);
    let refused = events.drain(..).map(|event| match event {
        LinkEvent::Answer { tag, resent: false, reply: Reply::Failed } => tag,
        other => panic!("{other:?}"),
    });
    assert_eq!(refused.collect::<Vec<_>>(), [3, 4, 6]);
    assert_eq!(link.unanswered(), 4);
    link.ask(Ask::Open { partition: 7 }, 7);
    let again = says(&mut link, &welcome(), &mut events);
    assert_eq!(again[1..], first[1..]);
    let mut answers = Vec::new();
    (1..=3).for_each(|no| wire::encode_record(&ToGateway::Answer(Answer { no, reply: Reply::Opened }), &mut answers));
    link.handle_data(&answers, &mut events).unwrap();
    let mut sent = Vec::new();
    link.transmit(&mut sent);
    let request = |no, ask| ToWriter::Request(Request { no, home_epoch: 7, ask });
    let mut expected = Vec::new();
    wire::encode_record(&request(4, Ask::LoadChat { chat_id: ChatId(5) }), &mut expected);
    wire::encode_record(&request(5, Ask::Open { partition: 7 }), &mut expected);
    assert_eq!(sent, expected);
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

/// One shard of two on two writers, of which the test plays the other shard and the writers.
struct Follower {
    shard: Shard,
    now: Now,
    out: Out,
}

impl Follower {
    /// Linked to the first writer, as active since epoch 1.
    fn new() -> Self {
        let options = Options { shard: 1, shards: 2, link_writers: 2, ..Options::default() };
        let shard = Shard::new(options, Box::new(Nobody), Now::default());
        let mut follower = Self { shard, now: Now::default(), out: Out::default() };
        assert_eq!(follower.hears(Fanout::Epoch(7)), [Moves::Connects(0)]);
        follower.welcomed(1);
        follower
    }

    fn hears(&mut self, fanout: Fanout) -> Vec<Moves> {
        self.shard.handle_mesh(self.now, 0, Mesh::Fanout(fanout), &mut self.out);
        self.does()
    }

    fn writer(&mut self, writer: u16, writer_epoch: u64) -> Vec<Moves> {
        self.hears(Fanout::Writer { writer, writer_epoch })
    }

    /// What it does about its link, and what it tells the other shard of it.
    fn does(&mut self) -> Vec<Moves> {
        let items = std::mem::take(&mut self.out).items;
        let of_link = |output: Output<Mesh, Seat>| match output {
            Output::LinkConnect { writer } => Some(Moves::Connects(writer)),
            Output::LinkClose => Some(Moves::Closes),
            Output::Mesh { shard: 0, message: Mesh::Fanout(Fanout::Writer { writer, writer_epoch }) } => {
                Some(Moves::Tells(writer, writer_epoch))
            }
            _ => None,
        };
        items.into_iter().filter_map(of_link).collect()
    }

    fn welcomed(&mut self, writer_epoch: u64) -> Vec<Moves> {
        let mut bytes = Vec::new();
        wire::encode_record(&ToGateway::Welcome(LinkWelcome { home_epoch: 7, writer_epoch }), &mut bytes);
        self.shard.handle_link_up(self.now, &mut self.out);
        self.shard.handle_link_data(self.now, &mut bytes, &mut self.out);
        self.does()
    }

    /// The link is gone, and its time to be connected again has come if that is now.
    fn down(&mut self) -> Vec<Moves> {
        self.shard.handle_link_down(self.now, &mut self.out);
        self.now.mono_ms += TICK_MS;
        self.shard.handle_timer(self.now, &mut self.out);
        self.does()
    }
}

/// What a [`Follower`] does.
#[derive(Debug, PartialEq)]
enum Moves {
    Connects(u16),
    Closes,
    Tells(u16, u64),
}

#[test]
fn one_shard_that_found_the_new_writer_takes_the_others_along() {
    let mut open = Follower::new();
    assert_eq!(open.writer(1, 2), [Moves::Closes], "it hangs on a writer of an older epoch");
    assert_eq!(open.down(), [Moves::Connects(1)], "at once, and not to the one that welcomed it");
    assert_eq!(open.welcomed(2), [Moves::Tells(1, 2)]);

    let mut down = Follower::new();
    assert_eq!(down.down(), [], "it pauses");
    assert_eq!(down.writer(1, 2), [Moves::Connects(1)], "no more");

    let mut greets = Follower::new();
    greets.now.mono_ms += 1_000;
    greets.shard.handle_link_down(greets.now, &mut greets.out);
    greets.now.mono_ms += 1_000;
    greets.shard.handle_timer(greets.now, &mut greets.out);
    assert_eq!(greets.does(), [Moves::Connects(0)]);
    greets.shard.handle_link_up(greets.now, &mut greets.out);
    assert_eq!(greets.writer(0, 2), [], "it asks that one already");
    assert_eq!(greets.writer(1, 3), [Moves::Closes]);
    assert_eq!(greets.down(), [Moves::Connects(1)]);
}

#[test]
fn old_news_of_a_writer_moves_nobody() {
    let mut follower = Follower::new();
    assert_eq!(follower.writer(1, 1), []);
    assert_eq!(follower.writer(0, 1), []);
    assert_eq!(follower.writer(1, 5), [Moves::Closes]);
    follower.down();
    follower.welcomed(5);
    assert_eq!(follower.writer(0, 4), [], "what it left");
}

/// It hangs: that it welcomed the link says nothing any more.
#[test]
fn a_writer_that_fell_silent_is_not_tried_first() {
    let (mut link, mut events) = (link(2), Events::new());
    says(&mut link, &welcome(), &mut events);
    link.distrust();
    assert_eq!((link.handle_down(), link.writer()), (Retry::Now, 1));
}

#[test]
fn one_that_hangs_beside_one_that_stands_by_is_not_waited_for_longer_and_longer() {
    let tries = tries(&[Does::StandsBy, Does::SaysNothing], 60_000);
    let (hung, paused): (Vec<_>, Vec<_>) = tries.windows(2).partition(|pair| pair[0].1 == 1);
    assert!(paused.iter().all(|pair| is_about(pair[1].0 - pair[0].0, 0)), "{tries:?}");
    // A second for a hello, two for the pause.
    assert!(hung.len() > 15 && hung.iter().all(|pair| pair[1].0 - pair[0].0 <= 3_000 + 3 * TICK_MS), "{tries:?}");
}
