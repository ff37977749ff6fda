use std::io::{Read as _, Write as _};

use super::*;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn fifo(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn output_waits_for_its_reader_and_ends_with_the_container() {
    let dir = std::env::temp_dir().join(format!("pintle-stdio-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = fifo(&dir, "out");
    let reading = path.clone();
    let client = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        let mut text = Vec::new();
        File::open(reading).unwrap().read_to_end(&mut text).unwrap();
        text
    });
    runtime().block_on(async {
        let sink = open_output(&path).await.unwrap();
        let (reader, writer) = pipe_pair().unwrap();
        let logger = Logger::open(&dir.join("no-log"), false, "n", "c");
        let stdio = Arc::new(Stdio::new(Lost::new("c", logger)));
        stdio.pump_output(Source::Pipe(pipe::Receiver::from_owned_fd(reader).unwrap()), sink);
        let container = std::thread::spawn(move || {
            let mut container = File::from(writer);
            container.write_all(&vec![b'x'; 300_000]).unwrap();
        });
        assert!(stdio.drained(Duration::from_secs(30), Duration::from_secs(60)).await);
        container.join().unwrap();
    });
    assert_eq!(client.join().unwrap().len(), 300_000);
    std::fs::remove_dir_all(dir).unwrap();
}

/// Clients throw away what they have not read when they are told of an end.
#[test]
fn an_end_is_held_back_until_a_slow_client_has_taken_all() {
    let dir = std::env::temp_dir().join(format!("pintle-settle-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = fifo(&dir, "out");
    let opening = path.clone();
    let client = std::thread::spawn(move || File::open(opening).unwrap());
    runtime().block_on(async {
        let sink = open_output(&path).await.unwrap();
        let mut client = client.join().unwrap();
        let look = client.try_clone().unwrap();
        let (reader, writer) = pipe_pair().unwrap();
        let logger = Logger::open(&dir.join("no-log"), false, "n", "c");
        let stdio = Arc::new(Stdio::new(Lost::new("c", logger)));
        stdio.pump_output(Source::Pipe(pipe::Receiver::from_owned_fd(reader).unwrap()), sink);
        // More than the FIFO holds, and no more than it, we and the container's pipe do.
        let container = std::thread::spawn(move || {
            File::from(writer).write_all(&[b'x'; 150_000]).unwrap();
        });
        let written = async {
            while !container.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), written).await.unwrap();
        let slow = std::thread::spawn(move || {
            let (mut all, mut piece) = (0, vec![0; 20_000]);
            loop {
                // Longer than the pause after which output counts as held open.
                std::thread::sleep(Duration::from_millis(30));
                match client.read(&mut piece).unwrap() {
                    0 => return all,
                    n => all += n,
                }
            }
        });
        assert!(stdio.settled(Duration::from_millis(10), Duration::from_secs(60)).await);
        assert_eq!(pintle_sys::bytes::unread(look.as_fd()), 0);
        drop(look);
        assert_eq!(slow.join().unwrap(), 150_000);
    });
    std::fs::remove_dir_all(dir).unwrap();
}

/// Where nobody reads, an end waits for nothing but output that moves.
#[test]
fn an_end_does_not_wait_for_a_fifo_that_nobody_reads() {
    let dir = std::env::temp_dir().join(format!("pintle-unread-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = fifo(&dir, "out");
    let opening = path.clone();
    let client = std::thread::spawn(move || File::open(opening).unwrap());
    runtime().block_on(async {
        let sink = open_output(&path).await.unwrap();
        drop(client.join().unwrap());
        let (reader, writer) = pipe_pair().unwrap();
        let logger = Logger::open(&dir.join("no-log"), false, "n", "c");
        let stdio = Arc::new(Stdio::new(Lost::new("c", logger)));
        stdio.pump_output(Source::Pipe(pipe::Receiver::from_owned_fd(reader).unwrap()), sink);
        File::from(writer).write_all(&[b'x'; 1000]).unwrap();
        let long = Duration::from_secs(3600);
        let settled = tokio::time::timeout(Duration::from_secs(60), stdio.settled(long, long)).await;
        assert!(settled.unwrap());
        stdio.close();
    });
    std::fs::remove_dir_all(dir).unwrap();
}
