//! How many statements may be under way: an adaptive limit from measured latency, so that statements queue here and not
//! in the cluster. No clock: times are arguments.
//!
//! The idea is the gradient limit of Netflix's concurrency-limits (`GradientLimit`): the limit follows
//! `limit * tolerance * base / latency + sqrt(limit)`, where `base` is the latency without a queue. Differences: a
//! latency is the mean of a window, because statements differ, and reads and writes have a base each; and the bases are
//! measured again now and then at half of the limit, as BBR does: a minimum that is kept for ever goes stale, and
//! one that decays follows the queue. Where the limit cannot fall further they are measured soon: either the cluster is
//! that slow, or the bases are stale.

/// Bounds and pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitOptions {
    /// Never fewer.
    pub min: usize,
    /// At the start.
    pub initial: usize,
    /// Never more.
    pub max: usize,
}

impl Default for LimitOptions {
    fn default() -> LimitOptions {
        LimitOptions { min: 4, initial: 64, max: 2_048 }
    }
}

/// A window has at least so many samples, and lasts at least so long, milliseconds.
const WINDOW: (u32, u64) = (20, 100);
/// A kind of statement with fewer answers than this in a window is not judged by them.
const KIND_SAMPLES_MIN: u32 = 5;
/// Windows between two measurements of the bases.
const PROBE_WINDOWS: u32 = 100;
/// Windows at the low end of the limit, after which the bases are measured early.
const LOW_WINDOWS: u32 = 5;
/// Where a limit settles whose gradient is the lowest.
const LOWEST_FIXED_POINT: usize = 4;
/// Latencies up to this many times the base are no queue.
const TOLERANCE: f64 = 1.5;
/// Noise of a clock of milliseconds.
const NOISE_MS: f64 = 0.5;
/// Of the way to a lower limit, this much a window.
const SMOOTHING: f64 = 0.5;
/// What a window with a timeout leaves of the limit.
const AFTER_TIMEOUT: f64 = 0.8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    /// So many windows to the next one.
    In(u32),
    /// Half of the limit is allowed; what was under way drains.
    Draining,
    /// The window measures the bases.
    Measuring,
}

/// What is measured apart: a base of one would be a queue of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes.
    Write,
}

#[derive(Clone, Copy, Debug, Default)]
struct Latencies {
    /// Mean without a queue; none until the first window with enough of this kind.
    base_ms: Option<f64>,
    samples: u32,
    sum_ms: u64,
}

impl Latencies {
    /// Mean of the window that ends.
    fn take_mean_ms(&mut self) -> Option<f64> {
        let (samples, sum_ms) = (std::mem::take(&mut self.samples), std::mem::take(&mut self.sum_ms));
        (samples >= KIND_SAMPLES_MIN).then(|| sum_ms as f64 / f64::from(samples))
    }

    /// How many times the base a mean is.
    fn ratio(&self, mean_ms: f64) -> f64 {
        (mean_ms + NOISE_MS) / (self.base_ms.unwrap_or(mean_ms) + NOISE_MS)
    }
}

/// The limit.
#[derive(Clone, Debug)]
pub struct Limit {
    options: LimitOptions,
    limit: f64,
    /// By [`Kind`].
    kinds: [Latencies; 2],
    probe: Probe,
    /// Windows in succession at the low end of the limit.
    low_windows: u32,
    window_start_ms: u64,
    /// Answers and timeouts.
    samples: u32,
    peak: usize,
    timed_out: bool,
}

impl Limit {
    /// At its initial value.
    pub fn new(options: LimitOptions) -> Limit {
        Limit {
            options,
            limit: options.initial as f64,
            kinds: [Latencies::default(); 2],
            probe: Probe::In(PROBE_WINDOWS),
            low_windows: 0,
            window_start_ms: 0,
            samples: 0,
            peak: 0,
            timed_out: false,
        }
    }

    /// Statements that may be under way now.
    pub fn allowed(&self) -> usize {
        let limit = match self.probe {
            Probe::In(_) => self.limit,
            Probe::Draining | Probe::Measuring => self.limit / 2.0,
        };
        (limit as usize).clamp(self.options.min, self.options.max)
    }

    /// A statement was answered after `latency_ms`; `in_flight` were under way, it included.
    pub fn answered(&mut self, now_ms: u64, kind: Kind, latency_ms: u64, in_flight: usize) {
        self.samples += 1;
        let latencies = &mut self.kinds[kind as usize];
        latencies.samples += 1;
        latencies.sum_ms += latency_ms;
        self.peak = self.peak.max(in_flight);
        self.end_window(now_ms);
    }

