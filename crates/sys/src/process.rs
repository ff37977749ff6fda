//! What a process may say about itself and others: subreaper, oom score, start times, reaping.
#![allow(unsafe_code)]

use pintle_core::exit::WaitStatus;
use std::io;

/// A child that has ended and was reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaped {
    /// Its pid, free for reuse from now on.
    pub pid: i32,
    /// How it ended.
    pub status: WaitStatus,
}

/// Makes the calling process the one that orphans below it are given to.
///
/// # Errors
/// As `prctl`.
pub fn set_subreaper() -> io::Result<()> {
    // SAFETY: prctl with integers only.
    let rc = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reaps one child that has ended, if there is one. `Ok(None)`: none has ended, or there are no children.
///
/// # Errors
/// As `waitid`, except `ECHILD` and `EINTR`.
pub fn reap_any() -> io::Result<Option<Reaped>> {
    loop {
        // SAFETY: siginfo_t is plain data; all zeroes is a valid value of it.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a local siginfo_t.
        let rc = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOHANG) };
        if rc < 0 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::ECHILD) => return Ok(None),
                _ => return Err(error),
            }
        }
        // SAFETY: waitid filled the child fields, or left zeroes.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        if pid == 0 {
            return Ok(None);
        }
        if let Some(status) = WaitStatus::from_siginfo(info.si_code, status) {
            return Ok(Some(Reaped { pid, status }));
        }
    }
}

/// The fields of `/proc/PID/stat` that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcStat {
    /// State letter; `Z` is a zombie.
    pub state: u8,
    /// Parent.
    pub ppid: i32,
    /// The kernel's `PF_*` flags.
    pub flags: u64,
    /// Start time in clock ticks since boot.
    pub start: u64,
    /// Status word of a zombie, 0 where it may not be seen.
    pub exit_code: i32,
}

impl ProcStat {
    /// Whether the process has executed a program since it was forked. The processes that runc, crun and youki make
    /// for a container or an exec are forked and execute nothing but the user's program, so until then they are still
    /// the runtime's own code. (`PF_FORKNOEXEC`, cleared by `execve`.)
    pub fn has_executed(&self) -> bool {
        const PF_FORKNOEXEC: u64 = 0x40;
        self.flags & PF_FORKNOEXEC == 0
    }

    fn is_ending(&self) -> bool {
        const PF_EXITING: u64 = 0x4;
        const PF_SIGNALED: u64 = 0x400;
        matches!(self.state, b'Z' | b'X') || self.flags & (PF_EXITING | PF_SIGNALED) != 0
    }
}

/// Parses `/proc/PID/stat`. The name in it may hold anything, so parsing starts at the last `)`.
pub fn parse_stat(text: &str) -> Option<ProcStat> {
    let rest = &text[text.rfind(')')? + 1..];
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(ProcStat {
        state: *fields.first()?.as_bytes().first()?,
        ppid: fields.get(1)?.parse().ok()?,
        flags: fields.get(6)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
        exit_code: fields.get(49).and_then(|f| f.parse().ok()).unwrap_or(0),
    })
}

/// Reads `/proc/PID/stat`. `None` if there is no such process.
pub fn stat(pid: i32) -> Option<ProcStat> {
    let bytes = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&bytes))
}

/// Whether a process is gone, a zombie, on its way out, or has a SIGKILL pending.
pub fn is_dying(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let (Some(own), Some(shared)) = (pending("SigPnd:"), pending("ShdPnd:")) else { return true };
    if (own | shared) & (1 << (libc::SIGKILL - 1)) != 0 {
        return true;
    }
    stat(pid).is_none_or(|s| s.is_ending())
}

/// The start time of a process in clock ticks since boot; together with the pid and the boot id it names a process
/// for ever. 0 if there is no such process.
pub fn start_time(pid: i32) -> u64 {
    stat(pid).map_or(0, |s| s.start)
}

/// Whether a pid is this process, one it descends from, or no pid at all. None of these can be a child that
/// somebody made for us, whatever a file says.
pub fn is_own_line(pid: i32) -> bool {
    let mut at = i32::try_from(std::process::id()).unwrap_or(0);
    // Deeper trees end at the first process.
    for _ in 0..1024 {
        if pid <= 1 || at == pid {
            return true;
        }
        match stat(at) {
            Some(stat) if stat.ppid > 1 => at = stat.ppid,
            _ => return false,
        }
    }
    false
}

/// Reads the own oom score adjustment.
pub fn oom_score_adj() -> Option<i32> {
    std::fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()
}

/// Sets the own oom score adjustment.
///
/// # Errors
/// As writing `/proc/self/oom_score_adj`: lowering it needs CAP_SYS_RESOURCE.
pub fn set_oom_score_adj(value: i32) -> io::Result<()> {
    std::fs::write("/proc/self/oom_score_adj", value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_line() {
        let own = std::process::id() as i32;
        let parent = stat(own).unwrap().ppid;
        assert!(
            is_own_line(own) && is_own_line(parent) && is_own_line(1) && is_own_line(0) && is_own_line(-1)
        );
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!is_own_line(child.id() as i32));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_dying_are_told_from_the_living() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        assert!(!is_dying(pid) && !is_dying(std::process::id() as i32));
        child.kill().unwrap();
        // Pending, on its way out, or a zombie: dying at every moment.
        assert!(is_dying(pid));
        child.wait().unwrap();
        assert!(is_dying(pid));
    }

    #[test]
    fn stat_with_a_bad_name() {
        let text = "12 (a) b) (c) S 7 1 1 0 -1 4194624 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 1";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.state, stat.ppid, stat.start), (b'S', 7, 4242));
        assert!(!stat.has_executed() && !stat.is_ending());
        assert_eq!(parse_stat("12 (x"), None);
        assert_eq!(parse_stat(""), None);
        assert_eq!(parse_stat("1 (é)"), None);
    }

    #[test]
    fn who_has_executed_is_told_from_who_was_only_forked() {
        let executed = |pid: i32| stat(pid).map(|s| s.has_executed());
        assert_eq!(executed(std::process::id() as i32), Some(true));
        let mut child = std::process::Command::new("sh")
            // A background shell's own standard input is /dev/null.
            .args(["-c", "exec 3<&0; (read line <&3; exit 0) & echo $!; wait"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        let forked: i32 = line.trim().parse().unwrap();
        let seen = executed(forked);
        drop(child.stdin.take());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen, Some(false));
    }

    #[test]
    fn own_start_time() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(pid) > 0);
        assert_eq!(start_time(0), 0);
    }
}
