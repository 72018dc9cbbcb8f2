//! Pages of made-up reports.

use super::{Run, render};
use serde_json::{Value, json};

fn page(report: &Value, broken: &[String]) -> String {
    render(Run { scenario: "idle", command: "perf idle --x '<y>'", broken }, report)
}

fn report() -> Value {
    json!({
        "sessions": 1000, "driver": "uring", "ratio": null,
        "gateway_cpu_us_per_message": 5.5, "writer_cpu_us_per_message": 11.0, "generator_cores": 0.5,
        "kernel_parts_mb": { "slab": 12.5, "page_tables": 3 },
        "latency_curve": [{ "percentile": 50.0, "ms": 1.5 }, { "percentile": 100.0, "ms": 9.0 }],
        "curve": [
            { "s": 0.0, "sessions": 0, "gateway_rss_mb": 10.0 },
            { "s": 5.0, "sessions": 1000, "gateway_rss_mb": 20.0 },
        ],
        "rounds": [
            {
                "server": { "cpu_us_each": 4.0, "per_cpu_s": 250_000.0 },
                "baseline": { "cpu_us_each": 2.0, "per_cpu_s": 500_000.0 },
            },
            { "server": { "cpu_us_each": 5.0, "per_cpu_s": 200_000.0 }, "ratio": 0.4 },
        ],
    })
}

#[test]
fn a_page_draws_what_the_report_has_and_names_every_axis() {
    let html = page(&report(), &[]);
    for title in [
        "Latency: so many percent",
        "Memory over time",
        "Sessions over time",
        "Cpu us each in each round",
        "Ratio to the baseline in each round",
        "CPU per message",
        "CPU in use",
        "Kernel parts",
    ] {
        assert!(html.contains(&format!("<figcaption>{title}")), "{title}");
    }
    let plots = html.matches("<svg ").count();
    assert_eq!(plots, 8);
    assert_eq!(html.matches("role=\"img\"").count(), plots);
    assert_eq!(html.matches("<desc>").count(), plots, "each is told in words too");
    for axis in [">percentile<", ">ms<", ">seconds<", ">MB<", ">round<", ">us of CPU each<", ">cores<", ">ratio<"] {
        assert!(html.contains(axis), "{axis}");
    }
    assert!(html.contains("<code>sessions</code></th><td>1,000</td>") && html.contains("<td>not known</td>"));
    assert!(html.contains("kept.</p>") && html.contains("&lt;y&gt;") && !html.contains("<y>"));
}

#[test]
fn a_page_needs_nothing_from_elsewhere() {
    let html = page(&report(), &[]);
    for foreign in ["http:", "https:", "<script", "@import", "url(", "src=", "href="] {
        assert!(!html.contains(foreign), "{foreign}");
    }
}

#[test]
fn broken_promises_are_told_first_and_an_empty_report_is_a_page() {
    let html = page(&json!({}), &["3 <messages> lost".to_owned()]);
    assert!(html.contains("3 &lt;messages&gt; lost") && !html.contains("class=\"kept\""));
    assert_eq!(html.matches("<svg ").count(), 0);
    assert!(page(&json!({ "curve": [], "rounds": [{}], "x": [1, 2] }), &[]).contains("[1,2]"));
}
