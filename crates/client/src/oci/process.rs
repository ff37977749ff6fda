//! Processes by number: start times, liveness with protection against reused pids, `kill`.

use super::{error::Error, state::ContainerState};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill as send},
    unistd::Pid,
};
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// How much of a stat file is read.
const STAT_LIMIT: u64 = 4096;

/// What a stat file says about a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessStat {
    /// State letter: `S` sleeping, `R` running, `D` in uninterruptible sleep, `Z` zombie, ...
    pub state: char,
    /// Start time in clock ticks since boot, as text (field 22).
    pub start_time: String,
}

/// Parses the text of a `/proc/<pid>/stat` file.
///
/// # Errors
/// If there is no `)` or too few fields follow it; both wrap [`Error::ProcessNotFound`].
pub fn parse_stat(text: &str) -> Result<ProcessStat, Error> {
    // The command's name stands in parentheses and may hold any of them itself.
    let Some(close) = text.rfind(')') else {
        return Err(Error::ProcessNotFound.context("unable to find ')' in stat file"));
    };
    let malformed = || Error::ProcessNotFound.context("unable to parse malformed stat file");
    let fields: Vec<&str> = text[close + 1..].split_whitespace().take(20).collect();
    let (Some(state), Some(start_time)) = (fields.first().and_then(|f| f.chars().next()), fields.get(19))
    else {
        return Err(malformed());
    };
    Ok(ProcessStat { state, start_time: (*start_time).to_owned() })
}

