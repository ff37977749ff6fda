//! Giving memory back.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Returns what the allocator holds without need to the kernel. Costs some 10 to 100 us: for a quiet moment after a
/// burst. Does nothing where the C library has no such call.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's own locks and touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives the kernel everything back that a process going to sleep does not need: what [`trim`] does, the pages of the
/// program's own text and constants (they are mapped again from the page cache when they are touched), and the part
/// of the calling thread's stack that is deeper than the caller. Costs some 50 us, and as much again when all of
/// it is needed again.
///
/// # Errors
/// That of reading `/proc/self/maps` or `/proc/self/pagemap`; nothing is lost then.
pub fn settle() -> io::Result<()> {
    trim();
    let here = 0u8;
    let here = (&raw const here).addr();
    let page = page();
    let stack = release_program(page, here)?;
    // The page below may hold the frames of what is called from here.
    let end = (here & !(page - 1)) - page;
    if let Some(start) = stack.filter(|start| *start < end) {
        // SAFETY: the stack grows downwards, so nothing alive lies more than a page below a variable of this frame: what
        // is called from here uses far less, and other threads have stacks of their own.
        unsafe { dont_need(start..end) };
    }
    Ok(())
}

/// Drops what is unwritten of the program's mappings, and tells where the mapping begins that `here` lies in.
///
/// Not inlined: its buffer is part of the stack that goes afterwards.
#[inline(never)]
fn release_program(page: usize, here: usize) -> io::Result<Option<usize>> {
    let mut maps = File::open("/proc/self/maps")?;
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut stack = None;
    // On the stack, not on the heap, which would keep it. A longer line has a longer path than there can be.
    let mut buffer = [0u8; 4608];
    let mut held = 0;
    loop {
        let read = maps.read(&mut buffer[held..])?;
        let filled = held + read;
        let mut rest = &buffer[..filled];
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            if let Some(mapping) = std::str::from_utf8(&rest[..end]).ok().and_then(mapping) {
                if mapping.range.contains(&here) {
                    stack = Some(mapping.range.start).filter(|_| mapping.writable);
                } else if mapping.file && !mapping.writable {
                    release_clean(&pagemap, page, mapping.range)?;
                }
            }
            rest = &rest[end + 1..];
        }
        if read == 0 {
            return Ok(stack);
        }
        let start = filled - rest.len();
        if start == 0 && filled == buffer.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        buffer.copy_within(start..filled, 0);
        held = filled - start;
    }
}

/// Bytes of a page.
pub fn page() -> usize {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    size.ok().flatten().and_then(|s| usize::try_from(s).ok()).filter(|s| s.is_power_of_two()).unwrap_or(4096)
}

/// Drops the pages of a private mapping that are still the file's own.
fn release_clean(pagemap: &File, page: usize, range: Range<usize>) -> io::Result<()> {
    // 512 entries are one page of page table; the buffer is small on purpose.
    let mut entries = [0u8; 8 * 128];
    let mut run = range.start..range.start;
    let mut at = range.start;
    while at < range.end {
        let pages = ((range.end - at) / page).min(entries.len() / 8);
        let entries = &mut entries[..pages * 8];
        pagemap.read_exact_at(entries, (at / page * 8) as u64)?;
        for entry in entries.chunks_exact(8) {
            // Bit 61: a page of a file. Without it and present, or swapped: written to (relocated constants, breakpoints).
            let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
            let (present, swapped, of_file) =
                (entry >> 63 & 1 == 1, entry >> 62 & 1 == 1, entry >> 61 & 1 == 1);
            if (present && !of_file) || swapped {
                // SAFETY: see below.
                unsafe { dont_need(run.clone()) };
                run = at + page..at + page;
            } else {
                run.end = at + page;
            }
            at += page;
        }
    }
    // SAFETY: every page of the run is either not there or, unwritten, the file's: reading it again gives the same
    // bytes. Nobody can write to it in between, since the mapping is not writable.
    unsafe { dont_need(run) };
    Ok(())
}

/// # Safety
/// What the pages hold must not be needed, or come again from the file that they map.
unsafe fn dont_need(range: Range<usize>) {
    if range.is_empty() {
        return;
    }
    let start = std::ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: the caller vouches for the contents. A failure leaves everything as it was.
    unsafe { libc::madvise(start, range.end - range.start, libc::MADV_DONTNEED) };
}

struct Mapping {
    range: Range<usize>,
    writable: bool,
    /// Private, of a file.
    file: bool,
}

