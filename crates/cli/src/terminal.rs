//! The user's terminal: raw mode that is undone on every way out, its size, and whether it has colours.

use std::io::IsTerminal;
use std::sync::Mutex;

use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The settings before raw mode, while it lasts.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Whether standard input is a terminal.
pub(crate) fn is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Columns and rows of the terminal.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdin()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Puts the terminal of standard input into raw mode; without one it does nothing.
pub(crate) fn raw() -> std::io::Result<()> {
    let Ok(mut saved) = SAVED.lock() else { return Ok(()) };
    if saved.is_some() || !is_terminal() {
        return Ok(());
    }
    let before = tcgetattr(stdin())?;
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(stdin(), OptionalActions::Now, &raw)?;
    *saved = Some(before);
    Ok(())
}

/// Undoes raw mode.
pub(crate) fn restore() {
    let Ok(mut saved) = SAVED.lock() else { return };
    if let Some(before) = saved.take() {
        // Output that is still on its way is shown in the mode it was written for.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &before);
    }
}

/// Makes a panic leave a usable terminal.
pub(crate) fn restore_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        default(info);
    }));
}

/// Whether to print colours: on a terminal, unless `NO_COLOR` is set.
pub(crate) fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}
