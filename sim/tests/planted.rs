//! Proof that the simulator can fail: with a rule of the delivery protocol taken out of a core, a violation is found within
//! 200 seeds; and every oracle is the first to speak of some bug. Run by
//! `cargo test -p sim --features planted --test planted`.

use sim::{ORACLES, Plan, Store, catch_panics, plant, run};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Seeds that a bug may need.
const SEEDS_MAX: u64 = 200;

/// Bugs of a store on a cluster; all others are looked for on a local disk.
const ON_A_CLUSTER: [&str; 7] = [
    "GhostsLoaded",
    "InboxBeforeEvent",
    "KnownNamesMissed",
    "LeaseNotWaitedOut",
    "NoRederivation",
    "ReaderPastHead",
    "ZombieWrites",
];

/// Bugs that alone change nothing that a client could see, because another rule makes good for them; with that rule. Each
/// breaks a rule that other bugs break visibly.
const HIDDEN: [(&str, &str); 3] = [
    ("HoleNeverRead", "whoever drops an item nudges (rule 10), and a nudge reads; `NoNudgeAtAll` shows"),
    (
        "RelinkUntold",
        "what was lost with a link is resent (rule 6), and the answer to a resend nudges; `DuplicateUntold` shows",
    ),
    ("SweepOff", "whoever drops an item nudges (rule 10); half of all runs have no sweep anyway"),
];

/// By oracle: a bug that it, and no other before it, tells in some run; more of them where it holds more than one
/// promise. No oracle is left out: none of them guards the simulator only.
const PROOFS: &[(&str, &str)] = &[
    ("a backlog is sent", "TruncatesNeedlessly"),
    ("a barrier stands when it is answered", "OpenAnsweredEarly"),
    ("a home loads behind its barrier", "HomeLoadsBeforeOpen"),
    ("a mark covers what came before it", "MarkAhead"),
    ("a retry gets the first answer", "RetryJudgedFirst"),
    ("a stream begins with its mark", "FreshUntold"),
    ("a stream has no doubles", "StaleNotDropped"),
    ("a stream has no holes", "HoleNotWaited"),
    ("acknowledged is durable", "AnswersBeforeCommit"),
    ("an entry stands behind its event", "InboxBeforeEvent"),
    ("clients are served", "WrongRefusals"),
    ("clients are served", "GroupChangesRefused"),
    ("clients are served", "PauseNotLifted"),
    ("comes to rest", "CreditNotReturned"),
    ("comes to rest", "ReadMarksRefused"),
    ("cores do not panic", "CreditsUnbounded"),
    ("epochs", "OlderEpochsTaken"),
    ("every chat converges on every device", "RemovalNotServed"),
    ("every chat converges on every device", "PageCutUntold"),
    ("frames are understood", "EncodingShared"),
    ("history inside an interval is served", "FormerMembersRefused"),
    ("inboxes are dense", "InboxHeadTooLow"),
    ("links are understood", "ResentBare"),
    ("marks are below the head", "HeadIsNextNumber"),
    ("marks never fall", "ReadMarkFalls"),
    ("marks", "MarksAboveTheHead"),
    ("message_id rises", "IdsFollowTheClock"),
    ("nobody asked for it", "ResentChanged"),
    ("nobody receives what they may not", "HistoryOutsideIntervals"),
    ("numbered once", "LooksUpOnlyInFlight"),
    ("once in an inbox", "EntryTwice"),
    ("one answer", "RetryToldTheNewest"),
    ("one user", "IdentitiesForgotten"),
    ("one writer acts", "LeaseNotWaitedOut"),
    ("ordinal is dense", "OrdinalCountsAll"),
    ("own state converges on every device", "MuteForgotten"),
    ("own state converges on every device", "MuteUntold"),
    ("queues are bounded", "WindowIgnored"),
    ("queues are bounded", "AheadUnbounded"),
    ("queues are bounded", "BatchBytesIgnored"),
    ("queues are bounded", "BesideUnbounded"),
    ("queues are bounded", "OwedUnbounded"),
    ("queues are bounded", "PageUnbounded"),
    ("read marks are stored", "ListReadsAll"),
    ("refused is refused", "ChangeGuessed"),
    ("requests are resent in order", "ResentOutOfOrder"),
    ("sent is counted", "SentCountsChanges"),
    ("seq is dense", "SeqWithHole"),
    ("sessions keep to their rate", "RateIgnored"),
    ("targets", "TargetsBeforeEvent"),
    ("the log decides", "FormerMembersMaySend"),
    ("the store is what the log says", "PartsNotStored"),
    ("unread is right", "OwnMessagesUnread"),
    ("what is received is what is stored", "TitleWrong"),
    ("what was dropped is owed", "OwedForgotten"),
    ("what was dropped is owed", "OverflowUntold"),
];

