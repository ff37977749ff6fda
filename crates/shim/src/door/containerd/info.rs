//! `-v` and `-info`.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use pintle_proto::containerd::runtime_info::{RuntimeInfo, RuntimeVersion};
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;

use super::options::Options;

/// The type of the features document inside an `Any`.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// More than any message to a command holds.
pub(super) const MAX_STDIN: u64 = 10 * 1024 * 1024;

/// Prints name and version.
pub(super) fn version() -> Result<(), String> {
    let text = format!("containerd-shim-pintle-v2:\n  Version:  {}\n", env!("CARGO_PKG_VERSION"));
    std::io::stdout().write_all(text.as_bytes()).map_err(|e| format!("write to stdout: {e}"))
}

/// Reads standard input to its end.
pub(super) fn read_stdin() -> Result<Vec<u8>, String> {
    let mut input = Vec::new();
    std::io::stdin()
        .take(MAX_STDIN + 1)
        .read_to_end(&mut input)
        .map_err(|e| format!("read standard input: {e}"))?;
    if input.len() as u64 > MAX_STDIN {
        return Err(format!("standard input holds more than {MAX_STDIN} bytes"));
    }
    Ok(input)
}

/// Prints a `RuntimeInfo` message.
pub(super) fn info() -> Result<(), String> {
    let input = read_stdin()?;
    let any = Any::parse_from_bytes(&input).map_err(|e| format!("decode options on standard input: {e}"))?;
    let options = Options::decode(&any).map_err(|e| e.text().to_owned())?.unwrap_or_default();
    let mut out = RuntimeInfo::new();
    out.name = "io.containerd.pintle.v2".to_owned();
    out.version =
        Some(RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() }).into();
    if !any.type_url.is_empty() {
        out.options = Some(any).into();
    }
    if let Some(value) = features(&options.binary) {
        out.features = Some(Any { type_url: FEATURES.to_owned(), value, ..Default::default() }).into();
    }
    let bytes = out.write_to_bytes().map_err(|e| format!("encode runtime information: {e}"))?;
    std::io::stdout().write_all(&bytes).map_err(|e| format!("write to stdout: {e}"))
}

/// The runtime's own account of its features; an old runtime has none.
fn features(binary: &str) -> Option<Vec<u8>> {
    let out = Command::new(binary)
        .arg("features")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let known = out.status.success() && serde_json::from_slice::<serde_json::Value>(&out.stdout).is_ok();
    known.then_some(out.stdout)
}
