//! The incremental decoder of client frames. A frame that lies whole in the chunk is unmasked and handed out in place;
//! only frames split over reads, and fragmented messages, are copied aside.

use super::{FrameError, Opcode, unmask};
use tungstenite::protocol::frame::coding::CloseCode;

/// Empty fragments that one message may have; without a bound, a message of nothing would never end.
pub const EMPTY_FRAGMENTS_MAX: u16 = 1_000;

/// The longest head of a client frame: two bytes, a 64-bit length, the mask.
const HEAD_BYTES_MAX: usize = 14;
const CONTROL_BYTES_MAX: usize = 125;

/// What a client sent. Borrowed from the chunk, or from the decoder until its next call.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a mut [u8]),
    /// Answer with a pong of the same payload.
    Ping(&'a [u8]),
    /// An answer, or an unsolicited heartbeat.
    Pong(&'a [u8]),
    /// The client closes: answer with a close frame, read nothing more.
    Close {
        /// Its code, if it gave one.
        code: Option<u16>,
        /// Its reason, often empty.
        reason: &'a str,
    },
}

/// Decodes one connection's frames. Sixteen bytes while no message is in progress.
#[derive(Debug)]
pub struct Decoder {
    message_bytes_max: u32,
    partial: Option<Box<Partial>>,
}

/// What is kept between chunks.
#[derive(Debug)]
struct Partial {
    /// The head of the next frame, as far as it came.
    head: [u8; HEAD_BYTES_MAX],
    head_len: u8,
    /// The frame whose payload is incomplete.
    frame: Option<Head>,
    /// Bytes of that payload that came so far.
    frame_received: usize,
    /// Payload of a split control frame, which may come in the middle of a message.
    control: [u8; CONTROL_BYTES_MAX],
    /// The kind of the message in `message`, from its first frame on.
    message_kind: Option<Opcode>,
    message: Vec<u8>,
    /// How far `message` is known to be UTF-8.
    text_checked: usize,
    empty_fragments: u16,
    /// What was handed out from here, to be forgotten at the next call.
    handed_out: Option<HandedOut>,
}

#[derive(Clone, Copy, Debug)]
enum HandedOut {
    Message,
    Control,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    /// `None` continues a message.
    opcode: Option<Opcode>,
    fin: bool,
    mask: [u8; 4],
    payload_bytes: usize,
    /// Length of the head itself.
    bytes: usize,
}

impl Head {
    fn is_control(&self) -> bool {
        matches!(self.opcode, Some(Opcode::Ping | Opcode::Pong | Opcode::Close))
    }
}

/// Parses a head; `None` when it is incomplete. Judges as early as the bytes allow.
fn parse_head(bytes: &[u8], message_bytes_max: usize) -> Result<Option<Head>, FrameError> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(FrameError::ReservedBits);
    }
    let opcode = match first & 0x0f {
        0 => None,
        1 => Some(Opcode::Text),
        2 => Some(Opcode::Binary),
        8 => Some(Opcode::Close),
        9 => Some(Opcode::Ping),
        10 => Some(Opcode::Pong),
        _ => return Err(FrameError::ReservedOpcode),
    };
    if second & 0x80 == 0 {
        return Err(FrameError::Unmasked);
    }
    let fin = first & 0x80 != 0;
    let short = second & 0x7f;
    if first & 0x08 != 0 {
        if short as usize > CONTROL_BYTES_MAX {
            return Err(FrameError::ControlTooLong);
        }
        if !fin {
            return Err(FrameError::ControlFragmented);
        }
    }
    let (length, length_bytes) = match short {
        126 => {
            let Some(bytes) = rest.first_chunk::<2>() else { return Ok(None) };
            let length = u64::from(u16::from_be_bytes(*bytes));
            if length < 126 {
                return Err(FrameError::LengthNotMinimal);
            }
            (length, 2)
        }
        127 => {
            let Some(bytes) = rest.first_chunk::<8>() else { return Ok(None) };
            let length = u64::from_be_bytes(*bytes);
            if length >> 63 != 0 {
                return Err(FrameError::LengthTopBit);
            }
            if length <= 0xffff {
                return Err(FrameError::LengthNotMinimal);
            }
            (length, 8)
        }
        short => (u64::from(short), 0),
    };
    if length > message_bytes_max as u64 && first & 0x08 == 0 {
        return Err(FrameError::MessageTooBig);
    }
    let Some(mask) = rest[length_bytes..].first_chunk::<4>() else { return Ok(None) };
    Ok(Some(Head { opcode, fin, mask: *mask, payload_bytes: length as usize, bytes: 2 + length_bytes + 4 }))
}

