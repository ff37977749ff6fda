//! The Runtime API that CRI-O's `oci` package offers, over pintle shims.
//!
//! `docs/runtime-api.md` maps every item of that package to its counterpart here.

mod error;
pub mod fs;
pub mod process;
mod state;
mod time;

pub use error::{Error, Result};
pub use state::{ContainerState, Status};
pub use time::{ParseTimestampError, Timestamp};
