//! Taking over a container whose shim was lost (docs/adr/0004-crash-adoption.md).

use super::container::Container;
use super::failure::Failure;
use super::reap::Reaper;
use std::path::Path;
use std::sync::Arc;

/// Takes over the container of a state directory.
///
/// # Errors
/// If the directory holds no state this version understands.
pub async fn adopt(id: &str, dir: &Path, reaper: Reaper) -> Result<Arc<Container>, Failure> {
    let state = super::persist::load(dir).map_err(|e| Failure::file("read state of", dir, &e))?;
    Ok(Container::new(id, dir, "native", reaper, state.last_event))
}