impl Decoder {
    /// A decoder that refuses messages above `message_bytes_max` with 1009.
    pub fn new(message_bytes_max: u32) -> Self {
        Self { message_bytes_max, partial: None }
    }

    /// Bytes copied aside for an incomplete message: what this connection costs beyond its fixed size.
    pub fn pending_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.message.capacity())
    }

    /// Nothing is kept of an incomplete frame or message: a new decoder would go on in the same way.
    pub fn is_idle(&self) -> bool {
        self.partial.is_none()
    }

    /// The next event of the chunk from position `at` on. Call until it says `None`: then the chunk is used up, and
    /// what it left incomplete is kept for the next one.
    ///
    /// After an error, or a [`Event::Close`], the rest of what the client sends has no meaning: do not call again.
    pub fn next<'a>(&'a mut self, chunk: &'a mut [u8], at: &mut usize) -> Result<Option<Event<'a>>, FrameError> {
        self.forget_handed_out();
        let message_bytes_max = self.message_bytes_max as usize;
        loop {
            let rest = &chunk[*at..];
            if rest.is_empty() {
                return Ok(None);
            }
            let head = match &mut self.partial {
                Some(partial) if partial.frame.is_some() => {
                    match partial.take_payload(chunk, at)? {
                        Step::Continue => continue,
                        Step::Deliver(handed_out) => {
                            return self.partial.as_mut().map(|partial| partial.hand_out(handed_out)).transpose();
                        }
                    };
                }
                Some(partial) if partial.head_len > 0 => {
                    let Some(head) = partial.complete_head(rest, at, message_bytes_max)? else { return Ok(None) };
                    head
                }
                _ => match parse_head(rest, message_bytes_max)? {
                    Some(head) => {
                        *at += head.bytes;
                        head
                    }
                    None => {
                        self.partial_mut().keep_head(rest);
                        *at = chunk.len();
                        return Ok(None);
                    }
                },
            };
            let fragmented = self.partial.as_ref().is_some_and(|partial| partial.message_kind.is_some());
            check_order(&head, fragmented)?;
            let whole = chunk.len() - *at >= head.payload_bytes;
            if whole && (head.is_control() || (head.fin && !fragmented)) {
                if !fragmented {
                    self.partial = None;
                }
                let payload = &mut chunk[*at..*at + head.payload_bytes];
                *at += head.payload_bytes;
                unmask(payload, head.mask, 0);
                return event(head.opcode.expect("a continuation is never alone"), payload).map(Some);
            }
            self.partial_mut().begin_frame(head, message_bytes_max)?;
            // An empty fragment is complete already; the payload of others is taken at the top.
            if head.payload_bytes == 0 && self.partial_mut().end_frame(head)? {
                return self.partial_mut().hand_out(HandedOut::Message).map(Some);
            }
        }
    }

    fn partial_mut(&mut self) -> &mut Partial {
        self.partial.get_or_insert_with(|| {
            Box::new(Partial {
                head: [0; HEAD_BYTES_MAX],
                head_len: 0,
                frame: None,
                frame_received: 0,
                control: [0; CONTROL_BYTES_MAX],
                message_kind: None,
                message: Vec::new(),
                text_checked: 0,
                empty_fragments: 0,
                handed_out: None,
            })
        })
    }

    fn forget_handed_out(&mut self) {
        let Some(partial) = &mut self.partial else { return };
        match partial.handed_out.take() {
            None => {}
            Some(HandedOut::Control) if partial.message_kind.is_some() => {}
            // Nothing is in progress: the connection is back to its sixteen bytes.
            Some(HandedOut::Message | HandedOut::Control) => self.partial = None,
        }
    }
}

fn check_order(head: &Head, fragmented: bool) -> Result<(), FrameError> {
    match head.opcode {
        None if !fragmented => Err(FrameError::StrayContinuation),
        Some(Opcode::Text | Opcode::Binary) if fragmented => Err(FrameError::MessageInsideMessage),
        _ => Ok(()),
    }
}

/// Makes an event of a whole, unmasked payload.
fn event(opcode: Opcode, payload: &mut [u8]) -> Result<Event<'_>, FrameError> {
    Ok(match opcode {
        Opcode::Text => Event::Text(core::str::from_utf8(payload).map_err(|_| FrameError::NotUtf8)?),
        Opcode::Binary => Event::Binary(payload),
        Opcode::Ping => Event::Ping(payload),
        Opcode::Pong => Event::Pong(payload),
        Opcode::Close => match &*payload {
            [] => Event::Close { code: None, reason: "" },
            [_] => return Err(FrameError::ClosePayload),
            [high, low, reason @ ..] => {
                let code = u16::from_be_bytes([*high, *low]);
                if !CloseCode::from(code).is_allowed() {
                    return Err(FrameError::CloseCode);
                }
                let reason = core::str::from_utf8(reason).map_err(|_| FrameError::NotUtf8)?;
                Event::Close { code: Some(code), reason }
            }
        },
    })
}

