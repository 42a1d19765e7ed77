//! The terminal: a page in place of the one before, and the key that ends it.

use std::io::{self, IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::page::Room;
use crate::cli::output;
use crate::error::Error;

/// The other screen, without a cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the corner; of each line the rest is cleared, and what is below the last.
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K";
const REST: &str = "\x1b[J";

/// A terminal that shows one page; dropped, it is as it was before.
pub(super) struct Screen {
    before: Option<Termios>,
}

impl Screen {
    /// `None` where standard output is no terminal.
    pub(super) fn open() -> Result<Option<Self>, Error> {
        if !io::stdout().is_terminal() {
            return Ok(None);
        }
        let before = match io::stdin().is_terminal() {
            true => quiet_keys(),
            false => None,
        };
        let screen = Self { before };
        output::print_bytes(ENTER.as_bytes())?;
        Ok(Some(screen))
    }

    /// How much it shows.
    pub(super) fn room(&self) -> Room {
        let size = tcgetwinsize(io::stdout()).ok();
        let (columns, rows) = shown(size.map(|it| (it.ws_col, it.ws_row)));
        Room {
            columns,
            rows: Some(rows),
            colours: std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty()),
        }
    }

    /// Shows a page in place of the last one.
    pub(super) fn show(&self, page: &str) -> Result<(), Error> {
        let mut text = String::from(HOME);
        for (index, line) in page.lines().enumerate() {
            // No line's end behind the last: it would scroll.
            text.push_str(if index == 0 { "" } else { "\r\n" });
            text.push_str(line);
            text.push_str(REST_OF_LINE);
        }
        text.push_str(REST);
        output::print_bytes(text.as_bytes())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no mending.
        let _ = io::stdout().write_all(LEAVE.as_bytes());
        let _ = io::stdout().flush();
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Columns and rows: what the terminal says, where it says something.
fn shown(said: Option<(u16, u16)>) -> (usize, usize) {
    let (columns, rows) = said.unwrap_or_default();
    let or = |count: u16, otherwise: usize| if count == 0 { otherwise } else { count.into() };
    (or(columns, 80), or(rows, 24))
}

/// Keys come at once and are not shown; returns how it was.
fn quiet_keys() -> Option<Termios> {
    let before = tcgetattr(io::stdin()).ok()?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
    tcsetattr(io::stdin(), OptionalActions::Now, &quiet).ok()?;
    Some(before)
}

/// What ends it: `q`, an interrupt, or being asked to end.
pub(super) struct Input {
    keys: Option<mpsc::Receiver<u8>>,
    interrupt: Signal,
    terminate: Signal,
}

impl Input {
    /// Begins to listen; to keys only where there is a `screen`.
    pub(super) fn listen(screen: bool) -> Result<Self, Error> {
        let on = |kind| signal(kind).map_err(|why| Error::io("cannot listen for signals", why));
        let keys = (screen && io::stdin().is_terminal()).then(|| {
            let (keys, pressed) = mpsc::channel(16);
            // It ends with the process: a read cannot be called off.
            std::thread::spawn(move || {
                let pressed = io::stdin().lock().bytes().map_while(Result::ok);
                pressed.take_while(|key| keys.blocking_send(*key).is_ok()).for_each(drop);
            });
            pressed
        });
        let (interrupt, terminate) = (SignalKind::interrupt(), SignalKind::terminate());
        Ok(Self { keys, interrupt: on(interrupt)?, terminate: on(terminate)? })
    }

    /// Returns when it is to end.
    pub(super) async fn quit(&mut self) {
        loop {
            let key = async {
                match &mut self.keys {
                    Some(keys) => keys.recv().await,
                    None => None,
                }
            };
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                Some(key) = key => if matches!(key, b'q' | b'Q' | 0x1b) { return },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_terminal_is_small_and_one_that_says_nothing_is_usual() {
        assert_eq!(shown(Some((20, 5))), (20, 5));
        assert_eq!(shown(Some((0, 0))), (80, 24));
        assert_eq!(shown(Some((132, 0))), (132, 24));
        assert_eq!(shown(None), (80, 24));
    }
}
