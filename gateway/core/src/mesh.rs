//! What shards say to each other, and the credits that keep the queues between them from ever filling up where filling
//! up would mean waiting: a request holds a credit of its target until its answer is back.

use crate::brain::{MeshClass, MeshMessage};
use crate::fan::Fan;
use crate::output::ConnId;
use crate::planted::{self, Bug};
use parley_protocol::frame::{Head, Sent};
use parley_protocol::link::{Command, Target};
use parley_protocol::{ChatId, ClientMsgId, ErrorCode, UserId};
use std::sync::Arc;

/// Where an answer goes: a connection of the shard that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The shard.
    pub shard: u16,
    /// The connection; it may be gone by then.
    pub conn: ConnId,
    /// Its user.
    pub user_id: UserId,
}

/// A message between shards.
#[derive(Debug)]
pub enum Mesh {
    /// For a chat home; takes a credit.
    Ask {
        /// Who asks.
        origin: Origin,
        /// What.
        ask: HomeAsk,
    },
    /// The answer to an `Ask`; gives the credit back.
    Reply {
        /// Who asked.
        origin: Origin,
        /// What came of it.
        reply: HomeReply,
    },
    /// For the sessions of users; may be lost.
    Fanout(Fanout),
}

/// What a session asks of a chat home.
#[derive(Debug)]
pub enum HomeAsk {
    /// A command for the log.
    Command(Command),
    /// New marks of the asking user; 0 leaves one.
    Marks {
        /// The chat.
        chat_id: ChatId,
        /// Delivered up to here.
        delivered_seq: u64,
        /// Read up to here.
        read_seq: u64,
    },
    /// Live events of a chat.
    Subscribe {
        /// The chat.
        chat_id: ChatId,
    },
}

impl HomeAsk {
    /// The chat that it is about.
    pub fn chat_id(&self) -> ChatId {
        match self {
            // A creation has no chat yet and never comes to a home.
            HomeAsk::Command(command) => command.chat_id.unwrap_or(ChatId(0)),
            HomeAsk::Marks { chat_id, .. } | HomeAsk::Subscribe { chat_id } => *chat_id,
        }
    }
}

/// What a chat home answers.
#[derive(Debug)]
pub enum HomeReply {
    /// The command is durable.
    Sent(Sent),
    /// It was not done.
    Error {
        /// Why.
        code: ErrorCode,
        /// The chat.
        chat_id: ChatId,
        /// The command, if it was one.
        client_msg_id: Option<ClientMsgId>,
    },
    /// The channel takes no more messages now.
    Slow {
        /// The channel.
        chat_id: ChatId,
        /// The command.
        client_msg_id: ClientMsgId,
        /// When there is room again.
        retry_after_ms: u32,
    },
    /// There will be no live events.
    NotSubscribed {
        /// Why.
        code: ErrorCode,
        /// The chat.
        chat_id: ChatId,
    },
    /// Taken; the client hears nothing of it here.
    Taken,
}

/// What goes to sessions and may be lost.
#[derive(Clone, Debug)]
pub enum Fanout {
    /// An inbox entry each.
    Deliver {
        /// The frame.
        fan: Arc<Fan>,
        /// Whose, with its number.
        targets: Vec<Target>,
    },
    /// A frame beside the streams, for all sessions of some users.
    Beside {
        /// The frame.
        fan: Arc<Fan>,
        /// Whose.
        users: Vec<UserId>,
    },
    /// An event of a large chat, for the sessions that are subscribed.
    Live {
        /// The chat.
        chat_id: ChatId,
        /// The frame.
        fan: Arc<Fan>,
        /// Who gets it as an inbox entry already.
        except: Arc<[Target]>,
        /// Counts the subscriptions of the target shard; comes back in `NoSubscribers`.
        generation: u32,
    },
    /// A session is subscribed: live events follow. On this queue, so that the end of a subscription never overtakes its
    /// beginning.
    Subscribed {
        /// The session.
        conn: ConnId,
        /// The chat, and where its live events begin.
        head: Head,
        /// See `Live`.
        generation: u32,
    },
    /// A member was taken out: its subscriptions of the chat end.
    EndSubscription {
        /// The chat.
        chat_id: ChatId,
        /// Whose.
        user_id: UserId,
    },
    /// To a home: no session of the sender is subscribed to the chat.
    NoSubscribers {
        /// The chat.
        chat_id: ChatId,
        /// Of the `Live` that found none.
        generation: u32,
    },
    /// Something for these users may have been lost: compare positions with heads.
    Nudge(Vec<UserId>),
    /// The same for everybody.
    NudgeAll,
    /// The epoch that shard 0 was granted.
    Epoch(u64),
    /// The sender's link is open: this writer is active, unless one of a higher epoch is. Lost, every shard finds it out by
    /// itself, later.
    Writer {
        /// Which one.
        writer: u16,
        /// Since when it is active.
        writer_epoch: u64,
    },
}

impl MeshMessage for Mesh {
    fn class(&self) -> MeshClass {
        match self {
            Mesh::Ask { .. } => MeshClass::Request,
            Mesh::Reply { .. } => MeshClass::Answer,
            Mesh::Fanout(_) => MeshClass::Fanout,
        }
    }
}

/// Open requests per target shard.
#[derive(Debug)]
pub struct Credits {
    open: Vec<u32>,
    max: u32,
}

impl Credits {
    /// None open.
    pub fn new(shards: u16, max: u32) -> Self {
        Self { open: vec![0; shards as usize], max: max.max(1) }
    }

    /// Takes a credit, if one is left.
    pub fn take(&mut self, shard: u16) -> bool {
        let open = &mut self.open[shard as usize];
        let free = *open < self.max || planted::has(Bug::CreditsUnbounded);
        *open += u32::from(free);
        free
    }

    /// Gives one back.
    pub fn give(&mut self, shard: u16) {
        let open = &mut self.open[shard as usize];
        assert!(*open > 0, "an answer without a request");
        *open -= 1;
    }

    /// Whether one is left.
    pub fn is_free(&self, shard: u16) -> bool {
        self.open[shard as usize] < self.max
    }

    /// Open requests to a shard.
    pub fn open(&self, shard: u16) -> u32 {
        self.open[shard as usize]
    }
}
