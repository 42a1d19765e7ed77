//! Answers: what may a child process touch?
//!
//! A [`Launch`] is turned into a command that runs the server's own executable again. That
//! process, still trusted, gives up what the child must not have and then becomes the program
//! ([`exec`]). So no code runs between fork and exec, and each step is a safe call.
//!
//! Reading order: `launch` (what can be asked for), `exec` (the order of the steps, and why),
//! then the steps: `limits`, `namespace`, `identity`, `files` (Landlock), `calls` (seccomp).
//! Beside them: `probe` (what this machine allows), `interpreter` (what Python must read),
//! `show` (one folder more for a process that runs), `seal` (a process of ours that only computes).
//!
//! Invariants: with [`Isolation::Required`] the program is never run unless every mechanism is
//! in force; with either level it is never run with an inherited file descriptor above 2, an
//! inherited environment variable, or without its limits.
//!
//! Not limited: that a file *exists*, its size and its times can be asked of any path; processor
//! time, except by the nice value; the disk space of the `write` trees in sum.

mod calls;
mod child;
mod error;
mod exec;
mod files;
mod identity;
mod interpreter;
mod launch;
mod limits;
mod namespace;
mod probe;
mod seal;
mod show;

pub use error::Error;
pub use exec::exec;
pub use interpreter::Interpreter;
pub use launch::{Confinement, Isolation, Launch, Network, SUBCOMMAND};
pub use probe::{Mechanisms, probe};
pub use seal::{allow_processor_time, seal};
pub use show::{hide, show};
