//! Reads the history of every chat back and compares it with the ledger.

use crate::frames::Encoder;
use crate::ledger::{Index, Ledger};
use crate::net::{Closed, Handler, Net, Wires};
use parley_protocol::frame::{History, HistoryPage};
use parley_protocol::limits::HISTORY_PAGE_MAX;
use parley_protocol::wire::{Encoding, decode_server_frame};
use parley_protocol::{ChatId, ClientFrame, ServerFrame};
use std::collections::VecDeque;
use std::time::Duration;

/// Chats that are read at the same time.
const READERS: usize = 128;
/// Without a page for this long, the rest counts as missing.
const PATIENCE_NS: u64 = 30_000_000_000;

/// What a chat's history must hold, and how far it was read.
#[derive(Debug)]
struct Chat {
    chat_id: ChatId,
    conn: u32,
    /// (seq, index), rising; those before `found` were found.
    expected: Vec<(u64, Index)>,
    found: usize,
    last_seq: u64,
}

#[derive(Debug)]
struct Verify<'a> {
    encoder: &'a Encoder,
    encoding: Encoding,
    run: u64,
    /// By the number of the pair.
    chats: Vec<Option<Chat>>,
    waiting: VecDeque<u32>,
    reading: usize,
    missing: u64,
    pages: u64,
}

impl Verify<'_> {
    fn ask(&self, chat: &Chat, wires: &mut Wires) {
        let (chat_id, after) = (chat.chat_id, Some(chat.last_seq));
        let history = History { request_id: 1, chat_id, before: None, after, limit: HISTORY_PAGE_MAX };
        if let Some(out) = wires.out(chat.conn) {
            self.encoder.frame(&ClientFrame::History(history), out);
        }
    }

    fn start(&mut self, wires: &mut Wires) {
        while self.reading < READERS {
            let Some(pair) = self.waiting.pop_front() else { return };
            if let Some(chat) = &self.chats[pair as usize] {
                self.reading += 1;
                self.ask(chat, wires);
            }
        }
    }

    fn page(&mut self, pair: u32, page: &HistoryPage, wires: &mut Wires) {
        let Some(mut chat) = self.chats[pair as usize].take() else { return };
        self.pages += 1;
        for event in &page.events {
            // In order and once: an event at or below the last one is found under no expectation.
            while chat.expected.get(chat.found).is_some_and(|(seq, _)| *seq < event.seq) {
                chat.found += 1;
                self.missing += 1;
            }
            if let Some((seq, index)) = chat.expected.get(chat.found)
                && *seq == event.seq
            {
                let name = u128::from(self.run) << 64 | u128::from(*index);
                self.missing += u64::from(event.client_msg_id.0 != name);
                chat.found += 1;
            }
            chat.last_seq = chat.last_seq.max(event.seq);
        }
        if page.more && !page.events.is_empty() && chat.found < chat.expected.len() {
            self.ask(&chat, wires);
            self.chats[pair as usize] = Some(chat);
        } else {
            self.missing += (chat.expected.len() - chat.found) as u64;
            self.reading -= 1;
            self.start(wires);
        }
    }
}

impl Handler for Verify<'_> {
    fn opened(&mut self, _conn: u32, _wires: &mut Wires) {}

    fn message(&mut self, conn: u32, payload: &[u8], _now_ns: u64, wires: &mut Wires) {
        if let Ok(ServerFrame::HistoryPage(page)) = decode_server_frame(self.encoding, payload) {
            self.page(conn / 2, &page, wires);
        }
    }

    fn closed(&mut self, conn: u32, why: Closed) {
        eprintln!("user {conn} was disconnected while its history was read: {why}");
    }
}

/// How many acknowledged messages the histories lack, or have under another number.
pub(crate) fn verify(
    net: &mut Net,
    encoder: &Encoder,
    encoding: Encoding,
    run: u64,
    ledger: &Ledger,
    chat_ids: &[ChatId],
) -> Result<u64, String> {
    let mut acknowledged = ledger.acknowledged();
    let chats: Vec<Option<Chat>> = (0..chat_ids.len() as u32)
        .map(|pair| {
            let expected = acknowledged.remove(&pair)?;
            let last_seq = expected.first()?.0.saturating_sub(1);
            let conn = if net.wires.is_open(pair * 2) { pair * 2 } else { pair * 2 + 1 };
            Some(Chat { chat_id: chat_ids[pair as usize], conn, expected, found: 0, last_seq })
        })
        .collect();
    let waiting = (0..chats.len() as u32).filter(|pair| chats[*pair as usize].is_some()).collect();
    let mut verify = Verify { encoder, encoding, run, chats, waiting, reading: 0, missing: 0, pages: 0 };
    verify.start(&mut net.wires);
    let (mut pages, mut moved_ns) = (0, net.clock.now_ns());
    while verify.reading > 0 {
        if net.turn(&mut verify).map_err(|error| error.to_string())? == 0 {
            net.wait(Duration::from_millis(1)).map_err(|error| format!("poll: {error}"))?;
        }
        let now_ns = net.clock.now_ns();
        if verify.pages != pages {
            (pages, moved_ns) = (verify.pages, now_ns);
        } else if now_ns - moved_ns > PATIENCE_NS {
            eprintln!("history: no page for 30 s; what is left counts as missing");
            break;
        }
    }
    let unread: usize = verify.chats.iter().flatten().map(|chat| chat.expected.len() - chat.found).sum();
    Ok(verify.missing + unread as u64)
}
