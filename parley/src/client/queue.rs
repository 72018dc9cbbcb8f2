//! Requests that wait for their answers: each is sent again, unchanged, until it is answered. No IO, no clock.

use parley_protocol::{ChatId, ClientFrame, ClientMsgId, ErrorCode, ServerFrame, frame};
use std::collections::VecDeque;

/// Requests that may wait here; the next one is refused.
const QUEUE_MAX: usize = 4096;
/// A server may not make a client wait longer than this.
const RETRY_MS_MAX: u32 = 60_000;
const RETRY_MS_DEFAULT: u32 = 500;

/// What an answer is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Command(ClientMsgId),
    Request(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// To be sent.
    Ready,
    /// Sent on this connection.
    InFlight,
    /// To be sent again, not before this time.
    Later(u64),
}

#[derive(Debug)]
struct Pending {
    key: Key,
    /// The chat whose commands keep their order.
    chat_id: Option<ChatId>,
    frame: ClientFrame,
    stage: Stage,
}

/// What a frame of the server means to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// It answers a request, for good.
    Done,
    /// The request will be sent again; nobody needs to see this.
    Retrying,
    /// It answers nothing that waits here.
    Other,
}

/// The requests, in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pending: VecDeque<Pending>,
}

fn key(frame: &ClientFrame) -> Option<(Key, Option<ChatId>)> {
    Some(match frame {
        ClientFrame::Send(send) => (Key::Command(send.client_msg_id), Some(send.chat_id)),
        ClientFrame::GroupCreate(create) => (Key::Command(create.client_msg_id), None),
        ClientFrame::GroupChange(change) => (Key::Command(change.client_msg_id), Some(change.chat_id)),
        ClientFrame::Chats(ask) => (Key::Request(ask.request_id), None),
        ClientFrame::History(ask) => (Key::Request(ask.request_id), None),
        ClientFrame::Members(ask) => (Key::Request(ask.request_id), None),
        ClientFrame::Resolve(ask) => (Key::Request(ask.request_id), None),
        ClientFrame::Profiles(ask) => (Key::Request(ask.request_id), None),
        _ => return None,
    })
}

fn answers(frame: &ServerFrame) -> Option<Key> {
    match frame {
        ServerFrame::Sent(sent) => Some(Key::Command(sent.client_msg_id)),
        ServerFrame::ChatList(list) => Some(Key::Request(list.request_id)),
        ServerFrame::HistoryPage(page) => Some(Key::Request(page.request_id)),
        ServerFrame::MemberPage(page) => Some(Key::Request(page.request_id)),
        ServerFrame::Users(users) => Some(Key::Request(users.request_id)),
        ServerFrame::Error(error) => {
            error.client_msg_id.map(Key::Command).or_else(|| error.request_id.map(Key::Request))
        }
        _ => None,
    }
}

fn worth_a_retry(error: &frame::Error) -> bool {
    matches!(error.code, ErrorCode::Unavailable | ErrorCode::RateLimited | ErrorCode::TooMany)
}

impl Queue {
    /// Takes a request that will be answered. `false`: there is no room, or its kind has no answer.
    pub(crate) fn push(&mut self, frame: ClientFrame) -> bool {
        let Some((key, chat_id)) = key(&frame) else { return false };
        if self.pending.len() >= QUEUE_MAX {
            return false;
        }
        self.pending.push_back(Pending { key, chat_id, frame, stage: Stage::Ready });
        true
    }

    /// A new connection: whatever was under way is sent again.
    pub(crate) fn connection_opened(&mut self) {
        for pending in &mut self.pending {
            if pending.stage == Stage::InFlight {
                pending.stage = Stage::Ready;
            }
        }
    }

    /// Forgets the requests, not the commands, with a number from `first` on: their answers mean nothing any more.
    pub(crate) fn forget_requests(&mut self, first: u32) {
        self.pending.retain(|pending| !matches!(pending.key, Key::Request(id) if id >= first));
    }

    /// The next request to send, marked as sent.
    pub(crate) fn next_to_send(&mut self, now_ms: u64, in_flight_max: usize) -> Option<ClientFrame> {
        let in_flight = self.pending.iter().filter(|pending| pending.stage == Stage::InFlight).count();
        if in_flight >= in_flight_max {
            return None;
        }
        let mut held: Vec<ChatId> = Vec::new();
        for pending in &mut self.pending {
            let due = match pending.stage {
                Stage::Ready => true,
                Stage::Later(at_ms) => at_ms <= now_ms,
                Stage::InFlight => continue,
            };
            // A command does not overtake an earlier one of its chat that waits for a retry.
            let overtakes = pending.chat_id.is_some_and(|chat_id| held.contains(&chat_id));
            if due && !overtakes {
                pending.stage = Stage::InFlight;
                return Some(pending.frame.clone());
            }
            held.extend(pending.chat_id);
        }
        None
    }

