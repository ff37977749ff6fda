//! The arguments of a native shim.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

pub(super) const HELP: &str = "\
Usage: pintle-shim --id ID [OPTION]...

The process that stands next to one container. Clients start it; see `pintle --help` for people.

  --id ID            id of the container
  --dir DIR          directory of all state directories
                     (default: $PINTLE_DIR, /run/pintle, or $XDG_RUNTIME_DIR/pintle without root)
  --bundle DIR       bundle, if the create request names none
  --runtime PATH     OCI runtime, if the create request names none (default: runc)
  --ready-fd N       write `ok` or one line with an error to this descriptor
  --adopt            take over a container whose shim was lost
  --foreground       do not become a daemon
  --version          print the version
  --help             print this
";

/// What to do.
#[derive(Debug)]
pub(super) enum Command {
    Version,
    Help,
    Run(Args),
    /// Say whether a state version is understood.
    CheckState(String),
}

/// How to run.
#[derive(Debug, Default, Clone)]
pub(super) struct Args {
    pub(super) id: String,
    pub(super) root: PathBuf,
    pub(super) bundle: Option<PathBuf>,
    pub(super) runtime: String,
    pub(super) ready_fd: Option<RawFd>,
    pub(super) adopt: bool,
    pub(super) foreground: bool,
    /// Descriptor with the state of the program image before this one.
    pub(super) resume_fd: Option<RawFd>,
}

fn number(name: &str, value: OsString) -> Result<RawFd, String> {
    let text = value.to_string_lossy().into_owned();
    text.parse()
        .ok()
        .filter(|n| *n >= 0)
        .ok_or_else(|| format!("{name}: {text:?} is not a descriptor number"))
}

impl Args {
    pub(super) fn parse(args: Vec<OsString>) -> Result<Command, String> {
        let mut parsed = Self::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let text = arg.to_string_lossy().into_owned();
            let (name, inline) = match text.split_once('=') {
                Some((name, value)) if name.starts_with("--") => {
                    (name.to_owned(), Some(OsString::from(value)))
                }
                _ => (text.clone(), None),
            };
            let mut value = || match inline.clone() {
                Some(value) => Ok(value),
                None => args.next().ok_or_else(|| format!("{name} needs a value")),
            };
            match name.as_str() {
                "--version" | "-v" => return Ok(Command::Version),
                "--help" | "-h" => return Ok(Command::Help),
                "--id" => parsed.id = value()?.into_string().map_err(|_| "--id is not UTF-8".to_owned())?,
                "--dir" => parsed.root = value()?.into(),
                "--bundle" => parsed.bundle = Some(value()?.into()),
                "--runtime" => {
                    parsed.runtime =
                        value()?.into_string().map_err(|_| "--runtime is not UTF-8".to_owned())?;
                }
                "--ready-fd" => parsed.ready_fd = Some(number("--ready-fd", value()?)?),
                "--resume-fd" => parsed.resume_fd = Some(number("--resume-fd", value()?)?),
                "--check-state" => return Ok(Command::CheckState(value()?.to_string_lossy().into_owned())),
                "--adopt" => parsed.adopt = true,
                "--foreground" => parsed.foreground = true,
                _ => return Err(format!("unknown argument {text:?}")),
            }
        }
        if parsed.id.is_empty() {
            return Err("--id is missing".to_owned());
        }
        if parsed.root.as_os_str().is_empty() {
            parsed.root = default_root();
        }
        Ok(Command::Run(parsed))
    }
}

/// Where state directories are, as in the client crate.
pub(in crate::door) fn default_root() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("PINTLE_DIR") {
        return dir;
    }
    if !nix::unistd::geteuid().is_root() {
        if let Some(dir) = set("XDG_RUNTIME_DIR") {
            return dir.join("pintle");
        }
    }
    PathBuf::from("/run/pintle")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Command, String> {
        Args::parse(args.iter().map(OsString::from).collect())
    }

    #[test]
    fn arguments() {
        assert!(matches!(parse(&["--version"]), Ok(Command::Version)));
        assert!(matches!(parse(&["--help"]), Ok(Command::Help)));
        let Ok(Command::Run(args)) = parse(&["--id=a", "--dir", "/d", "--ready-fd", "5", "--adopt"]) else {
            panic!("not run")
        };
        assert_eq!((args.id.as_str(), args.ready_fd, args.adopt), ("a", Some(5), true));
        assert_eq!(args.root, PathBuf::from("/d"));
        assert!(parse(&[]).is_err());
        assert!(parse(&["--id"]).is_err());
        assert!(parse(&["--id", "a", "--ready-fd", "x"]).is_err());
        assert!(parse(&["--id", "a", "--nonsense"]).is_err());
    }
}
