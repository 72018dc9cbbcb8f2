//! `parley check-store`: proves that a stopped store is whole.

use super::server::{Failure, finish};
use crate::cli::CheckStoreArgs;
use std::process::ExitCode;
use storage_writer::store::embedded::check::check_store;

pub(super) fn run(args: &CheckStoreArgs) -> ExitCode {
    finish(check(args))
}

fn check(args: &CheckStoreArgs) -> Result<(), Failure> {
    let mut progress = |line: &str| eprintln!("{line}");
    let report = check_store(&args.data, &mut progress).map_err(|error| Failure::of(&error))?;
    println!("{report}");
    if report.is_whole() { Ok(()) } else { Err(Failure(format!("{} problems", report.problems_total))) }
}
