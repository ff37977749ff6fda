//! Stopping, by the cases of the original's tests with a real container instead of a mock.

use std::time::{Duration, Instant};

use pintle_client::oci::{Container, Status, StopWait};
use pintle_tests::{Bundle, wait_for_async};

use crate::Place;

/// Says `up` and then ignores SIGTERM.
fn stubborn() -> Bundle {
    Bundle::sh("trap '' TERM; echo up; while :; do sleep 0.05; done")
}

async fn stubborn_one(place: &Place) -> Container {
    let container = place.running(&stubborn()).await;
    place.logged(&container, "up").await;
    container
}

async fn stopping(container: &Container) {
    wait_for_async("the stop to begin", async || {
        let state = container.monitor().unwrap().state().await.map_err(|e| e.to_string())?;
        if state.stopping { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
}

fn stop(place: &Place, container: &Container, timeout: Duration) -> tokio::task::JoinHandle<Duration> {
    let (runtime, container) = (place.runtime.clone(), container.clone());
    tokio::spawn(async move {
        let begin = Instant::now();
        runtime.stop_container(&container, timeout).await.unwrap();
        begin.elapsed()
    })
}

const LONG: Duration = Duration::from_secs(100_000);

#[tokio::test]
async fn a_process_that_reacts_ends_before_the_timeout() {
    let place = Place::new("stopgood");
    let script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let container = place.running(&Bundle::sh(script)).await;
    place.logged(&container, "up").await;
    stop(&place, &container, LONG).await.unwrap();
    let state = container.state();
    assert_eq!((state.status, state.exit_code), (Status::Stopped, Some(0)));
    assert!(!state.finished.is_zero());
    place.runtime.stop_container(&container, LONG).await.expect("it has stopped already");
    assert!(container.check_stoppable().unwrap_err().is_stopped());
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn a_process_that_ignores_the_signal_is_killed() {
    let place = Place::new("stopbad");
    let container = stubborn_one(&place).await;
    let took = stop(&place, &container, Duration::from_secs(1)).await.unwrap();
    assert!(took >= Duration::from_millis(900), "{took:?}");
    assert_eq!(container.state().exit_code, Some(137));
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn the_stop_signal_of_the_image_is_used() {
    let place = Place::new("stopsig");
    let script = "trap 'exit 11' USR2; echo up; while :; do sleep 0.05; done";
    let container = place.container(&Bundle::sh(script), |b| b.stop_signal("SIGUSR2"));
    place.runtime.create_container(&container, "", false).await.unwrap();
    place.runtime.start_container(&container).await.unwrap();
    place.logged(&container, "up").await;
    stop(&place, &container, LONG).await.unwrap();
    assert_eq!(container.state().exit_code, Some(11));
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn a_second_stop_shortens_the_first() {
    let place = Place::new("stopshort");
    let container = stubborn_one(&place).await;
    let first = stop(&place, &container, LONG);
    stopping(&container).await;
    let second = stop(&place, &container, Duration::from_secs(1));
    first.await.unwrap();
    second.await.unwrap();
    assert_eq!(container.state().exit_code, Some(137));
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn a_longer_timeout_is_ignored() {
    let place = Place::new("stoplong");
    let container = stubborn_one(&place).await;
    let first = stop(&place, &container, Duration::from_secs(2));
    stopping(&container).await;
    let second = stop(&place, &container, LONG);
    first.await.unwrap();
    second.await.unwrap();
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn many_waiters_and_a_short_one() {
    let place = Place::new("stopmany");
    let container = stubborn_one(&place).await;
    let leader = stop(&place, &container, LONG);
    stopping(&container).await;
    let waiters: Vec<_> = (0..10)
        .map(|i| {
            let container = container.clone();
            let timeout = LONG / 2 - Duration::from_secs(i * 777);
            tokio::spawn(async move { container.wait_on_stop(timeout, None).await })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(container.wait_on_stop(Duration::from_secs(1), None).await, StopWait::Stopped);
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), StopWait::Stopped);
    }
    leader.await.unwrap();
    assert_eq!(container.state().exit_code, Some(137));
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn a_waiter_that_gives_up_is_told_so_and_the_stop_goes_on() {
    let place = Place::new("stopgive");
    let container = stubborn_one(&place).await;
    let patience = Some(Duration::from_millis(50));
    assert_eq!(container.wait_on_stop(LONG, patience).await, StopWait::NotStopping);
    place.runtime.is_container_alive(&container).await.expect("waiting stops nothing");
    // The caller of the stop goes away; the shim does not.
    let given_up = tokio::time::timeout(
        Duration::from_millis(300),
        place.runtime.stop_container(&container, Duration::from_secs(2)),
    );
    assert!(given_up.await.is_err());
    assert_eq!(container.wait_on_stop(LONG, patience).await, StopWait::GaveUp);
    place.ended(&container).await;
    assert_eq!(container.state().exit_code, Some(137));
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn a_paused_container_is_stopped() {
    let place = Place::new("stoppause");
    let container = place.running(&Bundle::sh("sleep 1000")).await;
    place.runtime.pause_container(&container).await.unwrap();
    place.runtime.update_container_status(&container).await.unwrap();
    stop(&place, &container, Duration::from_secs(1)).await.unwrap();
    assert_eq!(container.state().status, Status::Stopped);
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn a_process_that_is_dead_already_ends_the_stop_early() {
    let place = Place::new("stopdead");
    let container = place.running(&Bundle::sh("exit 6")).await;
    wait_for_async("the process to end", async || {
        if container.living().await.is_err() { Ok(()) } else { Err("it lives") }
    })
    .await;
    stop(&place, &container, LONG).await.unwrap();
    assert!(!container.state().finished.is_zero());
    place.ended(&container).await;
    assert_eq!(container.state().exit_code, Some(6));
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn helpers_are_ended_with_the_container() {
    let place = Place::new("stophelp");
    let container = stubborn_one(&place).await;
    let mut helper = tokio::process::Command::new("sleep").arg("1000").spawn().unwrap();
    container.add_exec_pid(helper.id().unwrap() as i32, true).unwrap();
    stop(&place, &container, Duration::ZERO).await.unwrap();
    assert!(!helper.wait().await.unwrap().success());
    assert!(container.add_exec_pid(1, true).is_err());
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}
