//! The keys that leave an attach session without ending the container.

use alloc::string::String;
use alloc::vec::Vec;

/// Keys that end an attach where nobody names others: ctrl-p, ctrl-q, as in docker and podman.
pub const DETACH_KEYS: [u8; 2] = [16, 17];

/// Looks for the detach keys in input, however it is cut into reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detach {
    keys: Vec<u8>,
    /// How many of the keys the last bytes were; they are held back until it is known.
    matched: usize,
}

impl Detach {
    /// Looks for these keys; with none it never finds them.
    pub fn new(keys: Vec<u8>) -> Self {
        Self { keys, matched: 0 }
    }

    /// Reads a list like `ctrl-p,ctrl-q` or `a,b`; an empty one names no key.
    ///
    /// # Errors
    /// The word that is no key.
    pub fn parse(list: &str) -> Result<Self, String> {
        let mut keys = Vec::new();
        for key in list.split(',').filter(|k| !k.is_empty()) {
            let code = match (key.strip_prefix("ctrl-").map(str::as_bytes), key.as_bytes()) {
                (Some([c @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]), _) => c & 0x1f,
                (None, [c]) => *c,
                _ => return Err(key.into()),
            };
            keys.push(code);
        }
        Ok(Self::new(keys))
    }

    /// Appends to `out` what is to be passed on; true if the keys are complete. A broken sequence is passed on in order.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in input {
            if self.keys.get(self.matched) == Some(&byte) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return true;
                }
                continue;
            }
            // The longest beginning that the keys held back and this byte still end with.
            let mut held = self.keys.get(..self.matched).unwrap_or_default().to_vec();
            held.push(byte);
            let ends = |n: &usize| self.keys.get(..*n).is_some_and(|keys| held.ends_with(keys));
            let keep = (0..held.len()).rev().find(ends).unwrap_or(0);
            out.extend(held.iter().take(held.len() - keep));
            self.matched = keep;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(keys: &[u8], reads: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut detach, mut out) = (Detach::new(keys.to_vec()), Vec::new());
        let detached = reads.iter().any(|read| detach.feed(read, &mut out));
        (out, detached)
    }

    #[test]
    fn keys_in_one_read_or_in_many() {
        assert_eq!(feed(&DETACH_KEYS, &[b"ab\x10\x11cd"]), (b"ab".to_vec(), true));
        assert_eq!(feed(&DETACH_KEYS, &[b"a", b"\x10", b"\x11"]), (b"a".to_vec(), true));
    }

    #[test]
    fn a_broken_sequence_is_passed_on_in_order() {
        assert_eq!(feed(&DETACH_KEYS, &[b"\x10", b"x\x10\x10\x11"]), (b"\x10x\x10".to_vec(), true));
        assert_eq!(feed(b"aab", &[b"aaab"]), (b"a".to_vec(), true));
        assert_eq!(feed(b"abac", &[b"ababac"]), (b"ab".to_vec(), true));
    }

    #[test]
    fn no_keys_are_never_found() {
        assert_eq!(feed(b"", &[b"\x10\x11"]), (b"\x10\x11".to_vec(), false));
    }

    #[test]
    fn lists_of_keys() {
        assert_eq!(Detach::parse("ctrl-p,ctrl-q"), Ok(Detach::new(DETACH_KEYS.to_vec())));
        assert_eq!(Detach::parse("a,a,b"), Ok(Detach::new(b"aab".to_vec())));
        assert_eq!(Detach::parse(""), Ok(Detach::new(Vec::new())));
        assert_eq!(Detach::parse("a,ctrl-"), Err("ctrl-".into()));
        assert_eq!(Detach::parse("xyz"), Err("xyz".into()));
    }
}
