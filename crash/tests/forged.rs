//! The checker against forged histories: a clean one, and one for each kind of lie, each found as what it is.

use crash::checker::{Checker, Kind, Verdict};
use crash::history::{Record, Seen};
use parley_protocol::{ChatId, ClientMsgId, UserId};

const ALICE: UserId = UserId(1);
const BOB: UserId = UserId(2);
const CAROL: UserId = UserId(3);
/// Devices 0 and 1 are Alice's, 2 is Bob's, 3 Carol's.
const OWNERS: [UserId; 4] = [ALICE, ALICE, BOB, CAROL];
const LIMIT: usize = 3;

fn direct() -> ChatId {
    ChatId::direct(ALICE, BOB).unwrap()
}

fn group() -> ChatId {
    ChatId::group(77)
}

/// The events of a chat: what stands at `seq` of the log of an honest server.
fn seen(chat: ChatId, seq: u64) -> Seen {
    let name = ClientMsgId(chat.0 ^ u128::from(seq));
    Seen { chat, seq, message_id: 1_000 + seq * 10, name, sender: ALICE, content: 5_000 + seq }
}

fn offer(seen: Seen) -> Record {
    // Alice's first device sends everything.
    Record::Offer { device: 0, chat: seen.chat, name: seen.name, content: seen.content }
}

fn ack(seen: Seen) -> Record {
    let Seen { chat, name, seq, message_id, .. } = seen;
    Record::Ack { device: 0, chat, name, seq, message_id }
}

fn event(device: u32, seen: Seen) -> Record {
    Record::Event { device, seen }
}

fn member(seq: u64, user: UserId, joined: bool) -> Record {
    Record::Member { chat: group(), seq, user, joined }
}

/// A direct chat of six messages, the third without an answer; a group of Alice and Bob in which Carol is a member from
/// 3 to 5. Bob's device reconnects with its mark after the direct chat's 4, and gets 4 again: it came above the mark.
fn clean() -> Vec<Record> {
    let mut records: Vec<Record> =
        (0..4).map(|device| Record::Device { device, user: OWNERS[device as usize], subscribes: false }).collect();
    for (chat, head) in [(direct(), 6), (group(), 7)] {
        for seq in 1..=head {
            records.push(offer(seen(chat, seq)));
            if (chat, seq) != (direct(), 3) {
                records.push(ack(seen(chat, seq)));
            }
        }
    }
    // Stored never, answered never.
    let lost_on_the_way = Seen { name: ClientMsgId(999), ..seen(direct(), 9) };
    records.push(offer(lost_on_the_way));
    for device in 0..3 {
        records.push(Record::Connect { device, mark: 0 });
        records.extend((1..=4).map(|seq| event(device, seen(direct(), seq))));
        if device == 2 {
            records.insert(records.len() - 1, Record::Mark { device, inbox_seq: 3 });
            records.push(Record::Connect { device, mark: 3 });
            records.push(event(device, seen(direct(), 4)));
        }
        records.extend((5..=6).map(|seq| event(device, seen(direct(), seq))));
        records.extend((1..=7).map(|seq| event(device, seen(group(), seq))));
        records.push(Record::Mark { device, inbox_seq: 13 });
    }
    records.push(Record::Connect { device: 3, mark: 0 });
    records.extend((3..=5).map(|seq| event(3, seen(group(), seq))));
    for (chat, head) in [(direct(), 6), (group(), 7)] {
        for seq in 1..=head {
            records.push(Record::Stored { seen: seen(chat, seq) });
            match (chat == group(), seq) {
                (true, 1) => records.extend([member(1, ALICE, true), member(1, BOB, true)]),
                (true, 3 | 5) => records.push(member(seq, CAROL, seq == 3)),
                _ => {}
            }
        }
    }
    records
}

fn judge(records: &[Record], limit: usize) -> Verdict {
    let mut checker = Checker::new(limit);
    records.iter().for_each(|record| checker.learn(*record));
    checker.settle();
    records.iter().for_each(|record| checker.follow(*record));
    checker.finish()
}

/// The forged history has exactly these findings: lost, duplicated, reordered, wrong.
#[track_caller]
fn found(records: &[Record], expected: [u64; 4]) {
    let verdict = judge(records, LIMIT);
    let counts = [verdict.lost, verdict.duplicated, verdict.reordered, verdict.wrong];
    assert_eq!(counts, expected, "{:#?}", verdict.findings);
    assert!(!verdict.is_clean() && !verdict.findings.is_empty());
}

fn once(kind: Kind) -> [u64; 4] {
    [Kind::Lost, Kind::Duplicated, Kind::Reordered, Kind::Wrong].map(|other| u64::from(other == kind))
}

