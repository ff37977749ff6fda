//! What is fuzzed of the shim: one function per target. Each takes any bytes and panics only if a promise is broken.
//!
//! Not part of the shim: it is compiled for the fuzzer (`cfg(fuzzing)`) and for the tests, which replay the corpora.

use super::guard::{Guarded, Limits};
use super::{conmon, containerd, native};
use crate::engine::spec::{CreateSpec, ExecSpec};
use crate::engine::stats;
use async_trait::async_trait;
use pintle_proto::monitor as wire;
use pintle_proto::monitor::service::{Monitor, create_monitor};
use protobuf::Message as _;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::future::{pending, poll_fn};
use std::os::unix::ffi::OsStringExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, TtrpcContext};

/// A target: its name, which is also that of its corpus, its function, and how often the tests run it.
pub type Target = (&'static str, fn(&[u8]), usize);

/// All targets.
pub const ALL: &[Target] = &[
    ("arguments", arguments, 2_000),
    ("bootstrap", bootstrap, 2_000),
    ("config", config, 1_000),
    ("create", create, 2_000),
    ("counters", counters, 2_000),
    ("handover", handover, 1_000),
    ("ttrpc", ttrpc, 400),
];

/// Command lines of the doors, arguments separated by NUL.
pub fn arguments(data: &[u8]) {
    let words: Vec<Vec<u8>> = data.split(|b| *b == 0).map(<[u8]>::to_vec).collect();
    let _ = conmon::fuzz_log_path(&words);
    let args: Vec<OsString> = words.into_iter().map(OsString::from_vec).collect();
    containerd::fuzz_arguments(args.clone());
    native::fuzz_arguments(args);
}

/// What containerd writes to the standard input of `start`, and the options of its requests.
pub fn bootstrap(data: &[u8]) {
    let _ = containerd::fuzz_options(data);
}

/// `config.json` in a bundle, and the same bytes as the process of an exec.
pub fn config(data: &[u8]) {
    let bundle = std::env::temp_dir().join(format!("pintle-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(bundle.join("rootfs")).expect("bundle");
    std::fs::write(bundle.join("config.json"), data).expect("config.json");
    let spec = CreateSpec { bundle: bundle.clone(), ..CreateSpec::default() };
    if let Ok(facts) = spec.check() {
        assert_eq!(facts, spec.facts());
    }
    for path in spec.cgroups_paths("id") {
        assert!(
            path != "/" && !path.split('/').any(|part| part == ".."),
            "{path:?} leads out of the hierarchy"
        );
    }
    containerd::fuzz_config(&bundle);
    let text = String::from_utf8_lossy(data).into_owned();
    let words = || text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for exec in [
        ExecSpec { process_json: text.clone(), ..ExecSpec::default() },
        ExecSpec { args: words(), env: words(), user: text.clone(), ..ExecSpec::default() },
        ExecSpec { args: words(), cwd: text.clone(), terminal: true, ..ExecSpec::default() },
    ] {
        if let Ok((process, terminal)) = exec.process(&bundle) {
            let args = process.get("args").and_then(serde_json::Value::as_array);
            assert!(args.is_some_and(|args| !args.is_empty()), "a process without arguments");
            assert!(!exec.terminal || terminal);
        }
    }
    let _ = std::fs::remove_dir_all(&bundle);
}

/// Requests to create a container, from the wire to the engine's terms.
pub fn create(data: &[u8]) {
    let Ok(request) = wire::CreateRequest::parse_from_bytes(data) else { return };
    let logs = request.logs.len();
    let spec = native::fuzz_create(request);
    assert_eq!(spec.logs.len(), logs);
    // What is kept of it can be read again.
    let text = serde_json::to_vec(&spec).expect("state of a container");
    let again: CreateSpec = serde_json::from_slice(&text).expect("our own state");
    assert_eq!(serde_json::to_vec(&again).expect("state of a container"), text);
}

/// Files with counters: of the cgroups, of networks, of processes.
pub fn counters(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    stats::fuzz(&text);
    let _ = pintle_sys::process::parse_stat(&text);
}

/// The state that one program image leaves to the next, and the state file.
pub fn handover(data: &[u8]) {
    let _ = serde_json::from_slice::<crate::engine::persist::StateFile>(data);
    let _ = native::fuzz_handover(data);
}

/// Answers at once, but for `Wait`, which never does.
struct Fake;

#[async_trait]
impl Monitor for Fake {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: wire::CreateRequest,
    ) -> ttrpc::Result<wire::CreateResponse> {
        std::hint::black_box(native::fuzz_create(request));
        Ok(wire::CreateResponse::default())
    }

    async fn wait(&self, _: &TtrpcContext, _: wire::WaitRequest) -> ttrpc::Result<wire::WaitResponse> {
        pending().await
    }
}

/// One connection.
struct Single(VecDeque<Guarded<DuplexStream, ()>>);

impl futures_core::Stream for Single {
    type Item = std::io::Result<Guarded<DuplexStream, ()>>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // The listener stays, as a socket's does.
        self.0.pop_front().map_or(Poll::Pending, |c| Poll::Ready(Some(Ok(c))))
    }
}

/// Small limits, so that short inputs reach them.
const LIMITS: Limits = Limits { frame: 4096, requests: 8, bytes: 8192, total: 8192 };

/// The server over a connection that says anything. The first byte is the size of the pieces, and with its highest bit
/// set the rest describes requests (method, stream, length of the payload, payload) instead of bytes.
pub fn ttrpc(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let bytes = if first & 0x80 == 0 { data.to_vec() } else { requests(data) };
    let piece = usize::from(first & 0x7f).max(1) * 8;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("event loop");
    let total = Arc::new(AtomicU64::new(0));
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let guarded = Guarded::new(server, LIMITS, total.clone(), ());
        let mut server = Server::new()
            .register_service(create_monitor(Arc::new(Fake)))
            .add_listener(Listener::new(Single([guarded].into())));
        server.start().await.expect("server");
        let check =
            || assert!(total.load(Ordering::Relaxed) <= LIMITS.total, "more bytes are held than may be");
        for piece in bytes.chunks(piece) {
            if client.write_all(piece).await.is_err() {
                break;
            }
            yield_now().await;
            check();
        }
        for _ in 0..40 {
            yield_now().await;
            check();
        }
        let _ = client.shutdown().await;
        let mut answers = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(60), client.read_to_end(&mut answers)).await;
        assert!(end.is_ok(), "the server keeps a connection that has ended");
        assert!(answers.len() <= 2 * bytes.len() * 64 + 4096, "answers of {} bytes", answers.len());
    });
    drop(runtime);
    assert_eq!(total.load(Ordering::Relaxed), 0, "bytes are held for a connection that is gone");
}

