//! The scenario `storm` on real processes: the gateway is replaced under some hundred sessions, by SIGTERM and by
//! SIGKILL, and the network fails; everybody comes back and nothing is lost.

mod scenario;

use scenario::{number, run};

fn storm(how: &str) -> serde_json::Value {
    let report = run(&format!("storm --sessions 300 --talkers 40 --rate 200 --calm-seconds 0.5 --how {how}"));
    let counts = ["sessions", "returned", "lost", "holes"].map(|name| number(&report, name));
    assert_eq!(counts, [300.0, 300.0, 0.0, 0.0]);
    assert!(number(&report, "sent") >= 100.0 && report["sent"] == report["delivered"], "{report}");
    // CPU comes in steps of 10 ms: so few sessions may cost less than one.
    assert!(number(&report, "gateway_cpu_us_per_return") >= 0.0 && number(&report, "seated_after_s") > 0.0, "{report}");
    report
}

#[test]
fn a_drained_gateway_tells_everybody_when_to_come_back() {
    let report = storm("drain");
    assert_eq!(report["ended"]["4000"].as_u64(), Some(300), "{report}");
    assert!(number(&report, "delay_ms_max") > 0.0 && number(&report, "replaced_after_s") > 0.0);
}

#[test]
fn a_killed_gateway_is_replaced_and_everybody_comes_back() {
    let report = storm("kill");
    assert_eq!((number(&report, "seated_least"), number(&report, "delay_ms_max")), (0.0, 0.0), "{report}");
}

#[test]
fn a_network_that_fails_brings_everybody_back_to_the_same_gateway() {
    let report = storm("cut");
    assert!(report["replaced_after_s"].is_null() && report["new_gateway_cpu_s"].is_null(), "{report}");
}
