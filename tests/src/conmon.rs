//! Driving a conmon the way its callers do: pipes by number, gates, exit files.
#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, recv, send, shutdown, socket, socketpair,
};
use serde_json::Value;

use crate::audit::within_bounds;
use crate::census::process_alive;
use crate::tools::{conmon, runc};
use crate::wait::{DEADLINE, eventually, output_within, wait_exit, wait_for, within};
use crate::{Bundle, TempDir, unique_id};

/// Makes `command` start with these descriptors under these numbers, and without close-on-exec.
pub fn pass_fds(command: &mut Command, fds: Vec<(OwnedFd, i32)>) {
    // SAFETY: fcntl and dup2 are async-signal-safe and touch no memory of the parent.
    unsafe {
        command.pre_exec(move || {
            let check = |fd: i32| if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(fd) };
            let mut high = Vec::with_capacity(fds.len());
            for (fd, target) in &fds {
                high.push((check(libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 200))?, *target));
            }
            for (fd, target) in high {
                check(libc::dup2(fd, target))?;
            }
            Ok(())
        });
    }
}

/// How the caller's ends of the pipes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pipes {
    /// Socket pairs of packets, as Podman does.
    Packets,
    /// Socket pairs of bytes, as CRI-O does for containers.
    Bytes,
    /// Pipes, as CRI-O does for execs.
    Pipe,
}

impl Pipes {
    /// The caller's end and the monitor's end of one that the monitor writes to.
    fn monitor_writes(self) -> (OwnedFd, OwnedFd) {
        match self {
            Self::Packets => pair(SockType::SeqPacket),
            Self::Bytes => pair(SockType::Stream),
            Self::Pipe => nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe"),
        }
    }
}

fn pair(kind: SockType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).expect("socketpair")
}

/// A call of conmon in the making, with the caller's place for everything.
#[derive(Debug)]
pub struct Conmon {
    /// Everything of this container lies here.
    pub dir: PathBuf,
    /// The container's id.
    pub id: String,
    /// The program.
    pub program: PathBuf,
    /// The arguments.
    pub args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    extra: Vec<(OwnedFd, i32)>,
    pipes: Pipes,
    attach_pipe: bool,
    captured: bool,
    pidfile: Option<PathBuf>,
}

impl Conmon {
    /// A call with no arguments at all.
    pub fn bare(dir: &Path, id: &str) -> Self {
        Self {
            dir: dir.to_path_buf(),
            id: id.to_string(),
            program: conmon(),
            args: Vec::new(),
            env: vec![("PINTLE_DIR".into(), dir.join("pintle").into())],
            extra: Vec::new(),
            pipes: Pipes::Packets,
            attach_pipe: false,
            captured: false,
            pidfile: None,
        }
    }

    /// The call that creates a container from `bundle`, as Podman makes it: with exit and persist directories, all
    /// below `dir`, and the log `dir/log`.
    pub fn create(dir: &TempDir, bundle: &Bundle) -> Self {
        // journald wants more than 12 characters.
        let id = unique_id("conmoncase");
        let place = dir.join(&id);
        fs::create_dir(&place).expect("create the container's directory");
        bundle.write(&place);
        for sub in ["exits", "persist", "sock"] {
            fs::create_dir(place.join(sub)).expect("create a directory");
        }
        let path = |name: &str| place.join(name).display().to_string();
        let mut call = Self::bare(&place, &id);
        call = call.args(["--api-version", "1", "-c", &id, "-u", &id, "-r"]).arg(runc());
        call = call.args(["-b", &path("bundle"), "-p", &path("pidfile"), "-n", "name"]);
        call = call.args(["--exit-dir", &path("exits"), "--persist-dir", &path("persist"), "--full-attach"]);
        call = call.args(["-l", &format!("k8s-file:{}", path("log"))]);
        call.args([format!("--runtime-arg=--root={}", path("root"))]).pidfile()
    }

