//! The process that renders: reads an order, renders, answers, and keeps what it compiled.

use std::io::{self, BufReader, Read, Stdin, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use roundhouse_serving::{Compiled, CompiledCache};
use serde_json::{Map, Value};

use super::PROCESSOR_SECONDS;
use super::frame::{self, Answer, Digest, Order};
use crate::allocator;

/// What it is called in lists of processes.
const NAME: &str = "templates";
/// What is said when it cannot do its work.
const NOT_STARTED: u8 = 126;
/// What is read at a time.
const BUFFER: usize = 64 * 1024;
/// Of its memory, so much is of sources whose compiled forms are kept: those are some ten times as large.
const KEPT_OF: u64 = 256;
/// What takes this long may have taken memory that the next does not need.
const LONG: Duration = Duration::from_millis(5);

/// Renders templates for the server that started this process, until that closes its end.
///
/// To be called first thing in `main`, before any other thread runs.
pub fn serve() -> ExitCode {
    let mut args = std::env::args().skip(2).map(|arg| arg.parse::<u64>());
    let (Some(Ok(parent)), Some(Ok(memory))) = (args.next(), args.next()) else {
        // It is the person's at a terminal.
        let _ = writeln!(io::stderr(), "error: {}: it is not called by hand", super::SUBCOMMAND);
        return ExitCode::from(NOT_STARTED);
    };
    match work(u32::try_from(parent).unwrap_or(0), memory) {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody is left to be told.
        Err(_) => ExitCode::from(NOT_STARTED),
    }
}

fn work(parent: u32, memory: u64) -> io::Result<()> {
    let mut to = Socket(io::stdin());
    let mut from = BufReader::with_capacity(BUFFER, Socket(io::stdin()));
    // A name is for people.
    let _ = std::fs::write("/proc/self/comm", NAME);
    // A panic is answered; its words and its place are nobody's.
    std::panic::set_hook(Box::new(|_| {}));
    let missing = match roundhouse_confine::seal(parent, memory) {
        Ok(missing) => missing.join(", "),
        Err(error) => return frame::send(&mut to, &Answer::Unsealed(error.to_string()).frame()),
    };
    frame::send(&mut to, &Answer::Ready(missing).frame())?;
    let mut kept = CompiledCache::within(usize::try_from(memory / KEPT_OF).unwrap_or(usize::MAX));
    while let Some(order) = next_order(&mut from)? {
        let Order::Render { digest, name, context } = order else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let began = Instant::now();
        roundhouse_confine::allow_processor_time(PROCESSOR_SECONDS).map_err(io::Error::other)?;
        let compiled = match kept.get(&digest) {
            Some(compiled) => compiled,
            None => learn(&mut kept, digest, (&mut from, &mut to))?,
        };
        let answer = rendered(&compiled, &name, context).frame();
        frame::send(&mut to, &answer)?;
        if began.elapsed() > LONG {
            drop(answer);
            allocator::trim();
        }
    }
    Ok(())
}

/// The next order. What it came as is gone by then.
fn next_order(from: &mut BufReader<Socket>) -> io::Result<Option<Order>> {
    let Some(frame) = frame::next(from, u64::MAX)? else { return Ok(None) };
    Ok(Some(Order::read(&frame).ok_or(io::ErrorKind::InvalidData)?))
}

/// The server's end of the line, which is our standard input. By these two calls alone: it is no
/// terminal, and what is sealed makes no copy of it.
struct Socket(Stdin);

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, bytes)?)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Asks for templates and compiles them.
fn learn(
    kept: &mut CompiledCache,
    digest: Digest,
    (from, to): (&mut BufReader<Socket>, &mut Socket),
) -> io::Result<Arc<Compiled>> {
    frame::send(to, &Answer::Unknown.frame())?;
    let Order::Sources(sources) = next_order(from)?.ok_or(io::ErrorKind::UnexpectedEof)? else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let compiled = Arc::new(Compiled::new(&sources));
    kept.put(digest, &compiled);
    Ok(compiled)
}

/// What a template comes to, also where the library gives up.
fn rendered(compiled: &Compiled, name: &str, context: Map<String, Value>) -> Answer {
    let render = AssertUnwindSafe(|| compiled.render(name, context));
    let gave_up =
        |_| Answer::Refused { line: 0, message: "the library that renders it gave up".to_owned() };
    catch_unwind(render).map_or_else(gave_up, Answer::of)
}
