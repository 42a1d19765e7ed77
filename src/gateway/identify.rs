//! Says who calls, before anything else is done for them.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::header;
use roundhouse_tenancy::{Asked, Caller, Denied, Identified, Peer, Signed};
use roundhouse_types::{ErrorKind, Failure, RetryHint};
use tokio::sync::Semaphore;

use crate::body;
use crate::error::Error;
use crate::layers::Notes;
use crate::router::{Gateway, face_of};

/// Whoever probes a port knows no key; what it learns is only that we are alive.
const PROBES: [&str; 2] = ["/ping", "/health"];
/// Bodies that take longer to digest than a thread of the runtime may be held up: half a
/// millisecond at 500 MB/s, which is SHA-256 without instructions for it.
const LONG_BODY: usize = 256 * 1024;
/// Bodies of refused requests that are read at once; the senders of more learn from a closed
/// connection.
const DISCARDS: usize = 64;

/// What the layer works with.
pub(crate) struct Door {
    gateway: Gateway,
    /// Bodies of people not yet known, in memory at once: as many as requests under way.
    bodies: Semaphore,
    /// Bodies of people not let in that are read and thrown away at once: apart, so that nobody who
    /// is refused takes a place from somebody who signs.
    discards: Semaphore,
}

impl Door {
    pub(crate) fn new(gateway: &Gateway) -> Self {
        let bodies = Semaphore::new(gateway.config.max_requests);
        let discards = Semaphore::new(DISCARDS);
        Self { gateway: gateway.clone(), bodies, discards }
    }
}

/// The request with a [`Caller`] in it, or what its sender is answered who is not let in. Credentials end
/// here: no handler and no model sees them.
pub(crate) async fn identify(door: &Door, mut request: Request) -> Result<Request, Response> {
    if PROBES.contains(&request.uri().path()) {
        request.extensions_mut().insert(Caller::anonymous());
        return Ok(request);
    }
    let face = face_of(request.uri().path());
    let_in(door, request).await.map_err(|error| error.respond(face))
}

async fn let_in(door: &Door, request: Request) -> Result<Request, Error> {
    let identity = &door.gateway.identity;
    let asked = Asked {
        method: request.method(),
        uri: request.uri(),
        headers: request.headers(),
        peer: request.extensions().get::<Peer>(),
    };
    let identified = identity.identify(&asked).await;
    let (caller, mut request) = match identified {
        Ok(Identified::Caller(caller)) => (caller, request),
        Ok(Identified::IfBody(signed)) => verified(door, *signed, request).await?,
        Err(denied) => return Err(refused(door, denied, request).await),
    };
    if identity.asks() {
        let headers = request.headers_mut();
        headers.remove(header::AUTHORIZATION);
        if let Some(name) = identity.proxy_header() {
            headers.remove(name);
        }
    }
    if let Some(notes) = request.extensions().get::<Notes>() {
        notes.caller(&caller);
    }
    request.extensions_mut().insert(caller);
    Ok(request)
}

/// Reads the body, which the signature is over, and puts it back.
async fn verified(
    door: &Door,
    signed: Signed,
    request: Request,
) -> Result<(Caller, Request), Error> {
    let identity = &door.gateway.identity;
    if !signed.signs_body() {
        return Ok((identity.verify(signed, &[])?, request));
    }
    let Ok(_permit) = door.bodies.try_acquire() else {
        let failure = Failure::new(ErrorKind::Overloaded, "too many requests are under way")
            .with_retry(RetryHint::After(Duration::from_secs(1)));
        return Err(failure.into());
    };
    let notes = request.extensions().get::<Notes>().cloned().expect("every request is observed");
    let (parts, sent) = request.into_parts();
    let whole = body::take(&parts.headers, sent, &door.gateway.config, &notes).await?;
    let caller = match whole.len() {
        ..=LONG_BODY => identity.verify(signed, &whole)?,
        _ => {
            let (identity, whole): (_, Bytes) = (identity.clone(), whole.clone());
            let digested = tokio::task::spawn_blocking(move || identity.verify(signed, &whole));
            digested.await.map_err(|_| Error::internal("a body could not be digested"))??
        }
    };
    Ok((caller, Request::from_parts(parts, Body::from(whole))))
}

/// A client that is still sending when the connection closes never sees why, so what it sends is
/// read and thrown away, within bounds; unless it waits to be told to send.
async fn refused(door: &Door, denied: Denied, request: Request) -> Error {
    if !request.headers().contains_key(header::EXPECT)
        && let Ok(_permit) = door.discards.try_acquire()
    {
        let limit = door.gateway.config.body_limit.as_usize();
        body::discard(request.into_body(), limit).await;
    }
    denied.into()
}
