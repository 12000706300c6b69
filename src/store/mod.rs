//! SQLite, and the only SQL of the project.
//!
//! One thread owns the one writing connection; every change is a closure sent to it and run in a transaction
//! (`BEGIN IMMEDIATE`, WAL, `synchronous = FULL`), so a change that was answered survives a power cut. Readers have
//! connections of their own. One file per noun adds methods to [`Store`].

mod approvals;
mod audit;
mod concerns;
mod deploys;
mod environments;
mod history;
mod holds;
mod inbox;
mod migrations;
mod open;
mod outbox;
mod retention;
mod reverts;
mod runs;
mod schedules;
mod tokens;

pub use approvals::{ApprovalHeld, ApprovalRow, ApprovalWrite, HeardMessage, LinkRow, Outgoing};
pub use audit::{Act, ActKind};
pub use concerns::{ConcernEffects, ConcernRow};
pub use deploys::{DeployEventRow, DeployRow, Effects};
pub use environments::{EnvironmentRow, Lease, ReleaseRow, Taken};
pub use history::{PastDeploy, PastEnvironment, PastRelease};
pub use holds::{HoldRow, NewHold};
pub use inbox::*;
pub use open::{Store, StoreError};
pub use outbox::{OutboxRow, OutboxState};
pub use reverts::{RevertEnd, RevertRow, RevertState, Wanted as RevertWanted};
pub use runs::*;
pub use schedules::*;
pub use tokens::{NewToken, Revoked, TOKEN_PREFIX, TokenRow};
