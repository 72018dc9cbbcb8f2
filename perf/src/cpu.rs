//! What the measured window costs: CPU time of processes, user and system, from `/proc/PID/stat` (one's own from a
//! clock), and requests to the cluster from `/metrics`.

use crate::report::{Cost, Window};
use crate::scrape;
use rustix::param::clock_ticks_per_second;
use rustix::time::{ClockId, clock_gettime};
use std::net::SocketAddr;

/// A process whose CPU time is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) pid: u32,
}

impl Probe {
    /// User and system time of all its threads since it began, microseconds.
    pub(crate) fn cpu_us(self) -> Result<u64, String> {
        let path = format!("/proc/{}/stat", self.pid);
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error} (did it end?)"))?;
        parse_ticks(&text).map(|ticks| ticks * 1_000_000 / clock_ticks_per_second()).ok_or(format!("{path}: malformed"))
    }
}

/// Fields 14 and 15 of proc(5)'s `stat`; the command in field 2 may hold spaces and brackets.
fn parse_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Where the servers say what they cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Probes {
    pub(crate) gateway: Option<Probe>,
    pub(crate) writer: Option<Probe>,
    /// The admin endpoint of a storage-writer on a cluster.
    pub(crate) cluster: Option<SocketAddr>,
}

pub(crate) fn own_us() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

impl Probes {
    /// What was used since the processes began.
    pub(crate) fn read(&self) -> Result<Cost, String> {
        Ok(Cost {
            gateway_us: self.gateway.map(Probe::cpu_us).transpose()?,
            writer_us: self.writer.map(Probe::cpu_us).transpose()?,
            generator_us: own_us(),
            cql: self.cluster.map(scrape::requests).transpose()?,
        })
    }
}

/// Reads at the start and at the end of a window.
#[derive(Debug)]
pub(crate) struct Meter {
    probes: Probes,
    window: Window,
    start: Option<Cost>,
    end: Option<Cost>,
}

impl Meter {
    pub(crate) fn new(probes: Probes, window: Window) -> Self {
        Self { probes, window, start: None, end: None }
    }

    /// To be called when `next_ns` has come; more often does no harm.
    pub(crate) fn tick(&mut self, now_ns: u64) -> Result<(), String> {
        if self.start.is_none() && now_ns >= self.window.start_ns {
            self.start = Some(self.probes.read()?);
        }
        if self.end.is_none() && now_ns >= self.window.end_ns {
            self.end = Some(self.probes.read()?);
        }
        Ok(())
    }

    /// When it wants to read next.
    pub(crate) fn next_ns(&self) -> u64 {
        match (&self.start, &self.end) {
            (None, _) => self.window.start_ns,
            (Some(_), None) => self.window.end_ns,
            _ => u64::MAX,
        }
    }

    /// What the window cost.
    pub(crate) fn finish(self) -> Result<Cost, String> {
        let (Some(start), Some(end)) = (self.start, self.end) else {
            return Err("the run ended before its window".to_owned());
        };
        Ok(end.since(&start))
    }
}

impl Cost {
    /// What came since then.
    pub(crate) fn since(&self, start: &Self) -> Self {
        let between = |start: Option<u64>, end: Option<u64>| Some(end?.saturating_sub(start?));
        Self {
            gateway_us: between(start.gateway_us, self.gateway_us),
            writer_us: between(start.writer_us, self.writer_us),
            generator_us: self.generator_us.saturating_sub(start.generator_us),
            cql: start.cql.as_ref().zip(self.cql.as_ref()).map(|(start, end)| scrape::between(start, end)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_ticks_are_found_behind_any_command_name() {
        let stat = "4242 (a (b) c) S 1 4242 4242 0 -1 4194560 2000 0 1 0 17 25 3 4 20 0 5 0 100 200 300";
        assert_eq!(parse_ticks(stat), Some(42));
        assert_eq!(parse_ticks("4242 (short) S 1"), None);
    }

    #[test]
    fn a_live_process_has_a_time_and_a_dead_one_an_error() {
        assert!(Probe { pid: std::process::id() }.cpu_us().is_ok());
        // Above the kernel's largest pid.
        assert!(Probe { pid: u32::MAX }.cpu_us().is_err());
    }
}
