//! What whole-process tests need: the real binary, generated models, an S3 server and
//! a proxy in front of it that can be slow, silent or gone.

#![allow(clippy::unwrap_used, reason = "a test that cannot set its stage has failed")]

pub mod adapters;
pub mod handlers;
pub mod models;
pub mod processes;
pub mod proxy;
pub mod python;
pub mod s3;
pub mod server;
pub mod site;
