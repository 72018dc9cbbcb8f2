//! `parley check` reads the files that the storage-writer would read at its start, and says which it cannot; a gateway
//! beside the same configuration has no business with them.

use crate::common::run;
use std::path::Path;

/// Exit code and output for a configuration with this password file and this authority.
fn check(dir: &Path, password_file: &Path, tls_ca: &Path) -> (Option<i32>, String) {
    let text = format!(
        "store = \"scylla\"\n[scylla]\ncontact_points = [\"127.0.0.1:9\"]\nuser = \"u\"\npassword_file = {password_file:?}\n\
         tls_ca = {tls_ca:?}\n"
    );
    std::fs::write(dir.join("storage-writer.toml"), text).expect("written");
    let (status, output) = run(&["check", "--config", dir.to_str().expect("a UTF-8 path")]);
    (status.code(), output)
}

#[test]
fn files_that_cannot_be_read_are_named_with_their_keys() {
    let dir = tempfile::tempdir().expect("a directory");
    let (there, gone) = (dir.path().join("there"), dir.path().join("gone"));
    std::fs::write(&there, "secret\n").expect("written");
    let (code, output) = check(dir.path(), &there, &there);
    assert!(code == Some(0) && !output.contains("cannot be read") && !output.contains("secret"), "{output}");
    for (key, password_file, tls_ca, why) in [
        ("scylla.password_file", &gone, &there, "No such file"),
        ("scylla.tls_ca", &there, &gone, "No such file"),
        ("scylla.tls_ca", &there, &dir.path().to_owned(), "Is a directory"),
    ] {
        let bad = if key == "scylla.tls_ca" { tls_ca } else { password_file };
        let (code, output) = check(dir.path(), password_file, tls_ca);
        assert_eq!(code, Some(1), "{output}");
        let line = output.lines().find(|line| line.contains("cannot be read")).unwrap_or_else(|| panic!("{output}"));
        assert!(line.starts_with("# error: ") && line.contains(&format!("{key} = {bad:?}")), "{line}");
        assert!(line.contains(why), "{line}");
        assert_eq!(output.matches("cannot be read").count(), 1, "{output}");
    }
}