    /// The call that runs a command in the container of `parent`, without any log, exit files in `exec-N/exits`.
    pub fn exec(parent: &Conmon, process: &Value) -> Self {
        let session = unique_id("ex");
        let place = parent.dir.join(&session);
        fs::create_dir_all(place.join("exits")).expect("create a directory");
        fs::create_dir_all(place.join("persist")).expect("create a directory");
        fs::write(place.join("process.json"), process.to_string()).expect("write the process");
        let path = |name: &str| place.join(name).display().to_string();
        let mut call = Self::bare(&place, &parent.id);
        call = call.args(["--api-version", "1", "-c", &parent.id, "-u", &session, "-r"]).arg(runc());
        call = call.args(["-b", &path(""), "-p", &path("exec_pid"), "-n", "name", "--full-attach"]);
        call = call.args(["--exit-dir", &path("exits"), "--persist-dir", &path("persist"), "-l", "none"]);
        call = call.args(["-e", "--exec-process-spec", &path("process.json")]);
        call.args([format!("--runtime-arg=--root={}", parent.dir.join("root").display())])
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_os_string());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_os_string()));
        self
    }

    /// Replaces the value that follows `option`.
    ///
    /// # Panics
    /// When the option was not given.
    #[must_use]
    pub fn replace(mut self, option: &str, value: impl AsRef<OsStr>) -> Self {
        let at = self.args.iter().position(|arg| arg == option).expect("the option is there");
        self.args[at + 1] = value.as_ref().to_os_string();
        self
    }

    /// One more environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_os_string()));
        self
    }

    /// One more inherited descriptor.
    #[must_use]
    pub fn fd(mut self, fd: OwnedFd, number: i32) -> Self {
        self.extra.push((fd, number));
        self
    }

    /// Another kind of pipes.
    #[must_use]
    pub fn pipes(mut self, pipes: Pipes) -> Self {
        self.pipes = pipes;
        self
    }

    /// With an attach pipe and `--exec-attach`.
    #[must_use]
    pub fn exec_attach(mut self) -> Self {
        self.attach_pipe = true;
        self.arg("--exec-attach")
    }

    /// Another program, such as Debian's conmon.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = program.to_path_buf();
        self
    }

    /// With stdout and stderr in pipes that must end when the launcher's work is done.
    #[must_use]
    pub fn captured(mut self) -> Self {
        self.captured = true;
        self
    }

    /// Forgets the pid file: the process that was started is the monitor.
    #[must_use]
    pub fn without_pidfile(mut self) -> Self {
        self.pidfile = None;
        self
    }

    fn pidfile(mut self) -> Self {
        let path = self.dir.join("conmon.pid");
        self.pidfile = Some(path.clone());
        self.arg("-P").arg(path)
    }

    /// A path of this container.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The command without any pipes.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .current_dir(&self.dir)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        for pipe in ["_OCI_SYNCPIPE", "_OCI_STARTPIPE", "_OCI_ATTACHPIPE", "NOTIFY_SOCKET", "LISTEN_PID"] {
            if !self.env.iter().any(|(name, _)| name == pipe) {
                command.env_remove(pipe);
            }
        }
        command
    }

    /// Runs the call without pipes; for calls that are refused.
    #[track_caller]
    pub fn refused(&self) -> Output {
        output_within(&mut self.command())
    }

    /// Starts the call; the first gate is closed.
    pub fn start(mut self) -> Running {
        let mut command = self.command();
        let (sync, sync_theirs) = self.pipes.monitor_writes();
        let (start, start_theirs) = match self.pipes {
            Pipes::Packets => pair(SockType::SeqPacket),
            Pipes::Bytes | Pipes::Pipe => pair(SockType::Stream),
        };
        let mut fds = vec![(sync_theirs, 3), (start_theirs, 4)];
        command.env("_OCI_SYNCPIPE", "3").env("_OCI_STARTPIPE", "4");
        let mut attach = None;
        if self.attach_pipe {
            let (ours, theirs) = pair(SockType::SeqPacket);
            fds.push((theirs, 5));
            command.env("_OCI_ATTACHPIPE", "5");
            attach = Some(File::from(ours));
        }
        fds.append(&mut self.extra);
        command.stdin(Stdio::null());
        let output = if self.captured { Stdio::piped } else { Stdio::null };
        command.stdout(output()).stderr(output());
        pass_fds(&mut command, fds);
        let child = command.spawn().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
        Running {
            call: self,
            child,
            sync: File::from(sync),
            start: Some(File::from(start)),
            attach,
            buffer: Vec::new(),
            deleted: false,
        }
    }
}

/// A conmon that was started.
#[derive(Debug)]
pub struct Running {
    /// The call.
    pub call: Conmon,
    /// The launcher, or the monitor itself with `--sync`.
    pub child: Child,
    sync: File,
    start: Option<File>,
    attach: Option<File>,
    buffer: Vec<u8>,
    deleted: bool,
}

impl Running {
    /// Opens a gate.
    ///
    /// # Panics
    /// When the caller's end is closed.
    pub fn gate(&mut self) {
        self.start.as_mut().expect("the start pipe").write_all(&[0]).expect("open the gate");
    }

    /// Closes the caller's end of the start pipe.
    pub fn close_start(&mut self) {
        self.start = None;
    }

