//! The console socket: the runtime connects and hands over the master of the process's terminal.

use pintle_sys::fdpass;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

/// A console that did not come.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The socket cannot be made.
    #[error("create console socket {path}: {source}", path = path.display())]
    Create {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Accepting or receiving failed.
    #[error("receive console: {0}")]
    Receive(#[source] io::Error),
    /// The message has no descriptor, or more than one.
    #[error("console message has {0} descriptors instead of 1")]
    Count(usize),
    /// Nobody connected in time.
    #[error("runtime did not set up terminal")]
    Timeout,
}

/// A listening console socket in a directory of its own, which only we can enter. Both vanish with the value.
#[derive(Debug)]
pub struct ConsoleSocket {
    listener: UnixListener,
    dir: PathBuf,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Makes the socket below `parent` (`$XDG_RUNTIME_DIR`, `$TMPDIR` or `/tmp` if `None`).
    ///
    /// # Errors
    /// [`ConsoleError::Create`].
    pub fn bind(parent: Option<&Path>) -> Result<Self, ConsoleError> {
        let parent = parent.map_or_else(default_parent, Path::to_path_buf);
        let fail = |path: &Path, source| ConsoleError::Create { path: path.to_owned(), source };
        let mut last = None;
        for attempt in 0u32..16 {
            let stamp = pintle_sys::clock::mono().0 as u32;
            let name = format!("pintle-term.{}.{:08x}", std::process::id(), stamp.wrapping_add(attempt));
            let dir = parent.join(name);
            match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => {
                    let path = dir.join("console.sock");
                    let listener = UnixListener::bind(&path).and_then(|listener| {
                        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))?;
                        Ok(listener)
                    });
                    return match listener {
                        Ok(listener) => Ok(Self { listener, dir, path }),
                        Err(source) => {
                            let _ = std::fs::remove_file(&path);
                            let _ = std::fs::remove_dir(&dir);
                            Err(fail(&path, source))
                        }
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = Some(error),
                Err(error) => return Err(fail(&dir, error)),
            }
        }
        Err(fail(&parent, last.unwrap_or_else(|| io::ErrorKind::AlreadyExists.into())))
    }

    /// The path to give to the runtime as `--console-socket`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts a file for the runtime beside the socket. It vanishes with it.
    ///
    /// # Errors
    /// That of writing the file.
    pub fn leave(&self, name: &str, content: &[u8]) -> io::Result<PathBuf> {
        let path = self.dir.join(name);
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(content)?;
        Ok(path)
    }

    /// Waits for the runtime to connect and takes the terminal's master from its message. To be awaited together with
    /// the runtime: if that fails, nobody ever connects.
    ///
    /// # Errors
    /// [`ConsoleError`] says what went wrong.
    ///
    /// # Cancel safety
    /// A connection that was accepted is lost.
    pub async fn receive(&self, deadline: Duration) -> Result<OwnedFd, ConsoleError> {
        let receive = async {
            let (stream, _) = self.listener.accept().await.map_err(ConsoleError::Receive)?;
            receive_one(&stream).await
        };
        tokio::time::timeout(deadline, receive).await.map_err(|_| ConsoleError::Timeout)?
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

async fn receive_one(stream: &UnixStream) -> Result<OwnedFd, ConsoleError> {
    // The bytes name the terminal; nobody needs them.
    let mut name = [0; 4096];
    let message = stream
        .async_io(Interest::READABLE, || fdpass::recv_fds(stream.as_fd(), &mut name))
        .await
        .map_err(ConsoleError::Receive)?;
    let count = message.fds.len();
    let mut fds = message.fds.into_iter();
    match (fds.next(), count) {
        (Some(fd), 1) => Ok(fd),
        _ => Err(ConsoleError::Count(count)),
    }
}

/// A directory whose paths leave room for a socket's name.
fn default_parent() -> PathBuf {
    ["XDG_RUNTIME_DIR", "TMPDIR"]
        .iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from)
        .find(|dir| dir.is_absolute() && dir.as_os_str().len() < 60 && dir.is_dir())
        .unwrap_or_else(|| PathBuf::from("/tmp"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream as StdStream;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_master_arrives_and_the_socket_vanishes() {
        runtime().block_on(async {
            let socket = ConsoleSocket::bind(Some(&std::env::temp_dir())).unwrap();
            let path = socket.path().to_owned();
            let client = StdStream::connect(&path).unwrap();
            let (master, _slave) = pintle_sys::pty::pair().unwrap();
            fdpass::send_fds(client.as_fd(), b"/dev/pts/0", &[master.as_fd()]).unwrap();
            let got = socket.receive(Duration::from_secs(30)).await.unwrap();
            pintle_sys::pty::set_size(got.as_fd(), 3, 4).unwrap();
            assert_eq!(pintle_sys::pty::size(master.as_fd()).unwrap(), (3, 4));
            drop(socket);
            assert!(!path.exists() && !path.parent().unwrap().exists());
        });
    }

    #[test]
    fn no_descriptor_and_nobody_are_errors() {
        runtime().block_on(async {
            let socket = ConsoleSocket::bind(Some(&std::env::temp_dir())).unwrap();
            let client = StdStream::connect(socket.path()).unwrap();
            fdpass::send_fds(client.as_fd(), b"x", &[]).unwrap();
            assert!(matches!(socket.receive(Duration::from_secs(30)).await, Err(ConsoleError::Count(0))));
            assert!(matches!(socket.receive(Duration::from_millis(10)).await, Err(ConsoleError::Timeout)));
        });
    }
}
