//! What the engine reports goes the way of the door's own messages.

use std::fmt::{Debug, Write as _};
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::diag::Diag;

/// Tells events as messages; spans mean nothing here.
struct ToDiag(Arc<Diag>);

/// Makes `diag` hear what the engine reports, for the rest of the process.
pub(super) fn install(diag: &Arc<Diag>) {
    // Fails only where it was done before.
    let _ = tracing::subscriber::set_global_default(ToDiag(Arc::clone(diag)));
}

/// The text of an event: its message, then its other fields.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let space = if self.0.is_empty() { "" } else { " " };
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{space}{value:?}"),
            name => write!(self.0, "{space}{name}={value:?}"),
        };
    }
}

impl Subscriber for ToDiag {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries talk a lot below this level.
        metadata.is_event() && *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        match *event.metadata().level() {
            Level::ERROR => self.0.error(&text.0),
            Level::WARN => self.0.warn(&text.0),
            _ => self.0.info(&text.0),
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
