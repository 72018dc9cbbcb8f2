//! `parley store`: what is done with a stopped store as a whole.

use super::schema::{cluster_flags, cluster_options};
use super::server::{self, Configuration, Failure, finish};
use crate::cli::{StoreArgs, StoreCommand, StoreCopyArgs, StoreKind};
use std::process::ExitCode;
use storage_writer::store::copy::{CopyError, CopyTarget, copy};

pub(super) fn run(args: &StoreArgs) -> ExitCode {
    match &args.command {
        StoreCommand::Copy(args) => finish(run_copy(args)),
    }
}

fn run_copy(args: &StoreCopyArgs) -> Result<(), Failure> {
    if args.from != StoreKind::Embedded {
        let what = "--from scylla: only embedded stores can be copied; a cluster is backed up with its own tools";
        return Err(Failure::usage(what));
    }
    let to = target(args)?;
    let mut progress = |line: &str| eprintln!("{line}");
    let report = copy(&args.from_data, &to, &mut progress).map_err(|error| match error {
        CopyError::Wrong(what) => Failure::usage(what),
        error => Failure::of(&error),
    })?;
    println!("{report}");
    if let CopyTarget::Scylla(options) = &to {
        server::mark_moved(&args.from_data, &format!("keyspace {} at {}", options.keyspace, options.contact()))?;
    }
    Ok(())
}

fn target(args: &StoreCopyArgs) -> Result<CopyTarget, Failure> {
    let flags = cluster_flags(&args.cluster);
    match (args.to, &args.to_data) {
        (StoreKind::Embedded, Some(_)) if !flags.is_empty() => {
            Err(Failure::usage("--contact and what belongs to it go with --to scylla, not with --to embedded"))
        }
        (StoreKind::Embedded, Some(dir)) => Ok(CopyTarget::Embedded(dir.clone())),
        (StoreKind::Embedded, None) => Err(Failure::usage("--to embedded needs --to-data DIR, a new directory")),
        (StoreKind::Scylla, Some(_)) => {
            Err(Failure::usage("--to-data goes with --to embedded; --to scylla takes --contact HOST:PORT"))
        }
        (StoreKind::Scylla, None) => {
            let configured = Configuration::load(args.config.as_deref(), &[], &flags)?.writer.config.scylla;
            Ok(CopyTarget::Scylla(Box::new(cluster_options(&configured))))
        }
    }
}
