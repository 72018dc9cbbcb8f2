//! Runs of the generator against real servers, for the tests of its scenarios.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The program beside the generator. A build of this package alone has none yet.
fn parley() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_perf")).with_file_name("parley");
    if !path.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "parley"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    }
    path
}

/// Runs a scenario on servers of its own; its report.
pub(crate) fn run(line: &str) -> serde_json::Value {
    let driver = std::env::var("PARLEY_TEST_DRIVER").unwrap_or_else(|_| "auto".to_owned());
    let mut perf = Command::new(env!("CARGO_BIN_EXE_perf"));
    perf.args(line.split(' ')).args(["--spawn", "--driver", &driver, "--program"]).arg(parley());
    let output = perf.stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    serde_json::from_str(said.lines().last().unwrap()).unwrap()
}

/// A figure of a report.
pub(crate) fn number(report: &serde_json::Value, name: &str) -> f64 {
    report[name].as_f64().unwrap_or_else(|| panic!("{name} is {}", report[name]))
}
