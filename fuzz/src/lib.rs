//! Fuzz targets: everything that a stranger can send, each as a plain function that panics when an invariant breaks.
//! Corpora lie in `corpus/`; the tests replay them and generate more; `scripts/fuzz` runs the coverage-guided fuzzer.
#![forbid(unsafe_code)]

pub mod corpus;
pub mod mutate;
pub mod targets;

/// What a target made of an input that broke no invariant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The code under test took the input, in whole or in part.
    Taken,
    /// It refused, or waits for more.
    Refused,
}

impl From<bool> for Verdict {
    fn from(taken: bool) -> Self {
        if taken { Self::Taken } else { Self::Refused }
    }
}

/// One fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is that of its folder in `corpus/` too.
    pub name: &'static str,
    /// What it reads, for a person.
    pub about: &'static str,
    /// Panics when an invariant breaks.
    pub run: fn(&[u8]) -> Verdict,
    /// Inputs are cut to this: longer ones cost time and say nothing new.
    pub input_bytes_max: usize,
    /// Pieces that mutation alone would seldom find.
    pub dictionary: &'static [&'static [u8]],
    /// Folder of golden bytes of the protocol that are seeds too, relative to `protocol/tests/golden`, with the
    /// extension to read and what to put before each.
    pub golden: &'static [(&'static str, &'static str, &'static [u8])],
}

/// Every target.
pub const TARGETS: &[Target] = &[
    targets::upgrade::TARGET,
    targets::frame::TARGET,
    targets::client_frame::RKYV,
    targets::client_frame::JSON,
    targets::link_record::TARGET,
    targets::config::TARGET,
    targets::jwt::TARGET,
];

/// A target by its name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
