//! Planted bugs: each is the absence of one rule, so that the simulator can show that it would catch it. Nothing in a
//! release: without the feature `planted` no bug can be planted and every site is a constant `false`.
//!
//! A bug is planted for one thread, as the simulator runs on one: others are not touched.

#[cfg(feature = "planted")]
use std::cell::Cell;

/// Declares the bugs with the rule of the delivery protocol that each breaks (0: a promise beside the rules).
macro_rules! bugs {
    ($($(#[$doc:meta])* $bug:ident = $rule:literal,)*) => {
        /// What can be planted. The text says which rule is absent, what that makes, and who should see it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[$doc])* $bug,)*
        }

        impl Bug {
            /// Every one, in the order of the rules.
            pub const ALL: &'static [Bug] = &[$(Bug::$bug,)*];

            /// The rule of the delivery protocol (1 to 14) that is broken; 0 for a promise beside them.
            pub const fn rule(self) -> u8 {
                match self {
                    $(Bug::$bug => $rule,)*
                }
            }

            /// Its name on a command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Bug::$bug => stringify!($bug),)*
                }
            }

            /// The bug of a name, in whichever case.
            pub fn named(name: &str) -> Option<Bug> {
                Bug::ALL.iter().copied().find(|bug| bug.name().eq_ignore_ascii_case(name))
            }
        }
    };
}