enum Step {
    /// The frame, or the chunk, is used up.
    Continue,
    Deliver(HandedOut),
}

impl Partial {
    fn keep_head(&mut self, bytes: &[u8]) {
        self.head[..bytes.len()].copy_from_slice(bytes);
        self.head_len = bytes.len() as u8;
    }

    /// Completes a split head with the chunk's first bytes; `None` when they do not suffice, and are kept.
    fn complete_head(&mut self, rest: &[u8], at: &mut usize, max: usize) -> Result<Option<Head>, FrameError> {
        let kept = self.head_len as usize;
        let taken = rest.len().min(HEAD_BYTES_MAX - kept);
        self.head[kept..kept + taken].copy_from_slice(&rest[..taken]);
        match parse_head(&self.head[..kept + taken], max)? {
            Some(head) => {
                // More bytes than the head needs may have been looked at; they stay in the chunk.
                *at += head.bytes - kept;
                self.head_len = 0;
                Ok(Some(head))
            }
            None => {
                *at += taken;
                self.head_len = (kept + taken) as u8;
                Ok(None)
            }
        }
    }

    /// Starts a frame that is not handed out in place.
    fn begin_frame(&mut self, head: Head, message_bytes_max: usize) -> Result<(), FrameError> {
        if !head.is_control() {
            if self.message.len() + head.payload_bytes > message_bytes_max {
                return Err(FrameError::MessageTooBig);
            }
            if let Some(kind) = head.opcode {
                self.message_kind = Some(kind);
            }
        }
        self.frame = Some(head);
        self.frame_received = 0;
        Ok(())
    }

    /// Takes what the chunk has of the current frame's payload. Memory grows with bytes that came, never with a
    /// declared length.
    fn take_payload(&mut self, chunk: &[u8], at: &mut usize) -> Result<Step, FrameError> {
        let head = self.frame.expect("called inside a frame");
        let taken = (head.payload_bytes - self.frame_received).min(chunk.len() - *at);
        let bytes = &chunk[*at..*at + taken];
        *at += taken;
        let offset = self.frame_received;
        self.frame_received += taken;
        let complete = self.frame_received == head.payload_bytes;
        if head.is_control() {
            let target = &mut self.control[offset..offset + taken];
            target.copy_from_slice(bytes);
            unmask(target, head.mask, offset);
            return Ok(if complete { Step::Deliver(HandedOut::Control) } else { Step::Continue });
        }
        let start = self.message.len();
        self.message.extend_from_slice(bytes);
        unmask(&mut self.message[start..], head.mask, offset);
        if self.message_kind == Some(Opcode::Text) {
            self.check_text()?;
        }
        if complete && self.end_frame(head)? {
            return Ok(Step::Deliver(HandedOut::Message));
        }
        Ok(Step::Continue)
    }

    /// Ends a data frame; true when the message is whole.
    fn end_frame(&mut self, head: Head) -> Result<bool, FrameError> {
        self.frame = None;
        if head.payload_bytes == 0 && !head.fin {
            self.empty_fragments += 1;
            if self.empty_fragments > EMPTY_FRAGMENTS_MAX {
                return Err(FrameError::EmptyFragments);
            }
        }
        if head.fin && self.message_kind == Some(Opcode::Text) && self.text_checked != self.message.len() {
            return Err(FrameError::NotUtf8);
        }
        Ok(head.fin)
    }

    /// Fails at the first byte that cannot belong to UTF-8; up to three bytes of a cut character wait.
    fn check_text(&mut self) -> Result<(), FrameError> {
        match core::str::from_utf8(&self.message[self.text_checked..]) {
            Ok(text) => self.text_checked += text.len(),
            Err(error) if error.error_len().is_none() => self.text_checked += error.valid_up_to(),
            Err(_) => return Err(FrameError::NotUtf8),
        }
        Ok(())
    }

    fn hand_out(&mut self, what: HandedOut) -> Result<Event<'_>, FrameError> {
        self.handed_out = Some(what);
        match what {
            HandedOut::Control => {
                let head = self.frame.take().expect("a control frame was completed");
                event(head.opcode.expect("a control frame has one"), &mut self.control[..head.payload_bytes])
            }
            HandedOut::Message => {
                let kind = self.message_kind.take().expect("a message was completed");
                event(kind, &mut self.message)
            }
        }
    }
}
