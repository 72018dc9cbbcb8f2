//! Before the faults begin: users get their ids, and groups are made, over ordinary blocking connections. The creations
//! go into a history of their own, so that the checker knows who made them.

use super::servers::Place;
use crate::plan::{DEVICES_MAX, Group, INBOX_LIMIT, Plan, User};
use crash::history::{Record, Writer};
use crash::random::Random;
use parley_protocol::frame::{GroupCreate, Hello, Sent};
use parley_protocol::wire::{Encoding, decode_server_frame, encode_client_frame};
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, DeviceId, ServerFrame, UserId};
use std::fs::File;
use std::io::BufWriter;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;
use tungstenite::client::{ClientRequestBuilder, client};
use tungstenite::{Message, WebSocket};

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than any run.
const TOKEN_TTL_S: &str = "86400";
/// Ids of the devices that log in and create groups: above all others, and gone before the run.
const FIRST_DEVICE: u128 = 1 << 24;

struct Session {
    socket: WebSocket<TcpStream>,
    user_id: UserId,
}

impl Session {
    fn open(address: SocketAddr, token: &str, device: u128) -> Result<Self, String> {
        let stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        let uri = format!("ws://{address}/ws").parse().map_err(|_| "the address makes no URL")?;
        let request = ClientRequestBuilder::new(uri).with_sub_protocol(Encoding::Rkyv.subprotocol());
        let (socket, _) = client(request, stream).map_err(|error| error.to_string())?;
        let mut session = Self { socket, user_id: UserId(0) };
        session.say(&ClientFrame::Hello(Hello {
            version: 1,
            device_id: DeviceId(device),
            token: Some(token.to_owned()),
            resume: None,
            mark: Some(0),
            kinds_known: Vec::new(),
            client: "parley crash harness, setup".to_owned(),
            act_for: None,
        }))?;
        session.user_id = session.wait(|frame| match frame {
            ServerFrame::Welcome(welcome) => Some(welcome.user_id),
            _ => None,
        })?;
        Ok(session)
    }

    fn say(&mut self, frame: &ClientFrame) -> Result<(), String> {
        let mut bytes = Vec::new();
        encode_client_frame(Encoding::Rkyv, frame, &mut bytes);
        self.socket.send(Message::binary(bytes)).map_err(|error| error.to_string())
    }

    fn wait<T>(&mut self, mut pick: impl FnMut(ServerFrame) -> Option<T>) -> Result<T, String> {
        loop {
            let message = self.socket.read().map_err(|error| format!("waiting for an answer: {error}"))?;
            let Message::Binary(bytes) = message else { continue };
            let frame = decode_server_frame(Encoding::Rkyv, &bytes).map_err(|error| error.to_string())?;
            if let ServerFrame::Error(error) = &frame {
                return Err(format!("{error:?}"));
            }
            if let Some(found) = pick(frame) {
                return Ok(found);
            }
        }
    }

    fn create(&mut self, name: ClientMsgId, members: Vec<UserId>) -> Result<Sent, String> {
        // Without a title: a title would be a second event of the same command, which the checker takes for a double.
        let create = GroupCreate { client_msg_id: name, title: String::new(), members };
        self.say(&ClientFrame::GroupCreate(create))?;
        self.wait(|frame| match frame {
            ServerFrame::Sent(sent) if sent.client_msg_id == name => Some(sent),
            _ => None,
        })
    }
}

/// How large a run is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) users: usize,
    pub(crate) processes: u32,
    /// Messages a second of all processes together at most.
    pub(crate) rate: u32,
}

/// Logs everybody in, makes the groups, and writes down who did it.
pub(crate) fn prepare(
    place: &Place,
    addresses: Vec<SocketAddr>,
    seed: u64,
    size: Size,
    history: &Path,
) -> Result<Plan, String> {
    let mut random = Random::new(seed, 0);
    let file = File::create(history).map_err(|error| format!("{}: {error}", history.display()))?;
    let mut history = Writer::new(BufWriter::new(file));
    let data = place.data();
    let data = data.to_str().ok_or("not a UTF-8 path")?;
    let mut users = Vec::new();
    for number in 0..size.users {
        let name = format!("user-{number}");
        let token = place.output(&["token", "--user", &name, "--ttl", TOKEN_TTL_S, "--data", data])?.trim().to_owned();
        let session = Session::open(addresses[0], &token, FIRST_DEVICE + number as u128);
        let session = session.map_err(|error| format!("{name}: {error}"))?;
        let devices = 2 + u32::from(random.one_in(3));
        debug_assert!(devices <= DEVICES_MAX);
        users.push(User { name, token, user_id: session.user_id, devices });
    }
    let mut groups = Vec::new();
    for number in 0..size.users / 5 {
        // Every eighth crosses the limit with its guests, every other third has guests and stays below.
        let (members, guests) = match number % 8 {
            0 => (INBOX_LIMIT - 1, 4),
            3 | 6 => (4 + random.below(4) as usize, 2),
            _ => (3 + random.below(7) as usize, 0),
        };
        let picked = distinct(&mut random, size.users, members + guests);
        let (members, guests) = (picked[..members].to_vec(), picked[members..].to_vec());
        let owner = members[0];
        // The history of the process that plays the owner's first device introduces it.
        let device = owner as u32 * DEVICES_MAX;
        let name = ClientMsgId(u128::from(seed) << 64 | 1 << 32 | number as u128);
        let others = members[1..].iter().map(|member| users[*member].user_id).collect();
        let mut write = |record| history.write(record).map_err(|error| error.to_string());
        write(Record::Offer { device, chat: ChatId(0), name, content: 0 })?;
        // A connection of its own: one that waited since the login would be closed for its silence.
        let mut session = Session::open(addresses[0], &users[owner].token, FIRST_DEVICE + owner as u128)?;
        let Sent { chat_id: chat, seq, message_id, .. } = session.create(name, others)?;
        write(Record::Ack { device, chat, name, seq, message_id: message_id.0 })?;
        groups.push(Group { chat_id: chat, members, guests });
    }
    history.flush().map_err(|error| error.to_string())?;
    Ok(Plan { seed, addresses, processes: size.processes, rate: size.rate / size.processes, users, groups })
}

/// So many different numbers below `bound`, in random order.
fn distinct(random: &mut Random, bound: usize, count: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..bound).collect();
    for place in 0..count.min(bound) {
        let other = place + random.below((bound - place) as u64) as usize;
        all.swap(place, other);
    }
    all.truncate(count);
    all
}
