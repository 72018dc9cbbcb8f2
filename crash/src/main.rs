//! The crash harness; see the library.
fn main() {}
