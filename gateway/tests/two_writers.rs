//! A gateway with two writers on real sockets, on each driver: it finds the active one, and the other one when that has
//! taken over. The writers here speak the link and know nothing of chats.

use gateway::identity::Tickets;
use gateway::{Options, Status};
use parley_protocol::link::{Answer, LinkWelcome, Reply, ToGateway, ToWriter};
use parley_protocol::wire;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Who waits this long has hung.
const HUNG: Duration = Duration::from_secs(30);
const SHARDS: u64 = 2;
const EPOCH: u64 = 7;

/// A writer that answers the hello, and that every barrier stands.
struct Standin {
    socket: PathBuf,
    active: AtomicBool,
    welcomed: AtomicU64,
    turned_away: AtomicU64,
    links: Mutex<Vec<UnixStream>>,
}

impl Standin {
    fn listen(socket: PathBuf) -> Arc<Self> {
        let listener = UnixListener::bind(&socket).expect("binds");
        let standin = Arc::new(Self {
            socket,
            active: AtomicBool::new(false),
            welcomed: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            links: Mutex::default(),
        });
        let serving = standin.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, standin) = (stream.expect("a link"), serving.clone());
                std::thread::spawn(move || standin.serve(stream));
            }
        });
        standin
    }

    fn serve(&self, mut stream: UnixStream) -> Option<()> {
        self.links.lock().unwrap().push(stream.try_clone().ok()?);
        let (mut input, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            while let Some((record, len)) = wire::split_record(&input).expect("records") {
                let record = wire::decode_to_writer(record).expect("a record");
                input.drain(..len);
                let mut out = Vec::new();
                for record in self.answers(&record) {
                    wire::encode_record(&record, &mut out);
                }
                stream.write_all(&out).ok()?;
            }
            let len = stream.read(&mut buffer).ok().filter(|len| *len > 0)?;
            input.extend_from_slice(&buffer[..len]);
        }
    }

    fn answers(&self, record: &ToWriter) -> Vec<ToGateway> {
        match record {
            ToWriter::Hello(_) if !self.active.load(Ordering::SeqCst) => {
                self.turned_away.fetch_add(1, Ordering::SeqCst);
                vec![ToGateway::NotActive { active: String::new() }]
            }
            ToWriter::Hello(hello) => {
                assert!(hello.home_epoch == 0 || hello.home_epoch == EPOCH, "{hello:?}");
                self.welcomed.fetch_add(1, Ordering::SeqCst);
                let welcome = LinkWelcome { home_epoch: EPOCH, writer_epoch: 1 };
                vec![ToGateway::Welcome(welcome), ToGateway::Status { ready: true, reason: String::new() }]
            }
            ToWriter::Request(request) => {
                vec![ToGateway::Answer(Answer { no: request.no, reply: Reply::Opened })]
            }
        }
    }

    /// The lease is another one's: links are cut.
    fn stands_by(&self) {
        self.active.store(false, Ordering::SeqCst);
        for link in self.links.lock().unwrap().drain(..) {
            link.shutdown(std::net::Shutdown::Both).ok();
        }
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < HUNG, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn gateway(driver: &str, sockets: &[&Path], data: &Path) -> gateway::Handle {
    let text = format!(
        "listen = \"127.0.0.1:0\"\nshards = {SHARDS}\npin = false\ndriver = \"{driver}\"\nconnections_max = 100\n\
         [writer]\nlink_retry_max_ms = 100\nsockets = {sockets:?}\n"
    );
    let config = parley_config::load_gateway_text(Path::new("gateway.toml"), &text).expect("a configuration").config;
    let tickets = Tickets::load_or_create(data).expect("a key");
    let writer_sockets = config.writer.sockets.clone();
    gateway::serve(Options { config, writer_sockets, dev_key: None, tickets }).expect("starts")
}

#[test]
fn the_active_writer_is_found_and_found_again() {
    for driver in ["epoll", "uring"] {
        let dir = tempfile::tempdir().expect("a directory");
        let nobody = dir.path().join("nobody.sock");
        let [a, b] = ["a.sock", "b.sock"].map(|name| Standin::listen(dir.path().join(name)));
        let gateway = gateway(driver, &[&nobody, &a.socket, &b.socket], dir.path());
        until("all are tried, more than once", || {
            [&a, &b].iter().all(|writer| writer.turned_away.load(Ordering::SeqCst) > 1)
        });
        let Status::NotReady(reason) = gateway.status() else { panic!("{driver}: ready without a writer") };
        for socket in [&nobody, &a.socket, &b.socket] {
            assert!(reason.contains(socket.to_str().unwrap()), "{driver}: {reason}");
        }
        b.active.store(true, Ordering::SeqCst);
        until("ready with b", || gateway.status() == Status::Ready);
        assert_eq!([&a, &b].map(|writer| writer.welcomed.load(Ordering::SeqCst)), [0, SHARDS], "{driver}");
        b.stands_by();
        until("b is seen to be gone", || gateway.status() != Status::Ready);
        a.active.store(true, Ordering::SeqCst);
        until("ready with a", || gateway.status() == Status::Ready);
        assert_eq!([&a, &b].map(|writer| writer.welcomed.load(Ordering::SeqCst)), [SHARDS, SHARDS], "{driver}");
        gateway.drain(HUNG);
        assert_eq!(gateway.wait(), gateway::plane::Exit::Drained, "{driver}");
    }
}
