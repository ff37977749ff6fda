//! Waiting for a condition with a deadline. The only place of the tests that sleeps.

use std::future::Future;
use std::io::{Read, Seek, SeekFrom};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::{Duration, Instant};

/// How long to wait for what must come: generous, since it costs nothing when all is well.
pub const DEADLINE: Duration = Duration::from_secs(60);

fn pause(round: u32) -> Duration {
    Duration::from_millis(u64::from(5 + 5 * round.min(9)))
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not within [`DEADLINE`]; the message names `what`.
#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()).ok_or("not yet"));
}

/// Waits until `attempt` succeeds and returns what it found.
///
/// # Panics
/// When it does not within [`DEADLINE`]; the message names `what` and the last error.
#[track_caller]
pub fn eventually<T, E: std::fmt::Display>(what: &str, mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + DEADLINE;
    let mut round = 0;
    loop {
        match attempt() {
            Ok(found) => return found,
            Err(e) if Instant::now() >= end => panic!("waited {DEADLINE:?} for {what}: {e}"),
            Err(_) => std::thread::sleep(pause(round)),
        }
        round += 1;
    }
}

/// Waits until `condition` holds, this long at most; whether it does. For ends of tests, which clean up before they fail.
pub(crate) fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    let mut round = 0;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(pause(round));
        round += 1;
    }
}

/// Lets time pass in which something must not happen, or between two acts that must lie apart. Never to wait
/// for something: that is [`wait_for`].
pub fn let_pass(time: Duration) {
    std::thread::sleep(time);
}

/// [`eventually`] for asynchronous attempts.
///
/// # Panics
/// When it does not succeed within [`DEADLINE`].
pub async fn wait_for_async<T, E, F>(what: &str, mut attempt: impl FnMut() -> F) -> T
where
    E: std::fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    let end = Instant::now() + DEADLINE;
    let mut round = 0;
    loop {
        match attempt().await {
            Ok(found) => return found,
            Err(e) if Instant::now() >= end => panic!("waited {DEADLINE:?} for {what}: {e}"),
            Err(_) => tokio::time::sleep(pause(round)).await,
        }
        round += 1;
    }
}

/// Lets some time go by before a fault, so that it strikes at another place each time. Nothing may depend on how
/// long it is: what must have come is waited for with [`wait_for_async`].
pub async fn let_pass_async(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Waits for a child's end.
///
/// # Panics
/// When it has not ended within [`DEADLINE`]: it is killed first.
#[track_caller]
pub fn wait_exit(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + DEADLINE;
    let mut round = 0;
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return status;
        }
        if Instant::now() >= end {
            let _ = child.kill();
            panic!("process {} did not end within {DEADLINE:?}", child.id());
        }
        std::thread::sleep(pause(round));
        round += 1;
    }
}

/// The output of a command that must end within [`DEADLINE`]; it gets no standard input.
///
/// The outputs go through files, not pipes: a process that the command leaves behind with its outputs
/// open does not hold us.
///
/// # Panics
/// When it cannot be started or does not end.
#[track_caller]
pub fn output_within(command: &mut Command) -> Output {
    let (out, err) = (nameless_file(), nameless_file());
    let file = |f: &std::fs::File| f.try_clone().expect("a second descriptor");
    let mut child = command
        .stdin(std::process::Stdio::null())
        .stdout(file(&out))
        .stderr(file(&err))
        .spawn()
        .unwrap_or_else(|e| panic!("run {command:?}: {e}"));
    let status = wait_exit(&mut child);
    Output { status, stdout: content(out), stderr: content(err) }
}

/// A file that is gone with its last descriptor: a pipe would hold up a command that leaves something running.
fn nameless_file() -> std::fs::File {
    let path = std::env::temp_dir().join(crate::unique_id("out"));
    let options = std::fs::File::options().read(true).write(true).create_new(true).open(&path);
    let file = options.expect("create an output file");
    std::fs::remove_file(&path).expect("remove its name");
    file
}

fn content(mut file: std::fs::File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).expect("read an output file");
    bytes
}
