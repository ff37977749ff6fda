//! The native protocol for containers of this door.

use std::path::PathBuf;
use std::sync::Arc;

use super::container::Shared;

/// The native sockets, if they are served.
pub(super) struct Native {
    dir: Option<PathBuf>,
}

impl Native {
    pub(super) async fn open(_shared: &Arc<Shared>, _id: &str) -> Self {
        Self { dir: None }
    }

    pub(super) fn dir(&self) -> Option<PathBuf> {
        self.dir.clone()
    }

    pub(super) fn close(&self) {}
}
