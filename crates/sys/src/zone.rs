//! The local time zone.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

/// Seconds east of UTC at this time, by `TZ` or `/etc/localtime`; 0 if the C library cannot tell. The zone file is
/// read once per process.
pub fn utc_offset(secs: i64) -> i32 {
    unsafe extern "C" {
        fn tzset();
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    // SAFETY: tzset only reads the environment, which nothing in this program changes after start.
    ONCE.call_once(|| unsafe { tzset() });
    let mut parts = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call, and tm is plain data that may start as zeroes.
    let parts = unsafe {
        if libc::localtime_r(&raw const secs, parts.as_mut_ptr()).is_null() {
            return 0;
        }
        parts.assume_init()
    };
    i32::try_from(parts.tm_gmtoff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn offsets_are_below_a_day() {
        for secs in [0, 1_795_464_945, i64::MAX] {
            assert!(super::utc_offset(secs).abs() < 86_400);
        }
    }
}
