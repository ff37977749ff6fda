//! Starting a shim.

use crate::{
    error::{Error, Result},
    monitor::Monitor,
    state_dir::default_root,
};
use std::{
    ffi::OsString,
    io::Read,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::net::unix::pipe;

/// Name of the shim's executable.
const SHIM: &str = "pintle-shim";
/// Longest text of a failing shim that is kept.
const MESSAGE: usize = 8 * 1024;

/// How a shim is started.
#[derive(Debug, Clone)]
pub struct SpawnConfig {
    /// Id of the container.
    pub id: String,
    /// Directory of all state directories; the shim makes `<root>/<id>`. Default: [`default_root`].
    pub root: PathBuf,
    /// Executable of the shim. Default: [`default_shim`].
    pub shim: PathBuf,
    /// cgroup directories the shim is moved to before it runs anything (one per hierarchy on cgroup
    /// v1). They must exist.
    pub cgroups: Vec<PathBuf>,
    /// Environment, added to this process's unless `clear_env`. Runtime commands inherit it.
    pub env: Vec<(OsString, OsString)>,
    /// Start with an empty environment.
    pub clear_env: bool,
    /// Time it may take to become ready. Default: 30 s.
    pub timeout: Duration,
    /// Further arguments.
    pub args: Vec<OsString>,
}

impl SpawnConfig {
    /// The defaults, for a container of this id.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            root: default_root(),
            shim: default_shim(),
            cgroups: Vec::new(),
            env: Vec::new(),
            clear_env: false,
            timeout: Duration::from_secs(30),
            args: Vec::new(),
        }
    }

    /// State directory of the container.
    pub fn dir(&self) -> PathBuf {
        self.root.join(&self.id)
    }
}

/// The shim's executable: `$PINTLE_SHIM`, or the one beside this process's executable, or the one
/// in `PATH`.
pub fn default_shim() -> PathBuf {
    if let Some(path) = std::env::var_os("PINTLE_SHIM").filter(|p| !p.is_empty()) {
        return path.into();
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(SHIM)));
    beside.filter(|p| p.is_file()).unwrap_or_else(|| SHIM.into())
}

impl Monitor {
    /// Starts a shim and waits until it is ready. It outlives this process; the container is made
    /// by [`create`](Monitor::create).
    ///
    /// # Errors
    /// [`Error::Spawn`] with the shim's own words, for example if the id is in use.
    pub async fn spawn(config: SpawnConfig) -> Result<Self> {
        let fail = |message: String| Error::Spawn { shim: config.shim.clone(), message };
        let mut command = Command::new(&config.shim);
        command.arg("--id").arg(&config.id).arg("--dir").arg(&config.root);
        // Readiness is told on stdout: a descriptor that no other child of this process inherits.
        command.arg("--ready-fd").arg("1").args(&config.args);
        if config.clear_env {
            command.env_clear();
        }
        command.envs(config.env.iter().map(|(k, v)| (k, v)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| fail(e.to_string()))?;
        let (ready, stderr) = (child.stdout.take(), child.stderr.take());
        let reaper = Reaper { child: Some(child) };
        let (Some(ready), Some(stderr)) = (ready, stderr) else {
            return Err(fail("no pipe to the shim".into()));
        };
        let first = tokio::time::timeout(config.timeout, first_line(OwnedFd::from(ready))).await;
        let answer = match first {
            Err(_) => {
                reaper.kill();
                return Err(fail(format!("not ready within {:?}", config.timeout)));
            }
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(line)) if line == "ok" => Ok(()),
            Ok(Ok(line)) => Err(line),
        };
        if let Err(said) = answer {
            let words = words_of(stderr.into()).await;
            let message = match (said.is_empty(), words.is_empty()) {
                (false, _) => said,
                (true, false) => words,
                (true, true) => "ended before it was ready".into(),
            };
            return Err(fail(message));
        }
        drop(reaper);
        let monitor = Self::connect(config.dir()).await?;
        if let Err(error) = monitor.join_cgroups(&config.cgroups).await {
            // Nobody will know of it: it must not stay and hold the id.
            let _ = monitor.shutdown(true).await;
            return Err(error);
        }
        Ok(monitor)
    }

