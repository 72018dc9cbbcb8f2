//! `parley history`: a stretch of a chat's log.

use super::show;
use super::talk::{Talk, print_frame, print_line, unexpected};
use crate::cli::HistoryArgs;
use crate::client::{ClientError, unix_ms};
use parley_protocol::{ClientFrame, Event, ServerFrame, frame, limits};

pub(super) fn run(args: &HistoryArgs) -> Result<(), ClientError> {
    let mut talk = Talk::open(&args.script)?;
    let chat_id = talk.chat(&args.with)?;
    let mut events: Vec<Event> = Vec::new();
    let (mut before, mut after) = (args.before, args.after);
    loop {
        let left = args.limit.saturating_sub(events.len() as u64);
        let limit = left.min(u64::from(limits::HISTORY_PAGE_MAX)) as u32;
        if limit == 0 {
            break;
        }
        let ask = |request_id| ClientFrame::History(frame::History { request_id, chat_id, before, after, limit });
        let ServerFrame::HistoryPage(page) = talk.ask(ask)? else { return Err(unexpected()) };
        if args.script.json {
            print_frame(&ServerFrame::HistoryPage(page.clone()))?;
        }
        let (Some(first), Some(last)) = (page.events.first(), page.events.last()) else { break };
        let more = page.more;
        if after.is_some() {
            after = Some(last.seq);
            events.extend(page.events);
        } else {
            before = Some(first.seq);
            events.splice(0..0, page.events);
        }
        if !more {
            break;
        }
    }
    if !args.script.json {
        talk.learn_names(events.iter().flat_map(show::users_of))?;
        let now_ms = unix_ms();
        for event in events.iter().filter(|event| !show::is_expired(event, now_ms)) {
            let time = show::date_time(show::time_ms(event.message_id));
            let words = show::words(event, &|user| talk.name(user));
            print_line(&format!("{:>6}  {time}  {}: {words}", event.seq, talk.name(event.sender)))?;
        }
    }
    talk.session.close()
}
