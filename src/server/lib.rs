//! How Roundhouse is put together: configuration, command line, assembly.
//!
//! Reading order: [`config`] (what the server was told to do), [`limits`] (what the machine
//! allows), [`cli`] (the command line and the commands that talk to a running server),
//! `doctor` (what is wrong here), [`templates`] (where chats' templates are rendered); then the server: `app` (build, bind, run, drain), `loader`
//! (models in and out), `witness` (the ledger
//! against the memory really used), `http` and `connections`, `tls` (their certificates), `trust` (whose certificates we believe), `fetch` (of a token issuer's keys), `admin` (its port), `container` (SageMaker's
//! contract), `exporter` (metrics), `cloudwatch` (SageMaker's figures), `demo` (everything with nothing set up).

pub mod allocator;
pub mod cli;
pub mod config;
pub mod error;
pub mod limits;
pub mod templates;

mod admin;
mod app;
mod cloudwatch;
mod connections;
mod container;
#[cfg(feature = "demo")]
mod demo;
mod doctor;
mod exporter;
mod fetch;
mod http;
mod loader;
mod logging;
mod near;
mod threads;
mod tls;
mod trust;
mod witness;
