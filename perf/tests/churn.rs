//! The scenario `churn` on real processes: devices come and go with tickets and with tokens, beside the raw server.

mod scenario;

use scenario::{number, run};

#[test]
fn devices_come_and_go_with_tickets_beside_the_raw_server_and_a_page_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("churn.html");
    let line = "churn --baseline --devices 100 --window 8 --rounds 2 --seconds 0.5 --warmup-seconds 0.1 --html";
    let report = run(&format!("{line} {}", page.display()));
    assert_eq!((report["way"].as_str(), number(&report, "refused")), (Some("resume"), 0.0), "{report}");
    assert!(number(&report, "ratio") > 0.0 && number(&report, "baseline_per_cpu_s") > 0.0, "{report}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<h1>churn</h1>") && page.contains("Ratio to the baseline in each round"));
}

#[test]
fn fresh_tokens_are_measured_beside_resumes_and_a_verification() {
    let report = run("churn --fresh --baseline --devices 100 --window 8 --rounds 1 --seconds 0.5");
    let ratio =
        number(&report, "per_cpu_s") * (number(&report, "resume_cpu_us_each") + number(&report, "eddsa_cpu_us")) / 1e6;
    assert_eq!((report["way"].as_str(), number(&report, "refused")), (Some("fresh"), 0.0), "{report}");
    assert!((number(&report, "ratio") - ratio).abs() < 0.01, "{report}");
}
