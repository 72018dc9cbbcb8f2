//! What people do: a mix of everything that a client can ask for, sensible and not.

use crate::device::{Device, KEPT_MAX, Kept, Page};
use crate::plan::{Action, Fault};
use crate::trace::digest;
use crate::truth::Asked;
use crate::world::{Event, World};
use parley_protocol::frame::{self, Change, ClientFrame};
use parley_protocol::wire::Encoding;
use parley_protocol::{Body, ChatId, ClientMsgId, MessageBody, Posting, Role, UserId};

/// Devices of one user at a time.
const DEVICES_MAX: usize = 4;

impl World {
    /// One device for everybody, and a few more.
    pub(crate) fn first_devices(&mut self) {
        for name in 0..self.plan.users as usize {
            let devices = 1 + self.people.below(3).saturating_sub(1);
            for _ in 0..devices {
                // Some know that they are new, some ask for the whole inbox.
                let mark = if self.people.chance(700) { Some(0) } else { None };
                self.new_device(name, mark);
            }
        }
    }

    fn new_device(&mut self, name: usize, mark: Option<u64>) {
        let device = self.devices.len() as u32;
        let encoding = if self.people.chance(250) { Encoding::Json } else { Encoding::Rkyv };
        self.devices.push(Device::new(u128::from(device) + 1, name, mark, encoding));
        let spread = u64::from(self.plan.users) * 300 + 2_000;
        let at = self.now + self.people.below(spread);
        self.wake_device(device, at);
    }

    /// Somebody does something.
    pub(crate) fn act(&mut self) -> bool {
        if !self.in_storm() {
            return false;
        }
        let next = self.now + 1 + self.people.around(self.plan.action_interval_us);
        self.at(next, Event::Act);
        let Some(action) = self.people.weighted(&self.plan.actions).map(|at| Action::ALL[at]) else { return true };
        let device = self.people.below(self.devices.len() as u64) as u32;
        if self.devices[device as usize].retired {
            return true;
        }
        match action {
            Action::Connect => self.devices[device as usize].offline_until = 0,
            Action::Disconnect => self.go_offline(device, true),
            Action::HalfOpen => self.go_offline(device, false),
            Action::DeviceCrash => {
                self.go_offline(device, false);
                self.devices[device as usize].crash();
            }
            Action::NewDevice => self.another_device(device),
            _ if self.devices[device as usize].welcome => self.act_online(device, action),
            _ => {}
        }
        if self.devices[device as usize].conn.is_none() {
            let at = self.devices[device as usize].offline_until;
            self.wake_device(device, at);
        }
        true
    }

    fn go_offline(&mut self, device: u32, says_so: bool) {
        self.leave(device, says_so);
        let long = self.people.around(400_000);
        self.devices[device as usize].offline_until = self.now + long;
    }

    fn another_device(&mut self, device: u32) {
        let name = self.devices[device as usize].name;
        let devices: Vec<usize> =
            (0..self.devices.len()).filter(|at| self.devices[*at].name == name && !self.devices[*at].retired).collect();
        if devices.len() >= DEVICES_MAX {
            // The oldest is thrown away, with what it had not sent.
            let oldest = devices[0] as u32;
            self.leave(oldest, true);
            self.devices[oldest as usize].retired = true;
        }
        let mark = if self.people.chance(300) { Some(0) } else { None };
        self.new_device(name, mark);
    }

