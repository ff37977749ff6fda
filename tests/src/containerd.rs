//! A containerd of its own for a test: its own root, state, socket, namespace and image.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use pintle_core::sha256;
use serde_json::json;

use crate::wait::within;
use crate::{
    DEADLINE, Leftovers, TempDir, containerd_shim, eventually, output_within, require_tool, rootfs,
    unique_id, wait_exit, wait_for,
};

/// The one image there is.
pub const IMAGE: &str = "pintle.invalid/busybox:latest";
/// The runtime of containerd's own package.
pub const PEER: &str = "io.containerd.runc.v2";
/// Ours.
pub const OURS: &str = "io.containerd.pintle.v2";

/// A running containerd. Dropping it ends it, and every process of its namespace with it.
#[derive(Debug)]
pub struct Containerd {
    dir: TempDir,
    namespace: String,
    snapshotter: &'static str,
    child: Option<Child>,
    starts: u32,
}

impl Containerd {
    /// Starts one and imports the image.
    ///
    /// # Panics
    /// When containerd or ctr is missing, does not come up, or does not take the image.
    pub fn start(tag: &str) -> Self {
        let dir = TempDir::new(tag);
        // CRI is left out: it wants a network. The others need what a test machine may not have.
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\noom_score = 0\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \
             \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.zfs\", \
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.aufs\", \
             \"io.containerd.tracing.processor.v1.otlp\"]\n[grpc]\naddress = \"{0}/c.sock\"\n[debug]\nlevel = \"debug\"\n",
            dir.path().display()
        );
        fs::write(dir.join("config.toml"), config).expect("write the configuration of containerd");
        let mut daemon =
            Self { dir, namespace: unique_id("ns"), snapshotter: "native", child: None, starts: 0 };
        daemon.up();
        let plugins = daemon.ctr(&["plugins", "ls"]);
        let overlay = String::from_utf8_lossy(&plugins.stdout)
            .lines()
            .any(|l| l.contains("overlayfs") && l.trim_end().ends_with("ok"));
        if overlay {
            daemon.snapshotter = "overlayfs";
        }
        let image = daemon.dir.join("image.tar");
        image_archive(&image);
        let snapshotter = daemon.snapshotter;
        let image = image.to_str().expect("a path in UTF-8");
        daemon.ok(&["image", "import", "--snapshotter", snapshotter, image]);
        daemon
    }

    /// Starts the daemon over the same root and state.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn up(&mut self) {
        assert!(self.child.is_none(), "containerd runs already");
        let doors = containerd_shim();
        let doors = doors.parent().expect("a directory").to_str().expect("a path in UTF-8");
        // A CRIU that knows this kernel, for both shims alike.
        let newer = crate::newer_criu().and_then(|c| Some(format!("{}:", c.parent()?.display())));
        let path = format!("{}{}", newer.unwrap_or_default(), std::env::var("PATH").unwrap_or_default());
        self.starts += 1;
        let log = File::create(self.dir.join(format!("log{}", self.starts))).expect("create a log");
        let child = Command::new(require_tool("containerd"))
            .arg("-c")
            .arg(self.dir.join("config.toml"))
            .env("PATH", format!("{doors}:{path}"))
            // The shims' native sockets stay with the test.
            .env("PINTLE_DIR", self.dir.join("pintle"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start containerd");
        self.child = Some(child);
        eventually("containerd to answer", || {
            let out = self.ctr(&["version"]);
            if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
        });
    }

    /// Ends the daemon, by SIGTERM or by SIGKILL; containers go on.
    ///
    /// # Panics
    /// When it does not end.
    pub fn down(&mut self, kill: bool) {
        let Some(mut child) = self.child.take() else { return };
        if kill {
            child.kill().expect("kill containerd");
        } else {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("end containerd");
        }
        wait_exit(&mut child);
    }

    /// The namespace of everything in it.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The bundle of a task.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.dir.join("state/io.containerd.runtime.v2.task").join(&self.namespace).join(id)
    }

    /// The directory of the native protocol.
    pub fn native_dir(&self) -> PathBuf {
        self.dir.join("pintle")
    }

    /// The socket of a task's shim, as containerd's own tests compute it.
    pub fn shim_socket(&self, id: &str) -> PathBuf {
        let text = format!("{}/{}/{id}", self.dir.join("c.sock").display(), self.namespace);
        Path::new("/run/containerd/s").join(sha256::hex(text.as_bytes()))
    }

    /// The pid of a task's shim.
    pub fn shim_pid(&self, id: &str) -> Option<u32> {
        let init: u32 = fs::read_to_string(self.bundle(id).join("init.pid")).ok()?.trim().parse().ok()?;
        crate::parent_of(init)
    }

    /// A `ctr` command.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(require_tool("ctr"));
        command.arg("-a").arg(self.dir.join("c.sock")).args(["-n", &self.namespace]).args(args);
        command
    }

    /// Runs `ctr` to its end.
    pub fn ctr(&self, args: &[&str]) -> Output {
        output_within(&mut self.command(args))
    }

    /// Runs `ctr`, which must succeed; gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.ctr(args);
        assert!(
            out.status.success(),
            "ctr {args:?}: {}{}",
            String::from_utf8_lossy(&out.stderr),
            String::from_utf8_lossy(&out.stdout)
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// `ctr run` with the image. `flags` come before it.
    pub fn run_command(&self, runtime: &str, id: &str, flags: &[&str], args: &[&str]) -> Command {
        let mut all = vec!["run", "--snapshotter", self.snapshotter, "--runtime", runtime];
        all.extend_from_slice(flags);
        all.extend_from_slice(&[IMAGE, id]);
        all.extend_from_slice(args);
        self.command(&all)
    }

    /// The status of a task, as in `RUNNING`; `None` without a task.
    pub fn status(&self, id: &str) -> Option<String> {
        let list = self.ctr(&["task", "ls"]);
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        let line = list.lines().find(|l| l.split_whitespace().next() == Some(id))?;
        line.split_whitespace().nth(2).map(str::to_owned)
    }

    /// Kills and removes a container, whatever state it is in.
    pub fn remove(&self, id: &str) {
        crate::within_bounds(&self.namespace);
        self.ctr(&["task", "kill", "--signal", "SIGKILL", id]);
        eventually(&format!("task {id} to go"), || {
            if self.status(id).is_none() {
                return Ok(());
            }
            let out = self.ctr(&["task", "delete", "--force", id]);
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        });
        self.ctr(&["container", "delete", id]);
    }

    /// The daemon's log since its last start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join(format!("log{}", self.starts))).unwrap_or_default()
    }

    /// Follows events.
    ///
    /// # Panics
    /// When `ctr events` does not start.
    pub fn events(&self) -> Events {
        let path = self.dir.join(unique_id("events"));
        let file = File::create(&path).expect("create a file for events");
        let child = self
            .command(&["events"])
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(Stdio::null())
            .spawn()
            .expect("run ctr events");
        let events = Events { child, path };
        // It says nothing when it has subscribed, so events of our own are made until one arrives.
        let probe = unique_id("probe");
        let mut labels = 0;
        wait_for("ctr events to follow", || {
            labels += 1;
            self.ctr(&["image", "label", IMAGE, &format!("probe={probe}{labels}")]);
            fs::read_to_string(&events.path).is_ok_and(|t| t.contains("/images/update"))
        });
        events
    }

    /// What of this container is still there: processes, mounts, sockets, runtime state, cgroups, bundle.
    pub fn leftovers(&self, id: &str) -> Vec<String> {
        let mut found = crate::Leftovers::of(id).find();
        for path in [
            self.bundle(id),
            self.shim_socket(id),
            Path::new("/run/containerd/runc").join(&self.namespace).join(id),
            self.native_dir().join(id),
        ] {
            if path.exists() {
                found.push(format!("file: {}", path.display()));
            }
        }
        found
    }

    /// Waits until nothing of this container is there.
    ///
    /// # Panics
    /// When something stays.
    #[track_caller]
    pub fn nothing_left(&self, id: &str) {
        eventually(&format!("nothing to be left of {id}"), || {
            let found = self.leftovers(id);
            if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
        });
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Our shims of a good test end with it. The peer's may stay where a scenario was tried again.
        let mut left = Vec::new();
        if !std::thread::panicking() {
            within(DEADLINE, || {
                left = crate::shims_of(&self.namespace);
                left.is_empty()
            });
        }
        // A test that failed leaves containers: everything of the namespace goes.
        Leftovers::of(&self.namespace).kill();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(Path::new("/run/containerd/runc").join(&self.namespace));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = self.dir.path().to_string_lossy().into_owned();
        let mut points: Vec<&str> =
            mounts.lines().filter_map(|l| l.split(' ').nth(4)).filter(|p| p.starts_with(&own)).collect();
        points.reverse();
        for point in points {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
        remove_cgroups(Path::new("/sys/fs/cgroup"), &self.namespace, 0);
        if !left.is_empty() {
            panic!("the test leaves shims {left:?} of {}", self.namespace);
        }
    }
}

