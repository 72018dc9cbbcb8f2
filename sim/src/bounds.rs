//! Oracles of bounds: what waits somewhere is no more than may wait there. Each looks where something is added, so that
//! no moment is missed, and notes which bounds are reached.

use crate::overflows::Overflow;
use crate::world::World;
use gateway_core::mesh::{Fanout, Mesh};
use gateway_core::output::ConnId;
use gateway_core::shard::Shard;
use gateway_core::stats::Stats;
use parley_protocol::link::{Ask, InboxEntry, Reply};
use parley_protocol::{Event, UserId, limits};
use storage_core::store::Group;

/// A frame beside a stream is a receipt or a head: no longer than this, in either encoding.
const BESIDE_FRAME_BYTES: usize = 300;

/// What of a shard's figures is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    dropped: u64,
    truncated: u64,
    waited: u64,
}

impl Counted {
    fn of(stats: &Stats) -> Counted {
        Counted { dropped: stats.entries_dropped_total, truncated: stats.truncated_total, waited: stats.parks_total }
    }
}

/// Who has to be nudged because a message between shards found no room.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    Users(Vec<UserId>),
    Everybody,
}

impl Dropped {
    pub(crate) fn of(message: &Mesh) -> Dropped {
        match message {
            Mesh::Fanout(Fanout::Deliver { targets, .. }) => {
                Dropped::Users(targets.iter().map(|target| target.user_id).collect())
            }
            Mesh::Fanout(Fanout::Nudge(users)) => Dropped::Users(users.clone()),
            Mesh::Fanout(Fanout::NudgeAll) => Dropped::Everybody,
            _ => Dropped::Users(Vec::new()),
        }
    }
}

impl World {
    /// After a turn of a shard: the lobby, and what its figures say.
    pub(crate) fn look_at_queues(&mut self, gateway: u32, shard: u16) {
        let lobby_max = self.plan.gateway_options(1, shard).lobby_connections_max;
        let process = &mut self.gateways[gateway as usize].shards[shard as usize];
        let lobby = process.brain.stats.lobby_connections as usize;
        let now = Counted::of(&process.brain.stats);
        let before = std::mem::replace(&mut process.counted, now);
        let steps = process.brain.nudges_on();
        self.overflows.add_if(now.dropped > before.dropped, Overflow::EntriesDropped);
        self.overflows.add_if(now.truncated > before.truncated, Overflow::Truncated);
        self.overflows.add_if(now.waited > before.waited, Overflow::FrameWaited);
        self.overflows.add_if(steps, Overflow::NudgeSteps);
        self.ensure(lobby <= lobby_max, "queues are bounded", || format!("{lobby} in the lobby"));
    }

    /// After a turn, now and then: what waits beside the streams of a shard; and no socket stands still for nothing.
    pub(crate) fn look_at_sessions(&mut self, gateway: u32, shard: u16) {
        let most = self.plan.gateway_options(1, shard).beside_bytes_max;
        let bytes = self.shard(gateway, shard).beside_most();
        self.overflows.add_if(bytes >= most, Overflow::BesideFull);
        let within = bytes < most + BESIDE_FRAME_BYTES;
        self.ensure(within, "queues are bounded", || format!("{bytes} bytes wait beside a stream"));
        let paused = self.gateways[gateway as usize].shards[shard as usize].conns().find(|conn| {
            let conn = &self.conns[*conn as usize];
            let waits = conn.id.and_then(|id| self.shard(gateway, shard).sent_ahead(id)).is_some();
            conn.paused && conn.closing_at.is_none() && !waits
        });
        self.ensure(paused.is_none(), "clients are served", || format!("connection {paused:?} is not read"));
    }

    /// What a session sent ahead of a frame that waits. One read alone may be more than may come after it.
    pub(crate) fn look_at_ahead(&mut self, gateway: u32, shard: u16, conn: ConnId) {
        let most = self.plan.gateway_options(1, shard).ahead_bytes_max.max(self.plan.read_bytes());
        let bytes = self.shard(gateway, shard).sent_ahead(conn).unwrap_or(0);
        self.ensure(bytes <= most, "queues are bounded", || format!("{bytes} bytes were sent ahead on {conn:?}"));
    }

    /// Something found no room on its way from a shard to another one: whose entries were dropped is owed a nudge (rule 10),
    /// with everybody there if too many are; `before`: whether everybody was.
    pub(crate) fn look_at_owed(&mut self, (gateway, shard): (u32, u16), target: u16, before: bool, dropped: &Dropped) {
        let most = self.plan.gateway_options(1, shard).owed_users_max;
        let brain = self.shard(gateway, shard);
        let (users, everybody) = brain.owed_to(target);
        let forgotten = match dropped {
            Dropped::Users(users) => users.iter().find(|user_id| !brain.owes(target, **user_id)).copied(),
            Dropped::Everybody => (!everybody).then_some(UserId(0)),
        };
        self.overflows.add_if(everybody && !before && *dropped != Dropped::Everybody, Overflow::OwedUsers);
        self.ensure(users <= most, "queues are bounded", || format!("{users} users are owed a nudge one by one"));
        self.ensure(forgotten.is_none(), "what was dropped is owed", || {
            format!("shard {shard} of gateway {gateway} owes {forgotten:?} of shard {target} nothing")
        });
    }