    /// A statement was not answered in time, or the cluster was too busy for it.
    pub fn timed_out(&mut self, now_ms: u64) {
        if !self.timed_out {
            self.timed_out = true;
            self.limit = (self.limit * AFTER_TIMEOUT).max(self.options.min as f64);
        }
        self.samples += 1;
        self.end_window(now_ms);
    }

    fn end_window(&mut self, now_ms: u64) {
        let (samples_min, lasts_ms) = WINDOW;
        if self.samples < samples_min || now_ms < self.window_start_ms + lasts_ms {
            return;
        }
        let means_ms = self.kinds.each_mut().map(Latencies::take_mean_ms);
        let (peak, timed_out) = (self.peak, self.timed_out);
        self.window_start_ms = now_ms;
        (self.samples, self.peak, self.timed_out) = (0, 0, false);
        let measured = self.probe == Probe::Measuring;
        self.probe = match self.probe {
            Probe::In(windows) if windows == 0 || self.low_windows >= LOW_WINDOWS => Probe::Draining,
            Probe::In(windows) => Probe::In(windows - 1),
            Probe::Draining => Probe::Measuring,
            Probe::Measuring => Probe::In(PROBE_WINDOWS),
        };
        let (mut ratios, mut kinds) = (0.0, 0.0);
        for (latencies, mean_ms) in self.kinds.iter_mut().zip(means_ms) {
            let Some(mean_ms) = mean_ms else { continue };
            let base_ms = latencies.base_ms.filter(|_| !measured).map_or(mean_ms, |base_ms| base_ms.min(mean_ms));
            latencies.base_ms = Some(base_ms);
            ratios += latencies.ratio(mean_ms);
            kinds += 1.0;
        }
        // Latencies beside a timeout tell of no queue: what was not answered is not in them.
        let gradient =
            if timed_out || kinds == 0.0 { None } else { Some((TOLERANCE * kinds / ratios).clamp(0.5, 1.0)) };
        if matches!(self.probe, Probe::In(_)) {
            self.count_low(gradient);
            if let Some(gradient) = gradient {
                self.follow(gradient, peak);
            }
        } else {
            self.low_windows = 0;
        }
    }

    /// The limit is as low as it gets, and latencies say that it is still too high.
    fn count_low(&mut self, gradient: Option<f64>) {
        let lowest = self.options.min.max(LOWEST_FIXED_POINT) as f64;
        let low = self.limit <= lowest * 1.5 && gradient.is_none_or(|gradient| gradient < 1.0);
        self.low_windows = if low { self.low_windows + 1 } else { 0 };
    }

