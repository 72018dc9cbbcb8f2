//! The client's side of an echo: on each connection one message on its way, compared byte by byte when it comes back.

use super::Load;
use crate::net::frame::{Op, write_frame};
use crate::net::{Closed, KEY, Url, check_upgrade};
use crate::report::histogram;
use crate::rings::{Action, Client};
use hdrhistogram::Histogram;
use std::rc::Rc;

const MASK: [u8; 4] = [0x9d, 0x3a, 0xc4, 0x71];

#[derive(Clone, Debug, Default)]
struct Conn {
    /// The upgrade was answered, or there is none.
    open: bool,
    /// Bytes of the answer to the upgrade, while it is not whole.
    head: Vec<u8>,
    /// Bytes of the echo that came.
    got: usize,
    sent_ns: u64,
}

/// All connections to one server.
pub(super) struct EchoClient {
    upgrade: Option<Rc<[u8]>>,
    request: Rc<[u8]>,
    /// What comes back, with its head.
    answer: Vec<u8>,
    conns: Vec<Conn>,
    pub(super) open: u32,
    pub(super) echoes: u64,
    pub(super) latency_us: Histogram<u64>,
    pub(super) failure: Option<String>,
}

impl EchoClient {
    pub(super) fn new(load: Load, url: Option<&Url>) -> Self {
        let payload: Vec<u8> = (b'a'..=b'z').cycle().take(load.payload_bytes).collect();
        let (mut request, mut answer) = (payload.clone(), payload.clone());
        if url.is_some() {
            request.clear();
            write_frame(Op::Binary, MASK, &payload, &mut request);
            // The head of a server's frame is that of a client's without the mask and its bit.
            let head = request.len() - payload.len() - MASK.len();
            answer = request[..head].to_vec();
            answer[1] &= 0x7f;
            answer.extend_from_slice(&payload);
        }
        Self {
            upgrade: url.map(|url| url.upgrade(KEY, "echo").into_bytes().into()),
            request: request.into(),
            answer,
            conns: vec![Conn::default(); load.connections as usize],
            open: 0,
            echoes: 0,
            latency_us: histogram(),
            failure: None,
        }
    }

    pub(super) fn open_all(&self) -> Vec<Action> {
        (0..self.conns.len() as u32).map(|conn| Action::Open { conn, source: None }).collect()
    }

    /// What came so far was warm-up.
    pub(super) fn begin(&mut self) {
        self.echoes = 0;
        self.latency_us.reset();
    }

    fn request(&mut self, conn: u32, now_ns: u64, actions: &mut Vec<Action>) {
        self.conns[conn as usize].sent_ns = now_ns;
        actions.push(Action::Send { conn, bytes: self.request.clone() });
    }

    fn fail(&mut self, conn: u32, why: &str) {
        self.failure.get_or_insert(format!("connection {conn}: {why}"));
    }

    fn on_head(&mut self, conn: u32, data: &[u8], now_ns: u64, actions: &mut Vec<Action>) {
        let head = &mut self.conns[conn as usize].head;
        head.extend_from_slice(data);
        if !head.ends_with(b"\r\n\r\n") {
            return;
        }
        match check_upgrade(head) {
            Ok(()) => {
                *head = Vec::new();
                self.conns[conn as usize].open = true;
                self.open += 1;
                self.request(conn, now_ns, actions);
            }
            Err(answer) => self.fail(conn, &format!("the upgrade was answered with: {answer}")),
        }
    }
}

impl Client for EchoClient {
    fn connected(&mut self, conn: u32, now_ns: u64, actions: &mut Vec<Action>) {
        match &self.upgrade {
            Some(upgrade) => actions.push(Action::Send { conn, bytes: upgrade.clone() }),
            None => {
                self.conns[conn as usize].open = true;
                self.open += 1;
                self.request(conn, now_ns, actions);
            }
        }
    }

    fn data(&mut self, conn: u32, data: &[u8], now_ns: u64, actions: &mut Vec<Action>) {
        let state = &mut self.conns[conn as usize];
        if !state.open {
            return self.on_head(conn, data, now_ns, actions);
        }
        let from = state.got;
        state.got += data.len();
        let got = state.got;
        // With one message on its way nothing can follow it.
        if self.answer.get(from..got) != Some(data) {
            return self.fail(conn, "what came back is not what was sent");
        }
        if got == self.answer.len() {
            state.got = 0;
            self.echoes += 1;
            self.latency_us.saturating_record((now_ns.saturating_sub(state.sent_ns) / 1_000).max(1));
            self.request(conn, now_ns, actions);
        }
    }

    fn ended(&mut self, conn: u32, why: Closed) {
        self.fail(conn, &why.to_string());
    }

    fn vacant(&mut self, _conn: u32, _now_ns: u64) {}
}