/// Reads and parses a stat file; at most 4096 bytes of it.
///
/// # Errors
/// If it cannot be read, or as [`parse_stat`].
pub fn stat_from_file(path: &Path) -> Result<ProcessStat, Error> {
    let io = |source| Error::Io { what: "reading", path: path.to_path_buf(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io)?;
    file.take(STAT_LIMIT).read_to_end(&mut bytes).map_err(io)?;
    parse_stat(&String::from_utf8_lossy(&bytes))
}

/// Start time of the process whose stat file is at `path`.
///
/// # Errors
/// As [`stat_from_file`].
pub fn start_time_from_stat_file(path: impl AsRef<Path>) -> Result<String, Error> {
    Ok(stat_from_file(path.as_ref())?.start_time)
}

pub(crate) fn stat_path(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/stat"))
}

/// Start time of a process.
///
/// # Errors
/// As [`stat_from_file`].
pub(crate) fn start_time(pid: i32) -> Result<String, Error> {
    start_time_from_stat_file(stat_path(pid))
}

/// Sends SIGKILL to a process. One that does not exist counts as success.
///
/// # Errors
/// If `pid` is 0 or negative, which would address a group, or the kernel refuses.
pub fn kill(pid: i32) -> Result<(), Error> {
    if pid <= 0 {
        return Err(Error::BadPid(pid));
    }
    match send(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(Error::from(errno).context("failed to kill process")),
    }
}

/// Checks that the recorded init process runs and is still the same one; gives its pid and its
/// state letter.
///
/// # Errors
/// [`Error::PidNotInitialized`] if no pid is recorded, [`Error::ProcessNotFound`] if it is gone or
/// a zombie or the runtime said "stopped", [`Error::PidWrap`] if the pid has changed hands.
pub fn check(state: &ContainerState) -> Result<(i32, char), Error> {
    let pid = state.init_pid;
    if pid <= 0 {
        return Err(Error::PidNotInitialized);
    }
    if state.pid == 0 {
        return Err(Error::ProcessNotFound);
    }
    match send(Pid::from_raw(pid), None) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return Err(Error::ProcessNotFound),
        Err(errno) => {
            let what = format!("error checking if process {pid} is running");
            return Err(Error::from(errno).context(what));
        }
    }
    let stat = stat_from_file(&stat_path(pid))?;
    if stat.start_time != state.init_start_time {
        return Err(Error::PidWrap { pid, now: stat.start_time, saved: state.init_start_time.clone() });
    }
    if matches!(stat.state, 'X' | 'Z') {
        return Err(Error::ProcessNotFound);
    }
    Ok((pid, stat.state))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Above the largest pid the kernel gives out.
    const NEVER: i32 = 4_194_305;

    fn state(pid: i32, init_pid: i32) -> ContainerState {
        let start = start_time(init_pid).unwrap_or_default();
        ContainerState { pid, init_pid, init_start_time: start, ..Default::default() }
    }

    fn stat_file(text: &str) -> (PathBuf, impl Drop + use<>) {
        struct Gone(PathBuf);
        impl Drop for Gone {
            fn drop(&mut self) {
                let _ = std::fs::remove_file(&self.0);
            }
        }
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pintle-stat-{}-{n}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        (path.clone(), Gone(path))
    }

    #[test]
    fn start_time_missing_file() {
        assert!(start_time_from_stat_file("/nowhere/stat").is_err());
    }

    #[test]
    fn start_time_without_parentheses() {
        let (path, _gone) = stat_file("1 sleep S 2 3");
        let error = start_time_from_stat_file(path).unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "unable to find ')' in stat file: container process not found");
    }

    #[test]
    fn start_time_one_field_short() {
        let fields: Vec<String> = (3..22).map(|n| n.to_string()).collect();
        let (path, _gone) = stat_file(&format!("1 (sleep) {}", fields.join(" ")));
        let error = start_time_from_stat_file(path).unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "unable to parse malformed stat file: container process not found");
        assert!(parse_stat("1 (x)").unwrap_err().is_not_found());
    }

    #[test]
    fn start_time_of_numbered_fields() {
        let fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        let (path, _gone) = stat_file(&format!("1 (a) b) c) {}\n", fields.join(" ")));
        assert_eq!(start_time_from_stat_file(path).unwrap(), "22");
    }

    #[test]
    fn kill_refuses_groups_and_forgives_the_dead() {
        for pid in [0, -1, -300] {
            assert!(matches!(kill(pid), Err(Error::BadPid(p)) if p == pid));
        }
        kill(NEVER).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        kill(child.id() as i32).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }

    #[test]
    fn pid_check_no_state() {
        let error = check(&ContainerState::default()).unwrap_err();
        assert!(matches!(error, Error::PidNotInitialized));
        assert_eq!(error.to_string(), "container PID not initialized");
    }

    #[test]
    fn pid_check_minus_one() {
        assert!(matches!(check(&state(-1, -1)), Err(Error::PidNotInitialized)));
    }

    #[test]
    fn pid_check_stopped() {
        let me = std::process::id() as i32;
        assert!(matches!(check(&state(0, me)), Err(Error::ProcessNotFound)));
    }

    #[test]
    fn pid_check_never_running() {
        assert!(check(&state(NEVER, NEVER)).unwrap_err().is_not_found());
    }

    #[test]
    fn pid_check_wrap() {
        let me = std::process::id() as i32;
        let mut forged = state(me, me);
        forged.init_start_time = "1".into();
        let error = check(&forged).unwrap_err();
        assert!(matches!(error, Error::PidWrap { .. }));
        assert!(!error.is_not_found());
        assert!(
            error.to_string().ends_with(", whereas the saved start time is 1. PID wrap may have occurred"),
            "{error}"
        );
    }

    #[test]
    fn pid_check_zombie_counts_as_gone() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id() as i32;
        let state = state(pid, pid);
        assert_eq!(check(&state).unwrap().0, pid);
        kill(pid).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while check(&state).is_ok() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(matches!(check(&state), Err(Error::ProcessNotFound)));
        child.wait().unwrap();
    }

    #[test]
    fn pid_check_of_init() {
        let (pid, letter) = check(&state(1, 1)).unwrap();
        assert_eq!(pid, 1);
        assert!(matches!(letter, 'S' | 'R'), "{letter}");
    }
}
