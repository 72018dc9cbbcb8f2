//! The scenario `sync` on real processes: devices that were away catch up, from their inbox and from history.

mod scenario;

use scenario::{number, run};

#[test]
fn every_missed_entry_comes_once_by_stream_or_from_history() {
    // More than a page of the inbox (256) and of history (200) each.
    let report = run("sync --devices 20 --missed 600 --truncated 5 --writers 4 --window 8");
    assert_eq!(["streamed", "filled"].map(|name| number(&report, name)), [15.0 * 600.0, 5.0 * 600.0], "{report}");
    assert_eq!(["lost", "holes", "doubled", "truncated"].map(|name| number(&report, name)), [0.0, 0.0, 0.0, 5.0]);
    for name in ["entries_per_s", "caught_up_ms_p99", "written_per_s"] {
        assert!(number(&report, name) > 0.0, "{name}: {report}");
    }
}
