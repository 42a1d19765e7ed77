//! One connection to a container, driven by the request that uses it.

use std::future::{Future, poll_fn};
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use http::{Request, Response};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, Parts, SendRequest};
use hyper_rustls::MaybeHttpsStream;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::{Handle, Id};
use tokio::task::unconstrained;

use super::body::{BoxError, Outgoing};

/// What is read from and written to.
pub(super) type Io = MaybeHttpsStream<TokioIo<TcpStream>>;

/// A connection that takes one request after the other.
///
/// Nobody but its holder reads or writes it: a request and its answer stay in one task, on one thread.
/// So it rests while it is idle, and who takes it next finds out whether it has ended.
pub(super) struct Connection {
    sender: SendRequest<Outgoing>,
    /// Absent when it has ended.
    exchange: Option<http1::Connection<Io, Outgoing>>,
    /// The runtime that is told when there is something to read.
    home: Id,
}

impl Connection {
    /// Begins to speak HTTP.
    pub(super) async fn begin(io: Io) -> hyper::Result<Box<Self>> {
        Self::at(io, Handle::current().id()).await
    }

    async fn at(io: Io, home: Id) -> hyper::Result<Box<Self>> {
        let (sender, exchange) = http1::handshake(io).await?;
        Ok(Box::new(Self { sender, exchange: Some(exchange), home }))
    }

    /// Whose it is while it is idle.
    pub(super) fn home(&self) -> Id {
        self.home
    }

    /// The same for another runtime, which its next request is on: else two threads would wake each
    /// other for each packet. One that is encrypted stays where it is. `None` where it has ended.
    pub(super) async fn moved(self: Box<Self>) -> Option<Box<Self>> {
        let Parts { io, read_buf, .. } = self.exchange?.into_parts();
        if !read_buf.is_empty() {
            return None;
        }
        let (io, home) = match io {
            MaybeHttpsStream::Http(stream) => {
                let stream = stream.into_inner().into_std().ok()?;
                // Idle, it has nothing to say: else it has ended, or is none to trust.
                let is_silent =
                    stream.peek(&mut [0]).is_err_and(|it| it.kind() == ErrorKind::WouldBlock);
                let stream = TcpStream::from_std(stream).ok().filter(|_| is_silent)?;
                (MaybeHttpsStream::Http(TokioIo::new(stream)), Handle::current().id())
            }
            encrypted => (encrypted, self.home),
        };
        Self::at(io, home).await.ok()
    }

    /// Sends a request and returns when its answer begins. The rest of it comes while the connection is
    /// [driven](Self::drive).
    ///
    /// # Errors
    /// Where it ends before; with the request, where nothing of that was sent.
    pub(super) async fn ask(
        &mut self,
        request: Request<Outgoing>,
    ) -> Result<Response<hyper::body::Incoming>, Box<TrySendError<Request<Outgoing>>>> {
        // Only driving brings it on, so it need not wake anybody, and nothing but that may hold it up.
        let mut answer = pin!(unconstrained(self.sender.try_send_request(request)));
        let exchange = &mut self.exchange;
        poll_fn(|context| {
            drive(exchange, context);
            answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        })
        .await
        .map_err(Box::new)
    }

    /// Reads and writes what can be now, and has the task woken when more can be.
    pub(super) fn drive(&mut self, context: &mut Context<'_>) {
        drive(&mut self.exchange, context);
    }

    /// Whether it can take another request, when the answer to the last one has been read.
    pub(super) fn is_free(&mut self) -> bool {
        // Who holds it next is woken, not who held it last.
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.exchange.is_some() && self.sender.is_ready()
    }
}

fn drive(exchange: &mut Option<http1::Connection<Io, Outgoing>>, context: &mut Context<'_>) {
    let polled = exchange.as_mut().map(|it| Pin::new(it).poll(context));
    // How it ended is told where the answer is waited for.
    if let Some(Poll::Ready(_)) = polled {
        *exchange = None;
    }
}

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum Lost {
    /// No connection could be made.
    Unmade(BoxError),
    /// It ended.
    Ended(hyper::Error),
}
