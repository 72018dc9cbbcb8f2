//! Where each session comes from, and when each one's heart beats: computed from its number, so that a million sessions
//! keep no word of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Connections from one source address to one target. The kernel has 28,232 ports for them by default and looks through
/// half of those first (of one parity): far below that half, a free one is found at once.
const CONNECTIONS_PER_SOURCE: u32 = 8_000;
/// Source addresses are 127.64.0.1 and above, out of the way of what else runs on loopback.
const SOURCES_BEGIN: u32 = u32::from_be_bytes([127, 64, 0, 0]);
/// Room for as many sources of any one run, beyond where it begins.
const SOURCES_SPAN: u32 = 1 << 21;

/// The source addresses of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sources {
    /// `None`: the kernel chooses. Only on loopback every address is this machine's own.
    first: Option<u32>,
}

impl Sources {
    /// `salt` keeps runs apart whose ports may still be in use.
    pub(crate) fn new(target: SocketAddr, salt: u64) -> Self {
        let loopback = matches!(target.ip(), IpAddr::V4(ip) if ip.is_loopback());
        // One network of 256 addresses in a run's own place; `sources` of a million connections are 125.
        let place = (salt % u64::from(SOURCES_SPAN >> 8)) as u32;
        Self { first: loopback.then_some(SOURCES_BEGIN + (place << 8)) }
    }

    /// Where session `conn` connects from.
    pub(crate) fn of(&self, conn: u32) -> Option<Ipv4Addr> {
        let index = conn / CONNECTIONS_PER_SOURCE;
        // Within a network .0 and .255 are as good as any other on loopback, but look odd in a list of sockets.
        let host = index / 254 * 256 + index % 254 + 1;
        self.first.map(|first| Ipv4Addr::from(first + host))
    }
}

/// A beat of each session an interval, evenly spread: session `conn` at `conn / sessions` of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hearts {
    start_ns: u64,
    interval_ns: u64,
    sessions: u32,
    done: u64,
}

impl Hearts {
    pub(crate) fn new(start_ns: u64, interval_ns: u64, sessions: u32) -> Self {
        assert!(interval_ns > 0 && sessions > 0);
        Self { start_ns, interval_ns, sessions, done: 0 }
    }

    /// The next session whose beat is due.
    pub(crate) fn due(&mut self, now_ns: u64) -> Option<u32> {
        if self.next_at_ns() > now_ns {
            return None;
        }
        let conn = (self.done % u64::from(self.sessions)) as u32;
        self.done += 1;
        Some(conn)
    }

    /// When the next beat is due.
    pub(crate) fn next_at_ns(&self) -> u64 {
        // From the count, not by adding up: no drift.
        let offset = u128::from(self.done) * u128::from(self.interval_ns) / u128::from(self.sessions);
        self.start_ns + offset as u64
    }
}

/// How many sessions each of the fewest rings takes, if one holds at most `files_max`.
pub(crate) fn files_per_ring(sessions: u32, files_max: u32) -> u32 {
    sessions.div_ceil(sessions.div_ceil(files_max).max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn a_million_connections_have_ports_for_all_from_loopback_addresses_of_the_run() {
        for salt in [0, 1, 77, u64::MAX] {
            let sources = Sources::new("127.0.0.1:7400".parse().unwrap(), salt);
            let mut counts: HashMap<Ipv4Addr, u32> = HashMap::new();
            for conn in 0..1_000_000 {
                *counts.entry(sources.of(conn).unwrap()).or_default() += 1;
            }
            assert_eq!(counts.len(), 125);
            assert!(counts.values().all(|count| *count <= CONNECTIONS_PER_SOURCE));
            assert!(counts.keys().all(|ip| ip.is_loopback() && !matches!(ip.octets()[3], 0 | 255)), "{counts:?}");
            assert!(counts.keys().all(|ip| ip.octets()[1] >= 64));
        }
        let source = |salt| Sources::new("127.0.0.1:7400".parse().unwrap(), salt).of(0);
        assert_ne!(source(1), source(2));
    }

    #[test]
    fn elsewhere_than_on_loopback_the_kernel_chooses() {
        for target in ["192.0.2.1:7400", "[::1]:7400"] {
            assert_eq!(Sources::new(target.parse().unwrap(), 5).of(3), None, "{target}");
        }
    }

    #[test]
    fn every_heart_beats_once_an_interval_and_evenly() {
        const INTERVAL: u64 = 25_000_000_000;
        let sessions = 30_000;
        let mut hearts = Hearts::new(1_000, INTERVAL, sessions);
        assert_eq!(hearts.due(999), None);
        let mut beats = vec![Vec::new(); sessions as usize];
        let mut in_steps = Vec::new();
        // Looked at each 10 ms, for two intervals and a bit.
        for now_ns in (0..=50_000).map(|step| 1_000 + step * 1_000_000) {
            let mut count = 0;
            while let Some(conn) = hearts.due(now_ns) {
                beats[conn as usize].push(now_ns);
                count += 1;
            }
            in_steps.push(count);
        }
        for beats in &beats {
            let apart = beats[1] - beats[0];
            assert!(apart.abs_diff(INTERVAL) <= 1_000_000, "{apart} ns between two beats");
        }
        // 30,000 in 25 s are 1.2 a millisecond.
        assert!(in_steps.iter().all(|count| *count <= 2), "never a burst");
        assert_eq!(hearts.next_at_ns(), 1_000 + (hearts.done as u128 * INTERVAL as u128 / 30_000) as u64);
    }

    #[test]
    fn sessions_are_spread_over_the_fewest_rings() {
        assert_eq!(files_per_ring(1_000_000, 18_000), 17_858);
        assert_eq!(1_000_000_u32.div_ceil(files_per_ring(1_000_000, 18_000)), 56);
        assert_eq!((files_per_ring(10, 18_000), files_per_ring(18_001, 18_000)), (10, 9_001));
    }
}
