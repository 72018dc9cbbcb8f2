//! Unmasking in place (RFC 6455, section 5.3).

/// Applies `mask` to `payload`, whose first byte is byte number `offset` of its frame. Eight bytes at a time; the
/// compiler widens the loop further.
pub fn unmask(payload: &mut [u8], mask: [u8; 4], offset: usize) {
    let key: [u8; 8] = core::array::from_fn(|i| mask[(offset + i) % 4]);
    let wide = u64::from_ne_bytes(key);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(key) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::unmask;

    #[test]
    fn agrees_with_the_definition_at_every_length_and_offset() {
        let mask = [0x12, 0x9a, 0xf0, 0x07];
        for len in 0..70 {
            for offset in 0..9 {
                let original: Vec<u8> = (0..len).map(|i| i as u8 * 3).collect();
                let expected: Vec<u8> = original.iter().enumerate().map(|(i, b)| b ^ mask[(i + offset) % 4]).collect();
                let mut bytes = original.clone();
                unmask(&mut bytes, mask, offset);
                assert_eq!(bytes, expected, "len {len} offset {offset}");
            }
        }
    }
}
