//! `parley chats`: one's chats, unread counts, last messages.

use super::show;
use super::talk::{Talk, print_frame, print_line};
use crate::cli::ChatsArgs;
use crate::client::{ClientError, unix_ms};
use parley_protocol::{ServerFrame, UserId};

pub(super) fn run(args: &ChatsArgs) -> Result<(), ClientError> {
    let mut talk = Talk::open(&args.script)?;
    let json = args.script.json;
    let mut chats =
        talk.all_chats(|list| if json { print_frame(&ServerFrame::ChatList(list.clone())) } else { Ok(()) })?;
    if json {
        return talk.session.close();
    }
    chats.sort_by_key(|chat| std::cmp::Reverse(chat.last.as_ref().map(|event| event.message_id)));
    let me = talk.session.me().unwrap_or(UserId(0));
    let users: Vec<UserId> = chats
        .iter()
        .flat_map(|chat| chat.chat_id.peer_of(me).into_iter().chain(chat.last.iter().flat_map(show::users_of)))
        .collect();
    talk.learn_names(users)?;
    if chats.is_empty() {
        print_line("no chats yet; `parley send --to NAME TEXT` starts one")?;
    }
    let now_ms = unix_ms();
    for chat in &chats {
        let label = match chat.chat_id.peer_of(me) {
            Some(peer) => talk.name(peer),
            None if chat.title.is_empty() => format!("a group of {}", chat.members),
            None => format!("#{}", show::plain(&chat.title)),
        };
        let last = chat.last.as_ref().filter(|event| !show::is_expired(event, now_ms)).map_or(String::new(), |event| {
            let time = show::date_time(show::time_ms(event.message_id));
            format!("{time}  {}: {}", talk.name(event.sender), show::words(event, &|user| talk.name(user)))
        });
        let unread = if chat.unread == 0 { String::new() } else { format!("{} unread", chat.unread) };
        print_line(&format!("{}  {label:<20}  {unread:>10}  {last}", chat.chat_id))?;
    }
    talk.session.close()
}
