//! A task shim driven the way containerd does it, without containerd: commands, calls, streams and events.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use pintle_proto::containerd::events::{Envelope, ForwardRequest};
use pintle_proto::containerd::events_ttrpc::{Events, create_events};
use pintle_proto::containerd::task_events as ev;
use pintle_proto::containerd::{TASK_V2, TASK_V3, task, unpack};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;

use crate::{Bundle, TempDir, containerd_shim, eventually, process_alive, unique_id, wait_for};

/// Who starts the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// containerd up to 2.2: an address comes back, the second version of the task service is called.
    Old,
    /// containerd from 2.3: parameters on standard input, JSON comes back; called by the third version.
    New,
    /// CRI-O's `vm` runtime type: nobody takes events.
    CriO,
}

/// An event, decoded as far as tests compare it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// As in `/tasks/exit`.
    pub topic: String,
    /// Exec id for execs, empty for the container.
    pub exec: String,
    /// Exit status, 0 where there is none.
    pub status: u32,
    /// Pid, 0 where there is none.
    pub pid: u32,
}

fn told(topic: &str, any: &Any) -> Told {
    let mut out = Told { topic: topic.to_owned(), exec: String::new(), status: 0, pid: 0 };
    if let Some(Ok(e)) = unpack::<ev::TaskExit>(any) {
        let exec = if e.id == e.container_id { String::new() } else { e.id };
        (out.exec, out.status, out.pid) = (exec, e.exit_status, e.pid);
    } else if let Some(Ok(e)) = unpack::<ev::TaskExecStarted>(any) {
        (out.exec, out.pid) = (e.exec_id, e.pid);
    } else if let Some(Ok(e)) = unpack::<ev::TaskExecAdded>(any) {
        out.exec = e.exec_id;
    } else if let Some(Ok(e)) = unpack::<ev::TaskStart>(any) {
        out.pid = e.pid;
    } else if let Some(Ok(e)) = unpack::<ev::TaskDelete>(any) {
        (out.exec, out.status, out.pid) = (e.id, e.exit_status, e.pid);
    }
    assert!(any.type_url.starts_with("containerd.events."), "type URL {}", any.type_url);
    out
}

/// Takes events like the daemon.
#[derive(Debug, Clone, Default)]
pub struct Sink {
    got: Arc<Mutex<Vec<Told>>>,
    envelopes: Arc<Mutex<Vec<Envelope>>>,
    /// So many events are refused first.
    refuse: Arc<Mutex<u32>>,
    /// The answer to the first event comes so much later; none again.
    slow: Arc<Mutex<Option<Duration>>>,
}

impl Sink {
    /// The events so far, in the order of their arrival.
    pub fn all(&self) -> Vec<Told> {
        self.got.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same, as they came.
    pub fn envelopes(&self) -> Vec<Envelope> {
        self.envelopes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Their topics without `/tasks/`.
    pub fn topics(&self) -> Vec<String> {
        self.all().iter().map(|t| t.topic.trim_start_matches("/tasks/").to_owned()).collect()
    }

    /// Refuses the next events.
    pub fn refuse(&self, count: u32) {
        *self.refuse.lock().unwrap_or_else(PoisonError::into_inner) = count;
    }

    /// Takes the next event at once and answers so much later.
    pub fn answer_late(&self, after: Duration) {
        *self.slow.lock().unwrap_or_else(PoisonError::into_inner) = Some(after);
    }

    /// Waits until an event of this topic came; gives all.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn wait(&self, topic: &str) -> Vec<Told> {
        eventually(&format!("event {topic}"), || {
            let all = self.all();
            if all.iter().any(|t| t.topic == topic) { Ok(all) } else { Err(format!("{:?}", self.topics())) }
        })
    }

    /// Serves on a socket until the answer is dropped.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn serve(&self, socket: &Path) -> ttrpc::r#async::Server {
        let _ = fs::remove_file(socket);
        let mut server = ttrpc::r#async::Server::new()
            .bind(&format!("unix://{}", socket.display()))
            .expect("bind the socket for events")
            .register_service(create_events(Arc::new(self.clone())));
        server.start().await.expect("serve events");
        server
    }
}

