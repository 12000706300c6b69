//! The contract between a deploy and whatever it deploys to.
//!
//! In comes a release; out goes what serves. Three implementations: `swarm`, `compose`, `command`; a Kubernetes one has
//! its place beside them. The suite in `tests/it/targets.rs` runs on all.

pub mod command;
pub mod compose;
mod document;
mod notes;
pub mod swarm;

use crate::model::deploy::{Observation, Release};
use crate::model::{EnvironmentName, Oid};
use async_trait::async_trait;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::Duration;

/// What a release is rendered from.
#[derive(Debug, Clone)]
pub struct RenderInput {
    /// The environment.
    pub environment: EnvironmentName,
    /// The target's file at the commit, for targets that have one.
    pub file: Option<String>,
    /// The commit.
    pub commit: Oid,
    /// Images by service.
    pub images: BTreeMap<String, String>,
    /// Texts for `${NAME}` in the file; secrets among them.
    pub variables: BTreeMap<String, String>,
    /// Names of variables whose values are secrets.
    pub secret_names: Vec<String>,
}

/// A rendered configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// What is handed to the target. Secrets stand in it as `${NAME}` still: releases are shown, and kept in Git.
    pub text: String,
    /// Replicas by service.
    pub replicas: BTreeMap<String, u64>,
}

/// What a target holds after a failed [`Target::apply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// What served before serves as before: nothing changed, or all of it was put back.
    Before,
    /// Some of it is the new release: the caller has to put the old one back.
    Mixed,
}

/// Why a target could not do what was asked. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The file or the images are wrong; trying again changes nothing.
    #[error("render the release: {0}")]
    Render(String),
    /// The target does not answer. Trying again later is right.
    #[error("reach {endpoint}: {detail}")]
    Unreachable {
        /// Where it was looked for.
        endpoint: String,
        /// What was said.
        detail: String,
    },
    /// Something that is needed is not installed, or the target is not made for this.
    #[error("{0}")]
    Missing(String),
    /// What was begun was lost, with the machine or by somebody's hand: nobody knows how far it came. Applying again, under
    /// another name, is right.
    #[error("find {0}")]
    Lost(String),
    /// The new version did not come up.
    #[error("bring up the release: {why}")]
    Bad {
        /// In words: which service, what its tasks said.
        why: String,
        /// What the target holds now.
        left: Left,
    },
}

/// What an apply is told besides the release.
pub struct Apply<'a> {
    /// The release.
    pub release: &'a Release,
    /// Values of the secrets that stand in `release.rendered` by name.
    pub secrets: &'a BTreeMap<String, String>,
    /// Names what is made for this try: `mainstay-…` and unique per deploy and direction.
    pub name: &'a str,
    /// Bad when it takes longer.
    pub timeout: Duration,
    /// Told in sentences how far it is.
    pub progress: &'a (dyn Fn(String) + Send + Sync),
}

/// Something that releases are deployed to.
///
/// `render` is pure. `apply` may be called again for the same release by another process after a crash at any moment, and
/// then finds what the first call began; it may be called for another release while an earlier `apply` was cut off, and
/// then ends with that other release serving. One `apply` at a time (the caller has the lease). A future that is dropped
/// leaves a target that goes on serving a working version.
///
/// The old version is never stopped before the new one serves, unless the environment allows downtime.
#[async_trait]
pub trait Target: Send + Sync {
    /// `swarm`, `compose`, `command`.
    fn kind(&self) -> &'static str;

    /// Whether it is there and has what it needs; its version, for people.
    async fn ping(&self) -> Result<String, TargetError>;

    /// The identity of an image that is named by a tag: its digest, or its id where no registry has it. A name that
    /// nobody here can tell more about stays as it is.
    async fn pin(&self, image: &str) -> Result<String, TargetError> {
        Ok(image.to_owned())
    }

    /// Puts images and variables into the target's file. No I/O.
    fn render(&self, input: &RenderInput) -> Result<Rendered, TargetError>;

    /// Brings the target to the release: creates what is absent, replaces what is old, removes what the release no longer
    /// has. Returns when every part of the new version serves and nothing of the old one does.
    async fn apply(&self, apply: &Apply<'_>) -> Result<(), TargetError>;

    /// Told once that a release serves which another daemon brought there, whose notes are lost. What can be asked of the
    /// place itself need not be noted.
    async fn taken_over(&self, _release: &Release) -> Result<(), TargetError> {
        Ok(())
    }

    /// What is there now. `Ok` with no items when nothing is.
    async fn observe(&self) -> Result<Observation, TargetError>;

    /// Removes everything of the environment. Nothing there is success.
    async fn remove(&self) -> Result<(), TargetError>;
}

/// A text as an observation shows it: as it is, or as a short digest when it holds a secret.
pub(crate) fn hide(text: &str, secrets: &BTreeMap<String, String>) -> String {
    match secrets.values().any(|secret| !secret.is_empty() && text.contains(secret.as_str())) {
        true => format!("sha256:{}", hex::encode(&Sha256::digest(text.as_bytes())[..8])),
        false => text.to_owned(),
    }
}