fn at(records: &[Record], wanted: Record) -> usize {
    records.iter().position(|record| *record == wanted).expect("the clean history has it")
}

fn without(wanted: Record) -> Vec<Record> {
    let mut records = clean();
    records.remove(at(&records, wanted));
    records
}

fn with_after(place: Record, added: Record) -> Vec<Record> {
    let mut records = clean();
    let index = at(&records, place);
    records.insert(index + 1, added);
    records
}

/// The last marks of all devices say this.
fn with_last_marks(mut records: Vec<Record>, last: u64) -> Vec<Record> {
    for record in &mut records {
        if let Record::Mark { inbox_seq: inbox_seq @ 13, .. } = record {
            *inbox_seq = last;
        }
    }
    records
}

fn replaced(old: Record, new: Record) -> Vec<Record> {
    let mut records = clean();
    let index = at(&records, old);
    records[index] = new;
    records
}

fn swapped(a: Record, b: Record) -> Vec<Record> {
    let mut records = clean();
    let (a, b) = (at(&records, a), at(&records, b));
    records.swap(a, b);
    records
}

#[test]
fn a_clean_history_is_clean() {
    let verdict = judge(&clean(), LIMIT);
    assert!(verdict.is_clean(), "{:#?}", verdict.findings);
    let figures = (verdict.acknowledged, verdict.delivered, verdict.unknown, verdict.refused);
    assert_eq!(figures, (12, 3 * 13 + 1 + 3, 2, 0));
}

#[test]
fn an_acknowledged_message_that_no_log_has_is_lost() {
    // The last one of the chat: nothing later shows the hole.
    let last = seen(direct(), 6);
    let records: Vec<Record> = clean()
        .into_iter()
        .filter(|record| match record {
            Record::Stored { seen } | Record::Event { seen, .. } => *seen != last,
            _ => true,
        })
        .collect();
    found(&with_last_marks(records, 12), once(Kind::Lost));
}

#[test]
fn a_message_lost_on_one_device_is_lost_in_the_middle_and_at_the_end() {
    for seq in [2, 4, 7] {
        // The mark that follows says that it came.
        found(&without(event(1, seen(group(), seq))), [1, 0, 0, 1]);
    }
}

#[test]
fn a_device_that_got_nothing_lost_everything() {
    let records: Vec<Record> =
        clean().into_iter().filter(|record| !matches!(record, Record::Event { device: 3, .. })).collect();
    found(&records, [3, 0, 0, 0]);
}

#[test]
fn a_removed_member_must_get_the_removal() {
    found(&without(event(3, seen(group(), 5))), once(Kind::Lost));
}

#[test]
fn what_a_mark_covers_must_not_be_missing_after_it() {
    // 4 came above the mark that was presented: it has to come again.
    let mut records = clean();
    let again = at(&records, Record::Connect { device: 2, mark: 3 }) + 1;
    assert_eq!(records.remove(again), event(2, seen(direct(), 4)));
    found(&records, [1, 0, 0, 1]);
}

#[test]
fn a_second_delivery_is_a_double_in_a_connection_and_below_the_mark() {
    let twice = event(1, seen(direct(), 4));
    found(&with_after(twice, twice), once(Kind::Duplicated));
    let below = with_after(Record::Connect { device: 2, mark: 3 }, event(2, seen(direct(), 3)));
    found(&below, once(Kind::Duplicated));
}

#[test]
fn a_reorder_on_a_device_is_found() {
    found(&swapped(event(0, seen(direct(), 5)), event(0, seen(direct(), 6))), once(Kind::Reordered));
}

#[test]
fn a_hole_in_a_stream_that_a_reconnect_closes_is_found() {
    let records = replaced(event(2, seen(direct(), 4)), event(2, seen(direct(), 5)));
    found(&records, once(Kind::Reordered));
}

#[test]
fn a_device_that_sees_another_order_than_the_store_is_found() {
    // Two events under each other's seq, on every device alike.
    let exchange = |seen: Seen| match seen.seq {
        5 => Seen { seq: 6, ..seen },
        6 => Seen { seq: 5, ..seen },
        _ => seen,
    };
    let mut records = clean();
    for record in &mut records {
        if let Record::Event { seen, .. } = record
            && seen.chat == direct()
        {
            *seen = exchange(*seen);
        }
    }
    let verdict = judge(&records, LIMIT);
    assert!(verdict.reordered >= 6, "{verdict:?}");
}

#[test]
fn an_acknowledgement_that_names_another_place_is_found() {
    let (right, wrong) = (seen(direct(), 5), Seen { seq: 6, message_id: 1_060, ..seen(direct(), 5) });
    found(&replaced(ack(right), ack(wrong)), once(Kind::Reordered));
}