#[async_trait]
impl Events for Sink {
    async fn forward(&self, _: &ttrpc::r#async::TtrpcContext, req: ForwardRequest) -> ttrpc::Result<Empty> {
        {
            let mut refuse = self.refuse.lock().unwrap_or_else(PoisonError::into_inner);
            if *refuse > 0 {
                *refuse -= 1;
                return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::UNAVAILABLE, "not now")));
            }
        }
        let envelope = req.envelope.unwrap_or_default();
        assert!(envelope.topic.starts_with('/') && !envelope.namespace.is_empty());
        assert!(envelope.timestamp.seconds > 0, "an event without a time");
        let event = told(&envelope.topic, &envelope.event.clone().unwrap_or_default());
        self.envelopes.lock().unwrap_or_else(PoisonError::into_inner).push(envelope);
        self.got.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        let late = self.slow.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(late) = late {
            tokio::time::sleep(late).await;
        }
        Ok(Empty::new())
    }
}

/// A shim, started.
#[derive(Debug)]
pub struct TaskShim {
    /// Everything lies here.
    pub dir: TempDir,
    /// The bundle.
    pub bundle: PathBuf,
    /// The container's id.
    pub id: String,
    /// Its namespace.
    pub namespace: String,
    /// The socket that `start` named.
    pub socket: PathBuf,
    /// What `start` printed.
    pub answer: String,
    caller: Caller,
    log: File,
}

/// Settings of a start.
#[derive(Debug, Clone)]
pub struct Start {
    /// Who starts it.
    pub caller: Caller,
    /// The ttrpc socket of the daemon; empty: none.
    pub ttrpc: String,
    /// `-address`.
    pub address: String,
    /// `-publish-binary`.
    pub publish_binary: String,
}

impl Start {
    /// The usual settings of a caller.
    pub fn new(caller: Caller) -> Self {
        Self { caller, ttrpc: String::new(), address: String::new(), publish_binary: String::new() }
    }
}

