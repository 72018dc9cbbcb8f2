//! The rings of a shard: more live sockets than the limit of open files, slots of every ring used again amid late
//! completions, and a ring that cannot be made. Limits are on a child process: this test binary, run again for the one
//! test in it.

mod plane_support;

use gateway::echo;
use gateway::plane::{BufferOptions, DriverChoice, Exit, Handle, Options, RingOptions};
use plane_support::{RINGS, connect, options, tcp};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use tungstenite::{Message, WebSocket};

const CHILD: &str = "PARLEY_TEST_CHILD_WITH_RINGS";
const FILES: u64 = 300;
const SOCKETS: usize = 1_000;

fn uring(shards: u16) -> Options {
    Options { linger_ms: 100, connections_max: 2_000, ..options(DriverChoice::Uring, shards) }
}

fn sum(server: &Handle, value: impl Fn(&gateway::plane::Counters) -> u64) -> u64 {
    server.counters().iter().map(|shard| value(shard)).sum()
}

fn end(server: Handle) {
    server.drain(Duration::from_secs(20));
    assert_eq!(server.join(), Exit::Drained);
}

/// A child that runs one test of this binary, and is asked for words on its standard input.
struct Asked {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Asked {
    fn start(test: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("runs again");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, input, output }
    }

    fn value(&mut self, name: &str) -> String {
        let found = self.output.find_map(|line| line.ok()?.strip_prefix(name).map(str::to_owned));
        found.unwrap_or_else(|| panic!("the child says {name}"))
    }

    fn ask(&mut self, word: &str) -> String {
        self.input.write_all(format!("{word}\n").as_bytes()).expect("the child listens");
        self.value("answer ")
    }

    fn connect(addr: &str) -> Option<WebSocket<TcpStream>> {
        let stream = TcpStream::connect(addr).ok()?;
        stream.set_nodelay(true).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
        Some(tungstenite::client(format!("ws://{addr}/ws"), stream).ok()?.0)
    }

    fn end(self) {
        let Self { mut child, input, output } = self;
        drop(input);
        output.for_each(drop);
        assert!(child.wait().expect("ends").success());
    }
}

/// Answers words until the standard input ends.
fn answer(mut of: impl FnMut(&str) -> String) {
    for word in std::io::stdin().lines() {
        println!("\nanswer {}", of(&word.expect("a word")));
    }
}

fn limit_files(files: u64) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(files);
    setrlimit(Resource::Nofile, limit).expect("lowers");
}

fn echoes(client: &mut WebSocket<TcpStream>, text: &str) {
    client.send(Message::text(text)).expect("sends");
    assert_eq!(client.read().expect("an echo"), Message::text(text));
}

#[test]
fn there_are_more_live_sockets_than_open_files() {
    if std::env::var_os(CHILD).is_some() {
        limit_files(FILES);
        // A ring would take more; the limit says 256.
        let rings = RingOptions { connections_max: 16_384, ..RINGS };
        let server = echo::serve(Options { rings, ..uring(2) }).expect("starts");
        println!("\naddr {}", server.addr());
        answer(|word| match word {
            "open" => std::fs::read_dir("/proc/self/fd").expect("lists").count().to_string(),
            "live" => sum(&server, |shard| shard.live.get()).to_string(),
            "rings" => sum(&server, |shard| shard.rings.get()).to_string(),
            _ => sum(&server, |shard| shard.ring_files.get()).to_string(),
        });
        return end(server);
    }
    let mut child = Asked::start("there_are_more_live_sockets_than_open_files");
    let addr = child.value("addr ");
    let mut clients: Vec<_> = (0..SOCKETS).map(|_| Asked::connect(&addr).expect("connects")).collect();
    for round in 0..5 {
        for (n, client) in clients.iter_mut().enumerate() {
            echoes(client, &format!("{round}/{n}"));
        }
    }
    assert_eq!(child.ask("live"), SOCKETS.to_string());
    let open: u64 = child.ask("open").parse().expect("a number");
    assert!(open < 100, "{open} descriptors are open");
    let rings: u64 = child.ask("rings").parse().expect("a number");
    assert_eq!(child.ask("files"), (256 * rings).to_string());
    assert!(rings > 3, "{rings} rings");
    drop(clients);
    child.end();
}

