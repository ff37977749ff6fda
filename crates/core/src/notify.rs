//! What a container may tell the service manager: the allow-list of the sd-notify relay.
//!
//! A container that is handed the host's notify socket must not be able to change the service's main
//! process, store descriptors or extend its time-outs, so only states about itself pass.

use alloc::vec::Vec;

/// Lines that pass as they are.
const EXACT: [&[u8]; 5] = [b"READY=1", b"RELOADING=1", b"STOPPING=1", b"WATCHDOG=1", b"WATCHDOG=trigger"];
/// Assignments that pass with any value.
const PREFIX: [&[u8]; 4] = [b"STATUS=", b"ERRNO=", b"BUSERROR=", b"MONOTONIC_USEC="];

/// The part of a datagram that may be relayed, `None` if nothing of it may.
///
/// Lines end at LF or CR; text after a NUL is not looked at. Lines that pass are joined by LF, without
/// one at the end.
pub fn filter(datagram: &[u8]) -> Option<Vec<u8>> {
    let text = datagram.split(|byte| *byte == 0).next().unwrap_or_default();
    let mut kept = Vec::new();
    for line in text.split(|byte| matches!(byte, b'\n' | b'\r')) {
        if !EXACT.contains(&line) && !PREFIX.iter().any(|prefix| line.starts_with(prefix)) {
            continue;
        }
        if !kept.is_empty() {
            kept.push(b'\n');
        }
        kept.extend_from_slice(line);
    }
    (!kept.is_empty()).then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn states_about_the_container_pass() {
        let datagram = b"READY=1\nMAINPID=7\nSTATUS=up and running\r\nFDSTORE=1\nWATCHDOG=trigger\n";
        assert_eq!(
            filter(datagram).as_deref(),
            Some(&b"READY=1\nSTATUS=up and running\nWATCHDOG=trigger"[..])
        );
        for line in [
            "RELOADING=1",
            "STOPPING=1",
            "WATCHDOG=1",
            "ERRNO=2",
            "BUSERROR=x",
            "MONOTONIC_USEC=9",
            "STATUS=",
        ] {
            assert_eq!(filter(line.as_bytes()).as_deref(), Some(line.as_bytes()), "{line}");
        }
    }

    #[test]
    fn all_else_is_dropped() {
        let dropped = [
            "",
            "\n",
            "MAINPID=1",
            "READY=2",
            "READY=10",
            " READY=1",
            "XREADY=1",
            "WATCHDOG=2",
            "WATCHDOG_USEC=5",
            "EXTEND_TIMEOUT_USEC=1",
            "BARRIER=1",
            "FDSTORE=1",
            "NOTIFYACCESS=all",
            "\0READY=1",
            "STATUS",
            "ready=1",
        ];
        for line in dropped {
            assert_eq!(filter(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(filter(b"STATUS=a\0b\nREADY=1").as_deref(), Some(&b"STATUS=a"[..]));
    }

    proptest! {
        #[test]
        fn every_relayed_line_is_allowed(datagram in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'='), Just(b'1'), any::<u8>()], 0..200)) {
            if let Some(kept) = filter(&datagram) {
                prop_assert!(kept.len() <= datagram.len());
                prop_assert_eq!(filter(&kept), Some(kept));
            }
        }
    }
}
