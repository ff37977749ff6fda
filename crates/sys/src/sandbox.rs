//! Confining this process to what it needs (docs/adr/0023-sandbox.md).
//!
//! A monitor starts runtimes, and these need nearly everything: namespaces, mounts, keys, other processes. A seccomp
//! filter and Landlock are inherited by all of them, so the filter denies only what no part of a container's life needs,
//! and what the kernel keeps to this process alone is used in full: no new executable memory, no core dump, no tracing.
#![allow(unsafe_code)]

use std::io;

/// What is denied with `EPERM`, on this machine's architecture: another kernel, modules, swap, process accounting,
/// the clock, ports of the machine, performance counters.
const DENIED: &[libc::c_long] = &[
    libc::SYS_kexec_load,
    KEXEC_FILE_LOAD,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_perf_event_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
];

// From asm/unistd.h; not every C library's list has it.
#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: libc::c_long = 320;
#[cfg(not(target_arch = "x86_64"))]
const KEXEC_FILE_LOAD: libc::c_long = 294;

/// The same for programs of 32 bits, by the numbers of i386: also `stime` and `clock_settime64`.
#[cfg(target_arch = "x86_64")]
const DENIED_32: &[u32] = &[283, 128, 350, 129, 87, 115, 51, 79, 25, 264, 404, 336, 110, 101];
/// The same for programs of 32 bits, by the numbers of ARM EABI.
#[cfg(not(target_arch = "x86_64"))]
const DENIED_32: &[u32] = &[347, 401, 128, 379, 129, 87, 115, 51, 79, 262, 404, 364];

// From linux/audit.h.
#[cfg(target_arch = "x86_64")]
const ARCH: (u32, u32) = (0xc000_003e, 0x4000_0003);
#[cfg(not(target_arch = "x86_64"))]
const ARCH: (u32, u32) = (0xc000_00b7, 0x4000_0028);
/// Numbers from here on are those of x32, a third way in that nothing uses.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

/// An option of `prctl` that no kernel knows and the filter answers, so that a filter is not installed twice.
const QUESTION: u32 = 0x7069_6e74;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

type Program = Vec<libc::sock_filter>;

fn load(program: &mut Program, offset: u32) {
    let code = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    program.push(libc::sock_filter { code, jt: 0, jf: 0, k: offset });
}

/// Goes on with the next instruction if it holds, else leaves out `skip`.
fn unless(program: &mut Program, test: u32, k: u32, skip: usize) {
    let code = (libc::BPF_JMP | test | libc::BPF_K) as u16;
    program.push(libc::sock_filter { code, jt: 0, jf: u8::try_from(skip).unwrap_or(u8::MAX), k });
}

fn answer(program: &mut Program, k: u32) {
    let code = (libc::BPF_RET | libc::BPF_K) as u16;
    program.push(libc::sock_filter { code, jt: 0, jf: 0, k });
}

const fn errno(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

fn deny(program: &mut Program, numbers: impl Iterator<Item = u32>) {
    for number in numbers {
        unless(program, libc::BPF_JEQ, number, 1);
        answer(program, errno(libc::EPERM));
    }
    answer(program, libc::SECCOMP_RET_ALLOW);
}

/// The filter.
fn filter() -> Program {
    let mut native = Program::new();
    load(&mut native, NUMBER);
    #[cfg(target_arch = "x86_64")]
    {
        unless(&mut native, libc::BPF_JGE, X32, 1);
        answer(&mut native, errno(libc::ENOSYS));
    }
    unless(&mut native, libc::BPF_JEQ, libc::SYS_prctl as u32, 4);
    load(&mut native, FIRST_ARGUMENT);
    unless(&mut native, libc::BPF_JEQ, QUESTION, 1);
    answer(&mut native, errno(libc::EALREADY));
    answer(&mut native, libc::SECCOMP_RET_ALLOW);
    deny(&mut native, DENIED.iter().map(|n| *n as u32));

    let mut program = Program::new();
    load(&mut program, ARCHITECTURE);
    unless(&mut program, libc::BPF_JEQ, ARCH.0, native.len());
    program.extend(native);
    unless(&mut program, libc::BPF_JEQ, ARCH.1, 1 + 2 * DENIED_32.len() + 1);
    load(&mut program, NUMBER);
    deny(&mut program, DENIED_32.iter().copied());
    answer(&mut program, errno(libc::ENOSYS));
    program
}

/// Whether [`confine_descendants`] was called in this process or one it descends from.
pub fn is_confined() -> bool {
    // SAFETY: prctl with an option that no kernel knows touches nothing.
    let answer = unsafe { libc::prctl(QUESTION as libc::c_int, 0, 0, 0, 0) };
    answer < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EALREADY)
}