    fn follow(&mut self, gradient: f64, peak: usize) {
        let target = self.limit * gradient + self.limit.sqrt();
        if target < self.limit {
            self.limit = self.limit * (1.0 - SMOOTHING) + target * SMOOTHING;
        } else if peak as f64 >= self.limit / 2.0 {
            // Only a limit that was used may rise.
            self.limit = target;
        }
        self.limit = self.limit.clamp(self.options.min as f64, self.options.max as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A server that works on `workers` statements at a time, each for `work_ms`; the others stand in a queue.
    struct Server {
        workers: usize,
        work_ms: u64,
        now_ms: u64,
        /// When each was sent and when it will be done.
        jobs: VecDeque<(u64, u64)>,
        free_at: Vec<u64>,
        done: u64,
        kind: Kind,
    }

    impl Server {
        fn new(workers: usize, work_ms: u64) -> Server {
            let (jobs, free_at) = (VecDeque::new(), vec![0; workers]);
            Server { workers, work_ms, now_ms: 0, jobs, free_at, done: 0, kind: Kind::Write }
        }

        /// Offers up to `offered` statements at a time, for a while.
        fn run(&mut self, limit: &mut Limit, offered: usize, for_ms: u64) {
            let end = self.now_ms + for_ms;
            while self.now_ms < end {
                self.now_ms += 1;
                while self.jobs.front().is_some_and(|(_, done)| *done <= self.now_ms) {
                    let in_flight = self.jobs.len();
                    let (sent, _) = self.jobs.pop_front().expect("it was looked at");
                    self.done += 1;
                    limit.answered(self.now_ms, self.kind, self.now_ms - sent, in_flight);
                }
                while self.jobs.len() < limit.allowed().min(offered) {
                    let worker = (0..self.workers).min_by_key(|at| self.free_at[*at]).expect("workers");
                    self.free_at[worker] = self.free_at[worker].max(self.now_ms) + self.work_ms;
                    self.jobs.push_back((self.now_ms, self.free_at[worker]));
                    self.jobs.make_contiguous().sort_by_key(|(_, done)| *done);
                }
            }
        }
    }

    #[test]
    fn settles_near_the_knee() {
        for workers in [20, 200] {
            let mut limit = Limit::new(LimitOptions::default());
            let mut server = Server::new(workers, 10);
            for _ in 0..30 {
                server.run(&mut limit, 10_000, 4_000);
                let allowed = limit.allowed();
                if server.now_ms >= 40_000 {
                    assert!((workers / 2..=workers * 3).contains(&allowed), "{allowed} of {workers}");
                }
            }
            let done = server.done;
            server.run(&mut limit, 10_000, 10_000);
            let best = 10_000 / 10 * workers as u64;
            assert!(server.done - done > best * 9 / 10, "{} of {best}", server.done - done);
        }
    }

    #[test]
    fn does_not_rise_when_it_is_not_used() {
        let mut limit = Limit::new(LimitOptions::default());
        Server::new(1_000, 10).run(&mut limit, 10, 60_000);
        assert_eq!(limit.allowed(), LimitOptions::default().initial);
    }

    #[test]
    fn falls_on_timeouts_and_recovers() {
        let mut limit = Limit::new(LimitOptions::default());
        let mut server = Server::new(100, 10);
        server.run(&mut limit, 10_000, 20_000);
        let before = limit.allowed();
        assert!(before > 60, "{before}");
        for _ in 0..20_000 {
            server.now_ms += 1;
            limit.timed_out(server.now_ms);
        }
        assert_eq!(limit.allowed(), LimitOptions::default().min);
        server.run(&mut limit, 10_000, 20_000);
        assert!(limit.allowed() > 60, "{}", limit.allowed());
    }

    /// Runs for a while; what came out of what could.
    fn share_done(server: &mut Server, limit: &mut Limit, for_ms: u64) -> f64 {
        let done = server.done;
        server.run(limit, 10_000, for_ms);
        (server.done - done) as f64 / (for_ms / server.work_ms * server.workers as u64) as f64
    }

    #[test]
    fn follows_a_cluster_that_becomes_slower() {
        let mut limit = Limit::new(LimitOptions::default());
        let mut server = Server::new(100, 10);
        server.run(&mut limit, 10_000, 30_000);
        server.free_at.truncate(10);
        server.workers = 10;
        server.run(&mut limit, 10_000, 30_000);
        assert!((8..40).contains(&limit.allowed()), "{}", limit.allowed());
        let share = share_done(&mut server, &mut limit, 10_000);
        assert!(share > 0.9, "{share}");
    }

    #[test]
    fn follows_a_cluster_whose_every_statement_becomes_slower() {
        let mut limit = Limit::new(LimitOptions::default());
        let mut server = Server::new(100, 2);
        server.run(&mut limit, 10_000, 12_000);
        server.work_ms = 20;
        // Less than a probe takes to come by itself.
        server.run(&mut limit, 10_000, 5_000);
        let share = share_done(&mut server, &mut limit, 3_000);
        assert!(share > 0.8, "{share}, {}", limit.allowed());
    }

    #[test]
    fn writes_are_not_measured_by_reads() {
        let mut limit = Limit::new(LimitOptions::default());
        let mut server = Server::new(100, 1);
        server.kind = Kind::Read;
        server.run(&mut limit, 10_000, 2_000);
        (server.kind, server.work_ms) = (Kind::Write, 4);
        server.run(&mut limit, 10_000, 500);
        let share = share_done(&mut server, &mut limit, 5_000);
        assert!(share > 0.9, "{share}, {}", limit.allowed());
    }

    #[test]
    fn a_timeout_in_each_window_does_not_keep_an_old_base() {
        let mut limit = Limit::new(LimitOptions::default());
        let mut server = Server::new(100, 1);
        server.run(&mut limit, 10_000, 2_000);
        server.work_ms = 20;
        for _ in 0..30 {
            limit.timed_out(server.now_ms);
            server.run(&mut limit, 10_000, 100);
        }
        server.run(&mut limit, 10_000, 2_500);
        let share = share_done(&mut server, &mut limit, 2_000);
        assert!(share > 0.8, "{share}, {}", limit.allowed());
    }
}
