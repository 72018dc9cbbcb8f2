//! A server that runs out of descriptors pauses accepting and serves on when there are some again. The limit is on a
//! child process: this test binary, run again for the one test in it.

mod plane_support;

use gateway::echo;
use gateway::plane::{Exit, Options};
use plane_support::{DRIVERS, options};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;
use tungstenite::Message;

const CHILD: &str = "PARLEY_TEST_DRIVER_WITH_FEW_DESCRIPTORS";
const FILES: u64 = 110;
const CONNECTIONS: usize = 200;

/// Serves until its standard input ends, then says how often accepting paused.
fn serve(driver: &str) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(FILES);
    setrlimit(Resource::Nofile, limit).expect("lowers");
    let options = options(driver.parse().expect("a driver"), 4);
    let server = echo::serve(Options { linger_ms: 100, ..options }).expect("starts");
    println!("\naddr {}", server.addr());
    std::io::stdin().read_to_end(&mut Vec::new()).expect("ends");
    let pauses: u64 = server.counters().iter().map(|shard| shard.accept_pauses.get()).sum();
    println!("\npauses {pauses}");
    server.drain(Duration::from_secs(20));
    assert_eq!(server.join(), Exit::Drained);
}

#[test]
fn accepting_pauses_without_descriptors_and_goes_on() {
    if let Ok(driver) = std::env::var(CHILD) {
        return serve(&driver);
    }
    for driver in DRIVERS {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "accepting_pauses_without_descriptors_and_goes_on", "--nocapture"])
            .env(CHILD, format!("{driver:?}").to_lowercase())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("runs again");
        let mut output = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut value = |name: &str| {
            let found = output.find_map(|line| line.ok()?.strip_prefix(name).map(str::to_owned));
            found.unwrap_or_else(|| panic!("the child says {name}"))
        };
        let addr = value("addr ");
        // More than the child can hold; those that it cannot wait in the backlog.
        let idle: Vec<_> = (0..CONNECTIONS).map(|_| TcpStream::connect(&addr).expect("connects")).collect();
        std::thread::sleep(Duration::from_millis(100));
        drop(idle);
        // Until the shard that it comes to has seen the others leave, it may be dropped.
        let mut client = loop {
            if let Ok((client, _)) = tungstenite::connect(format!("ws://{addr}/ws")) {
                break client;
            }
        };
        client.send(Message::text("in again")).expect("sends");
        assert_eq!(client.read().expect("an echo"), Message::text("in again"));
        drop(client);
        drop(child.stdin.take());
        assert_ne!(value("pauses "), "0", "{driver:?} had descriptors for all");
        assert!(child.wait().expect("ends").success());
    }
}