bugs! {
    /// Rule 5: a home loads its chats before `Open` is answered. On one machine the grant alone stops the older gateway,
    /// so that this shows on the link first. Makes: a home that does not know what the older gateway committed
    /// meanwhile: members who are refused, or told what they may not hear. Seen by: a home loads behind its barrier.
    HomeLoadsBeforeOpen = 5,
    /// Rule 5: who is `Fenced` keeps its sessions and goes on. Makes: a stall: its sessions hear nothing any more and
    /// are not told to go elsewhere. Seen by: work drains when faults stop; every device converges.
    FencedLivesOn = 5,
    /// Rule 6: what was asked before a link was cut is not sent again. Makes: a stall: its answers never come. Seen by:
    /// work drains when faults stop.
    NotResent = 6,
    /// Rule 6: after a link was cut, requests are sent again last first. Makes: messages of one sender in the wrong
    /// order in the log. Seen by: the messages of a connection stand in the log in the order in which they were sent.
    ResentOutOfOrder = 6,
    /// Rule 6: after a link was cut, a command is sent again under a new name, so the log takes it for a new one.
    /// Makes: a message twice in the log, once under a name that no client gave. Seen by: every event of the log was
    /// sent, exactly once.
    ResentChanged = 6,
    /// Rule 6: when a link is cut, unanswered commands are told to have been refused. Makes: a refused message in the
    /// log; a client that never sends it again when it is not. Seen by: a refused command is never in the log.
    OutcomeGuessed = 6,
    /// Rule 6: the same, of commands that make or change a group only. Makes: a refused change in the log. Seen by: a
    /// refused command is never in the log.
    ChangeGuessed = 6,
    /// Rule 6: after a link was cut, a request is sent again without what says that it is one. Makes: a record that the
    /// writer cannot read. Seen by: what a gateway says is understood.
    ResentBare = 6,
    /// Rule 7: events are not sent to the last shard. Makes: entries that arrive with the sweep only. Seen by: a device
    /// gets what is in its inbox without a fault in the way, before the sweep.
    FanOutSkipsAShard = 7,
    /// Rule 8: a session takes the first live item for the start of its stream (so did a user home that filtered by
    /// position). Makes: everything between the mark and that item is lost. Seen by: a device's stream is its user's
    /// inbox, without a hole.
    StartsAtFirstLive = 8,
    /// Rule 8: a session starts at the inbox head instead of the mark that its device presents. Makes: everything
    /// between is lost. Seen by: a device's stream is its user's inbox, without a hole.
    StartsAtTheHead = 8,
    /// Rule 8: a session sends what is ahead of a hole at once, and its position is there. Makes: what was in the hole
    /// is lost. Seen by: a device's stream is its user's inbox, without a hole.
    HoleNotWaited = 8,
    /// Rule 8: an item at or below the position is sent again. Makes: a double, after what the mark covers. Seen by: a
    /// device's stream is its user's inbox, without a double.
    StaleNotDropped = 8,
    /// Rule 8: the time of a hole never ends. Makes: a stall of the stream until the next nudge or the sweep. Seen by:
    /// work drains when faults stop, before the sweep.
    HoleNeverRead = 8,
    /// Rule 9: an item that finds the held set full counts as sent, instead of as dropped. Makes: it is lost, with the
    /// hole before it. Seen by: a device's stream is its user's inbox, without a hole.
    FullSetSkips = 9,
    /// Rule 10: fan-out that finds no room on the mesh is dropped without a nudge. Makes: a last item that arrives with
    /// the sweep only. Seen by: work drains when faults stop, before the sweep.
    OverflowUntold = 10,
    /// Rule 10: users that are owed a nudge, more than are remembered one by one, are forgotten, and not everybody is nudged
    /// for them. Makes: a last item that arrives with the sweep only. Seen by: what was dropped is owed; work drains when
    /// faults stop, before the sweep.
    OwedForgotten = 10,
    /// Rule 10: a link that comes back nudges nobody. Makes: a last item whose answer was lost arrives with the sweep
    /// only. Seen by: work drains when faults stop, before the sweep.
    RelinkUntold = 10,
    /// Rule 10: a `Duplicate` answer to a command that was sent again nudges nobody, and the home is not loaded again.
    /// Makes: a last item that arrives with the sweep only; a home that does not know its members. Seen by: work drains
    /// when faults stop, before the sweep.
    DuplicateUntold = 10,
    /// Rule 10: after an attach the position is not compared with the head. Makes: a device that gets what it missed
    /// with the next item or the sweep only; a new one, nothing. Seen by: work drains when faults stop, before the
    /// sweep.
    AttachUnread = 10,
    /// Rule 10: the slow comparison with the head does nothing. Masked while every other nudge works. Makes: nothing,
    /// alone. Seen by: nobody, alone.
    SweepOff = 10,
    /// Rule 10: nothing of the above happens, except the read after an attach. Makes: a last item never arrives. Seen
    /// by: every chat converges on every device; marks reach the heads.
    NoNudgeAtAll = 10,
    /// Rule 11: a page is taken even if it does not begin at the position. Makes: a position that falls back, and
    /// doubles. Seen by: a device's stream is its user's inbox, without a double.
    PageTakenAnywhere = 11,
    /// Rule 11: a page moves the position to the head instead of its own end. Makes: entries that are lost, under a
    /// mark that covers them. Seen by: a device's stream is its user's inbox, without a hole.
    PageMovesToTheHead = 11,
    /// Rule 11: a page moves the position one short of its end. Makes: doubles, for ever. Seen by: a device's stream is
    /// its user's inbox, without a double; work drains.
    PageMovesTooLittle = 11,
    /// Rule 12: a mark is of the newest item that the home saw, not of what was put into the stream. Makes: what is
    /// between is lost when the device comes back with that mark. Seen by: a mark is never ahead of its stream; no hole
    /// across reconnects.
    MarkAhead = 12,
    /// Rule 12: a device that comes back starts where its old connection was, not at the mark that it presents. Makes:
    /// what was on its way to a dead connection is lost. Seen by: a device's stream is its user's inbox, without a
    /// hole, across reconnects.
    RemembersMarks = 12,
    /// Rule 12: a mark names the next number as the head, not the newest entry. Makes: devices that never know that they
    /// have caught up. Seen by: marks are below the head.
    HeadIsNextNumber = 12,
    /// Rule 12: no mark is ever sent. Makes: devices that are told everything again at each connect; marks that never
    /// reach the heads. Seen by: marks reach the heads when work has drained.
    NoMarks = 12,
    /// Rule 13: an entry that finds the outbox over its budget is dropped, and the position moves on. Makes: it is
    /// lost. Seen by: a device's stream is its user's inbox, without a hole.
    OverBudgetSkips = 13,
    /// Rule 13: an entry that finds the outbox over its budget is dropped, and the session is not behind. Makes: a last
    /// item that arrives with the sweep only. Seen by: work drains when faults stop, before the sweep.
    OverBudgetNotBehind = 13,
    /// Rule 13: a session that was behind does not read on when there is room again. Makes: a stall of the stream until
    /// the sweep. Seen by: work drains when faults stop, before the sweep.
    SlowNeverResumed = 13,
    /// Rule 14: the mark after a truncation is taken again when the chats were read, so the inbox head is read last.
    /// Makes: what became durable between is lost. Seen by: a device's stream is its user's inbox from the mark of a
    /// truncation on.
    InboxHeadReadLast = 14,
    /// Rule 14: a backlog above `sync_backlog_max`, or a mark above the head, moves the position and does not say so.
    /// Makes: the backlog is lost. Seen by: a device's stream is its user's inbox, without a hole.
    TruncationUntold = 14,
    /// Rule 14: a device that presents no mark is not told where its stream begins. Makes: a device that does not know
    /// that there is something before, and never asks. Seen by: a stream begins with its mark.
    FreshUntold = 14,
    /// Rule 14: a session that has any backlog when it attaches is truncated, not only above `sync_backlog_max`. Makes:
    /// devices that start over whenever they come back. Seen by: nobody is truncated without need.
    TruncatesNeedlessly = 14,
    /// Beside the rules: a home does not ask whether who subscribes, or marks, is a member. Makes: live events of a
    /// large chat to a stranger. Seen by: nobody receives what they may not.
    StrangersSubscribe = 0,
    /// Beside the rules: a removal does not end the subscriptions of who was removed. Makes: live events of a large
    /// chat to a former member. Seen by: nobody receives what they may not.
    RemovedStaySubscribed = 0,
    /// Beside the rules: who leaves a channel keeps its subscription. Makes: live events of a channel to a former member.
    /// Seen by: nobody receives what they may not.
    LeaversStaySubscribed = 0,
    /// Beside the rules: who subscribes to a channel is not asked about. Makes: live events of a channel to a stranger.
    /// Seen by: nobody receives what they may not.
    SeatsUnasked = 0,
    /// Beside the rules: receipts go to former members as well. Makes: marks of a chat told to who is no member any more.
    /// Seen by: receipts to who may not have them.
    ReceiptsToFormerMembers = 0,
    /// Beside the rules: own states of the stream say that no chat is muted. Makes: a device that rings. Seen by: own
    /// state converges on every device.
    MuteUntold = 0,
    /// Beside the rules: a home answers every read mark as above the head. Makes: a read mark that never reaches the
    /// log. Seen by: work drains when faults stop.
    ReadMarksRefused = 0,
    /// Beside the rules: a home refuses every change of a group. Makes: an owner who may not do what an owner does.
    /// Seen by: clients are served.
    GroupChangesRefused = 0,
    /// Beside the rules: each live event of a large chat is sent twice to its subscribers. Makes: doubles beside the
    /// stream. Seen by: a subscriber gets a live event once.
    LiveTwice = 0,
    /// Beside the rules: a frame for many is encoded once, for its first receiver, and everybody gets that. Makes: frames
    /// in an encoding that was not asked for. Seen by: what a client gets, it understands.
    EncodingShared = 0,
    /// Beside the rules: items ahead of a hole are held above `held_items_max`. Makes: memory without a bound. Seen by:
    /// queues are within their bounds: items held by a session.
    HeldUnbounded = 0,
    /// Beside the rules: live entries and pages are queued for a client that takes nothing, above the budget. Makes:
    /// memory without a bound. Seen by: queues are within their bounds: bytes queued for a connection.
    OutboxUnbounded = 0,
    /// Beside the rules: what a session sends ahead while its frame waits is kept above `ahead_bytes_max`. Makes: memory
    /// without a bound. Seen by: queues are within their bounds: bytes sent ahead.
    AheadUnbounded = 0,
    /// Beside the rules: what a session sends ahead above `ahead_bytes_max` is dropped, and the connection goes on. Makes:
    /// frames that are lost, or begin in the middle. Seen by: clients are served; work drains when faults stop.
    AheadForgotten = 0,
    /// Beside the rules: a socket that was not read while a frame waited is not read again. Makes: a stall of a client's
    /// requests. Seen by: work drains when faults stop.
    PauseNotLifted = 0,
    /// Beside the rules: frames beside a stream wait for one to travel with, above `beside_bytes_max`. Makes: memory
    /// without a bound. Seen by: queues are within their bounds: frames beside a stream.
    BesideUnbounded = 0,
    /// Beside the rules: no session is ever too fast. Makes: one client that takes the room of all. Seen by: sessions keep to
    /// their rate.
    RateIgnored = 0,
    /// Beside the rules: users to nudge are remembered one by one above `owed_users_max`. Makes: memory without a bound.
    /// Seen by: queues are within their bounds: users that are owed a nudge.
    OwedUnbounded = 0,
    /// Beside the rules: requests are sent to a shard without a credit. Makes: a request queue that is full. Seen by:
    /// queues are within their bounds: requests between two shards.
    CreditsUnbounded = 0,
    /// Beside the rules: requests are sent on the link beyond its window. Makes: a writer that gets more than it
    /// reckoned with. Seen by: queues are within their bounds: requests without an answer on a link.
    WindowIgnored = 0,
    /// Beside the rules: an answer of another shard does not give its credit back. Makes: a stall: sessions wait for
    /// credits that never come. Seen by: work drains when faults stop.
    CreditNotReturned = 0,
    /// Beside the rules: a frame that waits for answers, or for room in the outbox, waits for ever. Makes: a stall of a
    /// client's requests. Seen by: work drains when faults stop.
    ParkedNeverResumed = 0,
    /// Beside the rules: a read of an inbox that is answered still counts as under way. Makes: a stall: no inbox is
    /// read any more. Seen by: work drains when faults stop.
    ReadSlotLeaked = 0,
    /// Beside the rules: marks that came while others were on their way wait for a timer that is not armed. Makes: a
    /// read mark that never reaches the log. Seen by: read marks reach the log when work has drained.
    ReceiptsNotRearmed = 0,
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Plants a bug in everything that this thread runs from now on, or takes it out.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether the bug is planted in this thread.
#[cfg(feature = "planted")]
pub(crate) fn has(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether the bug is planted: never, without the feature.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub(crate) const fn has(_: Bug) -> bool {
    false
}

/// Whether a nudge is left out: this one, or every one.
#[inline(always)]
pub(crate) fn no_nudge(bug: Bug) -> bool {
    has(bug) || has(Bug::NoNudgeAtAll)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_is_found_by_its_name() {
        for bug in Bug::ALL {
            assert_eq!(Bug::named(&bug.name().to_lowercase()), Some(*bug));
            assert!(bug.rule() <= 14);
        }
        assert_eq!(Bug::named("none"), None);
    }

    #[cfg(feature = "planted")]
    #[test]
    fn a_bug_is_planted_until_it_is_taken_out() {
        let bug = Bug::ALL[0];
        plant(Some(bug));
        assert!(has(bug) && !has(Bug::ALL[1]));
        plant(None);
        assert!(!has(bug));
    }
}
