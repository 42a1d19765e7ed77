//! What a worker prints, as log lines with its model's name: cut, counted and slowed down.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

/// Longer lines are cut.
const LINE_MAX: usize = 8 * 1024;
/// Lines written per second; others are counted and left out.
const LINES_PER_SECOND: f64 = 100.0;
/// Lines written at once after a silence: a traceback, a library's banner.
const LINES_BURST: f64 = 500.0;
/// Bytes read per second. A handler that prints faster waits for us, at its own cost.
const BYTES_PER_SECOND: f64 = 4.0 * 1024.0 * 1024.0;
const READ: usize = 32 * 1024;
/// How often lines left out are told.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Logs all lines of one pipe until its last writer is gone.
pub(crate) async fn pump(mut pipe: impl AsyncRead + Unpin, model: String, worker: usize) {
    let mut allowance = Allowance::new(Instant::now());
    let mut buffer = BytesMut::with_capacity(READ);
    let mut cutting = false;
    let mut left_out = 0_u64;
    let mut told = Instant::now();
    loop {
        buffer.reserve(READ);
        let mut limited = (&mut pipe).take(READ as u64);
        let count = match timeout(TELL_EVERY, limited.read_buf(&mut buffer)).await {
            Ok(count) => count.unwrap_or(0),
            // Nothing more for now: what was left out is told.
            Err(_) => {
                tell(&mut left_out, &model, worker);
                continue;
            }
        };
        while let Some(line) = next_line(&mut buffer, &mut cutting, count == 0) {
            if allowance.line(Instant::now()) {
                info!(%model, worker, line = plain(&line), "handler says");
            } else {
                left_out += 1;
            }
        }
        if count == 0 || told.elapsed() >= TELL_EVERY {
            tell(&mut left_out, &model, worker);
            told = Instant::now();
        }
        if count == 0 {
            return;
        }
        sleep(Duration::from_secs_f64(count as f64 / BYTES_PER_SECOND)).await;
    }
}

/// Without what moves a terminal's cursor or colours what others say.
fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

fn tell(left_out: &mut u64, model: &str, worker: usize) {
    let lines = std::mem::take(left_out);
    if lines > 0 {
        warn!(model, worker, lines, "handler prints too much, lines left out");
    }
}

/// The next line without its end; at the pipe's end also what has none. The rest of a line
/// that was cut is skipped.
fn next_line(buffer: &mut BytesMut, cutting: &mut bool, ended: bool) -> Option<BytesMut> {
    loop {
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let line = match end {
            Some(end) => {
                let line = buffer.split_to(end);
                buffer.advance(1);
                line
            }
            None if buffer.len() >= LINE_MAX || (ended && !buffer.is_empty()) => buffer.split(),
            None => return None,
        };
        let skipped = std::mem::replace(cutting, end.is_none());
        let mut line = line;
        line.truncate(LINE_MAX);
        if !skipped && !line.trim_ascii().is_empty() {
            return Some(line);
        }
    }
}

/// A bucket that fills with time.
struct Allowance {
    lines: f64,
    filled: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { lines: LINES_BURST, filled: now }
    }

    fn line(&mut self, now: Instant) -> bool {
        let passed = now.duration_since(self.filled).as_secs_f64();
        self.filled = now;
        self.lines = (self.lines + passed * LINES_PER_SECOND).min(LINES_BURST);
        let allowed = self.lines >= 1.0;
        if allowed {
            self.lines -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_the_rest_of_a_long_one_is_skipped() {
        let mut buffer = BytesMut::from(&b"one\n\n"[..]);
        buffer.extend_from_slice(&[b'x'; LINE_MAX + 5]);
        let mut cutting = false;
        assert_eq!(next_line(&mut buffer, &mut cutting, false).unwrap(), "one");
        assert_eq!(next_line(&mut buffer, &mut cutting, false).unwrap().len(), LINE_MAX);
        buffer.extend_from_slice(b"its end\ntwo");
        assert_eq!(next_line(&mut buffer, &mut cutting, false), None);
        assert_eq!(next_line(&mut buffer, &mut cutting, true).unwrap(), "two");
        assert_eq!(next_line(&mut buffer, &mut cutting, true), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_counted_and_time_makes_room_again() {
        let mut allowance = Allowance::new(Instant::now());
        let written = (0..10_000).filter(|_| allowance.line(Instant::now())).count();
        assert_eq!(written, 500);
        tokio::time::advance(Duration::from_secs(1)).await;
        let written = (0..10_000).filter(|_| allowance.line(Instant::now())).count();
        assert_eq!(written, 100);
    }
}