/// Confines this process and nothing that it executes: no new executable memory (Linux 6.6; older ones go without) and,
/// for root, neither core dumps nor tracing by others of its uid. To be called again by a program that it executed.
///
/// # Errors
/// If the kernel refuses.
pub fn confine_process() -> io::Result<()> {
    if nix::unistd::geteuid().is_root() {
        // A process that is not dumpable may not open its own /proc/self as an ordinary user.
        nix::sys::prctl::set_dumpable(false)?;
    }
    let lasting = libc::c_ulong::from(libc::PR_MDWE_REFUSE_EXEC_GAIN | libc::PR_MDWE_NO_INHERIT);
    let none: libc::c_ulong = 0;
    // SAFETY: prctl with numbers only.
    if unsafe { libc::prctl(libc::PR_SET_MDWE, lasting, none, none, none) } < 0 {
        let error = io::Error::last_os_error();
        // Not known before 6.6; EPERM: set already, which cannot be changed.
        if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM)) {
            return Err(error);
        }
    }
    Ok(())
}

/// Confines this process and all its descendants: the system calls that a container's life never needs fail with `EPERM`.
/// It must have one thread: the filter holds for the calling one and what it starts. Called again, it does nothing.
///
/// Where the filter needs it (without `CAP_SYS_ADMIN` in its user namespace) it also sets no-new-privileges, by which
/// set-uid programs, such as `newuidmap`, lose their power. CRIU cannot make or restore checkpoints below a filter: the
/// kernel does not let a filtered process suspend the filters of another.
///
/// # Errors
/// If the kernel refuses the filter.
pub fn confine_descendants() -> io::Result<()> {
    if is_confined() {
        return Ok(());
    }
    match install(&filter()) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            nix::sys::prctl::set_no_new_privs()?;
            install(&filter())
        }
        result => result,
    }
}

fn install(program: &[libc::sock_filter]) -> io::Result<()> {
    let list = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `list` and what it points to live until the call returns; the kernel copies and does not write them.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0u32, &raw const list) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would make of the filter for this call.
    fn run(arch: u32, number: u32, first: u32) -> u32 {
        let program = filter();
        let (mut at, mut value) = (0, 0);
        loop {
            let i = program[at];
            at += 1;
            let code = u32::from(i.code);
            if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS {
                value = match i.k {
                    NUMBER => number,
                    ARCHITECTURE => arch,
                    FIRST_ARGUMENT => first,
                    other => panic!("loads from {other}"),
                };
            } else if code == libc::BPF_RET | libc::BPF_K {
                return i.k;
            } else {
                let holds = match code & !(libc::BPF_JMP | libc::BPF_K) {
                    libc::BPF_JEQ => value == i.k,
                    libc::BPF_JGE => value >= i.k,
                    other => panic!("tests {other}"),
                };
                at += usize::from(if holds { i.jt } else { i.jf });
            }
        }
    }

    #[test]
    fn denies_its_list_and_nothing_else() {
        for number in 0..1000 {
            let denied = DENIED.contains(&libc::c_long::from(number));
            let wanted = if denied { errno(libc::EPERM) } else { libc::SECCOMP_RET_ALLOW };
            assert_eq!(run(ARCH.0, number, 1), wanted, "call {number}");
            let denied = DENIED_32.contains(&number);
            let wanted = if denied { errno(libc::EPERM) } else { libc::SECCOMP_RET_ALLOW };
            assert_eq!(run(ARCH.1, number, 1), wanted, "call {number} of 32 bits");
            assert_eq!(run(7, number, 1), errno(libc::ENOSYS), "call {number} of nobody");
            #[cfg(target_arch = "x86_64")]
            assert_eq!(run(ARCH.0, X32 + number, 1), errno(libc::ENOSYS), "call {number} of x32");
        }
        assert_eq!(run(ARCH.0, libc::SYS_prctl as u32, QUESTION), errno(libc::EALREADY));
        assert!(filter().len() < 128, "the kernel looks at {} instructions", filter().len());
    }
}