/// Which oracles tell it, each with the first seed: until one does, and those in `wanted` do.
fn told(name: &str, wanted: &BTreeSet<&str>) -> BTreeMap<String, u64> {
    plant(name).expect("a bug of this name");
    let mut told = BTreeMap::new();
    let store = if ON_A_CLUSTER.contains(&name) { Store::Cluster } else { Store::Local };
    for seed in 1..=SEEDS_MAX {
        if !told.is_empty() && wanted.iter().all(|oracle| told.contains_key(*oracle)) {
            break;
        }
        let plan = Plan { store, ..Plan::new(seed, Plan::TICKS, None) };
        if let Some(violation) = run(&plan, false).violation {
            told.entry(violation.oracle).or_insert(seed);
        }
    }
    plant("").expect("no bug is no name");
    told
}

#[test]
fn every_planted_bug_is_found_and_every_oracle_finds_one() {
    catch_panics();
    let (mut missed, mut unproven, mut rules) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (name, rule) in sim::bugs() {
        if let Some((_, why)) = HIDDEN.iter().find(|(hidden, _)| *hidden == name) {
            println!("rule {rule:>2}  {name:<28} hidden: {why}");
            continue;
        }
        let wanted: BTreeSet<&str> = PROOFS.iter().filter(|(_, bug)| *bug == name).map(|(oracle, _)| *oracle).collect();
        let told = told(name, &wanted);
        for (oracle, seed) in &told {
            println!("rule {rule:>2}  {name:<28} seed {seed:>3}  {oracle}");
        }
        if told.is_empty() {
            missed.push(name);
        } else {
            rules.insert(rule);
        }
        unproven.extend(wanted.into_iter().filter(|oracle| !told.contains_key(*oracle)).map(|oracle| (oracle, name)));
    }
    // A panic's text is kept for the report, so it is said here as well.
    println!("not found within {SEEDS_MAX} seeds: {missed:?}; oracles that did not tell their bug: {unproven:?}");
    assert!(missed.is_empty(), "not found within {SEEDS_MAX} seeds: {missed:?}");
    assert!(unproven.is_empty(), "oracles that did not tell their bug: {unproven:?}");
    assert!((1..=17).all(|rule| rules.contains(&rule)), "every rule has a bug that is found: {rules:?}");
}

#[test]
fn every_oracle_has_its_bug() {
    let proven: BTreeSet<&str> = PROOFS.iter().map(|(oracle, _)| *oracle).collect();
    assert_eq!(proven, BTreeSet::from(ORACLES));
    let bugs: BTreeSet<&str> = sim::bugs().map(|(name, _)| name).collect();
    let unknown: Vec<&str> = PROOFS.iter().map(|(_, bug)| *bug).filter(|bug| !bugs.contains(bug)).collect();
    assert!(unknown.is_empty(), "no such bugs: {unknown:?}");
}

/// Names that are told somewhere in the sources below a folder: what stands before the words of a violation.
fn names_told(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in folder.read_dir().expect("the sources") {
        let path = entry.expect("a file").path();
        if path.is_dir() {
            names_told(&path, names);
            continue;
        }
        // The command line tells nothing of its own.
        if path.ends_with("main.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a source");
        for (at, mark) in text.match_indices("\",") {
            let after = text[at + mark.len()..].trim_start();
            let words = ["||", "format!(", "what", "error.to_string()", "\"nothing is due\""];
            if words.iter().any(|word| after.starts_with(word)) {
                names.extend(text[..at].rsplit('"').next().map(str::to_owned));
            }
        }
    }
}

#[test]
fn what_is_told_is_what_is_listed() {
    let mut names = BTreeSet::new();
    names_told(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
    assert_eq!(names, ORACLES.map(str::to_owned).into());
}