/// A line of `/proc/PID/maps`.
fn mapping(line: &str) -> Option<Mapping> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let access = words.next()?.as_bytes();
    let inode = words.nth(2)?;
    let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    Some(Mapping {
        range,
        writable: access.get(1) == Some(&b'w'),
        file: access.get(3) == Some(&b'p') && inode != "0",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    /// A constant of several pages, so that one of them at least is nothing else's.
    static CONSTANT: [u8; 5 * PAGE] = [0x5a; 5 * PAGE];

    fn present(at: usize) -> bool {
        let mut entry = [0u8; 8];
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        pagemap.read_exact_at(&mut entry, (at / PAGE * 8) as u64).unwrap();
        u64::from_ne_bytes(entry) >> 63 == 1
    }

    #[inline(never)]
    fn deep(levels: usize) -> usize {
        let mut block = [levels as u8; 2 * PAGE];
        std::hint::black_box(&mut block);
        if levels == 0 { (&raw const block).addr() } else { deep(levels - 1).min((&raw const block).addr()) }
    }

    #[test]
    fn trimming_keeps_what_is_used() {
        let kept = vec![7u8; 100_000];
        drop(vec![1u8; 3_000_000]);
        trim();
        assert!(kept.iter().all(|b| *b == 7));
    }

    #[test]
    fn settling_drops_constants_and_stack_and_loses_nothing() {
        // On a stack of its own: a thread's, which the kernel does not call [stack].
        let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(|| {
            let kept = vec![7u8; 100_000];
            let local = std::hint::black_box([3u8; 3 * PAGE]);
            let lowest = deep(20);
            let middle = CONSTANT[2 * PAGE..].as_ptr().addr();
            assert_eq!(std::hint::black_box(&CONSTANT)[2 * PAGE], 0x5a);
            assert!(present(middle) && present(lowest));
            settle().unwrap();
            assert!(!present(lowest), "the deep part of the stack is still there");
            // Other tests' threads may bring the neighbourhood of a constant back at any time, not its contents.
            assert!(CONSTANT.iter().all(|b| *b == 0x5a) && kept.iter().all(|b| *b == 7));
            assert!(local.iter().all(|b| *b == 3));
            assert!(deep(20) > 0);
        });
        thread.unwrap().join().unwrap();
    }

    #[test]
    fn only_clean_pages_of_private_files_are_dropped() {
        use std::os::fd::AsRawFd;
        let path = std::env::temp_dir().join(format!("pintle-mem-{}", std::process::id()));
        std::fs::write(&path, vec![b'f'; 4 * PAGE]).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new private mapping of a file of four pages; nothing else refers to it.
        let map = unsafe {
            libc::mmap(std::ptr::null_mut(), 4 * PAGE, access, libc::MAP_PRIVATE, file.as_raw_fd(), 0)
        };
        assert_ne!(map, libc::MAP_FAILED);
        // SAFETY: the mapping is four readable and writable pages, and lives to the end of the process.
        let bytes = unsafe { std::slice::from_raw_parts_mut(map.cast::<u8>(), 4 * PAGE) };
        bytes[2 * PAGE] = b'w';
        let start = bytes.as_ptr().addr();
        assert_eq!((bytes[0], bytes[PAGE], bytes[3 * PAGE]), (b'f', b'f', b'f'));
        // SAFETY: as above; the pages stay readable.
        assert_eq!(unsafe { libc::mprotect(map, 4 * PAGE, libc::PROT_READ) }, 0);
        release_clean(&File::open("/proc/self/pagemap").unwrap(), PAGE, start..start + 4 * PAGE).unwrap();
        let there: Vec<bool> = (0..4).map(|i| present(start + i * PAGE)).collect();
        assert_eq!(there, [false, false, true, false]);
        assert_eq!((bytes[0], bytes[2 * PAGE], bytes[3 * PAGE]), (b'f', b'w', b'f'));
    }

    #[test]
    fn lines_of_maps() {
        let m = mapping("00401000-005a9000 r-xp 00001000 fe:00 10641418      /a b").unwrap();
        assert_eq!((m.range, m.writable, m.file), (0x401000..0x5a9000, false, true));
        let m = mapping("7ffce40e0000-7ffce4101000 rw-p 00000000 00:00 0   [stack]").unwrap();
        assert!(m.writable && !m.file);
        assert!(!mapping("1000-2000 r--s 00000000 fe:00 12 /x").unwrap().file);
        assert!(mapping("nonsense").is_none() && mapping("").is_none() && mapping("1-g r").is_none());
    }
}