impl TaskShim {
    /// Writes a bundle and runs `start`.
    ///
    /// # Panics
    /// When it does not start as it should: anything but the answer on the outputs counts.
    pub fn start(bundle: &Bundle, settings: &Start) -> Self {
        let dir = TempDir::new("task");
        let id = unique_id("t");
        let path = bundle.clone().cgroup(&format!("/{id}")).write(dir.path());
        let fifo = path.join("log");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("make the log FIFO");
        let log = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&fifo);
        let mut shim = Self {
            bundle: path,
            namespace: if settings.caller == Caller::CriO { "default".to_owned() } else { unique_id("ns") },
            id,
            socket: PathBuf::new(),
            answer: String::new(),
            caller: settings.caller,
            log: log.expect("open the log FIFO"),
            dir,
        };
        let out = shim.command("start", settings);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success() && said.is_empty(), "start: {said}");
        shim.answer = String::from_utf8(out.stdout).expect("UTF-8");
        let address = if settings.caller == Caller::New {
            let json: serde_json::Value = serde_json::from_str(&shim.answer).expect("JSON");
            assert_eq!((&json["version"], &json["protocol"]), (&2.into(), &"ttrpc".into()), "{json}");
            json["address"].as_str().expect("an address").to_owned()
        } else {
            shim.answer.clone()
        };
        shim.socket = address.strip_prefix("unix://").expect("a unix address").into();
        shim
    }

    /// Runs an action of the shim.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn command(&self, action: &str, settings: &Start) -> Output {
        let mut command = Command::new(containerd_shim());
        command.args(["-namespace", &self.namespace, "-address", &settings.address]);
        command.args(["-publish-binary", &settings.publish_binary, "-id", &self.id]);
        if action == "delete" {
            command.arg("-bundle").arg(&self.bundle);
        }
        command.arg(action).current_dir(&self.bundle);
        command.env("TTRPC_ADDRESS", &settings.ttrpc).env("PINTLE_DIR", self.dir.join("pintle"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("run the shim");
        let mut stdin = child.stdin.take().expect("a pipe");
        if self.caller == Caller::New && action == "start" {
            stdin.write_all(&self.params(settings)).expect("write parameters");
        }
        drop(stdin);
        child.wait_with_output().expect("wait for the shim")
    }

    fn params(&self, settings: &Start) -> Vec<u8> {
        use pintle_proto::containerd::bootstrap::{BootstrapParams, Extension};
        use pintle_proto::containerd::{pack, runc_options};
        let options = pack(&runc_options::Options::default());
        let params = BootstrapParams {
            instance_id: self.id.clone(),
            namespace: self.namespace.clone(),
            log_level: -4,
            containerd_version: "2.4.0".to_owned(),
            containerd_ttrpc_address: settings.ttrpc.clone(),
            extensions: vec![Extension { value: Some(options).into(), ..Default::default() }],
            socket_dir: Some(self.dir.join("s").to_str().expect("UTF-8").to_owned()),
            ..Default::default()
        };
        params.write_to_bytes().expect("encode")
    }

    /// Connects.
    ///
    /// # Panics
    /// When nobody listens.
    pub async fn connect(&self) -> Task {
        self.connect_for(&self.id).await
    }

    /// Connects, for calls about a container of another id.
    ///
    /// # Panics
    /// When nobody listens.
    pub async fn connect_for(&self, id: &str) -> Task {
        let client = ttrpc::r#async::Client::connect(&format!("unix://{}", self.socket.display())).await;
        let service = if self.caller == Caller::New { TASK_V3 } else { TASK_V2 };
        Task { client: client.expect("connect to the shim"), service, id: id.to_owned() }
    }

    /// Makes the FIFOs of a process.
    ///
    /// # Panics
    /// When they cannot be made.
    pub fn fifos(&self, name: &str) -> Fifos {
        let dir = self.dir.join(unique_id("io"));
        fs::create_dir(&dir).expect("make a directory for FIFOs");
        let path = |kind: &str| {
            let path = dir.join(format!("{name}-{kind}"));
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("make a FIFO");
            path.to_str().expect("UTF-8").to_owned()
        };
        Fifos { stdin: path("stdin"), stdout: path("stdout"), stderr: path("stderr") }
    }

    /// The pid of the server.
    ///
    /// # Panics
    /// When it has not said.
    pub fn pid(&self) -> u32 {
        let text = fs::read(self.bundle.join("shim.json")).expect("read shim.json");
        let json: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        u32::try_from(json["pid"].as_u64().expect("a pid")).expect("a pid")
    }

    /// What the shim said in the log so far.
    pub fn log(&mut self) -> String {
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(n) = self.log.read(&mut buffer) {
            if n == 0 {
                break;
            }
            text.extend_from_slice(&buffer[..n]);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until the server has ended and nothing is left.
    ///
    /// # Panics
    /// When it stays.
    #[track_caller]
    pub fn gone(&self, pid: u32) {
        wait_for("the shim to end", || !process_alive(pid));
        assert!(!self.socket.exists(), "{} is left", self.socket.display());
        assert!(!self.dir.join("pintle").join(&self.id).exists(), "the native directory is left");
        crate::Leftovers::of(&self.id).assert_none();
    }
}

impl Drop for TaskShim {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            crate::within_bounds(&self.id);
        }
        // A test that failed leaves it, and so does one that is not about its end.
        let pid = fs::read(self.bundle.join("shim.json"))
            .ok()
            .and_then(|t| serde_json::from_slice::<serde_json::Value>(&t).ok())
            .and_then(|j| i32::try_from(j["pid"].as_i64()?).ok());
        if let Some(pid) = pid {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            self.command("delete", &Start::new(Caller::Old));
        }
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_dir_all(Path::new("/run/containerd/runc").join(&self.namespace).join(&self.id));
        if self.caller != Caller::CriO {
            let _ = fs::remove_dir(Path::new("/run/containerd/runc").join(&self.namespace));
        }
    }
}

/// The FIFOs of one process.
#[derive(Debug, Clone)]
pub struct Fifos {
    /// Where it reads.
    pub stdin: String,
    /// Where it writes.
    pub stdout: String,
    /// Where it writes errors; a terminal does not use it.
    pub stderr: String,
}

impl Fifos {
    /// Reads stdout to its end, in a thread, from now on.
    pub fn read_stdout(&self) -> std::thread::JoinHandle<Vec<u8>> {
        read(self.stdout.clone())
    }

    /// Reads stderr to its end, in a thread, from now on.
    pub fn read_stderr(&self) -> std::thread::JoinHandle<Vec<u8>> {
        read(self.stderr.clone())
    }
}

fn read(path: String) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        File::open(path).and_then(|mut f| f.read_to_end(&mut text)).expect("read a FIFO");
        text
    })
}

/// A connection to the task service.
#[derive(Clone)]
pub struct Task {
    client: ttrpc::r#async::Client,
    /// Name of the service that is called.
    pub service: &'static str,
    id: String,
}

/// An error of a call: code and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub ttrpc::Code, pub String);