#[test]
fn a_hole_in_the_log_is_found() {
    let verdict = judge(&without(Record::Stored { seen: seen(direct(), 5) }), LIMIT);
    assert!(verdict.lost > 0, "{verdict:?}");
}

#[test]
fn message_ids_that_do_not_rise_are_found() {
    let mut records = clean();
    for record in &mut records {
        match record {
            Record::Stored { seen } | Record::Event { seen, .. } if (seen.chat, seen.seq) == (group(), 6) => {
                seen.message_id = 1_050;
            }
            Record::Ack { chat, seq: 6, message_id, .. } if *chat == group() => *message_id = 1_050,
            _ => {}
        }
    }
    found(&records, once(Kind::Reordered));
}

#[test]
fn a_command_that_takes_effect_twice_is_found() {
    // Without an answer, and stored as 3 and as 7: once or never is allowed.
    let again = Seen { name: seen(direct(), 3).name, content: 5_003, ..seen(direct(), 7) };
    let mut records = with_after(Record::Stored { seen: seen(direct(), 6) }, Record::Stored { seen: again });
    for device in 0..3 {
        let index = at(&records, event(device, seen(direct(), 6)));
        records.insert(index + 1, event(device, again));
    }
    found(&records, once(Kind::Duplicated));
}

#[test]
fn two_answers_with_different_ids_are_found() {
    let (first, other) = (seen(direct(), 5), Seen { message_id: 9, ..seen(direct(), 5) });
    // The first one's ids are what the log has; the second ones are not: twice acknowledged, and not there.
    found(&with_after(ack(first), ack(other)), [0, 1, 1, 0]);
    let records = with_after(ack(first), ack(first));
    assert!(judge(&records, LIMIT).is_clean(), "two equal answers are what a retry gets");
}

#[test]
fn a_message_that_nobody_sent_is_found() {
    let forged = Seen { name: ClientMsgId(4_711), ..seen(direct(), 7) };
    let mut records = with_after(Record::Stored { seen: seen(direct(), 6) }, Record::Stored { seen: forged });
    for device in 0..3 {
        let index = at(&records, event(device, seen(direct(), 6)));
        records.insert(index + 1, event(device, forged));
    }
    found(&records, once(Kind::Wrong));
}

#[test]
fn a_delivery_that_the_log_does_not_have_is_found() {
    let forged = Seen { name: ClientMsgId(4_711), ..seen(direct(), 7) };
    found(&with_after(event(0, seen(direct(), 6)), event(0, forged)), once(Kind::Wrong));
    let nowhere = Seen { chat: ChatId::group(5), ..forged };
    found(&with_after(event(0, seen(direct(), 6)), event(0, nowhere)), once(Kind::Wrong));
}

#[test]
fn a_changed_text_is_found_in_the_log_and_on_a_device() {
    let (right, changed) = (seen(direct(), 6), Seen { content: 1, ..seen(direct(), 6) });
    // The device got no 6 then, either, though its mark says so.
    found(&replaced(event(0, right), event(0, changed)), [1, 0, 0, 2]);
    let mut records = clean();
    for record in &mut records {
        match record {
            Record::Stored { seen } | Record::Event { seen, .. } if *seen == right => *seen = changed,
            _ => {}
        }
    }
    found(&records, once(Kind::Wrong));
}

#[test]
fn a_delivery_to_somebody_who_is_no_member_is_found() {
    for (place, stranger) in [(3, 2), (5, 6)] {
        let place = event(3, seen(group(), place));
        found(&with_after(place, event(3, seen(group(), stranger))), once(Kind::Wrong));
    }
    found(&with_after(event(3, seen(group(), 5)), event(3, seen(direct(), 1))), once(Kind::Wrong));
}

#[test]
fn a_refused_command_must_not_take_effect() {
    let refused = Record::Refused { device: 0, name: seen(direct(), 3).name };
    found(&with_after(offer(seen(direct(), 3)), refused), once(Kind::Wrong));
}

#[test]
fn marks_that_fall_and_backlogs_that_are_cut_are_found() {
    let last = Record::Mark { device: 1, inbox_seq: 13 };
    found(&with_after(last, Record::Mark { device: 1, inbox_seq: 12 }), once(Kind::Wrong));
    found(&with_after(last, Record::Truncated { device: 1 }), once(Kind::Wrong));
    found(&replaced(Record::Connect { device: 2, mark: 3 }, Record::Connect { device: 2, mark: 2 }), once(Kind::Wrong));
}

