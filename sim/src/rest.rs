//! The end of a run: nothing breaks any more, everybody comes online, everything comes to rest; and the oracles that look
//! at the whole state, then and now and then before.

use crate::device::{Device, HeldChat};
use crate::world::{Phase, World, short};
use crate::writer::WriterProcess;
use parley_protocol::frame::Position;
use parley_protocol::{ChatId, UserId};
use storage_core::store::EntryRow;

impl World {
    pub(crate) fn begin_phase(&mut self) {
        match self.phase {
            Phase::Storm => {}
            Phase::Calm => {
                self.repair();
                self.last_blow();
                for device in 0..self.devices.len() as u32 {
                    let state = &mut self.devices[device as usize];
                    state.offline_until = 0;
                    state.stopped_reading_until = state.stopped_reading_until.min(self.now);
                    self.wake_device(device, self.now);
                }
            }
            Phase::Refresh => {
                for device in 0..self.devices.len() as u32 {
                    // Until it is done, whatever comes between.
                    self.devices[device as usize].refreshing = true;
                    self.devices[device as usize].listing.get_or_insert(None);
                    self.devices[device as usize].read_again = false;
                    self.fill(device);
                }
            }
        }
    }

    /// Every device in use is online, has everything, and waits for nothing.
    pub(crate) fn is_at_rest(&self) -> bool {
        let idle = |writer: &WriterProcess| !writer.alive || writer.tier.as_ref().is_none_or(|tier| tier.is_idle());
        self.devices.iter().all(|device| self.rests(device)) && self.writers.iter().all(idle)
    }

    fn rests(&self, device: &Device) -> bool {
        let user = device.user.unwrap_or(UserId(0));
        let at_head = device.mark == Some(self.truth.inbox_head(user));
        let stored = self.unstored_reads(device).next().is_none() && self.unstored_deliveries(device).is_empty();
        device.retired || (device.is_idle() && at_head && stored)
    }

