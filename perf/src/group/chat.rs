//! How the chat of a run comes to be: one member makes it and adds the others.

use parley_protocol::frame::{Change, GroupChange, GroupCreate, Sent};
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, UserId};
use std::collections::VecDeque;

/// Users named by one frame: below `limits::MEMBER_CHANGES_MAX`.
const USERS_PER_FRAME: usize = 1_000;
/// In the names of these commands, above any index of a message.
const NAMES: u128 = 1 << 63;

/// The commands that make the chat, one after the other; whoever sends them becomes its owner.
#[derive(Debug)]
pub(super) struct Founding {
    run: u64,
    /// Without the founder.
    others: VecDeque<UserId>,
    chat_id: Option<ChatId>,
    commands: u64,
    awaits: bool,
}

impl Founding {
    pub(super) fn new(run: u64, others: &[UserId]) -> Self {
        Self { run, others: others.iter().copied().collect(), chat_id: None, commands: 0, awaits: false }
    }

    /// The next command; `None` while one has no answer, and when the chat is complete. The one place that knows what
    /// kind of chat this is.
    pub(super) fn next(&mut self) -> Option<ClientFrame> {
        if self.awaits || self.is_done() {
            return None;
        }
        self.awaits = true;
        self.commands += 1;
        let client_msg_id = self.name();
        let users: Vec<UserId> = self.others.drain(..self.others.len().min(USERS_PER_FRAME)).collect();
        Some(match self.chat_id {
            None => ClientFrame::GroupCreate(GroupCreate { client_msg_id, title: "perf".to_owned(), members: users }),
            Some(chat_id) => {
                ClientFrame::GroupChange(GroupChange { chat_id, client_msg_id, change: Change::Add { users } })
            }
        })
    }

    fn name(&self) -> ClientMsgId {
        ClientMsgId(u128::from(self.run) << 64 | NAMES | u128::from(self.commands))
    }

    /// An acknowledgement; the chat, once that was for the last command.
    pub(super) fn sent(&mut self, sent: &Sent) -> Option<ChatId> {
        if self.awaits && sent.client_msg_id == self.name() {
            self.awaits = false;
            self.chat_id = Some(sent.chat_id);
        }
        self.chat_id.filter(|_| self.is_done())
    }

    fn is_done(&self) -> bool {
        !self.awaits && self.others.is_empty() && self.chat_id.is_some()
    }

    /// Members that are not in it yet.
    pub(super) fn waiting(&self) -> usize {
        self.others.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parley_protocol::MessageId;
    use parley_protocol::limits::MEMBER_CHANGES_MAX;

    #[test]
    fn a_large_chat_is_made_in_pieces_each_after_the_answer_to_the_one_before() {
        let users: Vec<UserId> = (2..=2_600).map(UserId).collect();
        let mut founding = Founding::new(7, &users);
        let chat_id = ChatId::group(5);
        let mut named = Vec::new();
        while let Some(frame) = founding.next() {
            assert_eq!(founding.next(), None, "one at a time");
            let (client_msg_id, users) = match frame {
                ClientFrame::GroupCreate(GroupCreate { client_msg_id, members, .. }) => (client_msg_id, members),
                ClientFrame::GroupChange(GroupChange { client_msg_id, change: Change::Add { users }, .. }) => {
                    (client_msg_id, users)
                }
                other => panic!("{other:?}"),
            };
            assert!(users.len() <= MEMBER_CHANGES_MAX);
            named.extend(users);
            let other = Sent { chat_id, client_msg_id: ClientMsgId(1), message_id: MessageId(1), seq: 1 };
            assert_eq!((founding.sent(&other), founding.next()), (None, None), "not the answer");
            let done = founding.sent(&Sent { client_msg_id, ..other });
            assert_eq!(done, (named.len() == 2_599).then_some(chat_id));
        }
        assert_eq!(named, users);
    }
}