    /// The launcher's end.
    #[track_caller]
    pub fn launched(&mut self) -> ExitStatus {
        wait_exit(&mut self.child)
    }

    /// The next message on the sync pipe; `None` at its end.
    ///
    /// # Panics
    /// When nothing comes within the deadline or it is not a message.
    #[track_caller]
    pub fn line(&mut self) -> Option<String> {
        read_line(&mut self.sync, &mut self.buffer)
    }

    /// The next message on the sync pipe as a value.
    #[track_caller]
    pub fn message(&mut self) -> Value {
        let line = self.line().expect("a message before the end of the sync pipe");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// Opens the gate, waits for the launcher and for the pid of the container.
    #[track_caller]
    pub fn created(&mut self) -> i32 {
        self.gate();
        let status = self.launched();
        assert!(status.success(), "the launcher ended with {status}");
        let message = self.message();
        let pid = message.get("data").or(message.get("pid")).and_then(Value::as_i64);
        let pid = pid.unwrap_or_else(|| panic!("no pid in {message}"));
        assert!(pid > 0, "{message}");
        i32::try_from(pid).expect("a pid")
    }

    /// The message on the attach pipe.
    #[track_caller]
    pub fn ready(&mut self) -> String {
        let pipe = self.attach.as_mut().expect("the attach pipe");
        read_line(pipe, &mut Vec::new()).expect("a message")
    }

    /// Runs the runtime on this container.
    #[track_caller]
    pub fn runtime(&self, args: &[&str]) -> Output {
        let root = format!("--root={}", self.call.path("root").display());
        output_within(Command::new(runc()).arg(root).args(args))
    }

    /// Starts the container.
    #[track_caller]
    pub fn go(&self) {
        let done = self.runtime(&["start", &self.call.id]);
        assert!(done.status.success(), "runc start: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// Creates and starts.
    #[track_caller]
    pub fn begin(&mut self) -> i32 {
        let pid = self.created();
        self.go();
        pid
    }

    /// The exit file once it is there.
    #[track_caller]
    pub fn exit_file(&self) -> String {
        let path = self.call.path("exits").join(&self.call.id);
        eventually("the exit file", || fs::read_to_string(&path))
    }

    /// The pid of the monitor.
    ///
    /// # Panics
    /// When there is no pid file.
    #[track_caller]
    pub fn monitor(&self) -> u32 {
        match &self.call.pidfile {
            Some(path) => fs::read_to_string(path).expect("the pid file").parse().expect("a pid"),
            None => self.child.id(),
        }
    }

    /// Waits until the monitor is gone.
    #[track_caller]
    pub fn gone(&self) {
        let pid = self.monitor();
        wait_for("the monitor's end", || !process_alive(pid));
    }

    /// The log.
    #[track_caller]
    pub fn log(&self) -> Vec<u8> {
        fs::read(self.call.path("log")).expect("the log")
    }

    /// Waits until the log contains `text`.
    #[track_caller]
    pub fn logged(&self, text: &str) {
        let path = self.call.path("log");
        eventually(&format!("{text:?} in the log"), || {
            let log = fs::read_to_string(&path).unwrap_or_default();
            if log.contains(text) { Ok(()) } else { Err(log) }
        });
    }

    /// A client of the attach socket.
    #[track_caller]
    pub fn attach(&self) -> AttachClient {
        AttachClient::connect(&self.call.path("bundle").join("attach"))
    }

    /// Writes to the `ctl` FIFO.
    ///
    /// # Panics
    /// When nobody reads it.
    pub fn ctl(&self, text: &str) {
        write_fifo(&self.call.path("bundle").join("ctl"), text);
    }

    /// The pid of the monitor while it runs.
    fn alive(&self) -> Option<u32> {
        let pid: u32 = match &self.call.pidfile {
            Some(path) => fs::read_to_string(path).ok()?.parse().ok()?,
            None => self.child.id(),
        };
        let named = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        (pid > 1 && String::from_utf8_lossy(&named).contains(&self.call.id)).then_some(pid)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.deleted {
            return;
        }
        self.deleted = true;
        let good = !std::thread::panicking();
        if good && self.alive().is_some() {
            within_bounds(&self.call.dir.to_string_lossy());
        }
        let root = format!("--root={}", self.call.path("root").display());
        let is_create = self.call.path("bundle").exists();
        // A monitor that still waits for its caller ends when that is gone.
        self.start = None;
        if is_create {
            let mut delete = Command::new(runc());
            delete.arg(root).args(["delete", "-f", &self.call.id]);
            let _ = delete.stdout(Stdio::null()).stderr(Stdio::null()).status();
            if good {
                within(DEADLINE, || {
                    let _ = self.child.try_wait();
                    self.alive().is_none()
                });
            }
        }
        let left = self.alive();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(pid) = left.and_then(|pid| i32::try_from(pid).ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        assert!(!good || !is_create || left.is_none(), "monitor {left:?} outlives its container");
    }
}

/// Writes to a FIFO that somebody must be reading.
///
/// # Panics
/// When nobody reads it.
pub fn write_fifo(path: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let fifo = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path);
    let mut fifo = fifo.unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
    nix::fcntl::fcntl(&fifo, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))
        .expect("make it block");
    fifo.write_all(text.as_bytes()).expect("write to the fifo");
}

#[track_caller]
fn read_line(pipe: &mut File, buffer: &mut Vec<u8>) -> Option<String> {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(at) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=at).collect();
            return Some(String::from_utf8_lossy(&line).into_owned());
        }
        let mut chunk = [0; 65_536];
        assert!(
            readable(pipe, end.saturating_duration_since(Instant::now())),
            "no message within {DEADLINE:?}"
        );
        match pipe.read(&mut chunk).expect("read a pipe") {
            0 => {
                assert!(buffer.is_empty(), "half a message: {}", String::from_utf8_lossy(buffer));
                return None;
            }
            length => buffer.extend_from_slice(&chunk[..length]),
        }
    }
}

