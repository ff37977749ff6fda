//! `soak [--minutes N | --seconds N] [--seed S] [--life K] [--jobs J] [--verbose]`: see `pintle_tests::soak`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use pintle_tests::soak::{Abilities, Config, run};

fn config() -> Result<(Config, Option<Abilities>), String> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut config = Config {
        seed: u64::from(clock.subsec_nanos()) ^ clock.as_secs(),
        life: None,
        time: Duration::from_secs(60),
        jobs: 4,
        verbose: false,
    };
    let mut abilities = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || -> Result<f64, String> {
            let value = args.next().ok_or(format!("{arg} needs a number"))?;
            value.parse().map_err(|e| format!("{arg} {value}: {e}"))
        };
        match arg.as_str() {
            "--minutes" => config.time = Duration::from_secs_f64(number()? * 60.0),
            "--seconds" => config.time = Duration::from_secs_f64(number()?),
            "--jobs" => config.jobs = number()? as usize,
            "--life" => config.life = Some(number()? as u64),
            "--seed" => {
                let value = args.next().ok_or("--seed needs a number")?;
                config.seed = value.parse().map_err(|e| format!("--seed {value}: {e}"))?;
            }
            "--verbose" => config.verbose = true,
            "--plain" => abilities = Some(Abilities::default()),
            _ => return Err(format!("unknown option {arg}")),
        }
    }
    Ok((config, abilities))
}

fn main() -> ExitCode {
    let (config, abilities) = match config() {
        Ok(both) => both,
        Err(e) => {
            eprintln!("soak: {e}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("start a runtime");
    let abilities = abilities.unwrap_or(Abilities { adopt: true, upgrade: true, conmon: true });
    println!("seed {}", config.seed);
    let began = Instant::now();
    match runtime.block_on(run(config, abilities)) {
        Ok(report) => {
            println!("{report}\ntime              {:>12.1} s", began.elapsed().as_secs_f64());
            if report.violations.is_empty() && report.injected == report.reported {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(e) => {
            eprintln!("soak: {e:#}");
            ExitCode::FAILURE
        }
    }
}
