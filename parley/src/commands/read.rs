//! `parley read`: a read mark, done when the server has stored it.

use super::talk::{Talk, print_frame, print_line};
use crate::cli::ReadArgs;
use crate::client::{ClientError, Update};
use parley_protocol::{ChatId, ErrorCode, OwnState, ServerFrame, frame};
use std::time::{Duration, Instant};

/// How long an answer to the mark is waited for before the chat list is asked.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

pub(super) fn run(args: &ReadArgs) -> Result<(), ClientError> {
    let mut talk = Talk::open(&args.script)?;
    let chat_id = talk.chat(&args.with)?;
    let (mut own, head_seq) = state(&mut talk, chat_id)?;
    let seq = args.seq.unwrap_or(head_seq);
    if seq > head_seq {
        return Err(ClientError::Asked(format!("the chat ends at {head_seq}: {seq} cannot be read yet")));
    }
    while own.read_seq < seq {
        talk.session.read(chat_id, seq);
        match wait_for_own(&mut talk, chat_id, seq)? {
            Some(state) => own = state,
            None => own = state(&mut talk, chat_id)?.0,
        }
    }
    talk.session.close()?;
    if args.script.json {
        return print_frame(&ServerFrame::Own(own));
    }
    print_line(&format!("read: chat {chat_id} seq {}", own.read_seq))
}

/// One's own state in a chat, and the chat's head.
fn state(talk: &mut Talk, chat_id: ChatId) -> Result<(OwnState, u64), ClientError> {
    let chats = talk.all_chats(|_| Ok(()))?;
    match chats.into_iter().find(|chat| chat.chat_id == chat_id) {
        Some(chat) => Ok((chat.own, chat.head_seq)),
        None => Err(ClientError::Refused(Box::new(frame::Error {
            code: ErrorCode::NoSuchChat,
            message: "you are in no such chat".to_owned(),
            client_msg_id: None,
            request_id: None,
            chat_id: Some(chat_id),
            retry_after_ms: None,
        }))),
    }
}

/// The new state, when it comes soon.
fn wait_for_own(talk: &mut Talk, chat_id: ChatId, seq: u64) -> Result<Option<OwnState>, ClientError> {
    let until = Instant::now() + LOOK_AGAIN;
    let until = talk.deadline.map_or(until, |deadline| deadline.min(until));
    loop {
        match talk.session.next(Some(until))? {
            Update::Frame(frame) => match *frame {
                ServerFrame::Own(own) if own.chat_id == chat_id && own.read_seq >= seq => return Ok(Some(own)),
                ServerFrame::Error(error) if error.chat_id == Some(chat_id) => {
                    if talk.json {
                        print_frame(&ServerFrame::Error(error.clone()))?;
                    }
                    return Err(ClientError::Refused(Box::new(error)));
                }
                _ => {}
            },
            Update::Idle => return Ok(None),
            _ => {}
        }
    }
}
