//! `parley tail`: messages as they come, from where the last tail of this device ended.

use super::show;
use super::talk::{Talk, print_frame, print_line, session_options};
use crate::cli::TailArgs;
use crate::client::{ClientError, Mode, Session, Update, unix_ms};
use parley_protocol::body::kind;
use parley_protocol::{ChatId, ChatKind, Event, ServerFrame};
use std::collections::HashMap;
use std::time::{Duration, Instant};

pub(super) fn run(args: &TailArgs) -> Result<(), ClientError> {
    let options = session_options(&args.client, Mode::Follow { from_start: args.from_start }, "tail")?;
    let deadline = args.timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
    let session = Session::new(options)?;
    if !session.has_position() {
        eprintln!("parley: first time on this device: beginning now (--from-start shows what came before)");
    }
    let mut tail = Tail { talk: Talk::over(session, deadline, args.json), titles: HashMap::new() };
    let mut messages = 0;
    let mut waiting = args.once;
    loop {
        if args.count.is_some_and(|count| messages >= count) {
            return tail.talk.session.close();
        }
        let update = match tail.talk.next("messages") {
            Ok(update) => update,
            // Without a count there is nothing that was asked for and did not come, but for a session.
            Err(ClientError::TimedOut(_)) if args.count.is_none() && !args.once && tail.talk.session.me().is_some() => {
                return tail.talk.session.close();
            }
            Err(error) => {
                // What was printed is not printed again.
                let _ = tail.talk.session.close();
                return Err(error);
            }
        };
        match update {
            Update::Frame(frame) => {
                let message = matches!(&*frame, ServerFrame::Event(event)
                    if event.envelope.kind == kind::MESSAGE && (args.json || !show::is_expired(event, unix_ms())));
                tail.print(*frame, args)?;
                messages += u64::from(message);
                tail.talk.session.save()?;
            }
            Update::CaughtUp => {
                tail.talk.session.save()?;
                if std::mem::take(&mut waiting) {
                    return tail.talk.session.close();
                }
            }
            // Chats of another life are other chats.
            Update::NewHistory => tail.titles.clear(),
            Update::Connected(_) | Update::Disconnected { .. } | Update::Idle | Update::Woken => {}
        }
    }
}

struct Tail {
    talk: Talk,
    titles: HashMap<ChatId, String>,
}

impl Tail {
    fn print(&mut self, frame: ServerFrame, args: &TailArgs) -> Result<(), ClientError> {
        match frame {
            ServerFrame::ChatList(list) => {
                self.titles.extend(list.chats.into_iter().map(|chat| (chat.chat_id, chat.title)));
                Ok(())
            }
            ServerFrame::Event(event) if args.json => print_frame(&ServerFrame::Event(event)),
            ServerFrame::Event(event) if show::is_expired(&event, unix_ms()) => Ok(()),
            ServerFrame::Event(event) => self.print_event(&event),
            frame @ (ServerFrame::Receipt(_) | ServerFrame::Own(_)) if args.receipts && args.json => {
                print_frame(&frame)
            }
            ServerFrame::Receipt(receipt) if args.receipts => {
                self.talk.learn_names([receipt.user_id])?;
                let who = self.talk.name(receipt.user_id);
                let (delivered, read) = (receipt.delivered_seq, receipt.read_seq);
                print_line(&format!("{}  {who}: delivered {delivered}, read {read}", receipt.chat_id))
            }
            ServerFrame::Own(own) if args.receipts => {
                print_line(&format!("{}  you: read {}", own.chat_id, own.read_seq))
            }
            ServerFrame::Error(error) => {
                eprintln!("parley: {}", ClientError::Refused(Box::new(error)));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn print_event(&mut self, event: &Event) -> Result<(), ClientError> {
        self.talk.learn_names(show::users_of(event))?;
        match (event.chat_id.kind(), event.envelope.to_body()) {
            (_, Ok(parley_protocol::Body::Title(body))) => {
                self.titles.insert(event.chat_id, body.title);
            }
            (Some(ChatKind::Group(_) | ChatKind::Channel(..)), _) if !self.titles.contains_key(&event.chat_id) => {
                let title = self.talk.title(event.chat_id)?;
                self.titles.insert(event.chat_id, title);
            }
            _ => {}
        }
        let place = match (event.chat_id.kind(), self.titles.get(&event.chat_id)) {
            (Some(ChatKind::Direct(..)), _) => String::new(),
            (_, Some(title)) if !title.is_empty() => format!(" #{}", show::plain(title)),
            _ => format!(" #{}", event.chat_id),
        };
        let time = show::date_time(show::time_ms(event.message_id));
        let words = show::words(event, &|user| self.talk.name(user));
        print_line(&format!("{time}{place} {}: {words}", self.talk.name(event.sender)))
    }
}
