//! The coverage-guided fuzzer around the targets.
fn main() {}