#[test]
fn a_mark_ahead_of_the_stream_is_found() {
    // 13 after 4 of 13 entries; all others come after it.
    let early = Record::Mark { device: 1, inbox_seq: 13 };
    found(&with_after(event(1, seen(direct(), 4)), early), once(Kind::Wrong));
    // By one entry, and what came above the mark before a reconnect does not count: it has to come again.
    let ahead = Record::Mark { device: 2, inbox_seq: 4 };
    found(&with_after(Record::Connect { device: 2, mark: 3 }, ahead), once(Kind::Wrong));
}

#[test]
fn an_own_state_may_follow_what_lets_a_user_in() {
    // Carol comes into a group with messages: after 3, 4 and 5 her inbox has 4 entries, and never 5.
    let mark = |inbox_seq| Record::Mark { device: 3, inbox_seq };
    for last in [3, 4] {
        let verdict = judge(&with_after(event(3, seen(group(), 5)), mark(last)), LIMIT);
        assert!(verdict.is_clean(), "{:#?}", verdict.findings);
    }
    found(&with_after(event(3, seen(group(), 5)), mark(5)), once(Kind::Wrong));
    // Before the event that lets her in there is nothing.
    found(&with_after(Record::Connect { device: 3, mark: 0 }, mark(1)), once(Kind::Wrong));
}

/// The clean history of a run with a limit of 2: the group is large from 3 to 4, Carol's device subscribes.
fn with_a_subscriber() -> Vec<Record> {
    let mut records = with_last_marks(clean(), 12);
    for record in &mut records {
        match *record {
            Record::Device { device: 3, .. } => *record = Record::Device { device: 3, user: CAROL, subscribes: true },
            Record::Event { device: device @ 0..3, seen } if seen == self::seen(group(), 4) => {
                *record = Record::Fetch { device, seen };
            }
            _ => {}
        }
    }
    records
}

#[test]
fn a_subscriber_that_gets_an_event_twice_on_a_connection_is_found() {
    let verdict = judge(&with_a_subscriber(), 2);
    assert!(verdict.is_clean(), "{:#?}", verdict.findings);
    // 3 and 5 come by the inbox, 4 live.
    for seq in 3..=5 {
        let mut records = with_a_subscriber();
        let last = at(&records, event(3, seen(group(), 5)));
        records.splice(last + 1..last + 1, [event(3, seen(group(), seq)); 3]);
        let verdict = judge(&records, 2);
        assert_eq!((verdict.duplicated, verdict.lost + verdict.reordered + verdict.wrong), (3, 0), "{verdict:#?}");
    }
    // On another connection it is no double of this one, but for what lies under the mark.
    let mut records = with_a_subscriber();
    let last = at(&records, event(3, seen(group(), 5)));
    let again = [4, 5].map(|seq| event(3, seen(group(), seq)));
    records.splice(last + 1..last + 1, [Record::Connect { device: 3, mark: 0 }, event(3, seen(group(), 3))]);
    records.splice(last + 3..last + 3, again);
    assert!(judge(&records, 2).is_clean());
    records[last + 1] = Record::Connect { device: 3, mark: 3 };
    records.insert(last + 1, Record::Mark { device: 3, inbox_seq: 3 });
    assert_eq!(judge(&records, 2).duplicated, 2, "3 and 5");
}

#[test]
fn a_hole_in_a_subscribers_inbox_is_found() {
    for (seq, lost) in [(3, 2), (5, 2)] {
        let mut records = with_a_subscriber();
        records.remove(at(&records, event(3, seen(group(), seq))));
        // Neither by the stream nor from history.
        assert_eq!(judge(&records, 2).lost, lost);
    }
}

#[test]
fn a_chat_above_the_limit_is_made_whole_from_history() {
    // With a limit of 2 the group is large from 3 to 4: 3 and 5 cross and go to everybody, 4 does not.
    let mut records = with_last_marks(clean(), 12);
    assert_eq!(judge(&records, 2).wrong, 3 + 1, "4 came to four devices by streams that must not have it");
    let by_stream = |record: &Record| matches!(record, Record::Event { seen, .. } if *seen == self::seen(group(), 4));
    for record in &mut records {
        if by_stream(record)
            && let Record::Event { device, seen } = *record
        {
            *record = Record::Fetch { device, seen };
        }
    }
    let verdict = judge(&records, 2);
    assert!(verdict.is_clean(), "{:#?}", verdict.findings);
    records.retain(|record| !matches!(record, Record::Fetch { device: 3, .. }));
    assert_eq!(judge(&records, 2).lost, 1);
    // Who subscribes gets live events in any order, beside the inbox.
    let mut records = with_last_marks(clean(), 12);
    records[3] = Record::Device { device: 3, user: CAROL, subscribes: true };
    let (a, b) = (at(&records, event(3, seen(group(), 3))), at(&records, event(3, seen(group(), 4))));
    records.swap(a, b);
    assert_eq!(judge(&records, 2).wrong, 3, "only the three others");
}
