//! Log formats with real containers: Docker's json-file, and the two ways to end a CRI log.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pintle_client::Exit;
use pintle_tests::{Bundle, Container, Native, eventually, read_cri, rejoin, scaled, shim, wait_for_async};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

const SOON: Duration = Duration::from_secs(60);

async fn wait(c: &Container) -> Exit {
    c.monitor.wait(Some(SOON)).await.unwrap_or_else(|e| panic!("wait for {}: {e:?}", c.id))
}

/// The output of one stream, read by a JSON parser from all files of the log, oldest first. Each line of each file must
/// be one object with Docker's three keys in their order.
fn docker_reads(log: &Path, stream: &str) -> String {
    let old = (1..100).rev().map(|n| log.with_extension(n.to_string())).filter(|p| p.exists());
    let mut text = String::new();
    for file in old.chain([log.to_path_buf()]) {
        for line in fs::read_to_string(&file).expect("the log").lines() {
            let record: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
            assert!(line.starts_with("{\"log\":\""), "{line}");
            let time = record["time"].as_str().expect("a time");
            assert!(
                line.ends_with(&format!("\",\"stream\":{},\"time\":\"{time}\"}}", record["stream"])),
                "{line}"
            );
            assert!(time.ends_with('Z') && !time.ends_with("0Z") && time.len() <= 30, "{line}");
            if record["stream"] == stream {
                text.push_str(record["log"].as_str().expect("a text"));
            }
        }
    }
    text
}

/// Both streams, escapes, what is not UTF-8, a line longer than a record, an end without a line feed.
#[tokio::test]
async fn json_file_is_dockers() {
    let place = Native::new("json");
    let script = "printf 'a <b> & \"c\" \\\\ \\t\\r\\n'; printf 'err \\377\\n' >&2; \
        head -c 40000 /dev/zero | tr '\\0' x; echo; printf 'no end'; exit 4";
    let c = place.start_with(&Bundle::sh(script), |o| o.logs[0].driver = "json-file".into()).await;
    let exit = wait(&c).await;
    assert_eq!(exit.status, 4, "{exit:?}");
    let raw = fs::read_to_string(&c.log).unwrap();
    let begins = "{\"log\":\"a \\u003cb\\u003e \\u0026 \\\"c\\\" \\\\ \\u0009\\r\\n\",\"stream\":\"stdout\",\"time\":\"20";
    assert!(raw.contains(begins), "{raw}");
    assert!(raw.contains("{\"log\":\"err \\ufffd\\n\",\"stream\":\"stderr\","), "{raw}");
    let lengths: Vec<usize> = raw
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap()["log"].as_str().unwrap().to_owned())
        .filter(|l| l.starts_with('x'))
        .map(|l| l.len())
        .collect();
    assert_eq!(lengths, [16384, 16384, 40001 - 2 * 16384]);
    let want = format!("a <b> & \"c\" \\ \t\r\n{}\nno end", "x".repeat(40000));
    assert_eq!(docker_reads(&c.log, "stdout"), want);
    c.delete().await;
}

/// Rotation, and an upgrade in the middle of a line.
#[tokio::test]
async fn json_file_is_whole_over_rotation_and_upgrade() {
    let place = Native::new("jsonrot");
    let lines = scaled(20_000, 500_000);
    let script = format!(
        "read go; printf half; read go; i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); done"
    );
    let c = place
        .start_with(&Bundle::sh(&script), |o| {
            o.stdin = true;
            o.logs[0].driver = "json-file".into();
            o.logs[0].max_size = (lines * 90 / 20) as u64;
            o.logs[0].max_files = 60;
        })
        .await;
    let mut feeder = c.monitor.attach(true).await.unwrap().stdio;
    feeder.stdin.write_all(b"go\n").await.unwrap();
    wait_for_async("half a line to be read", async || {
        let read = c.state().await.io.stdout_bytes;
        if read == 4 { Ok(()) } else { Err(read) }
    })
    .await;
    c.monitor.upgrade(Some(&shim())).await.unwrap();
    feeder.stdin.write_all(b"go\n").await.unwrap();
    let exit = wait(&c).await;
    assert_eq!(exit.status, 0, "{exit:?}");
    let mut want = String::from("half");
    for n in 0..lines {
        want.push_str(&format!("line {n}\n"));
    }
    assert!(docker_reads(&c.log, "stdout") == want, "the log differs");
    assert!(c.log.with_extension("5").exists(), "it was rotated");
    c.delete().await;
}

/// A reader that waits for the end of a line gets one where that was asked for, and conmon's log otherwise.
#[tokio::test]
async fn the_last_line_ends_by_the_policy() {
    let place = Native::new("tail");
    for close in [false, true] {
        let c = place
            .start_with(&Bundle::sh("printf 'a\\nb'; printf c >&2"), |o| o.logs[0].close_partial = close)
            .await;
        wait(&c).await;
        let records = eventually("a log", || {
            let records = read_cri(&c.log);
            if records.len() >= 3 { Ok(records) } else { Err(records.len()) }
        });
        let tags = |stream: &str| -> String {
            records.iter().filter(|r| r.stream == stream).map(|r| if r.partial { 'P' } else { 'F' }).collect()
        };
        let (out, err) = if close { ("FPF", "PF") } else { ("FP", "P") };
        assert_eq!((tags("stdout").as_str(), tags("stderr").as_str()), (out, err));
        let end = if close { "\n" } else { "" };
        assert_eq!(rejoin(&records, "stdout"), format!("a\nb{end}").into_bytes());
        c.delete().await;
    }
}
