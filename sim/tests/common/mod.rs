//! The program `sim`, started as a reader of its output would start it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::process::Command;

/// What a run of the program left.
pub struct Ended {
    /// The exit code.
    pub code: Option<i32>,
    /// The standard output.
    pub out: String,
    /// The standard error.
    pub err: String,
}

/// Runs the program with a line of arguments, blanks between them.
pub fn sim(line: &str) -> Ended {
    let output = Command::new(env!("CARGO_BIN_EXE_sim")).args(line.split_whitespace()).output().expect("it starts");
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).expect("a text"),
        err: String::from_utf8(output.stderr).expect("a text"),
    }
}

impl Ended {
    /// The hash that a run of one seed prints.
    #[track_caller]
    pub fn hash(&self) -> u64 {
        let hash = self.out.split("hash ").nth(1).and_then(|rest| rest.get(..16));
        let hash = hash.unwrap_or_else(|| panic!("no hash in {:?}, {:?}", self.out, self.err));
        u64::from_str_radix(hash, 16).expect("a number in base 16")
    }
}
