//! The world becomes one durable inbox row.
//!
//! Enters: a hook over its socket or its spool ([`hook`], [`socket`], [`spool`]), a forge's [`webhook`], our own look at
//! the refs ([`watch`]), the pipelines' own times ([`schedule`]), and people (`Intake::trigger`). Leaves: rows in
//! `store::inbox`, and a wake-up for the engine. Everything is stored before anybody is answered; a lost wake-up costs
//! time, never work. Called by `daemon` (the loops), `web` (webhooks, triggers) and `cli` (hook install and notify).

pub mod hook;
mod intake;
mod message;
pub mod schedule;
pub mod socket;
pub mod spool;
pub mod watch;
pub mod webhook;

pub use intake::{Intake, IntakeError, RefChange, WatchedRepo, WebhookConfig};
