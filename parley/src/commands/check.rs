//! `parley check`: the effective configuration, and what does not fit together.

use super::server::{Configuration, Failure, finish};
use crate::cli::CheckArgs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

pub(super) fn run(args: &CheckArgs) -> ExitCode {
    let mut configuration = match Configuration::load(args.config.as_deref(), &[], &[]) {
        Ok(configuration) => configuration,
        Err(error) => return finish(Err(error.into())),
    };
    let files = configuration.writer.config.files();
    let unreadable = files.into_iter().filter_map(|(_, path)| Some((path.to_owned(), read(path).err()?.to_string())));
    configuration.machine.unreadable = unreadable.collect();
    let report = parley_config::check(&configuration.gateway, &configuration.writer, &configuration.machine);
    // A reader that had enough (`| head`) is no failure of the check.
    let _ = std::io::stdout().write_all(report.text.as_bytes());
    finish(if report.is_ok() {
        Ok(())
    } else {
        Err(Failure::new("the servers would not start with this configuration".to_owned()))
    })
}

/// A directory opens, and only reading it fails.
fn read(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(path)?.read(&mut [0]).map(drop)
}
