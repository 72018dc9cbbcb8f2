//! The scenario `idle` on real processes: gateway and storage-writer are started, hold some hundred sessions for a
//! moment, and the last line says so.

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

#[test]
fn some_hundred_sessions_stay_on_real_servers_and_lose_nothing() {
    let driver = std::env::var("PARLEY_TEST_DRIVER").unwrap_or_else(|_| "auto".to_owned());
    let mut perf = Command::new(env!("CARGO_BIN_EXE_perf"));
    // Four rings of the generator; hearts beat every second, and the gateway checks them by its own clock.
    let line = "idle --spawn --connections 400 --minutes 0.05 --rate 100 --heartbeat-seconds 1 --ring-files 100";
    perf.args(line.split(' ')).args(["--driver", &driver, "--program"]).arg(parley());
    let output = perf.stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    let report: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let number = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name} is {}", report[name]));
    assert_eq!((number("sessions"), number("heartbeat_timeouts"), number("disconnected")), (400.0, 0.0, 0.0));
    assert_eq!((number("sent"), number("delivered"), number("lost")), (300.0, 300.0, 0.0));
    assert!(number("heartbeats") >= 1_000.0, "{report}");
    for name in ["gateway_rss_mb", "writer_rss_mb", "latency_ms_p99", "logins_per_s", "gateway_cores"] {
        assert!(number(name) > 0.0, "{name} is {}", report[name]);
    }
}
