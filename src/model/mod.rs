//! Plain data that every room may use: identifiers, times, sizes, plans, outcomes, and what the API says.
//!
//! Nothing here does I/O and nothing here knows another room.

pub mod api;
pub mod approval;
pub mod asker;
pub mod deploy;
pub mod deploy_view;
pub mod ids;
pub mod input;
pub mod log;
pub mod outcome;
pub mod plan;
pub mod public_key;
pub mod quantity;
pub mod source_view;
pub mod text;
pub mod trigger;
pub mod wal;

pub use asker::{Asker, Way};
pub use ids::{
    ApprovalId, AttemptId, DeployId, EnvironmentName, GroupName, InstanceId, Oid, PersonName, RepoName, RunId,
    SourceName, StepName,
};
pub use outcome::{AttemptEnd, RunStatus, StepOutcome};
pub use plan::{Plan, PlannedStep};
pub use public_key::PublicKey;
pub use quantity::{ByteSize, Span};
pub use trigger::{EventKind, TriggerEvent};
pub use wal::{Lsn, SegmentName, SegmentSize, SystemId, Timeline};
