//! What every target's laboratory has to offer, so that the cases need not know which target it is.

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use mainstay::deploy::target::{Apply, Rendered, Target, TargetError};
use mainstay::model::deploy::{Provenance, Release};
use mainstay::model::{EnvironmentName, RunId};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The versions of the sample application. It answers every request with the word for its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    /// A good one, whose word is `one`.
    One,
    /// A good one, whose word is `two`.
    Two,
    /// A good one, whose word is `three`.
    Three,
    /// Says `out of luck`, and ends with code 3 as soon as it is started.
    Crashes,
    /// Runs, and is never well: its own health check says `not today`.
    Sick,
}

impl Version {
    pub(super) fn word(self) -> &'static str {
        match self {
            Version::One => "one",
            Version::Two => "two",
            Version::Three => "three",
            Version::Crashes => "crashes",
            Version::Sick => "sick",
        }
    }
}

/// A target of its own for one case, with a sample application of two instances where the target has such a thing.
#[async_trait]
pub(super) trait Lab: Send + Sync {
    /// A new client of the same target: what a restarted daemon has.
    fn target(&self) -> Arc<dyn Target>;

    /// The release with this number, of this version.
    fn release(&self, number: u64, version: Version) -> Release;

    /// The words that the application answers with now, one for each instance that answers, sorted. Nothing when nothing
    /// serves.
    async fn serving(&self) -> Vec<String>;

    /// How many instances answer when all is well.
    fn instances(&self) -> usize;

    /// What has to differ when an instance was started anew: ids of containers or processes.
    async fn started(&self) -> Vec<String>;

    /// Changes a setting behind the target's back; returns the item that the drift has to name.
    async fn change_by_hand(&self) -> String;

    /// What the target holds of the environment, by the means of the place itself and not through [`Target`].
    async fn left(&self) -> Vec<String>;

    /// Takes everything away, whatever happened.
    async fn clean(&self);
}

/// Runs one case, cleans up after it whatever happened, and sees that nothing is left.
pub(super) fn run(lab: impl FnOnce() -> Box<dyn Lab>, case: impl FnOnce(&dyn Lab) -> BoxFuture<'_, ()>) {
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    tokio.block_on(async {
        let lab = lab();
        if let Err(error) = lab.target().ping().await {
            panic!("this test needs the {} target: failed to {error}", lab.target().kind());
        }
        let ended = AssertUnwindSafe(case(&*lab)).catch_unwind().await;
        lab.clean().await;
        let left = lab.left().await;
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
        assert!(left.is_empty(), "left behind: {left:?}");
    });
}

/// A release as the daemon stores it.
pub(super) fn release_of(
    kind: &str,
    environment: &EnvironmentName,
    number: u64,
    images: BTreeMap<String, String>,
    rendered: Rendered,
) -> Release {
    Release {
        environment: environment.clone(),
        number,
        at: jiff::Timestamp::now(),
        provenance: Provenance {
            repo: "shop".parse().unwrap(),
            git_ref: "refs/heads/main".to_owned(),
            commit: format!("{number:040x}").parse().unwrap(),
            pipeline: "deploy".parse().unwrap(),
            run: RunId(number),
            actor: None,
        },
        images,
        target: kind.to_owned(),
        config_hash: hex::encode(Sha256::digest(&rendered.text)),
        rendered: rendered.text,
        replicas: rendered.replicas,
        secrets: BTreeMap::new(),
        schema: None,
        recovery_point: "none".to_owned(),
        promoted_from: None,
    }
}

/// An apply as the daemon makes it, with no secrets; gives back what was told meanwhile.
pub(super) async fn apply(lab: &dyn Lab, release: &Release) -> Result<Vec<String>, TargetError> {
    apply_with(lab, release, &BTreeMap::new()).await
}

pub(super) async fn apply_with(
    lab: &dyn Lab,
    release: &Release,
    secrets: &BTreeMap<String, String>,
) -> Result<Vec<String>, TargetError> {
    let told = Mutex::new(Vec::new());
    let began = Instant::now();
    let progress = |line: String| told.lock().unwrap().push(line);
    let mut name = format!("mainstay-{}-{}", release.environment, release.number);
    let ended = loop {
        let apply = Apply { release, secrets, name: &name, timeout: Duration::from_secs(60), progress: &progress };
        match lab.target().apply(&apply).await {
            // What was cut off at its very birth is begun anew under another name, as the daemon does it.
            Err(TargetError::Lost(_)) if !name.ends_with("-again-again") => name.push_str("-again"),
            ended => break ended,
        }
    };
    let told = told.into_inner().unwrap();
    println!("apply of release {} took {:?}: {ended:?}\n  {}", release.number, began.elapsed(), told.join("\n  "));
    ended.map(|()| told)
}

/// As [`apply`], where it has to end well.
pub(super) async fn good(lab: &dyn Lab, release: &Release) {
    apply(lab, release).await.unwrap_or_else(|error| panic!("failed to {error}"));
}

/// The release's word from every instance, and from nobody else.
pub(super) async fn serves(lab: &dyn Lab, version: Version) {
    assert_eq!(lab.serving().await, vec![version.word().to_owned(); lab.instances()]);
}
