//! A program with a terminal of its own, driven like a user would.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};

use nix::pty::{Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};

use crate::wait::{eventually, wait_exit};

/// A child with a controlling terminal.
#[derive(Debug)]
pub struct PtyChild {
    child: Child,
    master: File,
    /// Held open, so that the terminal's settings can be read after the child's end.
    slave: OwnedFd,
    output: Arc<Mutex<Vec<u8>>>,
}

impl PtyChild {
    /// Starts the command with a terminal of this size as standard input, output and error.
    ///
    /// # Panics
    /// When there is no terminal to be had or the command does not start.
    pub fn spawn(command: &mut Command, rows: u16, cols: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).expect("open a terminal");
        let dup = || pty.slave.try_clone().expect("duplicate a terminal");
        for fd in [&pty.master, &pty.slave] {
            let flag = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
            nix::fcntl::fcntl(fd, flag).expect("set close-on-exec");
        }
        command.stdin(dup()).stdout(dup()).stderr(dup());
        // SAFETY: setsid and ioctl are async-signal-safe and touch no memory of the parent.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap_or_else(|e| panic!("run {command:?}: {e}"));
        // The command keeps our copies of the terminal until it is dropped or changed.
        command.stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::null());
        let output = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&output);
        let master = File::from(pty.master);
        let mut reader = master.try_clone().expect("duplicate a terminal");
        std::thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(n) = reader.read(&mut buf) {
                if n == 0 {
                    return;
                }
                sink.lock().expect("output").extend_from_slice(&buf[..n]);
            }
        });
        Self { child, master, slave: pty.slave, output }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types these bytes.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.master.write_all(bytes.as_ref()).expect("type");
    }

    /// All that was printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().expect("output")).into_owned()
    }

    /// Waits until this text was printed.
    ///
    /// # Panics
    /// When it does not come.
    #[track_caller]
    pub fn expect(&self, text: &str) {
        eventually(&format!("{text:?} on the terminal"), || {
            let out = self.output();
            if out.contains(text) { Ok(()) } else { Err(format!("so far: {out:?}")) }
        });
    }

    /// Gives the terminal another size; the child gets SIGWINCH.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn resize(&self, rows: u16, cols: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open and the kernel only reads the structure.
        let rc = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(rc, 0, "set the size of a terminal");
    }

    /// The settings of the terminal, which tell raw from cooked.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn termios(&self) -> Termios {
        tcgetattr(&self.slave).expect("settings of a terminal")
    }

    /// Waits for the child's end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait_exit(&mut self.child)
    }
}

impl Drop for PtyChild {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