async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Frames of requests that the service knows.
fn requests(mut data: &[u8]) -> Vec<u8> {
    const METHODS: [&str; 8] =
        ["Wait", "Create", "Info", "Exec", "Events", "PollEvents", "Update", "Nonsense"];
    let mut out = Vec::new();
    while let [method, stream, length, rest @ ..] = data {
        let (payload, next) = rest.split_at(rest.len().min(usize::from(*length)));
        // The high bits of the method blow it up.
        let payload = payload.repeat(1 + usize::from(method >> 3));
        let request = ttrpc::proto::Request {
            service: "pintle.monitor.v1.Monitor".to_owned(),
            method: METHODS[usize::from(method & 7)].to_owned(),
            payload,
            ..Default::default()
        };
        let request = request.write_to_bytes().expect("request");
        out.extend_from_slice(&(request.len() as u32).to_be_bytes());
        out.extend_from_slice(&u32::from(*stream).to_be_bytes());
        out.extend_from_slice(&[1, 0]);
        out.extend_from_slice(&request);
        data = next;
    }
    out
}

#[cfg(test)]
#[expect(unreachable_pub, reason = "the fuzz crates share the file")]
#[path = "../../../core/fuzz/src/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::{replay, wire};
    use protobuf::Message as _;
    use std::path::Path;

    #[test]
    fn corpora_and_mutations() {
        let more = if std::env::var_os("PINTLE_TEST_FULL").is_some() { 50 } else { 1 };
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target, rounds) in super::ALL {
            replay::replay(&corpus, name, *target, rounds * more);
        }
    }

    /// A search from seeds that no reader takes would find nothing.
    #[test]
    fn seeds_are_understood() {
        let seed = |path: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(path);
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        super::native::fuzz_handover(&seed("handover/handover")).expect("a state to hand over");
        serde_json::from_slice::<crate::engine::persist::StateFile>(&seed("handover/state"))
            .expect("a state file");
        let request = wire::CreateRequest::parse_from_bytes(&seed("create/plain")).expect("a request");
        assert_eq!(super::native::fuzz_create(request).logs.len(), 1);
        super::containerd::fuzz_options(&seed("bootstrap/any")).expect("options");
        super::containerd::fuzz_options(&seed("bootstrap/boot")).expect("parameters");
    }

    #[test]
    fn fuzz_targets_are_complete() {
        let names: Vec<&str> = super::ALL.iter().map(|(name, ..)| *name).collect();
        replay::complete(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz"), &names);
    }
}