/// The runtime makes a cgroup for the namespace and leaves it.
fn remove_cgroups(dir: &Path, word: &str, depth: usize) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        let path = entry.path();
        if path.file_name().is_some_and(|n| n.to_string_lossy().contains(word)) {
            for below in fs::read_dir(&path).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(below.path());
            }
            let _ = fs::remove_dir(&path);
        } else if depth < 1 {
            remove_cgroups(&path, word, depth + 1);
        }
    }
}

/// Events as they came.
#[derive(Debug)]
pub struct Events {
    child: Child,
    path: PathBuf,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// As in `/tasks/exit`.
    pub topic: String,
    /// Its fields.
    pub fields: serde_json::Value,
}

impl Events {
    /// The task events of a container so far.
    pub fn of(&self, id: &str) -> Vec<Event> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        text.lines()
            .filter_map(|line| {
                let at = line.find(" /tasks/")?;
                let (topic, json) = line[at + 1..].split_once(' ')?;
                let fields: serde_json::Value = serde_json::from_str(json).ok()?;
                (fields["container_id"] == id).then(|| Event { topic: topic.to_owned(), fields })
            })
            .collect()
    }

    /// Waits until a container has had this many events of a kind.
    ///
    /// # Panics
    /// When they do not come.
    #[track_caller]
    pub fn wait(&self, id: &str, topic: &str, count: usize) -> Vec<Event> {
        eventually(&format!("{count} times {topic} of {id}"), || {
            let all = self.of(id);
            let found = all.iter().filter(|e| e.topic == topic).count();
            if found >= count { Ok(all) } else { Err(format!("{found} so far: {all:?}")) }
        })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes an image with busybox, in the form `docker save` gives.
fn image_archive(to: &Path) {
    let dir = TempDir::new("image");
    let layer = dir.join("layer.tar");
    let made = Command::new(require_tool("tar"))
        .args(["--owner=0", "--group=0", "--mtime=@0", "--sort=name", "-cf"])
        .arg(&layer)
        .arg("-C")
        .arg(rootfs())
        .arg(".")
        .status()
        .expect("run tar");
    assert!(made.success(), "pack the root file system");
    let digest = sha256::hex(&fs::read(&layer).expect("read the layer"));
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": ["/bin/sh"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    })
    .to_string();
    let config_name = format!("{}.json", sha256::hex(config.as_bytes()));
    let manifest =
        json!([{ "Config": config_name, "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]).to_string();
    for (name, text) in [(config_name.as_str(), &config), ("manifest.json", &manifest)] {
        let mut file = File::create(dir.join(name)).expect("create a part of the image");
        file.write_all(text.as_bytes()).expect("write a part of the image");
    }
    let packed = Command::new(require_tool("tar"))
        .arg("-cf")
        .arg(to)
        .arg("-C")
        .arg(dir.path())
        .args([config_name.as_str(), "layer.tar", "manifest.json"])
        .status()
        .expect("run tar");
    assert!(packed.success(), "pack the image");
}
