//! `parley check-store`: proves that a stopped store is whole.

use super::server::{Failure, finish};
use crate::cli::CheckStoreArgs;
use std::process::ExitCode;
use storage_writer::store::embedded::OpenError;
use storage_writer::store::embedded::check::check_store;

pub(super) fn run(args: &CheckStoreArgs) -> ExitCode {
    finish(check(args))
}

fn check(args: &CheckStoreArgs) -> Result<(), Failure> {
    let data = &args.data;
    if !data.is_dir() {
        let what = if data.exists() { "is not a directory" } else { "no such directory" };
        return Err(Failure::usage(format!("{}: {what}", data.display())));
    }
    let mut progress = |line: &str| eprintln!("{line}");
    let report = check_store(data, &mut progress).map_err(|error| match &error {
        // Nothing is damaged where nothing is.
        OpenError::Mixed { file, .. } if file == data => Failure::usage(format!("no store in {}", data.display())),
        error => Failure::of(error),
    })?;
    println!("{report}");
    if report.is_whole() { Ok(()) } else { Err(Failure::new(format!("{} problems", report.problems_total))) }
}
