//! A TCP proxy in front of a store: slow, silent, refusing or gone, on command.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How the proxy behaves, for connections under way as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything.
    Pass,
    /// Answers each request with 503 SlowDown.
    Busy,
    /// Accepts and says nothing; connections under way fall silent.
    Stall,
    /// Cuts every connection.
    Gone,
}

/// A running proxy.
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    passed: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Starts it before `upstream`; answers pass at `bytes_per_second` in all, where given.
    pub async fn start(upstream: SocketAddr, bytes_per_second: Option<u64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, modes) = watch::channel(Mode::Pass);
        let passed = Arc::new(AtomicU64::new(0));
        let pace = Arc::new(Pace::new(bytes_per_second));
        let counter = passed.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (modes, pace, counter) = (modes.clone(), pace.clone(), counter.clone());
                tokio::spawn(connection(stream, upstream, modes, pace, counter));
            }
        });
        Self { address, mode, passed, accepting }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes its behaviour from now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Bytes of answers passed so far, headers included.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A leaky bucket shared by all connections.
struct Pace {
    bytes_per_second: Option<u64>,
    free_at: tokio::sync::Mutex<Instant>,
}

impl Pace {
    fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, free_at: tokio::sync::Mutex::new(Instant::now()) }
    }

    async fn wait(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let until = {
            let mut free_at = self.free_at.lock().await;
            *free_at = (*free_at).max(Instant::now())
                + Duration::from_secs_f64(bytes as f64 / rate as f64);
            *free_at
        };
        tokio::time::sleep_until(until).await;
    }
}

async fn connection(
    mut client: TcpStream,
    upstream: SocketAddr,
    mut modes: watch::Receiver<Mode>,
    pace: Arc<Pace>,
    passed: Arc<AtomicU64>,
) {
    let Ok(mut server) = TcpStream::connect(upstream).await else { return };
    let (mut request, mut answer) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let mode = *modes.borrow_and_update();
        match mode {
            Mode::Gone => return,
            Mode::Stall => {
                if modes.changed().await.is_err() {
                    return;
                }
                continue;
            }
            Mode::Pass | Mode::Busy => {}
        }
        tokio::select! {
            changed = modes.changed() => if changed.is_err() { return },
            read = client.read(&mut request) => {
                let Ok(n @ 1..) = read else { return };
                if mode == Mode::Busy {
                    // The connection ends with the refusal, so what was asked need not be read whole.
                    let _ = client.write_all(SLOW_DOWN).await;
                    return;
                }
                if server.write_all(&request[..n]).await.is_err() { return }
            }
            read = server.read(&mut answer) => {
                let Ok(n @ 1..) = read else { return };
                pace.wait(n).await;
                passed.fetch_add(n as u64, Ordering::Relaxed);
                if client.write_all(&answer[..n]).await.is_err() { return }
            }
        }
    }
}

const SLOW_DOWN: &[u8] = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: 110\r\nConnection: close\r\n\r\n\
<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>SlowDown</Code><Message>reduce your rate.</Message></Error>";
