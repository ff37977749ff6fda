//! The journald driver: one datagram per line, in the native protocol.

use super::{Chunk, LogError, LogSink, LossCause, Losses, SinkState, mismatch};
use pintle_core::journal::{JournalConfig, JournalEncoder};
use pintle_core::line::{LineAssembler, Stream};
use pintle_core::wall::WallTime;
use pintle_sys::datagram::DatagramSender;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where journald listens.
pub const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// How long a full journal may hold the container up, once until it takes records again.
const PATIENCE: Duration = Duration::from_millis(500);

/// Sends lines to journald.
#[derive(Debug)]
pub struct JournaldSink {
    config: JournalConfig,
    path: PathBuf,
    encoder: JournalEncoder,
    sender: DatagramSender,
    lines: [LineAssembler; 2],
    patient: bool,
}

impl JournaldSink {
    /// A sink for the journal at `socket` (normally [`JOURNAL_SOCKET`]), which need not be there: records are lost
    /// while it is not, and counted.
    ///
    /// # Errors
    /// [`LogError::Journal`] if no socket can be made.
    pub fn new(config: JournalConfig, socket: &Path) -> Result<Self, LogError> {
        let sender = DatagramSender::new(socket).map_err(LogError::Journal)?;
        let encoder = JournalEncoder::new(&config);
        let lines = [LineAssembler::new(), LineAssembler::new()];
        Ok(Self { config, path: socket.to_owned(), encoder, sender, lines, patient: true })
    }

    pub(super) fn thaw(state: SinkState) -> io::Result<Self> {
        let SinkState::Journald { socket, id, name, tag, labels, no_partial_marker, priority_prefix, held } =
            state
        else {
            return Err(mismatch());
        };
        let config = JournalConfig { id, name, tag, labels, no_partial_marker, priority_prefix };
        let mut sink = Self::new(config, &socket).map_err(io::Error::other)?;
        sink.lines = held.map(LineAssembler::with_held);
        Ok(sink)
    }
}

/// One record on its way.
struct Outgoing<'a> {
    encoder: &'a JournalEncoder,
    sender: &'a DatagramSender,
    patient: &'a mut bool,
    scratch: &'a mut Vec<u8>,
    losses: &'a mut Losses,
}

impl Outgoing<'_> {
    fn send(&mut self, stream: Stream, line: &[u8], complete: bool, fresh: bool) {
        self.scratch.clear();
        self.encoder.encode(self.scratch, stream, line, complete, fresh);
        let patience = if *self.patient { PATIENCE } else { Duration::ZERO };
        match self.sender.send(self.scratch, patience) {
            Ok(()) => *self.patient = true,
            Err(error) => {
                // Having waited in vain once is enough until it reads again.
                *self.patient = false;
                self.losses.add(LossCause::of(&error), line.len() as u64);
            }
        }
    }
}

impl LogSink for JournaldSink {
    fn driver(&self) -> &'static str {
        "journald"
    }

    fn write(&mut self, chunk: &Chunk<'_>, scratch: &mut Vec<u8>, losses: &mut Losses) {
        let Self { encoder, sender, lines, patient, .. } = self;
        let mut out = Outgoing { encoder, sender, patient, scratch, losses };
        let [stdout, stderr] = lines;
        let lines = if chunk.stream == Stream::Stdout { stdout } else { stderr };
        lines.push(chunk.data, |line, complete, fresh| out.send(chunk.stream, line, complete, fresh));
    }

    fn end(&mut self, stream: Stream, _now: WallTime, scratch: &mut Vec<u8>, losses: &mut Losses) {
        let Self { encoder, sender, lines, patient, .. } = self;
        let mut out = Outgoing { encoder, sender, patient, scratch, losses };
        let [stdout, stderr] = lines;
        let lines = if stream == Stream::Stdout { stdout } else { stderr };
        lines.finish(|line, complete, fresh| out.send(stream, line, complete, fresh));
    }

    fn freeze(&self) -> io::Result<Option<(SinkState, Vec<OwnedFd>)>> {
        let [stdout, stderr] = &self.lines;
        let config = self.config.clone();
        let state = SinkState::Journald {
            socket: self.path.clone(),
            id: config.id,
            name: config.name,
            tag: config.tag,
            labels: config.labels,
            no_partial_marker: config.no_partial_marker,
            priority_prefix: config.priority_prefix,
            held: [stdout.held().to_vec(), stderr.held().to_vec()],
        };
        Ok(Some((state, Vec::new())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pintle_core::journal::fields;
    use std::os::unix::net::UnixDatagram;

    fn message(datagram: &[u8]) -> (String, bool) {
        let fields = fields(datagram).unwrap();
        let text = String::from_utf8_lossy(fields[0].1).into_owned();
        (text, fields.iter().any(|f| f.0 == b"CONTAINER_PARTIAL_MESSAGE"))
    }

    /// A journal that takes nothing holds the container up once; what it does not take is counted.
    #[test]
    fn a_journal_that_takes_nothing_is_waited_for_once() {
        let path = std::env::temp_dir().join(format!("pintle-full-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let _receiver = UnixDatagram::bind(&path).unwrap();
        let mut sink = JournaldSink::new(JournalConfig::default(), &path).unwrap();
        let (mut scratch, mut losses) = (Vec::new(), Losses::default());
        let chunk = Chunk { stream: Stream::Stdout, data: b"line\n", now: WallTime::default() };
        let mut last = std::time::Instant::now();
        while losses.total() == 0 {
            last = std::time::Instant::now();
            sink.write(&chunk, &mut scratch, &mut losses);
        }
        // poll(2) counts in milliseconds.
        assert!(last.elapsed() >= PATIENCE * 9 / 10, "{:?}", last.elapsed());
        assert!(!sink.patient);
        sink.write(&chunk, &mut scratch, &mut losses);
        assert_eq!(losses.iter().collect::<Vec<_>>(), [(LossCause::Errno(libc::EAGAIN), 10)]);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn lines_are_joined_and_flushed_at_the_end() {
        let path = std::env::temp_dir().join(format!("pintle-journal-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let config = JournalConfig { id: b"0123456789abcdef".to_vec(), ..JournalConfig::default() };
        let mut sink = JournaldSink::new(config, &path).unwrap();
        let (mut scratch, mut losses) = (Vec::new(), Losses::default());
        let mut put = |sink: &mut JournaldSink, losses: &mut Losses, data: &[u8]| {
            let chunk = Chunk { stream: Stream::Stdout, data, now: WallTime::default() };
            sink.write(&chunk, &mut scratch, losses);
        };
        put(&mut sink, &mut losses, b"gone\n");
        assert_eq!(losses.iter().collect::<Vec<_>>(), [(LossCause::Errno(libc::ENOENT), 5)]);
        let receiver = UnixDatagram::bind(&path).unwrap();
        put(&mut sink, &mut losses, b"he");
        put(&mut sink, &mut losses, b"llo\nrest");
        let (state, fds) = sink.freeze().unwrap().unwrap();
        let mut sink = super::super::thaw(state, fds).unwrap();
        sink.end(Stream::Stdout, WallTime::default(), &mut Vec::new(), &mut losses);
        let mut buf = [0; 4096];
        let n = receiver.recv(&mut buf).unwrap();
        assert_eq!(message(&buf[..n]), ("hello\n".to_owned(), false));
        let n = receiver.recv(&mut buf).unwrap();
        assert_eq!(message(&buf[..n]), ("rest".to_owned(), true));
        assert_eq!(losses.total(), 5);
        std::fs::remove_file(path).unwrap();
    }
}