impl Task {
    /// Any call.
    ///
    /// # Errors
    /// What the shim answers.
    ///
    /// # Panics
    /// When the connection fails, or the answer takes longer than four minutes.
    pub async fn call<A: Message, B: Message>(&self, method: &str, request: &A) -> Result<B, Refused> {
        let request = ttrpc::proto::Request {
            service: self.service.to_owned(),
            method: method.to_owned(),
            payload: request.write_to_bytes().expect("encode"),
            ..Default::default()
        };
        let answer = tokio::time::timeout(Duration::from_secs(240), self.client.request(request));
        match answer.await.unwrap_or_else(|_| panic!("{method}: no answer within four minutes")) {
            Ok(answer) => Ok(B::parse_from_bytes(&answer.payload).expect("decode")),
            Err(ttrpc::Error::RpcStatus(status)) => Err(Refused(status.code(), status.message().to_owned())),
            Err(e) => panic!("{method}: {e}"),
        }
    }

    /// Create, with the shim's bundle and these streams.
    ///
    /// # Errors
    /// What the shim answers.
    pub async fn create(
        &self,
        shim: &TaskShim,
        change: impl FnOnce(&mut task::CreateTaskRequest),
    ) -> Result<u32, Refused> {
        let mut request = task::CreateTaskRequest {
            id: self.id.clone(),
            bundle: shim.bundle.to_str().expect("UTF-8").to_owned(),
            ..Default::default()
        };
        change(&mut request);
        self.call("Create", &request).await.map(|r: task::CreateTaskResponse| r.pid)
    }

    /// Start of the container, or of an exec.
    ///
    /// # Errors
    /// What the shim answers.
    pub async fn start(&self, exec: &str) -> Result<u32, Refused> {
        let request =
            task::StartRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        self.call("Start", &request).await.map(|r: task::StartResponse| r.pid)
    }

    /// Exec of a script.
    ///
    /// # Errors
    /// What the shim answers.
    pub async fn exec(&self, exec: &str, script: &str, fifos: Option<&Fifos>) -> Result<(), Refused> {
        let process = serde_json::json!({
            "args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
        });
        let mut request = task::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
                value: process.to_string().into_bytes(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        if let Some(fifos) = fifos {
            (request.stdout, request.stderr) = (fifos.stdout.clone(), fifos.stderr.clone());
        }
        self.call("Exec", &request).await.map(|_: Empty| ())
    }

    /// Wait; gives the status.
    ///
    /// # Errors
    /// What the shim answers.
    pub async fn wait(&self, exec: &str) -> Result<u32, Refused> {
        let request =
            task::WaitRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        self.call("Wait", &request).await.map(|r: task::WaitResponse| r.exit_status)
    }

    /// State.
    ///
    /// # Errors
    /// What the shim answers.
    pub async fn state(&self, exec: &str) -> Result<task::StateResponse, Refused> {
        let request =
            task::StateRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        self.call("State", &request).await
    }

    /// Kill.
    ///
    /// # Errors
    /// What the shim answers.
    pub async fn kill(&self, exec: &str, signal: u32) -> Result<(), Refused> {
        let request =
            task::KillRequest { id: self.id.clone(), exec_id: exec.to_owned(), signal, ..Default::default() };
        self.call("Kill", &request).await.map(|_: Empty| ())
    }

    /// Delete; gives the status.
    ///
    /// # Errors
    /// What the shim answers.
    pub async fn delete(&self, exec: &str) -> Result<u32, Refused> {
        let request =
            task::DeleteRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        self.call("Delete", &request).await.map(|r: task::DeleteResponse| r.exit_status)
    }

    /// A call that takes only the id.
    ///
    /// # Errors
    /// What the shim answers.
    pub async fn plain<B: Message>(&self, method: &str) -> Result<B, Refused> {
        // Every such request has the id as its first field.
        let request = task::PauseRequest { id: self.id.clone(), ..Default::default() };
        self.call(method, &request).await
    }

    /// Shutdown.
    pub async fn shutdown(&self) {
        // The connection may close before the answer.
        let request = ttrpc::proto::Request {
            service: self.service.to_owned(),
            method: "Shutdown".to_owned(),
            payload: task::ShutdownRequest { id: self.id.clone(), ..Default::default() }
                .write_to_bytes()
                .expect("encode"),
            ..Default::default()
        };
        let _ = self.client.request(request).await;
    }
}

/// Numbers of each kind of event, by exec id.
pub fn tally(events: &[Told], topic: &str) -> HashMap<String, usize> {
    let mut out = HashMap::new();
    for event in events.iter().filter(|e| e.topic == topic) {
        *out.entry(event.exec.clone()).or_insert(0) += 1;
    }
    out
}
