//! Calling the runtime the way containerd's callers expect it, and putting its failures in the words they look for.

use std::io;
use std::path::Path;

use super::error::TaskError;
use super::options::Options;
use super::paths::Bundle;
use crate::engine::reap::Reaper;
use crate::engine::runtime::{RuntimeCli, RuntimeConfig, RuntimeError, RuntimeFailure};

/// The runtime for one container.
pub(super) fn cli(
    options: &Options,
    namespace: &str,
    id: &str,
    bundle: &Bundle,
    reaper: Reaper,
) -> RuntimeCli {
    let mut config = RuntimeConfig::new(&options.binary, &bundle.0);
    config.root = Some(options.state_root(namespace).into());
    config.systemd_cgroup = options.systemd_cgroup;
    RuntimeCli::new(config, reaper, id)
}

/// Whether the runtime still knows the container.
pub(super) fn known(cli: &RuntimeCli, id: &str) -> bool {
    known_below(cli.config().root.as_deref().unwrap_or(Path::new("/run/runc")), id)
}

/// Whether there is state of a container below a runtime's root: a directory of its name for most, for runsc files
/// named `ID_sandbox:SANDBOX.state`. No id holds a colon, so these are never another container's.
pub(super) fn known_below(root: &Path, id: &str) -> bool {
    if root.join(id).exists() {
        return true;
    }
    let Ok(entries) = std::fs::read_dir(root) else { return false };
    entries.flatten().any(|e| {
        let name = e.file_name();
        name.to_str().and_then(|n| n.strip_prefix(id)).is_some_and(|rest| rest.starts_with("_sandbox:"))
    })
}

/// The words of a failure. Docker and others look for parts of them, so the runtime's own text stays whole.
pub(super) fn text(error: &RuntimeError) -> String {
    let said = match (&error.failure, error.message.is_empty()) {
        (RuntimeFailure::NotStarted(e), _) if e.kind() == io::ErrorKind::NotFound => {
            let name = error.path.to_string_lossy();
            if name.contains('/') {
                format!("fork/exec {name}: no such file or directory")
            } else {
                format!("exec: {name:?}: executable file not found in $PATH")
            }
        }
        (RuntimeFailure::NotStarted(e), _) => format!("fork/exec {}: {e}", error.path.display()),
        (_, false) => error.message.clone(),
        (failure, true) => match failure {
            RuntimeFailure::Ended(exit) => format!("the runtime said nothing: {exit}"),
            RuntimeFailure::TimedOut(limit) => format!("no end within {} s", limit.as_secs()),
            RuntimeFailure::Broken(what) => what.clone(),
            RuntimeFailure::NotStarted(e) => e.to_string(),
        },
    };
    format!("OCI runtime {} failed: {said}", error.op)
}

/// A failure as the answer to a call.
pub(super) fn failure(error: &RuntimeError) -> TaskError {
    TaskError::unknown(text(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(failure: RuntimeFailure, message: &str) -> RuntimeError {
        RuntimeError {
            op: "create",
            path: "no-runc".into(),
            failure,
            message: message.into(),
            stderr: Vec::new(),
        }
    }

    #[test]
    fn words_others_look_for() {
        let missing = RuntimeFailure::NotStarted(io::ErrorKind::NotFound.into());
        assert_eq!(
            text(&error(missing, "")),
            "OCI runtime create failed: exec: \"no-runc\": executable file not found in $PATH"
        );
        let ended = RuntimeFailure::Ended(pintle_core::exit::Exit::Code(1));
        assert_eq!(
            text(&error(ended, "exec: \"x\": permission denied")),
            "OCI runtime create failed: exec: \"x\": permission denied"
        );
    }

    #[test]
    fn a_name_that_begins_another_is_not_known() {
        let root = std::env::temp_dir().join(format!("pintle-known.{}", std::process::id()));
        std::fs::create_dir_all(root.join("a.b")).unwrap();
        std::fs::create_dir_all(root.join("a_c")).unwrap();
        std::fs::write(root.join("s_sandbox:p.state"), "").unwrap();
        let known = ["a.b", "a_c", "s", "a", "a.", "p"].map(|id| known_below(&root, id));
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(known, [true, true, true, false, false, false]);
    }
}
