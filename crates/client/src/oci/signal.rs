//! Signals by text, as image configurations name them.

const NAMES: [(&str, i32); 35] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("UNUSED", 31),
];

/// First and last real-time signal that programs may use with glibc.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The signal a container is stopped with: a number other than 0, or a name with or without `SIG`,
/// in any case, `RTMIN+n` and `RTMAX-n` included. Anything else, the empty text too, means SIGTERM.
pub fn stop_signal(text: &str) -> i32 {
    parse(text).unwrap_or(15)
}

/// The number of a signal text; `None` if it names no signal.
pub fn parse(text: &str) -> Option<i32> {
    let upper = text.to_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (number != 0).then_some(number);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(n, _)| *n == name) {
        return Some(*number);
    }
    let offset = |rest: &str| rest.parse::<i32>().ok().filter(|n| (0..=RTMAX - RTMIN).contains(n));
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return match rest.strip_prefix('+') {
            Some(n) => offset(n).map(|n| RTMIN + n),
            None => rest.is_empty().then_some(RTMIN),
        };
    }
    let rest = name.strip_prefix("RTMAX")?;
    match rest.strip_prefix('-') {
        Some(n) => offset(n).map(|n| RTMAX - n),
        None => rest.is_empty().then_some(RTMAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_texts() {
        for (text, number) in [
            ("", 15),
            ("SIGNO", 15),
            ("0", 15),
            ("9", 9),
            ("100", 100),
            ("sigtrap", 5),
            ("SIGTRAP", 5),
            ("RTMIN", 34),
            ("RTMIN+1", 35),
            ("SIGRTMAX-2", 62),
            ("RTMAX", 64),
            ("RTMIN+99", 15),
            ("RTMIN1", 15),
            ("usr1", 10),
            ("SIG", 15),
            ("RTMAX-é", 15),
        ] {
            assert_eq!(stop_signal(text), number, "{text}");
        }
    }
}
