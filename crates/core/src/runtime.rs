//! Command lines of an OCI runtime (runc's interface, which crun and youki share), and its JSON log.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// One argument, bytes as the kernel takes them.
pub type Arg = Vec<u8>;

/// Global options in front of every subcommand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GlobalArgs {
    /// `--root`: the runtime's state directory; `None` leaves the runtime's default.
    pub root: Option<Arg>,
    /// `--log`: file for the runtime's own messages.
    pub log: Option<Arg>,
    /// `--log-format json`, together with `log`.
    pub log_json: bool,
    /// `--systemd-cgroup`.
    pub systemd_cgroup: bool,
    /// Further global arguments of the caller, verbatim, in front of the others.
    pub extra: Vec<Arg>,
}

/// One invocation of the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeOp {
    /// `create`.
    Create {
        /// Bundle directory.
        bundle: Arg,
        /// File the runtime writes init's pid to.
        pid_file: Arg,
        /// Socket that receives the pty master.
        console_socket: Option<Arg>,
        /// `--no-pivot`.
        no_pivot: bool,
        /// `--no-new-keyring`.
        no_new_keyring: bool,
        /// Further options of `create`.
        extra: Vec<Arg>,
    },
    /// `start`.
    Start,
    /// `state`.
    State,
    /// `kill`.
    Kill {
        /// Signal, as a number.
        signal: i32,
        /// `--all`: every process of the container.
        all: bool,
    },
    /// `delete`.
    Delete {
        /// `--force`: kill first.
        force: bool,
    },
    /// `pause`.
    Pause,
    /// `resume`.
    Resume,
    /// `update` with a resources document.
    Update {
        /// File with the document.
        resources: Arg,
    },
    /// `exec`.
    Exec {
        /// File with the process document.
        process: Arg,
        /// File the runtime writes the pid to.
        pid_file: Arg,
        /// Socket that receives the pty master.
        console_socket: Option<Arg>,
        /// `--detach`: return once the process runs.
        detach: bool,
        /// Further options of `exec`.
        extra: Vec<Arg>,
    },
    /// `checkpoint`.
    Checkpoint {
        /// Where the images go.
        image_path: Arg,
        /// Where CRIU works and logs.
        work_path: Arg,
        /// Leave the container running.
        leave_running: bool,
        /// Further options of `checkpoint`.
        extra: Vec<Arg>,
    },
    /// `restore`.
    Restore {
        /// Bundle directory.
        bundle: Arg,
        /// File the runtime writes init's pid to.
        pid_file: Arg,
        /// Socket that receives the pty master.
        console_socket: Option<Arg>,
        /// Where the images are.
        image_path: Arg,
        /// Where CRIU works and logs.
        work_path: Arg,
        /// Further options of `restore`.
        extra: Vec<Arg>,
    },
}

impl RuntimeOp {
    /// The subcommand's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Start => "start",
            Self::State => "state",
            Self::Kill { .. } => "kill",
            Self::Delete { .. } => "delete",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Update { .. } => "update",
            Self::Exec { .. } => "exec",
            Self::Checkpoint { .. } => "checkpoint",
            Self::Restore { .. } => "restore",
        }
    }
}

fn flag(out: &mut Vec<Arg>, name: &str, on: bool) {
    if on {
        out.push(name.as_bytes().to_vec());
    }
}

fn value(out: &mut Vec<Arg>, name: &str, val: &[u8]) {
    out.push(name.as_bytes().to_vec());
    out.push(val.to_vec());
}

fn maybe(out: &mut Vec<Arg>, name: &str, val: Option<&Arg>) {
    if let Some(val) = val {
        value(out, name, val);
    }
}

/// The whole argument list after the program's name.
pub fn argv(global: &GlobalArgs, op: &RuntimeOp, id: &[u8]) -> Vec<Arg> {
    let mut out: Vec<Arg> = global.extra.clone();
    maybe(&mut out, "--root", global.root.as_ref());
    maybe(&mut out, "--log", global.log.as_ref());
    if global.log.is_some() && global.log_json {
        value(&mut out, "--log-format", b"json");
    }
    flag(&mut out, "--systemd-cgroup", global.systemd_cgroup);
    out.push(op.name().as_bytes().to_vec());
    match op {
        RuntimeOp::Create { bundle, pid_file, console_socket, no_pivot, no_new_keyring, extra } => {
            value(&mut out, "--bundle", bundle);
            value(&mut out, "--pid-file", pid_file);
            maybe(&mut out, "--console-socket", console_socket.as_ref());
            flag(&mut out, "--no-pivot", *no_pivot);
            flag(&mut out, "--no-new-keyring", *no_new_keyring);
            out.extend(extra.iter().cloned());
        }
        RuntimeOp::Start | RuntimeOp::State | RuntimeOp::Pause | RuntimeOp::Resume => {}
        RuntimeOp::Kill { all, .. } => flag(&mut out, "--all", *all),
        RuntimeOp::Delete { force } => flag(&mut out, "--force", *force),
        RuntimeOp::Update { resources } => value(&mut out, "--resources", resources),
        RuntimeOp::Exec { process, pid_file, console_socket, detach, extra } => {
            value(&mut out, "--process", process);
            value(&mut out, "--pid-file", pid_file);
            maybe(&mut out, "--console-socket", console_socket.as_ref());
            // The long form: gVisor knows no other.
            flag(&mut out, "--detach", *detach);
            out.extend(extra.iter().cloned());
        }
        RuntimeOp::Checkpoint { image_path, work_path, leave_running, extra } => {
            value(&mut out, "--image-path", image_path);
            value(&mut out, "--work-path", work_path);
            flag(&mut out, "--leave-running", *leave_running);
            out.extend(extra.iter().cloned());
        }
        RuntimeOp::Restore { bundle, pid_file, console_socket, image_path, work_path, extra } => {
            value(&mut out, "--bundle", bundle);
            value(&mut out, "--pid-file", pid_file);
            maybe(&mut out, "--console-socket", console_socket.as_ref());
            flag(&mut out, "--detach", true);
            value(&mut out, "--image-path", image_path);
            value(&mut out, "--work-path", work_path);
            out.extend(extra.iter().cloned());
        }
    }
    out.push(id.to_vec());
    if let RuntimeOp::Kill { signal, .. } = op {
        out.push(signal.to_string().into_bytes());
    }
    out
}

