//! The command line, in Go's style.

use std::ffi::OsString;

use pintle_core::goflag::{self, Flag};

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// `-v`.
    Version,
    /// `-info`.
    Info,
    /// `start`: make the server and print its address.
    Start,
    /// `delete`: clean up after a server that is gone.
    Delete,
    /// The server itself; only our own `start` asks for it.
    Serve,
}

/// The command line, understood.
#[derive(Debug, Clone)]
pub(super) struct Args {
    pub(super) action: Action,
    pub(super) namespace: String,
    pub(super) id: String,
    /// The daemon's gRPC socket; empty from CRI-O.
    pub(super) address: String,
    /// The daemon's executable.
    pub(super) publish_binary: String,
    /// Only with `delete`; the working directory otherwise.
    pub(super) bundle: Option<String>,
    pub(super) debug: bool,
    /// The path of the listening socket; only given by our `start` to our server.
    pub(super) socket: String,
}

const FLAGS: &[Flag] = &[
    Flag { name: "namespace", boolean: false },
    Flag { name: "id", boolean: false },
    Flag { name: "address", boolean: false },
    Flag { name: "publish-binary", boolean: false },
    Flag { name: "bundle", boolean: false },
    Flag { name: "socket", boolean: false },
    Flag { name: "debug-socket", boolean: false },
    Flag { name: "debug", boolean: true },
    Flag { name: "v", boolean: true },
    Flag { name: "version", boolean: true },
    Flag { name: "info", boolean: true },
];

impl Args {
    /// Understands a command line, or says what is wrong with it.
    pub(super) fn parse(args: Vec<OsString>) -> Result<Self, String> {
        let mut words = Vec::with_capacity(args.len());
        for arg in args {
            words.push(arg.into_string().map_err(|bad| format!("argument {bad:?} is not UTF-8"))?);
        }
        let parsed = goflag::parse(FLAGS, &words).map_err(|e| e.to_string())?;
        let text = |name| parsed.get(name).unwrap_or_default().to_owned();
        let action = if parsed.is_set("v") || parsed.is_set("version") {
            Action::Version
        } else if parsed.is_set("info") {
            Action::Info
        } else {
            match parsed.rest.first().map(String::as_str) {
                Some("start") => Action::Start,
                Some("delete") => Action::Delete,
                None => Action::Serve,
                Some(other) => return Err(format!("unknown action {other:?}")),
            }
        };
        let out = Self {
            action,
            namespace: text("namespace"),
            id: text("id"),
            address: text("address"),
            publish_binary: text("publish-binary"),
            bundle: parsed.get("bundle").filter(|b| !b.is_empty()).map(str::to_owned),
            debug: parsed.is_set("debug"),
            socket: text("socket"),
        };
        if !matches!(action, Action::Version | Action::Info) {
            if out.namespace.is_empty() {
                return Err("shim namespace cannot be empty".to_owned());
            }
            check_name("namespace", &out.namespace)?;
            check_name("id", &out.id)?;
        }
        Ok(out)
    }
}

/// Names become parts of paths: they must not lead elsewhere.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err(format!("{what} cannot be empty"));
    }
    if name.len() > 200 || name == "." || name == ".." || name.bytes().any(|b| b == b'/' || b < 0x20) {
        return Err(format!("{what} {name:?} is not a valid name"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args, String> {
        Args::parse(words.iter().map(OsString::from).collect())
    }

    #[test]
    fn command_lines_of_containerd_and_cri_o() {
        let a = parse(&[
            "-namespace",
            "k8s.io",
            "-address",
            "/run/c.sock",
            "-publish-binary",
            "/usr/bin/containerd",
            "-id",
            "x",
            "-debug",
            "start",
        ])
        .unwrap();
        assert_eq!(
            (a.action, a.namespace.as_str(), a.id.as_str(), a.debug),
            (Action::Start, "k8s.io", "x", true)
        );
        let a =
            parse(&["-namespace", "default", "-address", "", "-publish-binary", "/c", "-id", "x", "start"])
                .unwrap();
        assert!(a.address.is_empty());
        let a = parse(&["-namespace", "n", "-id", "x", "-bundle", "/b", "delete"]).unwrap();
        assert_eq!((a.action, a.bundle.as_deref()), (Action::Delete, Some("/b")));
        assert_eq!(parse(&["-v"]).unwrap().action, Action::Version);
        assert_eq!(parse(&["-info"]).unwrap().action, Action::Info);
    }

    #[test]
    fn refusals() {
        assert_eq!(parse(&["-id", "x", "start"]).unwrap_err(), "shim namespace cannot be empty");
        assert!(parse(&["-namespace", "n", "-id", "../x", "start"]).is_err());
        assert!(parse(&["-namespace", "n", "-id", "x", "stop"]).is_err());
        assert!(parse(&["-namespace", "n", "-id", "x", "-nope", "start"]).is_err());
    }
}
