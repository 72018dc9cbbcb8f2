//! Replays every target's corpus, and a fixed number of inputs generated from it: the same ones in every run.

use fuzz::mutate::{Random, generate};
use fuzz::{TARGETS, Target, Verdict, corpus};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Generated inputs of each target. `scripts/fuzz --generated` makes more.
const GENERATED: u64 = 20_000;

/// Runs one input; on a panic, says which.
fn run(target: &Target, input: &[u8], name: &str) -> Verdict {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).unwrap_or_else(|_| {
        panic!("target {}, input {name}: {}", target.name, input.escape_ascii());
    })
}

fn replay(name: &str) {
    let target = fuzz::target(name).expect("a target");
    let seeds = corpus::seeds(target).expect("a corpus");
    let verdicts: Vec<Verdict> =
        seeds.iter().map(|seed| run(target, &seed.bytes, &seed.path.display().to_string())).collect();
    // A corpus of which everything is refused, or taken, reaches half of the code.
    assert!(verdicts.contains(&Verdict::Taken), "{name}: no seed is taken");
    assert!(verdicts.contains(&Verdict::Refused), "{name}: no seed is refused");
    for seed in &seeds {
        assert!(seed.bytes.len() <= target.input_bytes_max, "{} is too long", seed.path.display());
    }

    let seeds: Vec<&[u8]> = seeds.iter().map(|seed| &seed.bytes[..]).collect();
    let mut taken = 0;
    for number in 0..GENERATED {
        let input = generate(&mut Random::new(number), &seeds, target.dictionary, target.input_bytes_max);
        taken += u64::from(run(target, &input, &format!("generated {number}")) == Verdict::Taken);
    }
    assert!(taken > 0 && taken < GENERATED, "{name}: {taken} of {GENERATED} generated inputs were taken");
    println!("{name}: {} seeds, {GENERATED} generated inputs, {taken} of them taken", seeds.len());
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test] fn $name() { replay(stringify!($name)) })*
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}
replays!(upgrade frame client_frame_rkyv client_frame_json link_record config jwt);

#[test]
fn every_target_is_replayed() {
    assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), NAMES);
}

#[test]
fn a_number_generates_the_same_input_for_ever() {
    let seeds: [&[u8]; 2] = [b"GET / HTTP/1.1\r\n\r\n", b"\x81\x85\0\0\0\0hello"];
    let make = |number| generate(&mut Random::new(number), &seeds, &[b"word"], 64);
    let all: Vec<Vec<u8>> = (0..200).map(make).collect();
    assert_eq!(all, (0..200).map(make).collect::<Vec<_>>());
    assert!(all.iter().all(|input| input.len() <= 64));
    let mut distinct = all.clone();
    distinct.sort();
    distinct.dedup();
    assert!(distinct.len() > 150, "{} distinct inputs", distinct.len());
}
