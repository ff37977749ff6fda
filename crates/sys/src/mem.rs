//! Giving memory back.
#![allow(unsafe_code)]

/// Returns what the allocator holds without need to the kernel. Costs some 10 to 100 us: for a quiet moment after a
/// burst. Does nothing where the C library has no such call.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's own locks and touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn trimming_keeps_what_is_used() {
        let kept = vec![7u8; 100_000];
        drop(vec![1u8; 3_000_000]);
        super::trim();
        assert!(kept.iter().all(|b| *b == 7));
    }
}
