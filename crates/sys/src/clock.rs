//! The clocks, in the newtypes of `pintle-core`.

use nix::time::{ClockId, clock_gettime};
use pintle_core::wall::{MonoTime, WallTime};

/// Now, by the wall clock. The epoch itself if the clock cannot be read, which Linux does not do.
pub fn wall() -> WallTime {
    match clock_gettime(ClockId::CLOCK_REALTIME) {
        Ok(t) => WallTime::new(t.tv_sec(), u32::try_from(t.tv_nsec()).unwrap_or(0)),
        Err(_) => WallTime::default(),
    }
}

/// Now, by the boot clock, which runs on while the machine sleeps and never steps.
pub fn mono() -> MonoTime {
    match clock_gettime(ClockId::CLOCK_BOOTTIME) {
        Ok(t) => {
            let secs = u64::try_from(t.tv_sec()).unwrap_or(0);
            let nanos = u64::try_from(t.tv_nsec()).unwrap_or(0);
            MonoTime(secs.saturating_mul(1_000_000_000).saturating_add(nanos))
        }
        Err(_) => MonoTime(0),
    }
}

/// The kernel's boot id; empty if `/proc` does not show it.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|t| t.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn clocks_run() {
        let first = super::mono();
        assert!(super::mono() >= first && first.0 > 0);
        assert!(super::wall().secs > 1_700_000_000);
        assert_eq!(super::boot_id().len(), 36);
    }
}
