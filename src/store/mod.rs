//! SQLite, and the only SQL of the project.
//!
//! One thread owns the one writing connection; every change is a closure sent to it and run in a transaction
//! (`BEGIN IMMEDIATE`, WAL, `synchronous = FULL`), so a change that was answered survives a power cut. Readers have
//! connections of their own. One file per noun adds methods to [`Store`].

mod approvals;
mod audit;
mod inbox;
mod migrations;
mod open;
mod outbox;
mod retention;
mod runs;
mod schedules;
mod tokens;

pub use approvals::{ApprovalHeld, ApprovalRow, ApprovalWrite, HeardMessage, LinkRow, Outgoing};
pub use audit::{Act, ActKind};
pub use inbox::*;
pub use open::{Store, StoreError};
pub use runs::*;
pub use schedules::*;
pub use tokens::{NewToken, Revoked, TOKEN_PREFIX, TokenRow};