    /// When the next retry is due.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        let due = |pending: &Pending| match pending.stage {
            Stage::Later(at_ms) => Some(at_ms),
            _ => None,
        };
        self.pending.iter().filter_map(due).min()
    }

    /// Looks at a frame of the server. `spread_ms` is added to a retry's delay, so that clients do not retry together.
    pub(crate) fn hear(&mut self, frame: &ServerFrame, now_ms: u64, spread_ms: u64) -> Answered {
        let Some(key) = answers(frame) else { return Answered::Other };
        let Some(at) = self.pending.iter().position(|pending| pending.key == key) else { return Answered::Other };
        if let ServerFrame::Error(error) = frame
            && worth_a_retry(error)
        {
            let delay_ms = error.retry_after_ms.unwrap_or(RETRY_MS_DEFAULT).min(RETRY_MS_MAX);
            self.pending[at].stage = Stage::Later(now_ms + u64::from(delay_ms) + spread_ms);
            return Answered::Retrying;
        }
        self.pending.remove(at);
        Answered::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parley_protocol::body::MessageBody;
    use parley_protocol::frame::{Error, Sent};
    use parley_protocol::{Body, MessageId};

    fn send(chat: u64, name: u128) -> ClientFrame {
        ClientFrame::Send(frame::Send {
            chat_id: ChatId::group(chat),
            client_msg_id: ClientMsgId(name),
            envelope: Body::Message(MessageBody::default()).to_envelope(),
        })
    }

    fn sent(chat: u64, name: u128) -> ServerFrame {
        ServerFrame::Sent(Sent {
            chat_id: ChatId::group(chat),
            client_msg_id: ClientMsgId(name),
            message_id: MessageId(1),
            seq: 1,
        })
    }

    fn error(code: ErrorCode, name: u128, retry_after_ms: Option<u32>) -> ServerFrame {
        let client_msg_id = Some(ClientMsgId(name));
        let message = String::new();
        ServerFrame::Error(Error { code, message, client_msg_id, request_id: None, chat_id: None, retry_after_ms })
    }

    fn drain(queue: &mut Queue, now_ms: u64, in_flight_max: usize) -> Vec<ClientFrame> {
        std::iter::from_fn(|| queue.next_to_send(now_ms, in_flight_max)).collect()
    }

    #[test]
    fn an_unanswered_request_is_sent_again_unchanged_on_a_new_connection() {
        let mut queue = Queue::default();
        assert!(queue.push(send(1, 1)) && queue.push(send(1, 2)));
        assert_eq!(drain(&mut queue, 0, 8), [send(1, 1), send(1, 2)]);
        assert_eq!(queue.hear(&sent(1, 1), 0, 0), Answered::Done);
        assert_eq!(drain(&mut queue, 0, 8), []);
        queue.connection_opened();
        assert_eq!(drain(&mut queue, 0, 8), [send(1, 2)]);
        assert_eq!(queue.hear(&sent(1, 2), 0, 0), Answered::Done);
        assert_eq!(queue.hear(&sent(1, 2), 0, 0), Answered::Other, "a late second answer is nobody's");
        assert!(queue.pending.is_empty());
    }

    #[test]
    fn a_retry_waits_as_long_as_the_server_says_and_keeps_its_chat_in_order() {
        let mut queue = Queue::default();
        assert!(queue.push(send(1, 1)));
        assert_eq!(drain(&mut queue, 0, 8).len(), 1);
        assert!(queue.push(send(1, 2)) && queue.push(send(2, 3)));
        assert_eq!(queue.hear(&error(ErrorCode::RateLimited, 1, Some(100)), 0, 7), Answered::Retrying);
        assert_eq!(queue.next_due_ms(), Some(107));
        assert_eq!(drain(&mut queue, 106, 8), [send(2, 3)], "chat 1 waits, chat 2 does not");
        assert_eq!(drain(&mut queue, 107, 8), [send(1, 1), send(1, 2)]);
        assert_eq!(queue.hear(&error(ErrorCode::Forbidden, 1, None), 0, 0), Answered::Done);
    }

    #[test]
    fn no_more_are_in_flight_than_the_server_allows_and_no_more_wait_than_fit() {
        let mut queue = Queue::default();
        for name in 0..QUEUE_MAX as u128 {
            assert!(queue.push(send(1, name)));
        }
        assert!(!queue.push(send(1, u128::MAX)));
        assert_eq!(drain(&mut queue, 0, 3).len(), 3);
        assert_eq!(queue.hear(&sent(1, 0), 0, 0), Answered::Done);
        assert_eq!(drain(&mut queue, 0, 3).len(), 1);
        assert!(!queue.push(ClientFrame::Ping(frame::Ping { nonce: 0 })), "no answer is waited for");
    }
}