    fn act_online(&mut self, device: u32, action: Action) {
        match action {
            Action::SendDirect => {
                if let Some(chat_id) = self.direct_chat(device) {
                    self.send_message(device, chat_id);
                }
            }
            Action::SendGroup => {
                if let Some(chat_id) = self.own_chat(device) {
                    self.send_message(device, chat_id);
                }
            }
            Action::Retry => {
                let frame = self.devices[device as usize].kept.front().map(|kept| kept.frame.clone());
                frame.into_iter().for_each(|frame| self.say(device, frame));
            }
            Action::Create => {
                let most = self.plan.group_members_max() as u64;
                let members = self.some_users(most);
                let title = if self.people.chance(500) { "a title".to_owned() } else { String::new() };
                self.command(device, None, None, |id| {
                    ClientFrame::GroupCreate(frame::GroupCreate { client_msg_id: id, title, members })
                });
            }
            Action::CreateChannel => {
                let posting = if self.people.chance(700) { Posting::Everybody } else { Posting::Admins };
                let title = if self.people.chance(500) { "news".to_owned() } else { String::new() };
                self.command(device, None, None, |client_msg_id| {
                    ClientFrame::ChannelCreate(frame::ChannelCreate { client_msg_id, title, posting })
                });
            }
            Action::Join => self.join(device),
            Action::Add | Action::Remove | Action::GiveRole | Action::Rename | Action::Leave => {
                self.change_group(device, action);
            }
            Action::Delivered | Action::Read => self.confirm(device, action == Action::Read),
            Action::Mute => {
                if let Some(chat_id) = self.own_chat(device) {
                    let until_ms = self.people.below(3) * 1_900_000_000_000;
                    self.say(device, ClientFrame::Mute(frame::Mute { chat_id, until_ms }));
                }
            }
            Action::History => {
                if let Some(chat_id) = self.own_chat(device) {
                    self.look(device, chat_id);
                }
            }
            Action::Chats => {
                self.devices[device as usize].listing.get_or_insert(None);
                self.fill(device);
            }
            Action::Members => {
                if let Some(chat_id) = self.own_chat(device) {
                    let request_id = self.devices[device as usize].request_id(Page::Look(chat_id));
                    let limit = self.plan.page();
                    self.say(device, ClientFrame::Members(frame::Members { request_id, chat_id, after: None, limit }));
                }
            }
            Action::Subscribe | Action::Unsubscribe => self.subscribe(device, action == Action::Subscribe),
            Action::Ping => self.say(device, ClientFrame::Ping(frame::Ping { nonce: 7 })),
            Action::Trespass => self.trespass(device),
            _ => {}
        }
    }

    fn some_user(&mut self) -> Option<UserId> {
        let at = self.people.below(self.users.len() as u64) as usize;
        self.users[at]
    }

    fn some_users(&mut self, most: u64) -> Vec<UserId> {
        let count = 1 + self.people.below(most);
        (0..count).filter_map(|_| self.some_user()).collect()
    }

    fn direct_chat(&mut self, device: u32) -> Option<ChatId> {
        let user = self.devices[device as usize].user?;
        let other = self.some_user()?;
        ChatId::direct(user, other)
    }

    /// A chat that the user is or was in; a group, if there is one.
    fn own_chat(&mut self, device: u32) -> Option<ChatId> {
        let user = self.devices[device as usize].user?;
        let chats = self.truth.chats_of.get(&user)?;
        let at = self.people.below(chats.len() as u64) as usize;
        // Mostly the newest ones, so that something happens in them.
        let at = if self.people.chance(500) { at } else { chats.len() - 1 - at.min(chats.len() - 1) / 4 };
        chats.iter().nth(at).copied()
    }

    /// A command under a new name, kept until it is answered.
    fn command(
        &mut self,
        device: u32,
        chat_id: Option<ChatId>,
        digest: Option<u64>,
        make: impl FnOnce(ClientMsgId) -> ClientFrame,
    ) {
        let Some(user) = self.devices[device as usize].user else { return };
        if self.devices[device as usize].kept.len() >= KEPT_MAX {
            return;
        }
        let client_msg_id = ClientMsgId(self.next_msg);
        self.next_msg += 1;
        let says = digest.is_some();
        let asked = Asked { chat_id, digest, sent: None, says, at: self.now, epoch: 0, copies: 0, refused: false };
        self.truth.asked.insert((user, client_msg_id), asked);
        let frame = make(client_msg_id);
        let kept = Kept { client_msg_id, frame: frame.clone(), said_at: None, again_at: None };
        self.devices[device as usize].kept.push_back(kept);
        self.say(device, frame.clone());
        if self.faults.chance(self.plan.fault(Fault::Duplication)) {
            self.say(device, frame);
        }
    }

    fn send_message(&mut self, device: u32, chat_id: ChatId) {
        let len = self.people.below(self.plan.payload_bytes) as usize;
        let mut payload = format!("{} {}", self.next_msg, device).into_bytes();
        payload.resize(payload.len().max(len), b'.');
        let body = MessageBody { content_type: "text/plain".to_owned(), payload, ..MessageBody::default() };
        let envelope = Body::Message(body).to_envelope();
        let digest = digest(&envelope.body);
        self.command(device, Some(chat_id), Some(digest), |client_msg_id| {
            ClientFrame::Send(frame::Send { chat_id, client_msg_id, envelope })
        });
    }

