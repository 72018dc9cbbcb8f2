//! What processes and the kernel keep in memory, from `/proc`. Megabytes are 10^6 bytes.

use serde::Serialize;

/// Resident bytes of a process.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64, String> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error} (did it end?)"))?;
    kilobytes(&text, "VmRSS:").map(|kb| kb * 1024).ok_or(format!("{path}: it has no VmRSS"))
}

/// The number behind a name at the beginning of a line.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

/// 10^6 bytes, one decimal.
pub(crate) fn megabytes(bytes: i64) -> f64 {
    (bytes as f64 / 1e5).round() / 10.0
}

/// Bytes that the kernel keeps for itself on the whole machine, or what became of them between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kernel {
    slab: i64,
    kernel_stacks: i64,
    page_tables: i64,
    per_cpu: i64,
    vmalloc: i64,
    socket_buffers: i64,
}

/// The same for a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct KernelMb {
    /// Sockets, files, armed operations: objects of the kernel.
    slab: f64,
    kernel_stacks: f64,
    page_tables: f64,
    per_cpu: f64,
    /// Tables of direct descriptors.
    vmalloc: f64,
    /// Bytes that wait in sockets.
    socket_buffers: f64,
}

impl Kernel {
    pub(crate) fn now() -> Result<Self, String> {
        let read = |path: &str| std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        Self::parse(&read("/proc/meminfo")?, &read("/proc/net/sockstat")?, rustix::param::page_size() as i64)
    }

    fn parse(meminfo: &str, sockstat: &str, page_bytes: i64) -> Result<Self, String> {
        let field = |name| {
            let kb = kilobytes(meminfo, name).ok_or_else(|| format!("/proc/meminfo has no {name}"))?;
            Ok::<_, String>(kb as i64 * 1024)
        };
        let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP:")).unwrap_or_default();
        let pages = tcp.split_ascii_whitespace().skip_while(|word| *word != "mem").nth(1);
        let pages: i64 = pages.and_then(|pages| pages.parse().ok()).ok_or("/proc/net/sockstat has no TCP mem")?;
        Ok(Self {
            slab: field("Slab:")?,
            kernel_stacks: field("KernelStack:")?,
            page_tables: field("PageTables:")?,
            per_cpu: field("Percpu:")?,
            vmalloc: field("VmallocUsed:")?,
            socket_buffers: pages * page_bytes,
        })
    }

    /// What came since then.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            slab: self.slab - before.slab,
            kernel_stacks: self.kernel_stacks - before.kernel_stacks,
            page_tables: self.page_tables - before.page_tables,
            per_cpu: self.per_cpu - before.per_cpu,
            vmalloc: self.vmalloc - before.vmalloc,
            socket_buffers: self.socket_buffers - before.socket_buffers,
        }
    }

    pub(crate) fn total(self) -> i64 {
        let Self { slab, kernel_stacks, page_tables, per_cpu, vmalloc, socket_buffers } = self;
        slab + kernel_stacks + page_tables + per_cpu + vmalloc + socket_buffers
    }

    pub(crate) fn mb(self) -> KernelMb {
        KernelMb {
            slab: megabytes(self.slab),
            kernel_stacks: megabytes(self.kernel_stacks),
            page_tables: megabytes(self.page_tables),
            per_cpu: megabytes(self.per_cpu),
            vmalloc: megabytes(self.vmalloc),
            socket_buffers: megabytes(self.socket_buffers),
        }
    }
}

/// A moment of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Sample {
    pub(crate) s: f64,
    pub(crate) sessions: u32,
    pub(crate) gateway_rss_mb: Option<f64>,
    pub(crate) writer_rss_mb: Option<f64>,
    pub(crate) kernel_mb: f64,
}

/// Moments that a report holds at most, once thinned out.
const SAMPLES_MAX: usize = 128;

/// Memory over time, in a bounded number of evenly spread moments whatever the length of the run.
#[derive(Debug)]
pub(crate) struct Curve {
    samples: Vec<Sample>,
    /// Of so many moments one is kept.
    keeps_one_of: u64,
    seen: u64,
}

impl Curve {
    pub(crate) fn new() -> Self {
        Self { samples: Vec::new(), keeps_one_of: 1, seen: 0 }
    }

    pub(crate) fn push(&mut self, sample: Sample) {
        if self.seen.is_multiple_of(self.keeps_one_of) {
            self.samples.push(sample);
        }
        self.seen += 1;
        if self.samples.len() > SAMPLES_MAX {
            let mut index = 0;
            self.samples.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.keeps_one_of *= 2;
        }
    }

    /// The moments, and the last one whether it fell on a step or not.
    pub(crate) fn finish(mut self, last: Sample) -> Vec<Sample> {
        if self.samples.last().is_none_or(|sample| sample.s < last.s) {
            self.samples.push(last);
        }
        self.samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       24649684 kB\nSlab:             100 kB\nSReclaimable:      40 kB\n\
                           KernelStack:        2 kB\nPageTables:         3 kB\nVmallocUsed:        4 kB\nPercpu:   5 kB\n";
    const SOCKSTAT: &str = "sockets: used 3\nTCP: inuse 4 orphan 9 tw 0 alloc 8 mem 6\nUDP: inuse 0 mem 77\n";

    #[test]
    fn the_kernel_s_parts_are_found_and_add_up() {
        let before = Kernel::parse(MEMINFO, SOCKSTAT, 4096).unwrap();
        assert_eq!(before.total(), (100 + 2 + 3 + 4 + 5) * 1024 + 6 * 4096);
        let more = MEMINFO.replace("100 kB", "1100 kB");
        let after = Kernel::parse(&more, &SOCKSTAT.replace("mem 6", "mem 5"), 4096).unwrap();
        assert_eq!(after.since(before).total(), 1000 * 1024 - 4096);
        assert_eq!(after.since(before).mb().slab, 1.0);
        assert!(Kernel::parse("Slab: 1 kB\n", SOCKSTAT, 4096).is_err());
        assert!(Kernel::parse(MEMINFO, "UDP: mem 1\n", 4096).is_err());
        assert!(Kernel::now().unwrap().total() > 0);
    }

    #[test]
    fn a_live_process_is_resident_and_a_dead_one_an_error() {
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000);
        assert!(resident_bytes(u32::MAX).unwrap_err().contains("did it end"));
        assert_eq!(kilobytes("VmPeak:\t  9 kB\nVmRSS:\t  1234 kB\n", "VmRSS:"), Some(1234));
        assert_eq!(megabytes(1_234_567), 1.2);
    }

    #[test]
    fn a_long_run_keeps_few_moments_evenly_spread_with_the_first_and_the_last() {
        let mut curve = Curve::new();
        for second in 0..10_000 {
            curve.push(Sample { s: f64::from(second), ..Sample::default() });
        }
        let samples = curve.finish(Sample { s: 9_999.5, ..Sample::default() });
        assert!((SAMPLES_MAX / 2..=SAMPLES_MAX + 2).contains(&samples.len()), "{}", samples.len());
        assert_eq!((samples[0].s, samples.last().unwrap().s), (0.0, 9_999.5));
        let steps: Vec<f64> = samples.windows(2).map(|pair| pair[1].s - pair[0].s).collect();
        assert!(steps[..steps.len() - 1].iter().all(|step| *step == steps[0]), "{steps:?}");
    }
}