fn readable(fd: &impl std::os::fd::AsFd, patience: Duration) -> bool {
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, timeout).is_ok_and(|count| count > 0)
}

/// A client of an attach socket.
#[derive(Debug)]
pub struct AttachClient {
    socket: OwnedFd,
}

impl AttachClient {
    /// Connects; the path may have any length.
    ///
    /// # Panics
    /// When nobody listens.
    #[track_caller]
    pub fn connect(path: &Path) -> Self {
        let dir = File::open(path.parent().expect("a directory")).expect("open the directory");
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let short = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
        let fd =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("socket");
        let address = UnixAddr::new(short.as_str()).expect("an address");
        connect(fd.as_raw_fd(), &address)
            .unwrap_or_else(|error| panic!("connect to {}: {error}", path.display()));
        Self { socket: fd }
    }

    /// The next packet; `None` at the end.
    ///
    /// # Panics
    /// When nothing comes within the deadline.
    #[track_caller]
    pub fn packet(&mut self) -> Option<Vec<u8>> {
        assert!(readable(&self.socket, DEADLINE), "no packet within {DEADLINE:?}");
        let mut packet = vec![0; 65_536];
        match recv(self.socket.as_raw_fd(), &mut packet, nix::sys::socket::MsgFlags::empty()) {
            Ok(0) | Err(nix::errno::Errno::ECONNRESET) => None,
            Ok(length) => {
                packet.truncate(length);
                Some(packet)
            }
            Err(error) => panic!("receive: {error}"),
        }
    }

    /// Everything until the end: stdout, stderr.
    #[track_caller]
    pub fn rest(&mut self) -> (Vec<u8>, Vec<u8>) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some(packet) = self.packet() {
            assert!((2..=8193).contains(&packet.len()), "a packet of {} bytes", packet.len());
            match packet[0] {
                2 => out.extend_from_slice(&packet[1..]),
                3 => err.extend_from_slice(&packet[1..]),
                kind => panic!("a packet of kind {kind}"),
            }
        }
        (out, err)
    }

    /// Reads stdout until it contains `text`; what was read.
    #[track_caller]
    pub fn until(&mut self, text: &str) -> String {
        let mut out = Vec::new();
        loop {
            let so_far = String::from_utf8_lossy(&out).into_owned();
            if so_far.contains(text) {
                return so_far;
            }
            let packet = self.packet().unwrap_or_else(|| panic!("the end before {text:?}: {so_far:?}"));
            out.extend_from_slice(&packet[1..]);
        }
    }

    /// Sends one packet.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn send(&mut self, bytes: &[u8]) {
        send(self.socket.as_raw_fd(), bytes, nix::sys::socket::MsgFlags::MSG_NOSIGNAL).expect("send");
    }

    /// Ends the input.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn half_close(&mut self) {
        shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Write).expect("shut down");
    }
}

/// The document of a process to execute.
pub fn process(args: &[&str]) -> Value {
    serde_json::json!({
        "terminal": false, "user": {"uid": 0, "gid": 0}, "args": args,
        "env": ["PATH=/bin", "TERM=xterm"], "cwd": "/", "noNewPrivileges": true
    })
}