    fn change_group(&mut self, device: u32, action: Action) {
        let Some(chat_id) = self.own_chat(device) else { return };
        let change = match action {
            Action::Add => {
                let users = self.some_users(3);
                if users.is_empty() {
                    return;
                }
                Change::Add { users }
            }
            Action::Remove => {
                let Some(user) = self.some_member(chat_id) else { return };
                Change::Remove { users: vec![user] }
            }
            Action::GiveRole => {
                let role = [Role::Member, Role::Admin, Role::Admin, Role::Owner][self.people.below(4) as usize];
                let Some(user) = self.some_member(chat_id) else { return };
                Change::Role { user, role }
            }
            Action::Rename => Change::Rename { title: format!("title {}", self.people.below(3)) },
            _ => Change::Leave {},
        };
        self.command(device, Some(chat_id), None, |client_msg_id| {
            ClientFrame::GroupChange(frame::GroupChange { chat_id, client_msg_id, change })
        });
    }

    /// Comes into a channel, which it may be in already; looks at it at once, mostly.
    fn join(&mut self, device: u32) {
        let channels: Vec<ChatId> = self.truth.groups.iter().copied().filter(|chat_id| chat_id.is_channel()).collect();
        let Some(chat_id) = self.people.pick(&channels).copied() else { return };
        let change = Change::Join {};
        self.command(device, Some(chat_id), None, |client_msg_id| {
            ClientFrame::GroupChange(frame::GroupChange { chat_id, client_msg_id, change })
        });
        if self.people.chance(600) && self.devices[device as usize].subscribed.insert(chat_id) {
            self.say(device, ClientFrame::Subscribe(frame::ChatRef { chat_id }));
        }
    }

    fn some_member(&mut self, chat_id: ChatId) -> Option<UserId> {
        let chat = self.truth.chats.get(&chat_id)?;
        let present: Vec<UserId> =
            chat.members.iter().filter(|(_, member)| member.present).map(|(user, _)| *user).collect();
        self.people.pick(&present).copied()
    }

    fn confirm(&mut self, device: u32, read: bool) {
        let Some(chat_id) = self.own_chat(device) else { return };
        let Some(position) = self.devices[device as usize].confirmable(chat_id) else { return };
        if !read {
            return self.say(device, ClientFrame::Delivered(position));
        }
        let user = self.user_of(device);
        if self.truth.is_member(user, chat_id) {
            let chat = self.devices[device as usize].chats.entry(chat_id).or_default();
            chat.wants_read = chat.wants_read.max(position.seq);
        }
        self.say(device, ClientFrame::Read(position));
    }

    fn look(&mut self, device: u32, chat_id: ChatId) {
        let at = self.people.below(30);
        let (before, after) = [(Some(at + 1), None), (None, Some(at)), (None, None)][self.people.below(3) as usize];
        let limit = self.plan.page();
        let request_id = self.devices[device as usize].request_id(Page::Look(chat_id));
        self.say(device, ClientFrame::History(frame::History { request_id, chat_id, before, after, limit }));
    }

    fn subscribe(&mut self, device: u32, begins: bool) {
        let most = self.plan.gateway_options(1, 0).subscriptions_max;
        let Some(chat_id) = self.own_chat(device) else { return };
        let subscribed = &mut self.devices[device as usize].subscribed;
        if !begins {
            let Some(chat_id) = subscribed.pop_first() else { return };
            self.say(device, ClientFrame::Unsubscribe(frame::ChatRef { chat_id }));
        } else if subscribed.len() < most && subscribed.insert(chat_id) {
            self.say(device, ClientFrame::Subscribe(frame::ChatRef { chat_id }));
        }
    }

    /// Asks for what belongs to others; whatever comes back is judged like everything else.
    fn trespass(&mut self, device: u32) {
        let count = self.truth.chats.len() as u64;
        let at = self.people.below(count) as usize;
        let Some(chat_id) = self.truth.chats.keys().nth(at).copied() else { return };
        match self.people.below(6) {
            0 => self.look(device, chat_id),
            1 => self.send_message(device, chat_id),
            2 => self.say(device, ClientFrame::Subscribe(frame::ChatRef { chat_id })),
            3 => {
                let request_id = self.devices[device as usize].request_id(Page::Look(chat_id));
                let limit = self.plan.page();
                self.say(device, ClientFrame::Members(frame::Members { request_id, chat_id, after: None, limit }));
            }
            4 => self.say(device, ClientFrame::Read(frame::Position { chat_id, seq: 1 })),
            _ => {
                let seq = 1_000_000;
                self.say(device, ClientFrame::Delivered(frame::Position { chat_id, seq }));
            }
        }
    }
}
