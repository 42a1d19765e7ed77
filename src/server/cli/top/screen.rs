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
        output::print(ENTER)?;
        Ok(Some(screen))
    }

    /// How much it shows.
    pub(super) fn room(&self) -> Room {
        let size = tcgetwinsize(io::stdout()).ok();
        let of = |count: Option<u16>, least: usize, otherwise: usize| {
            count.map_or(otherwise, usize::from).max(least)
        };
        Room {
            columns: of(size.map(|it| it.ws_col), 40, 80),
            rows: Some(of(size.map(|it| it.ws_row), 10, 24)),
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
        output::print(&text)
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
