//! Whole-process tests: the real binary, real clients, a real (embedded) store.
//!
//! They share two cores, so each starts what it needs and no two of the heavy ones run side
//! by side (`HEAVY`).

#![allow(clippy::unwrap_used, reason = "a test that cannot set its stage has failed")]

mod adapters;
mod asynchronous;
mod behind;
mod capture;
mod cloudwatch;
mod command_line;
mod container;
mod contract;
mod demo;
mod deployments;
mod devices;
mod documents;
mod elastic;
mod engines;
mod faces;
mod faults;
mod forms;
mod frameworks;
mod handlers;
mod health;
mod honest;
mod hostile_http;
mod identity;
mod issuers;
mod kept;
mod measured;
mod operator;
mod page;
mod pressure;
mod quantised;
mod reload;
mod runtime;
mod sharing;
mod streaming;
mod tasks;
mod templates;
mod tenants;
mod unread;
mod updates;
mod usage;
mod versions;

/// Held by tests that measure time or fill the machine.
static HEAVY: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