#[test]
fn a_ring_that_cannot_be_made_refuses_and_is_tried_again() {
    if std::env::var_os(CHILD).is_some() {
        limit_files(FILES);
        let server = echo::serve(uring(1)).expect("starts");
        println!("\naddr {}", server.addr());
        let mut held: Vec<OwnedFd> = Vec::new();
        answer(|word| {
            match word {
                "hold" => {
                    // All but one: the next accept finds that, and the ring behind it none.
                    let own = std::fs::File::open("/proc/self/exe").expect("opens");
                    held.extend(std::iter::from_fn(|| own.try_clone().ok().map(OwnedFd::from)));
                }
                "release" => held.clear(),
                _ => {}
            }
            let shard = &server.counters()[0];
            format!("{} refused, {} rings", shard.refused.get(), shard.rings.get())
        });
        return end(server);
    }
    let mut child = Asked::start("a_ring_that_cannot_be_made_refuses_and_is_tried_again");
    let addr = child.value("addr ");
    let room = RINGS.connections_max as usize;
    let mut clients: Vec<_> = (0..room).map(|_| Asked::connect(&addr).expect("connects")).collect();
    // Each is live, and holds no descriptor any more.
    clients.iter_mut().for_each(|client| (0..4).for_each(|n| echoes(client, &n.to_string())));
    assert_eq!(child.ask("hold"), "0 refused, 1 rings");
    assert!(Asked::connect(&addr).is_none(), "there is no ring for it");
    assert_eq!(child.ask("look"), "1 refused, 1 rings");
    clients.iter_mut().for_each(|client| echoes(client, "those that are in stay"));
    child.ask("release");
    let again = || {
        std::thread::sleep(Duration::from_millis(10));
        Asked::connect(&addr)
    };
    let mut next = std::iter::repeat_with(again).take(2_000).flatten().next().expect("the ring is tried again");
    echoes(&mut next, "in the second ring");
    assert!(child.ask("look").ends_with(" refused, 2 rings"));
    drop((clients, next));
    child.end();
}

#[test]
fn slots_of_every_ring_are_used_again_amid_late_completions() {
    const CLIENTS: usize = 150;
    let server = echo::serve(uring(1)).expect("starts");
    let mut clients: Vec<Option<WebSocket<TcpStream>>> = (0..CLIENTS).map(|_| Some(connect(&server))).collect();
    let message = |n: usize| Message::binary(vec![n as u8; 3_000]);
    for round in 0..12 {
        for (n, client) in clients.iter_mut().enumerate() {
            let client = client.as_mut().expect("connected");
            // Some are active, some are not: what is in flight at their end is a receive, or a poll.
            for _ in 0..=(n + round) % 4 {
                client.send(message(n)).expect("sends");
            }
        }
        for (n, client) in clients.iter_mut().enumerate() {
            let each = client.as_mut().expect("connected");
            if n % 5 == round % 5 {
                // With echoes on their way to it: the server learns of its end in the middle of a send.
                *client = None;
                continue;
            }
            for _ in 0..=(n + round) % 4 {
                assert_eq!(each.read().expect("an echo"), message(n));
            }
        }
        for client in clients.iter_mut().filter(|client| client.is_none()) {
            *client = Some(connect(&server));
        }
    }
    let shard = &server.counters()[0];
    let rings = (CLIENTS as u64).div_ceil(RINGS.connections_max.into());
    // The others were closed while new ones came, so that a few more slots were needed at times.
    assert!((rings..=rings + 2).contains(&shard.rings.get()), "{} rings", shard.rings.get());
    assert_eq!(shard.accepted.get(), (CLIENTS + 12 * CLIENTS / 5) as u64);
    assert!(shard.promotions.get() > 0);
    drop(clients);
    end(server);
}

#[test]
fn a_ring_with_few_buffers_makes_only_its_own_wait() {
    let rings = RingOptions { connections_max: 4, buffers: BufferOptions { count: 2, bytes: 512 }, ..RINGS };
    let server = echo::serve(Options { rings, ..uring(1) }).expect("starts");
    // They fill the first ring, and stay in it.
    let mut first: Vec<_> = (0..4).map(|_| connect(&server)).collect();
    let mut others: Vec<_> = (0..30).map(|_| connect(&server)).collect();
    assert_eq!(server.counters()[0].enobufs.get(), 0);
    let message = |n: usize| Message::binary(vec![n as u8; 20_000]);
    for round in 0..4 {
        for (n, client) in others.iter_mut().enumerate() {
            client.send(message(n + round)).expect("sends");
        }
        first.iter_mut().for_each(|client| echoes(client, "a word in between"));
        for (n, client) in others.iter_mut().enumerate() {
            assert_eq!(client.read().expect("an echo"), message(n + round));
        }
    }
    let shard = &server.counters()[0];
    assert_eq!(shard.rings.get(), 9);
    assert!(shard.enobufs.get() > 0, "buffers ran out");
    drop((first, others));
    end(server);
}

#[test]
fn connections_in_the_lobby_fill_rings_too() {
    let server = echo::serve(uring(1)).expect("starts");
    // They say nothing, and then all at once.
    let mut waiting: Vec<_> = (0..100).map(|_| tcp(&server)).collect();
    let head = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    waiting.iter_mut().for_each(|client| client.write_all(head).expect("sends"));
    for client in &mut waiting {
        let mut answer = [0; 12];
        client.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 101");
    }
    assert_eq!(server.counters()[0].rings.get(), 4);
    drop(waiting);
    end(server);
}