    /// What waits for one device.
    pub(crate) fn look_at_outbox(&mut self, conn: u32) {
        let options = self.plan.gateway_options(1, 0);
        // Above its budget a session takes what was asked for already: pages of its device's requests, and one of its inbox.
        let page = self.plan.page() as usize * (2 * self.plan.payload_bytes as usize + 1_500);
        let slack = (usize::from(options.requests_in_flight_max.min(8)) + 1) * page + 4_000;
        let (most, bytes) = (options.outbox_bytes_max + slack, self.conns[conn as usize].queue.len());
        self.ensure(bytes <= most, "queues are bounded", || format!("{bytes} bytes wait for connection {conn}"));
    }

    /// What waits in a writer.
    pub(crate) fn look_at_parked(&mut self, writer: u32) {
        let (status, links) = (self.writers[writer as usize].core.status(), self.links.len());
        let (options, parked) = (self.plan.writer_options(), status.parked);
        self.overflows.add_if(parked >= options.parked_max, Overflow::WriterParked);
        self.overflows.add_if(status.chats_cached > options.chats_cached_max, Overflow::ChatsCached);
        self.overflows.add_if(status.users_cached > options.users_cached_max, Overflow::UsersCached);
        let most = options.parked_max + links;
        self.ensure(parked <= most, "queues are bounded", || format!("{parked} requests wait in the writer"));
    }

    /// The commands of a group, and its bytes: the last command may go over them, and whichever that was, it is at most the
    /// largest.
    pub(crate) fn look_at_size(&mut self, group: &Group) {
        let commands: usize = group.appends.iter().map(|append| append.commands.len()).sum();
        let bodies = || group.appends.iter().flat_map(|append| &append.events).map(body_bytes);
        let (bytes, largest) = (bodies().sum::<usize>(), bodies().max().unwrap_or(0));
        let options = self.plan.writer_options();
        let (commands_max, bytes_max) = (options.batch_commands_max, options.batch_bytes_max);
        self.overflows.add_if(commands == commands_max, Overflow::BatchCommands);
        self.overflows.add_if(commands < commands_max && bytes >= bytes_max, Overflow::BatchBytes);
        self.ensure(commands <= commands_max, "queues are bounded", || format!("{commands} commands in a group"));
        self.ensure(bytes - largest <= bytes_max, "queues are bounded", || format!("{bytes} bytes in a group"));
    }

    /// The events of a page.
    pub(crate) fn look_at_page(&mut self, ask: &Ask, reply: &Reply) {
        let on_cluster = self.plan.on_cluster();
        let within = |limit: u32, max: u32| if limit == 0 { max as usize } else { limit.min(max) as usize };
        let (events, bytes, overflow): (usize, usize, _) = match (ask, reply) {
            (Ask::Inbox { limit, .. }, Reply::Inbox(page)) => {
                let bodies = page.entries.iter().filter_map(|entry| match entry {
                    InboxEntry::Event(event) => Some(body_bytes(event)),
                    InboxEntry::Own(_) | InboxEntry::Empty => None,
                });
                let asked = u64::from(*limit).min(page.head.saturating_sub(page.after));
                let ended = page.to > page.after && page.to - page.after < asked;
                (bodies.clone().count(), bodies.sum(), ended.then_some(Overflow::PageOfInbox))
            }
            (Ask::History { limit, .. }, Reply::History { events, more }) => {
                let ended = *more && events.len() < within(*limit, limits::HISTORY_PAGE_MAX);
                let bytes = events.iter().map(body_bytes).sum();
                (events.len(), bytes, ended.then_some(Overflow::PageOfHistory))
            }
            (Ask::Chats { limit, .. }, Reply::Chats { chats, more }) => {
                // A reader of a cluster leaves chats out that it knows of too early.
                let ended = *more && !on_cluster && chats.len() < within(*limit, limits::CHATS_PAGE_MAX);
                let bodies = chats.iter().filter_map(|chat| chat.last.as_ref()).map(body_bytes);
                (bodies.clone().count(), bodies.sum(), ended.then_some(Overflow::PageOfChats))
            }
            _ => return,
        };
        overflow.into_iter().for_each(|overflow| self.overflows.add(overflow));
        let most = self.plan.read_options().page_bytes_max;
        self.ensure(events <= 1 || bytes <= most, "queues are bounded", || {
            format!("{bytes} bytes of {events} events in a page: {ask:?}")
        });
    }

    /// An answer to a request that was charged to the session's rate: so many are allowed since the connection was opened.
    pub(crate) fn look_at_rate(&mut self, conn: u32) {
        let options = self.plan.gateway_options(1, 0);
        let now = self.now;
        let state = &mut self.conns[conn as usize];
        state.answers += 1;
        let (answers, open_us) = (state.answers, now - state.opened_at);
        let most = u64::from(options.rate_burst) + u64::from(options.rate_per_s) * open_us / 1_000_000 + 1;
        self.ensure(answers <= most, "sessions keep to their rate", || {
            format!("connection {conn} got {answers} answers in {open_us} us")
        });
    }

    fn shard(&self, gateway: u32, shard: u16) -> &Shard {
        &self.gateways[gateway as usize].shards[shard as usize].brain
    }
}

fn body_bytes(event: &Event) -> usize {
    event.envelope.body.len()
}
