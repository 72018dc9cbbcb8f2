//! A violation, made by a planted bug, ends the program with 1 and is told so that a reader can follow and repeat it. Run
//! by `cargo test -p sim --features planted --test planted_is_told`.

mod common;

use common::{Ended, sim};

/// A bug that shows itself early, alone.
const BUG: &str = "LooksUpOnlyDurable";

fn planted(line: &str) -> Ended {
    sim(&format!("--plant {BUG} {line}"))
}

fn oracle(ended: &Ended) -> &str {
    ended.out.split("violates `").nth(1).and_then(|rest| rest.split('`').next()).expect("an oracle")
}

#[test]
fn a_violation_ends_with_1_and_can_be_followed_and_repeated() {
    let ended = planted("--seeds 200 --lines 20");
    assert_eq!(ended.code, Some(1), "{}", ended.out);
    let told: Vec<&str> = ended.out.lines().filter(|line| line.contains(" ms  ")).collect();
    assert_eq!(told.len(), 20, "as many last events as asked for: {}", ended.out);
    let oracle = oracle(&ended);
    let violation = format!("VIOLATION of `{oracle}`");
    assert_eq!(told.iter().filter(|line| line.contains(&violation)).count(), 1, "and what was violated: {told:#?}");
    let words = ["disk: ", "cluster: ", ": says "];
    assert!(told.iter().any(|line| words.iter().any(|word| line.contains(word))), "{told:?}");
    let command = "again: cargo run --release -p sim --features planted -- ";
    let again = ended.out.split(command).nth(1).and_then(|line| line.lines().next());
    let again = again.unwrap_or_else(|| panic!("no command that repeats it: {}", ended.out));
    let ticks = |line: &str| -> u64 {
        let word = line.split("--ticks ").nth(1).and_then(|rest| rest.split(' ').next());
        word.and_then(|word| word.parse().ok()).expect("a number of ticks")
    };
    assert!(ticks(again) <= sim::Plan::TICKS && again.contains("--without "), "made smaller: {again}");
    let repeated = sim(again);
    assert_eq!(repeated.code, Some(1), "{again}: {}", repeated.out);
    assert_eq!(self::oracle(&repeated), oracle, "{again}");
    let without = again.replace(&format!(" --plant {BUG}"), "");
    assert!(without != again && sim(&without).code == Some(0), "without the bug: {without}");
}

#[test]
fn seeds_that_fail_are_listed_one_a_line_where_asked_for() {
    let ended = planted("--seeds 40 --keep-going");
    assert_eq!(ended.code, Some(1), "{}", ended.out);
    let failed = ended.out.lines().filter(|line| line.starts_with("seed ") && line.contains(" violates `")).count();
    assert!(failed > 1, "{}", ended.out);
    assert!(ended.out.contains(&format!("40 seeds from 1, {failed} failed, ")), "{}", ended.out);
}
