//! Holes, doubles, truncated backlogs and large chats, as a device meets them.

use super::*;
use parley_protocol::body::MessageBody;
use parley_protocol::{Body, ClientMsgId, MessageId, OwnState};

const ME: UserId = UserId(1);
const PEER: UserId = UserId(2);

fn chat() -> ChatId {
    ChatId::group(7)
}

fn event(seq: u64) -> Event {
    Event {
        chat_id: chat(),
        seq,
        ordinal: seq,
        message_id: MessageId(seq),
        sender: PEER,
        sender_sent: seq,
        client_msg_id: ClientMsgId(u128::from(seq)),
        envelope: Body::Message(MessageBody::default()).to_envelope(),
    }
}

fn summary(head_seq: u64, large: bool) -> ChatSummary {
    let own = OwnState { chat_id: chat(), read_seq: 0, read_ordinal: 0, read_sent: 0, muted_until_ms: 0 };
    ChatSummary {
        chat_id: chat(),
        title: String::new(),
        members: 2,
        role: None,
        head_seq,
        head_ordinal: head_seq,
        delivered_seq: 0,
        own,
        unread: 0,
        intervals: Vec::new(),
        large,
        last: None,
    }
}

fn page(from: u64, to: u64, more: bool) -> HistoryPage {
    HistoryPage { request_id: 0, chat_id: chat(), events: (from..=to).map(event).collect(), more }
}

fn seqs(outcome: &Outcome) -> Vec<u64> {
    outcome.events.iter().map(|event| event.seq).collect()
}

/// A device that has seen `known` and whose stream stands at `mark`.
fn device(mark: u64, known: u64) -> Follow {
    let mut follow = Follow::new(Some(mark), BTreeMap::from([(chat(), known)]));
    follow.connected(ME);
    follow
}

#[test]
fn a_repeated_event_is_dropped_and_a_hole_is_filled_before_what_follows() {
    let mut follow = device(10, 4);
    assert_eq!(seqs(&follow.event(event(4))), [0_u64; 0]);
    assert_eq!(seqs(&follow.event(event(5))), [5]);
    let hole = follow.event(event(8));
    assert_eq!((seqs(&hole), hole.fetch), (vec![], vec![(chat(), 5)]));
    assert_eq!(seqs(&follow.event(event(9))), [0_u64; 0], "held behind the hole");
    follow.marked(Mark { inbox_seq: 15, head: 20 });
    assert_eq!(follow.mark(), Some(10), "a mark counts when everything before it was handed on");
    let first = follow.filled(page(6, 7, true));
    assert_eq!((seqs(&first), first.fetch), (vec![6, 7], vec![(chat(), 7)]));
    assert_eq!(seqs(&follow.filled(page(8, 9, false))), [8, 9]);
    assert_eq!(follow.mark(), Some(15));
    assert_eq!(follow.take_delivered(), BTreeMap::from([(chat(), 9)]));
    assert!(follow.take_changed().is_some() && follow.take_changed().is_none());
}

#[test]
fn a_truncated_backlog_is_made_whole_from_history_before_its_mark_counts() {
    let mut follow = device(10, 4);
    assert!(follow.truncated(100).list);
    assert_eq!(follow.listed(&[summary(6, false)], false).fetch, [(chat(), 4)]);
    assert_eq!(follow.mark(), Some(10));
    assert_eq!(seqs(&follow.filled(page(5, 6, false))), [5, 6]);
    assert_eq!(follow.mark(), Some(100));
}

#[test]
fn a_new_device_takes_the_mark_and_no_backlog() {
    let mut follow = Follow::new(None, BTreeMap::new());
    follow.connected(ME);
    assert!(follow.truncated(100).list);
    assert_eq!(seqs(&follow.event(event(7))), [7], "live already while the list is read");
    assert!(!follow.is_caught_up());
    assert_eq!(follow.listed(&[summary(7, false)], false), Outcome::default());
    assert!(follow.is_caught_up());
    assert_eq!(follow.mark(), Some(100));
    assert_eq!(seqs(&follow.event(event(8))), [8]);
}

#[test]
fn a_device_of_an_older_store_starts_again() {
    let mut follow = device(50, 40);
    follow.truncated(3);
    assert_eq!(follow.listed(&[summary(2, false)], false).fetch, [(chat(), 0)]);
    assert_eq!(seqs(&follow.filled(page(1, 2, false))), [1, 2]);
    assert_eq!(follow.mark(), Some(3));
}

#[test]
fn heads_of_large_chats_are_compared_once_the_stream_has_ended() {
    let mut follow = device(10, 4);
    assert!(!follow.marked(Mark { inbox_seq: 10, head: 11 }).list);
    assert!(follow.marked(Mark { inbox_seq: 11, head: 11 }).list);
    assert!(!follow.is_caught_up());
    assert_eq!(follow.listed(&[summary(6, true)], false).fetch, [(chat(), 4)]);
    assert_eq!(seqs(&follow.filled(page(5, 6, false))), [5, 6]);
    assert!(follow.is_caught_up());
    assert!(!follow.marked(Mark { inbox_seq: 12, head: 12 }).list, "once a connection");
    assert_eq!(follow.head(chat(), 8).fetch, [(chat(), 6)]);
    assert_eq!(follow.head(chat(), 9).fetch, [], "one fill at a time");
    assert_eq!(seqs(&follow.filled(page(7, 9, false))), [7, 8, 9]);
}

#[test]
fn a_hole_that_may_not_be_read_ends_and_loses_nothing_that_came() {
    let mut follow = device(10, 4);
    follow.event(event(9));
    let mut events = Vec::new();
    for _ in 0..TRIES_MAX {
        events.extend(seqs(&follow.filled(page(1, 0, false))));
    }
    assert_eq!(events, [9]);
    follow.event(event(12));
    assert_eq!(seqs(&follow.fill_refused(chat())), [12]);
    assert_eq!(seqs(&follow.event(event(13))), [13]);
}

#[test]
fn a_page_of_before_does_not_close_the_hole_of_a_newer_event() {
    let mut follow = device(10, 4);
    follow.event(event(9));
    for _ in 1..TRIES_MAX {
        assert_eq!(follow.filled(page(1, 0, false)).fetch_later, [(chat(), 4)]);
    }
    // The last try is on its way when something newer comes, and knows nothing of it.
    follow.event(event(12));
    let outcome = follow.filled(page(1, 0, false));
    assert_eq!((seqs(&outcome), outcome.fetch_later), (vec![], vec![(chat(), 4)]));
    assert_eq!(seqs(&follow.filled(page(9, 12, false))), [9, 10, 11, 12]);
}

#[test]
fn marks_do_not_count_from_a_connection_that_broke() {
    let mut follow = device(10, 4);
    follow.event(event(8));
    follow.marked(Mark { inbox_seq: 15, head: 15 });
    follow.connected(ME);
    assert_eq!(seqs(&follow.filled(page(5, 8, false))), [5, 6, 7, 8]);
    assert_eq!(follow.mark(), Some(10), "the stream starts again above 10");
}

#[test]
fn a_chat_that_is_met_live_while_the_list_is_under_way_is_read_from_its_start() {
    let mut follow = Follow::new(Some(5), BTreeMap::new());
    follow.connected(ME);
    assert!(follow.truncated(20_000).list);
    let live = follow.event(event(50));
    assert_eq!((live.fetch.as_slice(), live.events.len()), ([(chat(), 0)].as_slice(), 0));
    assert_eq!(seqs(&follow.filled(page(1, 50, false))), (1..=50).collect::<Vec<_>>());
}
