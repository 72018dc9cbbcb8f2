//! Time as an argument: the shell reads the clocks once a turn, the cores never do.

/// The two clocks of one turn. All shards of a process count `mono_ms` from the same instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds on the monotonic clock since the process chose its origin: for every duration and deadline.
    pub mono_ms: u64,
    /// Milliseconds of wall time since 1970-01-01 UTC: for what is shown, signed or stored. It may step.
    pub unix_ms: u64,
}