    async fn join_cgroups(&self, cgroups: &[PathBuf]) -> Result<()> {
        if cgroups.is_empty() {
            return Ok(());
        }
        let pid = self.info().await?.pid;
        cgroups.iter().try_for_each(|cgroup| join_cgroup(cgroup, pid))
    }
}

fn join_cgroup(cgroup: &Path, pid: i32) -> Result<()> {
    let procs = cgroup.join("cgroup.procs");
    std::fs::write(&procs, pid.to_string())
        .map_err(Error::io(format!("moving the shim to {}", cgroup.display())))
}

/// Waits for the child in the background: the shim's first process ends as soon as its daemon is
/// ready.
struct Reaper {
    child: Option<Child>,
}

impl Reaper {
    fn kill(mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if matches!(child.try_wait(), Ok(None)) {
            // A thread that cannot be started leaves a zombie until this process ends.
            let _ = std::thread::Builder::new()
                .name("pintle-reap".into())
                .stack_size(64 * 1024)
                .spawn(move || child.wait());
        }
    }
}

async fn first_line(fd: OwnedFd) -> std::io::Result<String> {
    use tokio::io::AsyncReadExt;
    let mut pipe = pipe::Receiver::from_owned_fd(fd)?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 512];
    while bytes.len() < MESSAGE && !bytes.contains(&b'\n') {
        match pipe.read(&mut buffer).await? {
            0 => break,
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// What the shim wrote on stderr; it has ended or is about to.
async fn words_of(fd: OwnedFd) -> String {
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        let _ = std::fs::File::from(fd).take(MESSAGE as u64).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).trim().to_owned()
    });
    let limit = Duration::from_secs(2);
    tokio::time::timeout(limit, read).await.ok().and_then(|r| r.ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn fake_shim(name: &str, script: &str) -> (SpawnConfig, PathBuf) {
        let dir = std::env::temp_dir().join(format!("pintle-spawn-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let shim = dir.join("shim");
        std::fs::write(&shim, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&shim, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut config = SpawnConfig::new("x");
        config.shim = shim;
        config.root = dir.clone();
        (config, dir)
    }

    /// Other tests fork while the script is open for writing: the kernel calls it busy then.
    async fn spawn(config: SpawnConfig) -> Result<Monitor> {
        loop {
            match Monitor::spawn(config.clone()).await {
                Err(Error::Spawn { message, .. }) if message.contains("busy") => {}
                other => return other,
            }
        }
    }

    #[tokio::test]
    async fn spawn_errors_carry_the_words_of_the_shim() {
        let (config, dir) = fake_shim("word", "echo 'id x is in use'; exit 1");
        let error = spawn(config).await.unwrap_err();
        assert!(error.to_string().ends_with("id x is in use"), "{error}");
        std::fs::remove_dir_all(dir).unwrap();

        let (config, dir) = fake_shim("err", "echo 'bad flag' >&2; exit 2");
        let error = spawn(config).await.unwrap_err();
        assert!(error.to_string().ends_with("bad flag"), "{error}");
        std::fs::remove_dir_all(dir).unwrap();

        let (config, dir) = fake_shim("mute", "exit 0");
        let error = spawn(config).await.unwrap_err();
        assert!(error.to_string().ends_with("ended before it was ready"), "{error}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn spawn_of_a_shim_that_hangs_or_is_missing() {
        let (mut config, dir) = fake_shim("hang", "exec sleep 1000");
        config.timeout = Duration::from_millis(200);
        let error = spawn(config.clone()).await.unwrap_err();
        assert!(error.to_string().contains("not ready within"), "{error}");
        config.shim = dir.join("nothing");
        assert!(matches!(spawn(config).await, Err(Error::Spawn { .. })));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn spawn_that_says_ok_but_does_not_listen() {
        let (config, dir) = fake_shim("liar", "echo ok");
        assert!(matches!(spawn(config).await, Err(Error::NotRunning { .. })));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
