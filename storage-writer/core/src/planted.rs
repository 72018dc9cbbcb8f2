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

            /// The rule of the delivery protocol (1 to 17) that is broken; 0 for a promise beside them.
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
    /// Rule 1: `Durable` is answered when a command is numbered, before the store took its group. Makes: an
    /// acknowledged event is lost when the group fails or the writer dies. Seen by: every `Sent` event is in the log
    /// exactly once.
    AnswersBeforeCommit = 1,
    /// Rule 1: when a group fails, what was numbered on top of it is answered as if it were durable. Makes:
    /// acknowledged events are lost. Seen by: every `Sent` event is in the log exactly once.
    FallTakesNotAll = 1,
    /// Rule 1: when a group fails, the inbox heads that were numbered in it stay in memory. Makes: inbox numbers with a
    /// hole, whose readers never get over it. Seen by: inboxes are dense; every device converges.
    FallenInboxesKept = 1,
    /// Rule 1: when a group fails, the chats that were numbered in it stay in memory. Makes: a log with a hole; members
    /// who were never added. Seen by: `seq` is dense.
    FallenChatsKept = 1,
    /// Rule 1: who was removed in a group that is not durable yet may still send: judged by the state before the batch.
    /// Makes: an event in the log by someone who was no member at that `seq`. Seen by: the log, replayed, allows each
    /// of its events.
    RemovedMaySend = 1,
    /// Rule 1: membership is not asked of the log at all: every former member may send. Makes: an event in the log by
    /// someone who was no member at that `seq`. Seen by: the log, replayed, allows each of its events.
    FormerMembersMaySend = 1,
    /// Rule 1: roles are not asked of the log: whoever is a member is judged as the owner, except when leaving. Makes: an
    /// event in the log that its sender's role does not allow. Seen by: the log, replayed, allows each of its events.
    RolesIgnored = 1,
    /// Rule 2: a command is looked up in memory only, among those in flight, not in the store. Makes: a retry after the
    /// commit is done again. Seen by: every `Sent` event is in the log exactly once.
    LooksUpOnlyInFlight = 2,
    /// Rule 2: a command is looked up among the durable ones only, not among those in flight. Makes: a retry during the
    /// commit is done again. Seen by: every `Sent` event is in the log exactly once.
    LooksUpOnlyDurable = 2,
    /// Rule 2: a duplicate of a command in flight is answered at once, not when that one is durable. Makes: an
    /// acknowledged event is lost when the group fails or the writer dies. Seen by: every `Sent` event is in the log
    /// exactly once.
    DuplicateAnsweredAtOnce = 2,
    /// Rule 2: the treacherous store loses the names of commands when the process dies. Makes: a retry after a crash is
    /// done again. Seen by: every `Sent` event is in the log exactly once.
    DedupeForgottenInCrash = 2,
    /// Rule 2: a retry is answered with what is newest in its chat, not with what the command became. Makes: a message
    /// that its sender takes for another one. Seen by: a command has one answer.
    RetryToldTheNewest = 2,
    /// Rule 2: whether the sender is a member is asked before the command is looked up. Makes: who was removed meanwhile
    /// is told that what was done never will be. Seen by: a retry gets the first answer.
    RetryJudgedFirst = 2,
    /// Rule 2: on a cluster, the names of a chat that were read once are taken for all, and what is submitted later is not
    /// added. Makes: a command that is sent again is done again. Seen by: every `Sent` event is in the log exactly once.
    KnownNamesMissed = 2,
    /// Rule 3: targets are the members before the event. Makes: who joins has no entry of it; so the device never
    /// learns of the chat. Seen by: the inbox holds what the log, replayed, gives its user.
    TargetsBeforeEvent = 3,
    /// Rule 3: targets are the members of the durable state, before the batch. Makes: what follows a join in the same
    /// batch is missing in the joiner's inbox; the first message of a direct chat in both. Seen by: the inbox holds
    /// what the log, replayed, gives its user; every chat converges.
    TargetsBeforeBatch = 3,
    /// Rule 3: a removed member, or who leaves, gets no entry of it. Makes: a device that shows a chat for ever that it
    /// is no member of. Seen by: the inbox holds what the log, replayed, gives its user; every chat converges.
    LeaverUntold = 3,
    /// Rule 3: who joins a chat above the inbox limit gets no entry of it. Makes: a device that never learns of the
    /// chat. Seen by: the inbox holds what the log, replayed, gives its user; every chat converges.
    JoinerUntoldInLargeChats = 3,
    /// Rule 3: the event that makes a chat large leaves no entries. Makes: members who miss it and do not know that no
    /// entries follow. Seen by: the inbox holds what the log, replayed, gives its user.
    CrossingUpUntold = 3,
    /// Rule 3: the event that makes a large chat small again leaves no entries. Makes: members who miss it. Seen by:
    /// the inbox holds what the log, replayed, gives its user.
    CrossingDownUntold = 3,
    /// Rule 3: size against the inbox limit is judged before the event. Makes: a crossing without entries, and a home
    /// that takes the chat for what it was. Seen by: the inbox holds what the log, replayed, gives its user.
    SizeBeforeEvent = 3,
    /// Rule 4: an entry of a chat and `seq` that the inbox has already is added again: here one writer numbers inboxes
    /// in memory, so the guard is that an event names each target once; who joins is named twice. Makes: a double in
    /// the inbox and the stream. Seen by: no (chat, seq) twice in an inbox.
    EntryTwice = 4,
    /// Rule 4: the head of an inbox is not of one read with its entries: when a user is loaded, it is one behind.
    /// Makes: the newest entry is overwritten, so lost to whoever had not read it. Seen by: an inbox never changes
    /// below its head; the inbox holds what the log, replayed, gives its user.
    InboxHeadTooLow = 4,
    /// Rule 5: lower epochs are not refused after a grant or an `Open`, and links of older gateways stay open. Makes:
    /// two gateways commit to one partition, and the newer one's homes do not hear of it. Seen by: no partition is
    /// committed under two epochs at once.
    OlderEpochsTaken = 5,
    /// Rule 5: a grant alone refuses nothing, only `Open` does, as in a cluster. Makes: the older gateway lives on beside
    /// the newer one, and its sessions hear nothing of what is committed for that one. Seen by: everything comes to rest.
    GrantIsNoBarrier = 5,
    /// Rule 5: a request that waited is not asked again for its epoch when its turn comes. Makes: what an older gateway
    /// asked for is numbered behind a grant or an `Open`, and the newer one's homes do not hear of it. Seen by: no
    /// partition is committed under two epochs at once.
    DeadEpochsJudged = 5,
    /// Rule 5: `Open` and the load behind it are answered while older appends are in flight. Makes: a home with members
    /// and a head that fall with a failed group. Seen by: receipts to who may not have them; `Opened` with commits of a
    /// lower epoch in flight.
    OpenAnsweredEarly = 5,
    /// Rule 6: an unknown outcome of a commit is guessed to be a good one. Makes: an acknowledged event is lost if the
    /// process dies before the group is on the disk. Seen by: every `Sent` event is in the log exactly once.
    UnknownTakenAsDurable = 6,
    /// Rule 6: an unknown outcome of a commit is guessed to be a failure. Makes: numbers are given twice: what is
    /// numbered next is never applied, or what was refused is in the log. Seen by: every `Sent` event is in the log
    /// exactly once.
    UnknownTakenAsFailed = 6,
    /// Rule 7: a durable answer carries inbox numbers that are one too high. Makes: a stream that sends an entry twice
    /// and then drops the next. Seen by: a device's stream is its user's inbox.
    TargetsOffByOne = 7,
    /// Rule 7: a durable answer leaves out its last target. Makes: an entry that arrives with the next one, or the
    /// sweep. Seen by: a device gets what is in its inbox without a fault in the way, before the sweep.
    TargetMissing = 7,
    /// Rule 11: a page of an inbox says that it reaches to the head when it ends before. Makes: entries that are lost,
    /// under a mark that covers them. Seen by: a device's stream is its user's inbox, without a hole.
    PageMovesTooFar = 11,
    /// Rule 11: a superseded own state is left out of a page, and the range is what is left. Makes: numbers with holes:
    /// the page's end is read again, so doubles. Seen by: a device's stream is its user's inbox, without a double.
    SupersededOmitted = 11,
    /// Rule 14: chats that the user has left are not in the list of chats. Makes: a device that was truncated keeps a
    /// chat for ever that it is no member of. Seen by: every chat converges on every device.
    LeftChatsOmitted = 14,
    /// Rule 14: history inside an interval is refused to who has left. Makes: a device that cannot make its chat whole
    /// up to the removal. Seen by: every chat converges on every device.
    FormerMembersRefused = 14,
    /// Rule 14: history inside an interval ends before the removal. Makes: a hole inside an interval that nothing
    /// fills. Seen by: every chat converges on every device.
    RemovalNotServed = 14,
    /// Rule 14: history outside the intervals of a membership is served. Makes: content that the user may not have.
    /// Seen by: nobody receives what they may not.
    HistoryOutsideIntervals = 14,
    /// Rule 15: a reader of a cluster does not ask what is in flight, and shows what it finds. Makes: events and entries
    /// that a takeover numbers differently, or that nobody acknowledged. Seen by: a device's stream is its user's inbox.
    ReaderPastHead = 15,
    /// Rule 15: on a cluster, an inbox entry does not wait for its event. Makes: an entry of an event that is not there,
    /// and after a takeover of another one. Seen by: the inbox holds what the log, replayed, gives its user.
    InboxBeforeEvent = 15,
    /// Rule 15: whoever takes a cluster over reads the records and derives nothing again. Makes: events without their
    /// entries, and ghosts that nothing stands before. Seen by: the inbox holds what the log, replayed, gives its user.
    NoRederivation = 15,
    /// Rule 17: an engine over a cluster takes rows of a dead epoch above the head for true. Makes: numbers that follow
    /// from what never was. Seen by: `seq` is dense; inboxes are dense.
    GhostsLoaded = 17,
    /// Rule 16: a writer of a cluster goes on when its lease is over. Makes: writes and answers beside the next writer's.
    /// Seen by: every `Sent` event is in the log exactly once.
    ZombieWrites = 16,
    /// Rule 16: the lease of a cluster is taken at the first sight, and not waited out. Makes: two writers at once. Seen by:
    /// one writer acts at a time.
    LeaseNotWaitedOut = 16,
    /// Beside the rules: own messages are counted as unread. Makes: a wrong badge. Seen by: unread equals the model's.
    OwnMessagesUnread = 0,
    /// Beside the rules: a delivered mark is taken as a read mark of 0. Makes: a read mark that falls. Seen by:
    /// delivered and read marks never fall.
    ReadMarkFalls = 0,
    /// Beside the rules: a delivered mark is what came last, not the highest. Makes: a delivered mark that falls, as
    /// receipts show it. Seen by: delivered and read marks never fall.
    DeliveredMarkFalls = 0,
    /// Beside the rules: a delivered mark that comes without a read mark is not stored. Makes: receipts that never come
    /// to who sent. Seen by: delivered marks reach the log when work has drained.
    DeliveredNotStored = 0,
    /// Beside the rules: a mark above the head is taken. Makes: somebody who has what nobody wrote yet. Seen by: marks are
    /// of events that are there.
    MarksAboveTheHead = 0,
    /// Beside the rules: a list of chats says that everything was read. Makes: a device whose read mark was lost, and
    /// that does not say it again. Seen by: read marks reach the log when work has drained.
    ListReadsAll = 0,
    /// Beside the rules: who was removed, or left, stays in the store as a member. Makes: one who comes back when the
    /// chat is loaded again. Seen by: what the store has of a chat is what its log says.
    PartsNotStored = 0,
    /// Beside the rules: an identity that is stored is not found again. Makes: a new user at each login. Seen by: a
    /// person is one user.
    IdentitiesForgotten = 0,
    /// Beside the rules: a read does not tell until when a chat is muted. Makes: a device that was away rings. Seen by:
    /// the own state of every device equals the log's.
    MuteForgotten = 0,
    /// Beside the rules: a list of members names former members too. Makes: members who are none. Seen by: a list of
    /// members equals the model's.
    FormerMembersListed = 0,
    /// Beside the rules: a list of chats gives groups a title that nobody gave them. Makes: a wrong title. Seen by: the
    /// title of every chat on every device equals the model's.
    TitleWrong = 0,
    /// Beside the rules: every third good message is refused, as if its sender were no member. Makes: a message that
    /// its sender gives up. Seen by: what the log, replayed, allows is not refused.
    WrongRefusals = 0,
    /// Beside the rules: who comes into a channel writes the row of another member as well. Makes: a membership that
    /// begins again, without what came before. Seen by: the store is what the log says.
    JoinRewritesAnother = 0,
    /// Beside the rules: every fifth `seq` is left out. Makes: a hole that history never fills. Seen by: `seq` is
    /// dense.
    SeqWithHole = 0,
    /// Beside the rules: changes of a group count as messages. Makes: ordinals, and so unread counts, that are too
    /// high. Seen by: `ordinal` counts messages only; unread equals the model's.
    OrdinalCountsAll = 0,
    /// Beside the rules: changes of a group count as what their author sent. Makes: unread counts that are too low. Seen
    /// by: what a member sent is counted.
    SentCountsChanges = 0,
    /// Beside the rules: a message's id is of the clock, whatever was given before. Makes: ids that fall after the
    /// clock stepped back. Seen by: `message_id` rises within a chat and in commit order.
    IdsFollowTheClock = 0,
    /// Beside the rules: more requests wait than `parked_max`. Makes: memory without a bound. Seen by: queues are
    /// within their bounds.
    ParkedUnbounded = 0,
    /// Beside the rules: a group takes more than `batch_commands_max` and `batch_bytes_max`. Makes: a group without a
    /// bound. Seen by: queues are within their bounds.
    BatchUnbounded = 0,
    /// Beside the rules: a group takes more than `batch_bytes_max`. Makes: a group without a bound. Seen by: queues are within
    /// their bounds.
    BatchBytesIgnored = 0,
    /// Beside the rules: a page takes events above `page_bytes_max`. Makes: records without a bound. Seen by: queues are
    /// within their bounds: bytes of a page.
    PageUnbounded = 0,
    /// Rule 14: a page of history, or of chats, that ends at its bytes says that it is the last. Makes: a hole that nothing
    /// fills, chats that nobody lists. Seen by: every chat converges on every device.
    PageCutUntold = 14,
    /// Beside the rules: the store takes groups of a writer that was replaced. Makes: two writers number the same log:
    /// acknowledged events are overwritten or dropped. Seen by: every `Sent` event is in the log exactly once; no
    /// partition is committed under two epochs at once.
    WriterNotFenced = 0,
    /// Beside the rules: the treacherous store says that a group is durable before it is on the disk. Makes:
    /// acknowledged events are lost in a crash. Seen by: every `Sent` event is in the log exactly once.
    DurableWithoutSync = 0,
    /// Beside the rules: a group whose outcome is not known is never repeated: its timer does nothing. Makes: a stall:
    /// answers never come. Seen by: work drains when faults stop.
    UnknownNotRepeated = 0,
    /// Beside the rules: after a failed commit the store is never tried again. Makes: a stall: no command is ever
    /// taken. Seen by: work drains when faults stop.
    NoProbeAfterFailure = 0,
    /// Beside the rules: requests that waited for room in a group, or for an id, are never run again. Makes: a stall:
    /// their chats stand still. Seen by: work drains when faults stop.
    StalledForgotten = 0,
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

/// Whether the bug is planted in this thread. Public for engines outside this crate, which have rules to break too.
#[cfg(feature = "planted")]
pub fn has(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether the bug is planted: never, without the feature.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn has(_: Bug) -> bool {
    false
}

/// Whether any bug is planted: then the model does not check what it is given, because the simulator's own oracles must
/// see what comes of it.
#[cfg(feature = "planted")]
pub(crate) fn any() -> bool {
    PLANTED.get().is_some()
}

/// Whether any bug is planted: never, without the feature.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub(crate) const fn any() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_is_found_by_its_name() {
        for bug in Bug::ALL {
            assert_eq!(Bug::named(&bug.name().to_lowercase()), Some(*bug));
            assert!(bug.rule() <= 17);
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
