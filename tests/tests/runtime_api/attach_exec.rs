//! Execs and attaches with their streams.

use std::time::Duration;

use pintle_client::oci::{Container, Error, Streams, TerminalSize};
use pintle_tests::{Bundle, wait_for_async};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::Place;

fn command(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).into()
}

/// Collects what is written to the stream that it gives.
fn collector() -> (DuplexStream, JoinHandle<Vec<u8>>) {
    let (write, mut read) = tokio::io::duplex(64 * 1024);
    let task = tokio::spawn(async move {
        let mut all = Vec::new();
        let _ = read.read_to_end(&mut all).await;
        all
    });
    (write, task)
}

#[tokio::test]
async fn exec_sync_output_and_codes() {
    let place = Place::new("sync");
    let c = place.running(&Bundle::sh("sleep 1000")).await;
    let run = async |script: &str| {
        place.runtime.exec_sync_container(&c, &command(script), Duration::ZERO).await.unwrap().unwrap()
    };
    let out = run("echo out; echo err >&2; exit 3").await;
    assert_eq!(
        (out.stdout.as_slice(), out.stderr.as_slice(), out.exit_code),
        (&b"out\n"[..], &b"err\n"[..], 3)
    );
    assert_eq!(run("kill -9 $$").await.exit_code, 137);
    let out = run("printf 'no newline'; printf %s \"$HOME\"").await;
    assert_eq!(out.stdout, b"no newline/");
    let error = place.runtime.exec_sync_container(&c, &["/none".into()], Duration::ZERO).await.unwrap_err();
    let Error::ExecSync(error) = error else { panic!("{error}") };
    assert_eq!(error.exit_code, -1);
    assert!(error.to_string().starts_with("command error: "), "{error}");
    assert!(error.to_string().contains("/none"), "{error}");
    assert!(std::error::Error::source(&*error).is_some());
    place.runtime.delete_container(&c).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn exec_sync_timeout_is_a_response() {
    let place = Place::new("syncto");
    let c = place.running(&Bundle::sh("sleep 1000")).await;
    let slow = command("echo early; sleep 1000");
    let out = place.runtime.exec_sync_container(&c, &slow, Duration::from_secs(1)).await.unwrap().unwrap();
    assert_eq!((out.exit_code, out.stderr.as_slice()), (-1, &b"command timed out"[..]));
    assert_eq!(out.stdout, b"early\n", "what was written is kept");
    place.runtime.delete_container(&c).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn exec_sync_keeps_the_first_16_mib() {
    let place = Place::new("synclim");
    let c = place.running(&Bundle::sh("sleep 1000")).await;
    let big = command("head -c 17825792 /dev/zero; echo done >&2");
    let out = place.runtime.exec_sync_container(&c, &big, Duration::ZERO).await.unwrap().unwrap();
    assert_eq!(out.exit_code, 0, "the command is not disturbed");
    assert!(out.truncated);
    assert_eq!(out.stdout.len() + out.stderr.len(), 16 << 20);
    let fits = command("head -c 5000000 /dev/zero");
    let out = place.runtime.exec_sync_container(&c, &fits, Duration::ZERO).await.unwrap().unwrap();
    assert_eq!((out.stdout.len(), out.truncated), (5_000_000, false));
    place.runtime.delete_container(&c).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn exec_with_streams() {
    let place = Place::new("exec");
    let c = place.running(&Bundle::sh("sleep 1000")).await;
    let ((stdout, out), (stderr, err)) = (collector(), collector());
    let (mut feed, stdin) = tokio::io::duplex(64);
    let streams = Streams {
        stdin: Some(Box::new(stdin)),
        stdout: Some(Box::new(stdout)),
        stderr: Some(Box::new(stderr)),
        ..Default::default()
    };
    let feeder = tokio::spawn(async move {
        feed.write_all(b"some input").await.unwrap();
        feed.shutdown().await.unwrap();
    });
    let code =
        place.runtime.exec_container(&c, &command("cat; echo err >&2; exit 9"), streams).await.unwrap();
    feeder.await.unwrap();
    assert_eq!(
        (code, out.await.unwrap(), err.await.unwrap()),
        (9, b"some input".to_vec(), b"err\n".to_vec())
    );
    let code = place.runtime.exec_container(&c, &command("kill -15 $$"), Streams::default()).await.unwrap();
    assert_eq!(code, 143);
    let error = place.runtime.exec_container(&c, &["/none".into()], Streams::default()).await.unwrap_err();
    assert!(error.to_string().contains("/none"), "{error}");
    place.runtime.delete_container(&c).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn exec_with_a_terminal_and_sizes() {
    let place = Place::new("exectty");
    let c = place.running(&Bundle::sh("sleep 1000")).await;
    let (stdout, out) = collector();
    let (sizes, resize) = mpsc::channel(4);
    sizes.send(TerminalSize { width: 0, height: 5 }).await.unwrap();
    sizes.send(TerminalSize { width: 132, height: 43 }).await.unwrap();
    let streams = Streams {
        stdout: Some(Box::new(stdout)),
        terminal: true,
        resize: Some(resize),
        ..Default::default()
    };
    let script = "until stty size | grep -q '43 132'; do sleep 0.05; done; test -t 1 && echo tty";
    let code = place.runtime.exec_container(&c, &command(script), streams).await.unwrap();
    assert_eq!(code, 0);
    assert!(String::from_utf8(out.await.unwrap()).unwrap().contains("tty"));
    place.runtime.delete_container(&c).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn exec_ends_with_its_caller() {
    let place = Place::new("execdrop");
    let c = place.running(&Bundle::sh("sleep 1000")).await;
    let execs = async || c.monitor().unwrap().state().await.unwrap().execs;
    let cmd = command("sleep 1000");
    {
        let exec = place.runtime.exec_container(&c, &cmd, Streams::default());
        tokio::pin!(exec);
        // It shows while the shim starts it, before its caller has had an answer.
        let seen = wait_for_async("the exec to run", async || {
            if execs().await.iter().any(|e| e.exit.is_none()) { Ok(()) } else { Err("not yet") }
        });
        tokio::select! {
            code = &mut exec => panic!("it ended: {code:?}"),
            () = seen => {}
        }
    }
    wait_for_async("the exec to be gone", async || {
        let execs = execs().await;
        if execs.iter().all(|e| e.exit.is_some()) { Ok(()) } else { Err(format!("{execs:?}")) }
    })
    .await;
    place.runtime.delete_container(&c).await.unwrap();
    place.finish();
}

/// An attach under way: feeds stdin, gives what came out at its end.
struct Session {
    feed: DuplexStream,
    out: JoinHandle<Vec<u8>>,
    end: JoinHandle<Result<(), Error>>,
}

fn attach(place: &Place, container: &Container) -> Session {
    let (stdout, out) = collector();
    let (feed, stdin) = tokio::io::duplex(64);
    let streams =
        Streams { stdin: Some(Box::new(stdin)), stdout: Some(Box::new(stdout)), ..Default::default() };
    let (runtime, container) = (place.runtime.clone(), container.clone());
    let end = tokio::spawn(async move { runtime.attach_container(&container, streams).await });
    Session { feed, out, end }
}

async fn clients(container: &Container, n: u32) {
    wait_for_async("attach clients", async || {
        let state = container.monitor().unwrap().state().await.unwrap();
        if state.io.clients == n { Ok(()) } else { Err(state.io.clients) }
    })
    .await;
}

#[tokio::test]
async fn attach_with_stdin_once() {
    let place = Place::new("attonce");
    let c = place.container(&Bundle::sh("cat; echo end"), |b| b.stdin(true).stdin_once(true));
    place.runtime.create_container(&c, "", false).await.unwrap();
    let mut session = attach(&place, &c);
    clients(&c, 1).await;
    place.runtime.start_container(&c).await.unwrap();
    session.feed.write_all(b"hello\n").await.unwrap();
    session.feed.shutdown().await.unwrap();
    session.end.await.unwrap().unwrap();
    assert_eq!(session.out.await.unwrap(), b"hello\nend\n");
    place.ended(&c).await;
    assert_eq!(c.state().exit_code, Some(0));
    place.runtime.delete_container(&c).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn attach_sessions_share_a_stdin_that_stays_open() {
    let place = Place::new("attmany");
    let c = place.container(&Bundle::sh("cat"), |b| b.stdin(true));
    place.runtime.create_container(&c, "", false).await.unwrap();
    place.runtime.start_container(&c).await.unwrap();
    let mut first = attach(&place, &c);
    clients(&c, 1).await;
    first.feed.write_all(b"one\n").await.unwrap();
    place.logged(&c, "one").await;
    // The end of its input ends the session, not the container's stdin.
    first.feed.shutdown().await.unwrap();
    first.end.await.unwrap().unwrap();
    clients(&c, 0).await;
    let mut second = attach(&place, &c);
    clients(&c, 1).await;
    second.feed.write_all(b"two\n").await.unwrap();
    place.logged(&c, "two").await;
    // ctrl-p ctrl-q in reads of their own.
    second.feed.write_all(&[16]).await.unwrap();
    second.feed.write_all(&[17]).await.unwrap();
    second.end.await.unwrap().unwrap();
    assert_eq!(second.out.await.unwrap(), b"two\n", "no replay");
    clients(&c, 0).await;
    place.runtime.delete_container(&c).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn attach_to_output_alone_lasts_until_the_end() {
    let place = Place::new("attout");
    let c = place.container(&Bundle::sh("read x; echo \"got $x\"; exit 2"), |b| b.stdin(true));
    place.runtime.create_container(&c, "", false).await.unwrap();
    place.runtime.start_container(&c).await.unwrap();
    let (stdout, out) = collector();
    let streams = Streams { stdout: Some(Box::new(stdout)), ..Default::default() };
    let (runtime, watched) = (place.runtime.clone(), c.clone());
    let watcher = tokio::spawn(async move { runtime.attach_container(&watched, streams).await });
    clients(&c, 1).await;
    let mut feeder = attach(&place, &c);
    clients(&c, 2).await;
    feeder.feed.write_all(b"it\n").await.unwrap();
    watcher.await.unwrap().unwrap();
    assert_eq!(out.await.unwrap(), b"got it\n");
    place.ended(&c).await;
    assert_eq!(c.state().exit_code, Some(2));
    assert!(place.runtime.attach_container(&c, Streams::default()).await.is_err(), "it has ended");
    place.runtime.delete_container(&c).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn attach_to_a_terminal() {
    let place = Place::new("atttty");
    let script = "until stty size | grep -q '30 100'; do sleep 0.05; done; read x; echo \"got $x\"";
    let c = place.container(&Bundle::sh(script).terminal(), |b| b.stdin(true).terminal(true));
    place.runtime.create_container(&c, "", false).await.unwrap();
    let (stdout, out) = collector();
    let (mut feed, stdin) = tokio::io::duplex(64);
    let (sizes, resize) = mpsc::channel(4);
    let streams = Streams {
        stdin: Some(Box::new(stdin)),
        stdout: Some(Box::new(stdout)),
        terminal: true,
        resize: Some(resize),
        ..Default::default()
    };
    let (runtime, attached) = (place.runtime.clone(), c.clone());
    let session = tokio::spawn(async move { runtime.attach_container(&attached, streams).await });
    clients(&c, 1).await;
    place.runtime.start_container(&c).await.unwrap();
    sizes.send(TerminalSize { width: 100, height: 30 }).await.unwrap();
    feed.write_all(b"it\n").await.unwrap();
    session.await.unwrap().unwrap();
    let out = String::from_utf8(out.await.unwrap()).unwrap();
    assert!(out.contains("got it\r\n"), "{out:?}");
    place.ended(&c).await;
    place.runtime.delete_container(&c).await.unwrap();
    place.finish();
}
