//! Where seeds lie: `fuzz/corpus/TARGET/*`, one input a file, and the golden bytes of the protocol's tests.

use crate::Target;
use std::path::{Path, PathBuf};

/// An input and the file that it comes from.
#[derive(Clone, Debug)]
pub struct Seed {
    /// For the message when it fails.
    pub path: PathBuf,
    /// The input.
    pub bytes: Vec<u8>,
}

fn folder(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.retain(|path| path.is_file());
    files.sort();
    Ok(files)
}

/// The folder of a target's own seeds.
pub fn own_folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// Every seed of a target, in the order of the file names.
pub fn seeds(target: &Target) -> std::io::Result<Vec<Seed>> {
    let mut seeds = Vec::new();
    for path in folder(&own_folder(target))? {
        seeds.push(Seed { bytes: std::fs::read(&path)?, path });
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/tests/golden");
    for (name, extension, before) in target.golden {
        for path in folder(&golden.join(name))? {
            if path.extension().is_some_and(|found| found == *extension) {
                let text = std::fs::read(&path)?;
                let bytes = if *extension == "hex" { unhex(&text) } else { text };
                seeds.push(Seed { bytes: [before, &bytes[..]].concat(), path });
            }
        }
    }
    Ok(seeds)
}

/// Hexadecimal digits as bytes; everything else between them is layout.
fn unhex(text: &[u8]) -> Vec<u8> {
    let digits: Vec<u8> =
        text.iter().filter_map(|byte| (*byte as char).to_digit(16)).map(|digit| digit as u8).collect();
    digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect()
}
