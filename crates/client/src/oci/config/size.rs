//! Sizes as people write them.

/// Bytes of a size text: a decimal number (a fraction is allowed), an optional blank, an optional
/// suffix `b`, `k`, `m`, `g`, `t` or `p`, with `b` or `ib` after it or not, in any case; powers of
/// 1024. `None` for anything else, negative numbers too.
pub fn parse_size(text: &str) -> Option<i64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let value: f64 = number.parse().ok()?;
    let suffix = suffix.strip_prefix(' ').unwrap_or(suffix).to_ascii_lowercase();
    let (unit, rest) = match suffix.chars().next() {
        None => (0, ""),
        Some('b') if suffix.len() == 1 => (0, ""),
        Some(c) => (1 + "kmgtp".find(c)? as i32, &suffix[1..]),
    };
    if !matches!(rest, "" | "b" | "ib") {
        return None;
    }
    let bytes = value * 1024f64.powi(unit);
    (bytes.is_finite() && bytes < i64::MAX as f64).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("12MiB", Some(12 << 20)),
            ("500 KiB", Some(500 << 10)),
            ("1.5g", Some(3 << 29)),
            ("7b", Some(7)),
            ("2Tb", Some(2 << 40)),
            ("1P", Some(1 << 50)),
            ("", None),
            ("-1", None),
            ("1x", None),
            ("1bb", None),
            ("1  k", None),
            ("k", None),
            ("1.2.3", None),
            ("9999999p", None),
            ("1é", None),
            ("1kiéb", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }
}
