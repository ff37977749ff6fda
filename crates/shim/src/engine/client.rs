//! One attach client: its connection and what is queued for it.

use super::attach::{AttachOptions, ClientId, Framing};
use super::stdin::Pending;
use bytes::Bytes;
use pintle_core::attach::{KIND_CONTROL, MAX_OUTPUT};
use pintle_core::queue::ClientQueue;
use pintle_sys::seqpacket;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

/// What a queued packet costs besides its bytes, so that many small ones stay within the budget, too.
pub(super) const OVERHEAD: u64 = 64;

/// One connection.
pub(super) struct Client {
    pub(super) id: ClientId,
    pub(super) fd: Arc<AsyncFd<OwnedFd>>,
    pub(super) options: AttachOptions,
    pub(super) queue: ClientQueue,
    pub(super) packets: VecDeque<(u8, Bytes)>,
    /// A packet of stdin on its way.
    pub(super) input: Pending,
    /// It has ended its input.
    pub(super) input_over: bool,
    pub(super) reader: Option<AbortHandle>,
    pub(super) writer: Option<AbortHandle>,
    /// Nothing can be sent to it any more. What it has sent is still read, so that no input is lost and its end is seen.
    pub(super) gone: bool,
}

impl Client {
    pub(super) fn tasks(&self) -> impl Iterator<Item = AbortHandle> {
        self.reader.clone().into_iter().chain(self.writer.clone())
    }

    /// It may still feed the process.
    pub(super) fn may_feed(&self) -> bool {
        self.options.stdin && !self.input_over && self.reader.is_some()
    }

    fn lose(&mut self) {
        self.gone = true;
        self.packets = VecDeque::new();
        self.queue.pop(self.queue.queued());
    }

    /// Ends the connection now. Aborted tasks let go of the descriptor only when they run next; the peer need not wait
    /// for that.
    pub(super) fn hang_up(&self) {
        let _ = nix::sys::socket::shutdown(self.fd.get_ref().as_raw_fd(), nix::sys::socket::Shutdown::Both);
        self.tasks().for_each(|task| task.abort());
    }

    /// Sends or queues one run of bytes; `whole` shares the copy among clients.
    pub(super) fn push(&mut self, kind: u8, data: &[u8], whole: &mut Option<Bytes>) {
        let mut sent = 0;
        if self.packets.is_empty() {
            match seqpacket::send_chunk(self.fd.as_fd(), kind, data, MAX_OUTPUT) {
                Ok(n) => sent = n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.lose(),
            }
        }
        if sent < data.len() && !self.gone {
            let rest = whole.get_or_insert_with(|| Bytes::copy_from_slice(data)).slice(sent..);
            self.queue.push(rest.len() as u64 + OVERHEAD);
            self.packets.push_back((kind, rest));
        }
    }

    pub(super) fn push_control(&mut self, payload: &'static [u8]) {
        if self.options.framing == Framing::Native {
            self.push(KIND_CONTROL, payload, &mut Some(Bytes::from_static(payload)));
        }
    }

    /// Sends what it can of the queue; true if nothing is left.
    pub(super) fn send_queued(&mut self) -> bool {
        while let Some((kind, bytes)) = self.packets.front_mut() {
            match seqpacket::send_chunk(self.fd.as_fd(), *kind, bytes, MAX_OUTPUT) {
                Ok(n) => {
                    let _ = bytes.split_to(n);
                    self.queue.pop(n as u64);
                    if bytes.is_empty() {
                        self.queue.pop(OVERHEAD);
                        self.packets.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => {
                    self.lose();
                    return true;
                }
            }
        }
        if self.packets.capacity() > 64 {
            self.packets = VecDeque::new();
        }
        true
    }
}
