//! One Podman with its own storage and configuration, and one conmon.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use pintle_tests::{TempDir, full, newer_criu, require_tool};

/// How long one Podman command may take: far more than it needs on a loaded machine.
fn limit() -> Duration {
    Duration::from_secs(if full() { 300 } else { 60 })
}

/// The image of every container: busybox and nothing else.
pub(crate) const IMAGE: &str = "bb:1";

/// A finished command.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Done {
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_string()
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_string()
    }
}

/// Another release's programs in place of the host's, in a mount namespace of their own.
#[derive(Debug)]
pub(crate) struct Release {
    /// Holds the namespace.
    holder: Child,
}

impl Release {
    /// That of `PINTLE_PODMAN_ROOT`, a tree with a `usr`; `None` for the host's own.
    fn chosen() -> Result<Option<Self>> {
        let Some(root) = std::env::var_os("PINTLE_PODMAN_ROOT") else { return Ok(None) };
        let usr = Path::new(&root).join("usr");
        ensure!(usr.join("bin/podman").is_file(), "{} has no podman", usr.display());
        let mut hold = Command::new(require_tool("unshare"));
        hold.args(["--mount", "--propagation", "private", "sh", "-c"]);
        hold.args(["mount --bind \"$1\" /usr && echo ready && exec sleep infinity", "sh"]).arg(&usr);
        let mut holder = hold.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut said = [0; 6];
        holder.stdout.take().context("a pipe")?.read_exact(&mut said).context("enter a mount namespace")?;
        Ok(Some(Self { holder }))
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A Podman that nobody else uses.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) name: &'static str,
    pub(crate) conmon: PathBuf,
    pub(crate) dir: TempDir,
    next: AtomicU32,
    release: Option<Release>,
}

impl World {
    /// Writes the configuration and imports the image.
    pub(crate) fn new(name: &'static str, conmon: PathBuf) -> Result<Self> {
        let dir = TempDir::new(name);
        let path = |leaf: &str| dir.join(leaf).display().to_string();
        let containers = format!(
            "[containers]\nnetns=\"none\"\ncgroupns=\"host\"\npids_limit=0\nlog_driver=\"k8s-file\"\n\
             default_ulimits=[\"nofile=1024:1024\",\"nproc=4096:4096\"]\n\
             [engine]\nruntime=\"runc\"\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"file\"\n\
             conmon_path=[\"{}\"]\nconmon_env_vars=[\"PATH={}\"]\ntmp_dir=\"{}\"\n",
            conmon.display(),
            search_path(),
            path("tmp"),
        );
        fs::write(dir.join("containers.conf"), containers)?;
        let storage = format!(
            "[storage]\ndriver=\"vfs\"\nrunroot=\"{}\"\ngraphroot=\"{}\"\n",
            path("run"),
            path("root")
        );
        fs::write(dir.join("storage.conf"), storage)?;
        let world = Self { name, conmon, dir, next: AtomicU32::new(0), release: Release::chosen()? };
        world.import_image()?;
        Ok(world)
    }

