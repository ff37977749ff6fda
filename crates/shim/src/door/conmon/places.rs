//! What callers find in the bundle: the attach socket, its link, and the two FIFOs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pintle_sys::seqpacket::{self, SocketKind};

use super::options::Options;
use super::pipes::strerror;
use crate::engine::ctl::{ControlFifo, ControlKind};
use crate::engine::hub::Hub;

/// Name of the attach socket.
const ATTACH: &str = "attach";
const CTL: &str = "ctl";
const WINSZ: &str = "winsz";
const ATTACH_MODE: u32 = 0o700;
const ATTACH_BACKLOG: i32 = 10;

/// What is to be removed when the container has ended.
#[derive(Debug)]
pub(super) struct Places {
    attach: PathBuf,
    /// The socket's device and inode: another monitor in the same bundle may have put its own there since.
    socket: Option<(u64, u64)>,
    link: Option<PathBuf>,
}

/// The attach socket, listening, and where it lies.
pub(super) fn open_attach(options: &Options, bundle: &Path) -> Result<(OwnedFd, Places), String> {
    let link = if options.full_attach { None } else { Some(make_link(options, bundle)?) };
    let place = link.as_deref().unwrap_or(bundle);
    let fail =
        |error: &io::Error| format!("Failed to bind attach socket: {} {}", place.display(), strerror(error));
    let dir = seqpacket::open_dir(place).map_err(|error| fail(&error))?;
    let listener = seqpacket::bind_at(dir.as_fd(), ATTACH, SocketKind::Packet, ATTACH_MODE, ATTACH_BACKLOG);
    let listener = listener.map_err(|error| fail(&error))?;
    let attach = bundle.join(ATTACH);
    Ok((listener, Places { socket: identity(&attach), attach, link }))
}

fn make_link(options: &Options, bundle: &Path) -> Result<PathBuf, String> {
    let link = options.socket_dir.join(&options.cuuid);
    let fail =
        |error: &io::Error| format!("Failed to create symlink {}: {}", link.display(), strerror(error));
    match std::fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(&error)),
        _ => {}
    }
    symlink(bundle, &link).map_err(|error| fail(&error))?;
    Ok(link)
}

impl Places {
    /// Before the exit command, which may remove the bundle.
    pub(super) fn remove_socket(&self) {
        if self.socket.is_some() && self.socket == identity(&self.attach) {
            let _ = std::fs::remove_file(&self.attach);
        }
    }

    /// After the exit command; only what is still a link of ours, since the command may have started the next run.
    pub(super) fn remove_link(&self, bundle: &Path) {
        if let Some(link) =
            self.link.as_ref().filter(|link| std::fs::read_link(link).is_ok_and(|to| to == bundle))
        {
            let _ = std::fs::remove_file(link);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let meta = std::fs::symlink_metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// Takes the FIFOs away where no container came of them; callers remove those of one that has lived.
pub(super) fn remove_fifos(bundle: &Path) {
    for name in [CTL, WINSZ] {
        let _ = std::fs::remove_file(bundle.join(name));
    }
}

/// Creates `ctl` and `winsz` in the bundle; they are read as long as the values live.
pub(super) fn open_fifos(bundle: &Path, hub: &Arc<Hub>) -> Result<[ControlFifo; 2], String> {
    let make = |name: &str, kind: ControlKind| {
        let fifo = ControlFifo::create(bundle, name, kind, hub);
        fifo.map_err(|error| {
            format!("Failed to make {name} fifo {}: {}", bundle.join(name).display(), strerror(&error))
        })
    };
    Ok([make(CTL, ControlKind::Ctl)?, make(WINSZ, ControlKind::Winsz)?])
}