    /// Chats in which the user has read further than the server shows. What somebody read who was taken out since is not
    /// stored any more.
    fn unstored_reads<'a>(&'a self, device: &'a Device) -> impl Iterator<Item = (ChatId, &'a HeldChat)> {
        let user = device.user.unwrap_or(UserId(0));
        let behind = |chat: &HeldChat| chat.own.map_or(0, |own| own.read_seq) < chat.wants_read;
        let chats = device.chats.iter().filter(move |(_, chat)| behind(chat));
        chats
            .filter(move |(chat_id, chat)| self.truth.keeps_marks(user, **chat_id, chat.wants_read))
            .map(|(chat_id, chat)| (*chat_id, chat))
    }

    /// Once everything is whole every device confirms what it holds, and that is stored.
    pub(crate) fn unstored_deliveries(&self, device: &Device) -> Vec<Position> {
        let (Some(user), Phase::Refresh) = (device.user, self.phase) else { return Vec::new() };
        let stored = |chat_id: &ChatId| {
            let member = self.truth.chats.get(chat_id).and_then(|chat| chat.members.get(&user));
            member.filter(|member| member.present).map(|member| member.marks.delivered_seq)
        };
        // A channel does not keep what was delivered.
        let kept = device.chats.keys().filter(|chat_id| !chat_id.is_channel());
        let held = kept.filter_map(|chat_id| Some((device.confirmable(*chat_id)?, stored(chat_id)?)));
        held.filter(|(position, stored)| *stored < position.seq).map(|(position, _)| position).collect()
    }

    /// For a reader: why it is not at rest.
    pub(crate) fn what_moves(&self) -> String {
        let Some((at, device)) = self.devices.iter().enumerate().find(|(_, device)| !self.rests(device)) else {
            return "no device: a writer has something under way, or nothing at last".to_owned();
        };
        let head = device.user.map(|user| self.truth.inbox_head(user));
        let behind = self.unstored_reads(device).map(|(chat_id, chat)| (short(chat_id), chat.wants_read, chat.own));
        let behind: Vec<_> = behind.collect();
        format!(
            "device {at} of u{}: connected {}, welcome {}, mark {:?} of {head:?}, caught up {}, kept {:?}, pages {:?}, \
             holes {:?}, listing {:?}, refreshing {}, unread marks {behind:?}, unconfirmed {:?}",
            device.name,
            device.conn.is_some(),
            device.welcome,
            device.mark,
            device.caught_up,
            device.kept,
            device.pages,
            device.holes,
            device.listing,
            device.refreshing,
            self.unstored_deliveries(device),
        )
    }

    /// The oracles that walk over everything.
    pub(crate) fn look_at_the_whole(&mut self, at_rest: bool) {
        for writer in self.writers.iter().filter(|writer| writer.alive) {
            writer.core.check_invariants();
            writer.tier.iter().for_each(|tier| tier.check_invariants());
        }
        for gateway in self.gateways.iter().filter(|gateway| gateway.alive) {
            gateway.shards.iter().for_each(|shard| shard.brain.check_invariants());
        }
        if !self.plan.on_cluster() {
            self.look_at_store();
        } else if at_rest {
            self.look_at_cluster();
        }
        if at_rest {
            // First what is lost, then what is shown of it.
            self.look_at_read_marks();
            self.look_at_devices();
        }
    }

    /// What the store has is what the log says.
    fn look_at_store(&mut self) {
        let mut wrong = None;
        for (chat_id, chat) in &self.truth.chats {
            let Some(rows) = self.disk.rows.chats.get(chat_id) else {
                wrong = wrong.or(Some(format!("{} is not in the store", short(*chat_id))));
                continue;
            };
            let dense = rows.events.len() == chat.log.len()
                && rows.events.last_key_value().map_or(0, |last| *last.0) == chat.head();
            if !dense {
                wrong = wrong.or(Some(format!("{}: {} events of {}", short(*chat_id), rows.events.len(), chat.head())));
            }
            for (user, member) in chat.members.iter().filter(|(_, member)| !member.spans.is_empty()) {
                let row = rows.members.get(user);
                let stored = row.map(|row| row.intervals.iter().map(|one| (one.history_from, one.left_seq)).collect());
                if stored.as_ref() != Some(&member.spans) {
                    wrong = wrong.or(Some(format!("{} of {user}: {row:?}, should be {member:?}", short(*chat_id))));
                }
            }
        }
        if let Some(what) = wrong {
            self.fail("the store is what the log says", what);
        }
    }

    /// At rest what somebody has read is stored, whatever its device was told.
    fn look_at_read_marks(&mut self) {
        let mut found = None;
        for device in self.devices.iter().filter(|device| !device.retired) {
            let Some(user) = device.user else { continue };
            for (chat_id, held) in &device.chats {
                let wants = held.wants_read;
                let Some(member) = self.truth.chats.get(chat_id).and_then(|chat| chat.members.get(&user)) else {
                    continue;
                };
                let marks = member.marks;
                if self.truth.keeps_marks(user, *chat_id, wants) && marks.read_seq < wants {
                    let what = format!("{user} has read {wants} of {}, stored is {marks:?}", short(*chat_id));
                    found = found.or(Some(what));
                }
            }
        }
        if let Some(what) = found {
            self.fail("read marks are stored", what);
        }
    }

    /// At rest every device has every event that its user may read, nothing else, and the own state and unread counts
    /// that the log gives.
    fn look_at_devices(&mut self) {
        let mut found: Option<(&str, String)> = None;
        let refreshed = self.phase == Phase::Refresh;
        for (at, device) in self.devices.iter().enumerate().filter(|(_, device)| !device.retired) {
            let Some(user) = device.user else { continue };
            let chats = self.truth.chats_of.get(&user);
            for chat_id in chats.into_iter().flatten() {
                let chat = &self.truth.chats[chat_id];
                let member = &chat.members[&user];
                let held = device.chats.get(chat_id);
                let missing = (1..=chat.head())
                    .filter(|seq| member.may_read(*seq))
                    .find(|seq| held.is_none_or(|held| !held.events.contains_key(seq)));
                // The stream alone makes small chats whole.
                let whole = refreshed || !chat.was_large;
                if let Some(seq) = missing.filter(|_| whole) {
                    let what = format!("device {at} of {user} has no {} {seq} of {}", short(*chat_id), chat.head());
                    found = found.or(Some(("every chat converges on every device", what)));
                }
                let own_row = EntryRow::Own { chat_id: *chat_id };
                let has_own = self.truth.inboxes.get(&user).is_some_and(|inbox| inbox.rows.contains(&own_row));
                let own = held.and_then(|held| held.own);
                let marks = member.marks;
                // A chat list may be older than an own state that came before it: after one, the mute is right only
                // when nothing changes any more before the next.
                let listed = held.is_some_and(|held| held.own_of_list) && !refreshed;
                let same = own.is_some_and(|own| {
                    let muted = own.muted_until_ms == marks.muted_until_ms || listed;
                    let read = (own.read_seq, own.read_ordinal, own.read_sent);
                    muted && read == (marks.read_seq, marks.read_ordinal, marks.read_sent)
                });
                if (has_own || refreshed) && !same {
                    let what = format!("device {at} of {user} has {own:?} of {}, stored is {marks:?}", short(*chat_id));
                    found = found.or(Some(("own state converges on every device", what)));
                }
                let expected = chat.unread(
                    user,
                    marks.read_seq,
                    member.spans.last().and_then(|span| span.1).unwrap_or(chat.head()),
                );
                let derived = held.and_then(|held| held.unread(user));
                if refreshed && derived != Some(expected) {
                    let what = format!(
                        "device {at} of {user} derives {derived:?} of {}, there are {expected}",
                        short(*chat_id)
                    );
                    found = found.or(Some(("unread is right", what)));
                }
            }
        }
        // Every command was answered; what was acknowledged is where it was said to be.
        for ((user, id), asked) in &self.truth.asked {
            let place = self.truth.place(*user, *id, asked.chat_id);
            let sent = asked.sent.map(|(chat_id, _, seq)| (chat_id, seq));
            if sent.is_some() && place != sent {
                let what = format!("{user} was told {sent:?} of {id}, which is at {place:?}");
                found = found.or(Some(("acknowledged is durable", what)));
            }
        }
        if let Some((oracle, what)) = found {
            self.fail(oracle, what);
        }
    }
}
