//! What a container prints, as log lines with its name: cut, and no more than can be read.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, BufReader};
use tokio::time::Instant;
use tracing::{info, warn};

/// Longer lines are cut.
const LINE_MAX: usize = 8 * 1024;
/// Lines that are written in a second; others are counted and left out.
const LINES_MAX: u64 = 200;
const SECOND: Duration = Duration::from_secs(1);

/// Of the last lines, so many are kept, each by so many of its bytes.
const WORDS_LINES: usize = 12;
const WORDS_BYTES: usize = 200;

/// The last lines that a container printed. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct LastWords(Arc<Mutex<VecDeque<String>>>);

impl LastWords {
    fn lines(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &[u8]) {
        let mut line = plain(line);
        line.truncate(line.floor_char_boundary(WORDS_BYTES));
        let mut lines = self.lines();
        if lines.len() == WORDS_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// All of them, a slash between each two.
    pub(super) fn text(&self) -> String {
        Vec::from(self.lines().clone()).join(" / ")
    }
}

/// Logs all lines of one pipe until its last writer is gone, and keeps the last of them.
pub(super) async fn pump(pipe: impl AsyncRead + Unpin, container: Arc<str>, words: LastWords) {
    let mut pipe = BufReader::with_capacity(LINE_MAX, pipe);
    let mut line = Vec::with_capacity(256);
    let mut window = Window::new(Instant::now());
    // A pipe that breaks has ended.
    while let Ok(true) = next_line(&mut pipe, &mut line).await {
        if !line.trim_ascii().is_empty() {
            words.add(&line);
        }
        let left_out = window.turn(Instant::now());
        if left_out > 0 {
            warn!(%container, lines = left_out, "container prints too much, lines left out");
        }
        if window.has_room() && !line.trim_ascii().is_empty() {
            info!(%container, line = plain(&line), "container says");
        }
    }
}

/// The next line, cut, without its end; `false` at the pipe's end.
async fn next_line(
    pipe: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
) -> std::io::Result<bool> {
    line.clear();
    let mut has_begun = false;
    loop {
        let read = pipe.fill_buf().await?;
        if read.is_empty() {
            return Ok(has_begun);
        }
        has_begun = true;
        let end = read.iter().position(|byte| *byte == b'\n');
        let piece = &read[..end.unwrap_or(read.len())];
        let room = LINE_MAX - line.len();
        line.extend_from_slice(&piece[..piece.len().min(room)]);
        let used = piece.len() + usize::from(end.is_some());
        pipe.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// Without what moves a terminal's cursor or colours what others say.
fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line.trim_ascii_end());
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// The lines of one second.
struct Window {
    began: Instant,
    lines: u64,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self { began: now, lines: 0 }
    }

    /// Begins anew where the second is over; how many lines were left out of it.
    fn turn(&mut self, now: Instant) -> u64 {
        if now.duration_since(self.began) < SECOND {
            return 0;
        }
        let left_out = self.lines.saturating_sub(LINES_MAX);
        *self = Self::new(now);
        left_out
    }

    fn has_room(&mut self) -> bool {
        self.lines += 1;
        self.lines <= LINES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_line_is_cut_and_the_next_one_is_whole() {
        let mut text = vec![b'x'; 3 * LINE_MAX];
        text.extend_from_slice(b"\n\ntwo");
        let mut pipe = BufReader::with_capacity(100, &*text);
        let mut line = Vec::new();
        assert!(next_line(&mut pipe, &mut line).await.unwrap());
        assert_eq!(line.len(), LINE_MAX);
        assert!(next_line(&mut pipe, &mut line).await.unwrap());
        assert!(line.is_empty());
        assert!(next_line(&mut pipe, &mut line).await.unwrap());
        assert_eq!(line, b"two");
        assert!(!next_line(&mut pipe, &mut line).await.unwrap());
    }

    #[tokio::test]
    async fn the_last_lines_are_kept_and_no_more() {
        let words = LastWords::default();
        let lines = (0..WORDS_LINES + 3).map(|at| format!("line {at}\n\n"));
        let text = lines.chain([format!("{}\x1b[1m\n", "é".repeat(WORDS_BYTES))]);
        let text: String = text.collect();
        pump(text.as_bytes(), "c".into(), words.clone()).await;
        let kept = words.text();
        assert!(kept.starts_with("line 4 / line 5 / "), "{kept}");
        assert!(kept.ends_with("é") && !kept.contains('\x1b'), "{kept}");
        assert!(kept.len() <= WORDS_LINES * (WORDS_BYTES + 3));
    }

    #[test]
    fn a_flood_is_counted_and_the_next_second_has_room() {
        let began = Instant::now();
        let mut window = Window::new(began);
        let written = (0..1000).filter(|_| window.has_room()).count() as u64;
        assert_eq!(written, LINES_MAX);
        assert_eq!(window.turn(began), 0);
        assert_eq!(window.turn(began + SECOND), 1000 - LINES_MAX);
        assert!(window.has_room());
    }
}
