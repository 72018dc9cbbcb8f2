//! How many statements may be under way: an adaptive limit from measured latency, so that statements queue here and not
//! in the cluster. No clock: times are arguments.
//!
//! The idea is the gradient limit of Netflix's concurrency-limits (`GradientLimit`): the limit follows
//! `limit * tolerance * base / latency + sqrt(limit)`, where `base` is the latency without a queue. Differences: a
//! latency is the mean of a window, because statements differ; and `base` is measured again now and then at half of the
//! limit, as BBR does, because a minimum that is kept for ever goes stale and one that decays follows the queue.

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
/// Windows between two measurements of the base.
const PROBE_WINDOWS: u32 = 100;
/// A latency up to this many times the base is no queue.
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
    /// The window measures the base.
    Measuring,
}

/// The limit.
#[derive(Clone, Debug)]
pub struct Limit {
    options: LimitOptions,
    limit: f64,
    /// Mean latency without a queue; none until the first window.
    base_ms: Option<f64>,
    probe: Probe,
    window_start_ms: u64,
    samples: u32,
    sum_ms: u64,
    peak: usize,
    timed_out: bool,
}

impl Limit {
    /// At its initial value.
    pub fn new(options: LimitOptions) -> Limit {
        Limit {
            options,
            limit: options.initial as f64,
            base_ms: None,
            probe: Probe::In(PROBE_WINDOWS),
            window_start_ms: 0,
            samples: 0,
            sum_ms: 0,
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
    pub fn answered(&mut self, now_ms: u64, latency_ms: u64, in_flight: usize) {
        self.samples += 1;
        self.sum_ms += latency_ms;
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
        let mean_ms = self.sum_ms as f64 / f64::from(self.samples);
        let (peak, timed_out) = (self.peak, self.timed_out);
        self.window_start_ms = now_ms;
        (self.samples, self.sum_ms, self.peak, self.timed_out) = (0, 0, 0, false);
        if timed_out {
            // Its latencies say nothing: what was not answered is not in them.
            return;
        }
        self.probe = match self.probe {
            Probe::In(0) => Probe::Draining,
            Probe::In(windows) => Probe::In(windows - 1),
            Probe::Draining => Probe::Measuring,
            Probe::Measuring => {
                self.base_ms = Some(mean_ms);
                Probe::In(PROBE_WINDOWS)
            }
        };
        let base_ms = self.base_ms.map_or(mean_ms, |base_ms| base_ms.min(mean_ms));
        self.base_ms = Some(base_ms);
        if matches!(self.probe, Probe::In(_)) {
            self.follow(base_ms, mean_ms, peak);
        }
    }

    fn follow(&mut self, base_ms: f64, mean_ms: f64, peak: usize) {
        let gradient = (TOLERANCE * (base_ms + NOISE_MS) / (mean_ms + NOISE_MS)).clamp(0.5, 1.0);
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
    }

    impl Server {
        fn new(workers: usize, work_ms: u64) -> Server {
            Server { workers, work_ms, now_ms: 0, jobs: VecDeque::new(), free_at: vec![0; workers], done: 0 }
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
                    limit.answered(self.now_ms, self.now_ms - sent, in_flight);
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

    #[test]
    fn follows_a_cluster_that_becomes_slower() {
        let mut limit = Limit::new(LimitOptions::default());
        let mut server = Server::new(100, 10);
        server.run(&mut limit, 10_000, 30_000);
        server.free_at.truncate(10);
        server.workers = 10;
        server.run(&mut limit, 10_000, 30_000);
        assert!(limit.allowed() < 40, "{}", limit.allowed());
    }
}
