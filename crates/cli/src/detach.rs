//! The keys that leave an attach session without ending the container.

use anyhow::Result;

use crate::args::usage;

/// The keys of podman and docker.
pub(crate) const DEFAULT: &str = "ctrl-p,ctrl-q";

/// Looks for the detach keys in what is typed.
#[derive(Debug, Clone)]
pub(crate) struct Detach {
    keys: Vec<u8>,
    /// How many of the keys the last bytes were; they are held back until it is known.
    seen: usize,
}

impl Detach {
    /// Reads a list like `ctrl-p,ctrl-q` or `a,b`; an empty one never detaches.
    pub(crate) fn parse(list: &str) -> Result<Self> {
        let mut keys = Vec::new();
        for key in list.split(',').filter(|k| !k.is_empty()) {
            let wrong = || usage(format!("{key} is not a key; write them like ctrl-p,ctrl-q or a,b"));
            match key.strip_prefix("ctrl-").map(str::as_bytes) {
                Some([c @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]) => keys.push(c & 0x1f),
                Some(_) => return Err(wrong()),
                None => match key.as_bytes() {
                    [c] => keys.push(*c),
                    _ => return Err(wrong()),
                },
            }
        }
        Ok(Self { keys, seen: 0 })
    }

    /// Takes what was typed; gives what is to be sent, and whether the keys were complete.
    pub(crate) fn feed(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        if self.keys.is_empty() {
            return (typed.to_vec(), false);
        }
        let mut send = Vec::with_capacity(typed.len());
        for &byte in typed {
            loop {
                if byte == self.keys[self.seen] {
                    self.seen += 1;
                    if self.seen == self.keys.len() {
                        return (send, true);
                    }
                    break;
                }
                if self.seen == 0 {
                    send.push(byte);
                    break;
                }
                // The first held key was ordinary typing; the others may begin the sequence anew.
                let held = self.keys[..self.seen].to_vec();
                let keep = (0..self.seen).rev().find(|n| held.ends_with(&self.keys[..*n])).unwrap_or(0);
                send.extend_from_slice(&held[..held.len() - keep]);
                self.seen = keep;
            }
        }
        (send, false)
    }
}

#[cfg(test)]
mod tests {
    use super::Detach;

    #[test]
    fn keys_are_found_across_reads() {
        let mut d = Detach::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(d.feed(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(d.feed(b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(d.feed(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(d.feed(b"\x11rest"), (Vec::new(), true));
    }

    #[test]
    fn sequences_that_overlap_themselves() {
        let mut d = Detach::parse("a,a,b").unwrap();
        assert_eq!(d.feed(b"aaab"), (b"a".to_vec(), true));
        let mut d = Detach::parse("").unwrap();
        assert_eq!(d.feed(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
        assert!(Detach::parse("ctrl-").is_err() && Detach::parse("xyz").is_err());
    }
}
