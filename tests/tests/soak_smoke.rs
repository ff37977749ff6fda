//! A short soak: random lives with random faults hold what the model says, and each can be repeated.

use std::time::Duration;

use pintle_tests::full;
use pintle_tests::soak::{Abilities, Config, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_lives_hold_what_is_promised() {
    // Always the same lives, so that a failure is not a matter of luck; `cargo xtask soak` draws new ones.
    let config = Config {
        seed: 20_261_127,
        life: None,
        time: Duration::from_secs(if full() { 1200 } else { 12 }),
        jobs: 4,
        verbose: false,
    };
    let report =
        run(config, Abilities { adopt: true, upgrade: true, conmon: true }).await.expect("a place to run in");
    assert!(report.violations.is_empty(), "{report}\n{:#?}", report.violations);
    assert_eq!(report.injected, report.reported, "{report}");
    assert!(report.containers > 0);
}
