//! The coverage-guided fuzzer: libFuzzer around one target, named by the environment variable `PARLEY_FUZZ_TARGET`.
#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<&'static fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("PARLEY_FUZZ_TARGET").unwrap_or_default();
    fuzz::target(&name).unwrap_or_else(|| {
        eprintln!("PARLEY_FUZZ_TARGET is `{name}`, which is no target; start this through scripts/fuzz");
        std::process::exit(2);
    })
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (TARGET.run)(data);
});
