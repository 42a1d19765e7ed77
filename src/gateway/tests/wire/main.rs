//! The data port's wire formats, driven through the router with scripted models.

#![expect(clippy::unwrap_used, reason = "a helper's failure is its test's failure")]

mod adapters;
mod addressed;
mod asynchronous;
mod behind;
mod capture;
mod container;
mod edges;
mod endpoint;
mod external;
mod handled;
mod identity;
mod named;
mod openai;
mod quotas;
mod sessions;
mod streams;
mod support;
mod tasks;
mod tenants;
mod tgi;
mod tokens;
mod traces;
