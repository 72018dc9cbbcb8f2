//! Inputs made from seeds: flipped bits, tampered lengths, cuts, splices, repeats and pieces of a dictionary. The same
//! seed number gives the same inputs for ever.

/// SplitMix64 (Steele, Lea, Flood 2014): small, and good enough to choose places.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A stream of its own for each number.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }
}

/// Numbers at which lengths and counters change their meaning.
const EDGES: [u64; 16] =
    [0, 1, 2, 4, 125, 126, 127, 128, 255, 256, 0x7fff, 0xffff, 0x1_0000, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// A new input: one of the seeds, changed in one to eight ways, of at most `bytes_max` bytes.
pub fn generate(random: &mut Random, seeds: &[&[u8]], dictionary: &[&[u8]], bytes_max: usize) -> Vec<u8> {
    let mut input = pick(random, seeds).unwrap_or_default().to_vec();
    for _ in 0..1 + random.below(8) {
        change(random, &mut input, seeds, dictionary);
        input.truncate(bytes_max);
    }
    input
}

fn pick<'a>(random: &mut Random, from: &[&'a [u8]]) -> Option<&'a [u8]> {
    if from.is_empty() { None } else { Some(from[random.below(from.len())]) }
}

/// A range inside `len` bytes, mostly short.
fn range(random: &mut Random, len: usize) -> std::ops::Range<usize> {
    let start = random.below(len + 1);
    let most = (len - start).min(if random.below(4) == 0 { len } else { 16 });
    start..start + random.below(most + 1)
}

fn change(random: &mut Random, input: &mut Vec<u8>, seeds: &[&[u8]], dictionary: &[&[u8]]) {
    let at = random.below(input.len() + 1);
    match random.below(11) {
        0 | 1 if at < input.len() => input[at] ^= 1 << random.below(8),
        2 if at < input.len() => input[at] = random.bits() as u8,
        3 => input.insert(at, random.bits() as u8),
        4 => input.truncate(at),
        5 => drop(input.drain(range(random, input.len()))),
        6 => {
            let again = input[range(random, input.len())].repeat(1 + random.below(4));
            drop(input.splice(at..at, again));
        }
        7 => {
            let other = pick(random, seeds).unwrap_or_default();
            let piece = other[range(random, other.len())].to_vec();
            let replaced = if random.below(2) == 0 { at..at } else { at..(at + piece.len()).min(input.len()) };
            drop(input.splice(replaced, piece));
        }
        // The rest of another seed, from where this one is cut.
        8 => {
            let other = pick(random, seeds).unwrap_or_default();
            input.truncate(at);
            input.extend_from_slice(&other[at.min(other.len())..]);
        }
        9 => {
            let word = pick(random, dictionary).unwrap_or_default();
            let end = if random.below(2) == 0 { at } else { (at + word.len()).min(input.len()) };
            drop(input.splice(at..end, word.iter().copied()));
        }
        // A number in the place of a length: one, two, four or eight bytes, in either order.
        _ => {
            let width = 1 << random.below(4);
            let edge = EDGES[random.below(EDGES.len())].wrapping_add(random.below(3) as u64).wrapping_sub(1);
            let mut bytes = edge.to_le_bytes()[..width].to_vec();
            if random.below(2) == 0 {
                bytes.reverse();
            }
            let end = (at + width).min(input.len());
            drop(input.splice(at..end, bytes));
        }
    }
}