    fn import_image(&self) -> Result<()> {
        let busybox = require_tool("busybox");
        let root = self.dir.join("image");
        for dir in ["bin", "etc", "proc", "dev", "sys", "tmp", "run", "mnt", "usr", "lib", "lib64"] {
            fs::create_dir_all(root.join(dir))?;
        }
        fs::copy(&busybox, root.join("bin/busybox"))?;
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")?;
        fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n")?;
        let applets = Command::new(&busybox).arg("--list").output()?.stdout;
        for applet in String::from_utf8_lossy(&applets).split_whitespace().filter(|name| *name != "busybox") {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        let tar = self.dir.join("image.tar");
        let made = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status()?;
        ensure!(made.success(), "tar ended with {made}");
        let tar = tar.to_str().context("path")?.to_string();
        self.ok(&["import", "-q", &tar, IMAGE])?;
        Ok(())
    }

    /// A name that no other container of the test has.
    pub(crate) fn id(&self, tag: &str) -> String {
        format!(
            "{tag}-{}-{}",
            self.dir.path().file_name().unwrap_or_default().to_string_lossy(),
            self.next.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// A path that no other scenario uses.
    pub(crate) fn path(&self, tag: &str) -> PathBuf {
        self.dir.join(self.id(tag))
    }

    /// `podman ARGS` in this world.
    pub(crate) fn podman(&self, args: &[&str]) -> Command {
        let mut command = self.enter(&require_tool("podman"));
        self.furnish(&mut command);
        command.args(["--tmpdir", &self.dir.join("tmp").display().to_string()]).args(args);
        command
    }

    /// A program of the world's release. The process that is started becomes it.
    pub(crate) fn enter(&self, program: &Path) -> Command {
        let Some(release) = &self.release else { return Command::new(program) };
        let mut command = Command::new(require_tool("nsenter"));
        let place = format!("--wdns={}", self.dir.path().display());
        command.args(["--mount", "--target", &release.holder.id().to_string(), &place]).arg(program);
        command
    }

    /// Gives a command Podman's surroundings in this world.
    pub(crate) fn furnish(&self, command: &mut Command) {
        command
            .env("CONTAINERS_CONF", self.dir.join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.dir.join("storage.conf"))
            .env("TMPDIR", "/tmp")
            .env("PATH", search_path())
            .env("PINTLE_DIR", self.dir.join("pintle"))
            .env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1")
            .env_remove("NOTIFY_SOCKET")
            .current_dir(self.dir.path());
    }

    /// Runs a command to its end; `input` becomes its standard input.
    pub(crate) fn finish(&self, mut command: Command, input: &[u8]) -> Result<Done> {
        // Files instead of pipes: what a command leaves behind with its outputs open does not hold us.
        let (out, err) = (self.path("out"), self.path("err"));
        command.stdout(File::create(&out)?).stderr(File::create(&err)?);
        command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
        let mut child = command.spawn()?;
        let writer = child.stdin.take().map(|mut pipe| {
            let input = input.to_vec();
            // The reader may end before it has read everything.
            std::thread::spawn(move || drop(pipe.write_all(&input)))
        });
        let status = wait(&mut child).with_context(|| format!("{command:?}"));
        if let Some(writer) = writer.filter(|_| status.is_ok()) {
            let _ = writer.join();
        }
        let read = |path: &Path| -> Result<Vec<u8>> {
            let mut bytes = Vec::new();
            File::open(path)?.read_to_end(&mut bytes)?;
            fs::remove_file(path)?;
            Ok(bytes)
        };
        let done = Done { status: status?, stdout: read(&out)?, stderr: read(&err)? };
        Ok(done)
    }

    /// Runs `podman ARGS`, whatever its status.
    pub(crate) fn any(&self, args: &[&str]) -> Result<Done> {
        self.finish(self.podman(args), b"")
    }

    /// Runs `podman ARGS` with input, whatever its status.
    pub(crate) fn fed(&self, args: &[&str], input: &[u8]) -> Result<Done> {
        self.finish(self.podman(args), input)
    }

    /// Runs `podman ARGS`, which must succeed; the trimmed output.
    pub(crate) fn ok(&self, args: &[&str]) -> Result<String> {
        let done = self.any(args)?;
        ensure!(
            done.status.success(),
            "podman {args:?} ended with {}: {} {}",
            done.status,
            done.out(),
            done.err()
        );
        Ok(done.out())
    }

    /// Runs `podman ARGS`, which must end with this code.
    pub(crate) fn code(&self, code: i32, args: &[&str]) -> Result<Done> {
        let done = self.any(args)?;
        ensure!(
            done.code() == code,
            "podman {args:?}: {} instead of {code}: {} {}",
            done.status,
            done.out(),
            done.err()
        );
        Ok(done)
    }

    /// Starts a detached container with a shell script and returns its name.
    pub(crate) fn detached(&self, tag: &str, options: &[&str], script: &str) -> Result<String> {
        let name = self.id(tag);
        let mut args = vec!["run", "-d", "--name", &name];
        args.extend(options);
        args.extend([IMAGE, "sh", "-c", script]);
        self.ok(&args)?;
        Ok(name)
    }

    /// Removes a container, running or not.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        self.ok(&["rm", "-f", "-t", "0", name]).map(drop)
    }

    /// One field of `podman inspect`.
    pub(crate) fn field(&self, name: &str, field: &str) -> Result<String> {
        self.ok(&["inspect", "--format", &format!("{{{{{field}}}}}"), name])
    }

    /// Waits until the logs of a container contain `text`.
    pub(crate) fn logged(&self, name: &str, text: &str) -> Result<()> {
        until(&format!("{text:?} in the logs of {name}"), || {
            let done = self.any(&["logs", name])?;
            Ok(done.out().contains(text) || done.err().contains(text))
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.any(&["pod", "rm", "-f", "-a", "-t", "0"]);
        let _ = self.any(&["rm", "-f", "-a", "-t", "0"]);
        // Podman leaves a busy cgroup behind at times, with either conmon.
        let roots = ["/sys/fs/cgroup/memory/libpod_parent", "/sys/fs/cgroup/libpod_parent"];
        for dir in roots.iter().filter_map(|root| fs::read_dir(root).ok()).flatten().flatten() {
            if fs::remove_dir(dir.path()).is_ok() {
                println!("podman left {}", dir.path().display());
            }
        }
    }
}

/// Where programs are looked for: Podman and the runtime find the criu that works here first.
fn search_path() -> String {
    let host = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    match newer_criu() {
        Some(criu) => format!("{}:{host}", criu.parent().unwrap_or(Path::new("/")).display()),
        None => host.to_string(),
    }
}

/// Waits for a child; kills it at the deadline.
pub(crate) fn wait(child: &mut Child) -> Result<ExitStatus> {
    let end = Instant::now() + limit();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            bail!("did not end within {:?}", limit());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until `condition` holds.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit();
    loop {
        if condition()? {
            return Ok(());
        }
        ensure!(Instant::now() < end, "waited {:?} for {what}", limit());
        std::thread::sleep(Duration::from_millis(25));
    }
}