/// The runtime's own words for a failure: the last `error` or `fatal` message of its JSON log,
/// else the last non-empty line of `stderr`. Empty if it said nothing.
pub fn error_message(json_log: &[u8], stderr: &[u8]) -> String {
    let mut found = String::new();
    for line in json_log.split(|b| *b == b'\n') {
        if line.is_empty() {
            continue;
        }
        let Ok(doc) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
        let level = doc.get("level").and_then(|v| v.as_str()).unwrap_or_default();
        let text = doc.get("msg").and_then(|v| v.as_str()).unwrap_or_default();
        if matches!(level, "error" | "fatal" | "panic") && !text.is_empty() {
            found = text.to_string();
        }
    }
    if found.is_empty() {
        let text = String::from_utf8_lossy(stderr);
        found = text.lines().map(str::trim).rfind(|l| !l.is_empty()).unwrap_or_default().to_string();
        // runc without --log prints logfmt; its msg field is the message.
        if let Some(msg) = logfmt_msg(&found) {
            found = msg;
        }
    }
    found
}

fn logfmt_msg(line: &str) -> Option<String> {
    let at = line.find("msg=\"")?;
    let mut out = String::new();
    let mut chars = line[at + 5..].chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return Some(out),
            '\\' => out.push(match chars.next()? {
                'n' => '\n',
                't' => '\t',
                other => other,
            }),
            other => out.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    fn text(args: &[Arg]) -> String {
        args.iter().map(|a| String::from_utf8_lossy(a).into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn command_lines() {
        let global = GlobalArgs {
            root: Some(b"/r".to_vec()),
            log: Some(b"/l".to_vec()),
            log_json: true,
            systemd_cgroup: true,
            extra: vec![b"--x".to_vec()],
        };
        let create = RuntimeOp::Create {
            bundle: b"/b".to_vec(),
            pid_file: b"/p".to_vec(),
            console_socket: None,
            no_pivot: true,
            no_new_keyring: false,
            extra: Vec::new(),
        };
        assert_eq!(
            text(&argv(&global, &create, b"c1")),
            "--x --root /r --log /l --log-format json --systemd-cgroup create --bundle /b --pid-file /p --no-pivot c1"
        );
        let kill = RuntimeOp::Kill { signal: 15, all: true };
        assert_eq!(text(&argv(&GlobalArgs::default(), &kill, b"c1")), "kill --all c1 15");
        let exec = RuntimeOp::Exec {
            process: b"/j".to_vec(),
            pid_file: b"/p".to_vec(),
            console_socket: Some(b"/s".to_vec()),
            detach: true,
            extra: Vec::new(),
        };
        assert_eq!(
            text(&argv(&GlobalArgs::default(), &exec, b"c1")),
            "exec --process /j --pid-file /p --console-socket /s --detach c1"
        );
    }

    #[test]
    fn messages() {
        let log =
            b"{\"level\":\"info\",\"msg\":\"x\"}\n{\"level\":\"error\",\"msg\":\"no such file\"}\nbroken\n";
        assert_eq!(error_message(log, b"other"), "no such file");
        assert_eq!(error_message(b"", b"a\n time=\"x\" level=error msg=\"bad \\\"y\\\"\"\n\n"), "bad \"y\"");
        assert_eq!(error_message(b"", b"plain\n"), "plain");
        assert_eq!(error_message(b"", b""), "");
    }

    proptest! {
        #[test]
        fn messages_never_panic(a in any::<Vec<u8>>(), b in any::<Vec<u8>>(), s in "msg=\"\\PC{0,40}") {
            let _ = error_message(&a, &b);
            let _ = error_message(&a, s.as_bytes());
        }
    }
}
