//! One entry of an environment's history: what was released, how that ended, how the environment stood afterwards, and
//! the words in which `git log` shows it. Reading and writing entries is `releases`.

use crate::model::deploy::{DeployKind, DeployStatus, Release};
use crate::model::ids::{DeployId, Oid, RepoName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Characters of a reason that the first line of a message shows; the document has all of it.
const REASON_MAX: usize = 120;

/// What happened to an environment, for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseEntry {
    /// What was brought there, or put back.
    pub release: Release,
    /// The deploy that brought it. One deploy is one entry, and one more for what was put back.
    pub deploy: DeployId,
    /// Why it was brought.
    pub kind: DeployKind,
    /// How that ended.
    pub status: DeployStatus,
    /// When.
    pub at: Timestamp,
    /// Who asked.
    pub by: String,
    /// Why it ended so, where it did not end well; why an earlier release was put back.
    pub because: Option<String>,
    /// How the environment stood when this was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stands: Option<Stands>,
}

/// How an environment stands: all that a daemon without a memory needs beside the releases.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stands {
    /// The release that should serve.
    pub current: Option<u64>,
    /// The last one that was verified.
    pub verified: Option<u64>,
    /// Why a person has to act.
    pub attention: Option<String>,
    /// What is held.
    pub holds: Vec<Held>,
    /// Settings that the target showed of `current`; drift is what differs from them. Secrets stand here as digests.
    pub items: BTreeMap<String, String>,
}

/// A hold in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The revision; `None`: the whole environment.
    pub revision: Option<(RepoName, Oid)>,
    /// What served before it.
    pub good: Option<Oid>,
    /// The deploy that turned bad.
    pub deploy: Option<DeployId>,
    /// Why.
    pub reason: String,
    /// Who.
    pub by: String,
    /// Only a person lifts it.
    pub strict: bool,
    /// Since when.
    pub since: Timestamp,
}

impl ReleaseEntry {
    /// One line, as `git log --oneline` shows it.
    pub fn title(&self) -> String {
        let Release { environment, number, provenance, promoted_from, .. } = &self.release;
        let code = format!("{} {}", provenance.repo, &provenance.commit.as_str()[..7]);
        let why = |word: &str| self.because.as_deref().map(|why| format!("{word}{}", one_line(why)));
        let because = || why(" because ").unwrap_or_default();
        let ended = match self.status {
            DeployStatus::Failed => format!("failed{}", why(": ").unwrap_or_default()),
            DeployStatus::RolledBack => format!("rolled back{}", why(": ").unwrap_or_default()),
            DeployStatus::RollbackFailed => format!("failed, and its rollback too{}", why(": ").unwrap_or_default()),
            status => status.to_string(),
        };
        match (self.kind, promoted_from) {
            (DeployKind::Deploy, _) => format!("{environment} {number}: {code} {ended}"),
            (DeployKind::Promote, Some((from, of))) => {
                format!("{environment} {number}: {code} promoted from {from} {of}, {ended}")
            }
            (DeployKind::Promote, None) => format!("{environment} {number}: {code} promoted, {ended}"),
            (DeployKind::Rollback, _) if self.status == DeployStatus::RollbackFailed => {
                format!("{environment}: rollback to {number} ({code}) failed{}", why(": ").unwrap_or_default())
            }
            (DeployKind::Rollback, _) => format!("{environment}: rolled back to {number} ({code}){}", because()),
            (DeployKind::Repair, _) => format!("{environment} {number}: {code} put back, {ended}"),
        }
    }

    pub(super) fn message(&self) -> String {
        let mut text = format!(
            "{}\n\nDeploy: {}\nStatus: {}\nRun: {}\nCommit: {}\nBy: {}\n",
            self.title(),
            self.deploy,
            self.status,
            self.release.provenance.run,
            self.release.provenance.commit,
            one_line(&self.by),
        );
        for (service, image) in &self.release.images {
            text.push_str(&format!("Image: {} {}\n", one_line(service), one_line(image)));
        }
        text
    }
}

/// Fit for one line of a message, whatever somebody wrote.
fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_MAX).collect();
    if text.chars().count() > REASON_MAX {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::deploy::Provenance;
    use crate::model::ids::RunId;

    #[test]
    fn the_title_says_what_happened() {
        let entry = |kind, status, because: Option<&str>, promoted_from: Option<(&str, u64)>| ReleaseEntry {
            release: Release {
                environment: "production".parse().unwrap(),
                number: 7,
                at: Timestamp::UNIX_EPOCH,
                provenance: Provenance {
                    repo: "shop".parse().unwrap(),
                    git_ref: "refs/heads/main".into(),
                    commit: "5d6e7f8a".repeat(5).parse().unwrap(),
                    pipeline: "release".parse().unwrap(),
                    run: RunId(1),
                    actor: None,
                },
                images: BTreeMap::new(),
                target: "swarm".into(),
                rendered: String::new(),
                config_hash: String::new(),
                replicas: BTreeMap::new(),
                secrets: BTreeMap::new(),
                schema: None,
                recovery_point: "none".into(),
                promoted_from: promoted_from.map(|(from, of)| (from.parse().unwrap(), of)),
            },
            deploy: DeployId(1),
            kind,
            status,
            at: Timestamp::UNIX_EPOCH,
            by: "ana".into(),
            because: because.map(str::to_owned),
            stands: None,
        };
        use {DeployKind as K, DeployStatus as S};
        let table = [
            (K::Deploy, S::Verified, None, None, "production 7: shop 5d6e7f8 verified"),
            (K::Deploy, S::Unverified, None, None, "production 7: shop 5d6e7f8 unverified"),
            (K::Deploy, S::Failed, Some("no\nway"), None, "production 7: shop 5d6e7f8 failed: no way"),
            (K::Deploy, S::RolledBack, Some("503"), None, "production 7: shop 5d6e7f8 rolled back: 503"),
            (
                K::Deploy,
                S::RollbackFailed,
                Some("503"),
                None,
                "production 7: shop 5d6e7f8 failed, and its rollback too: 503",
            ),
            (
                K::Promote,
                S::Verified,
                None,
                Some(("staging", 4)),
                "production 7: shop 5d6e7f8 promoted from staging 4, verified",
            ),
            (
                K::Rollback,
                S::RolledBack,
                Some("1a2b3c4: 503"),
                None,
                "production: rolled back to 7 (shop 5d6e7f8) because 1a2b3c4: 503",
            ),
            (K::Rollback, S::Verified, None, None, "production: rolled back to 7 (shop 5d6e7f8)"),
            (K::Rollback, S::RollbackFailed, Some("503"), None, "production: rollback to 7 (shop 5d6e7f8) failed: 503"),
            (K::Repair, S::Verified, None, None, "production 7: shop 5d6e7f8 put back, verified"),
            (K::Repair, S::Failed, Some("503"), None, "production 7: shop 5d6e7f8 put back, failed: 503"),
        ];
        for (kind, status, because, from, title) in table {
            assert_eq!(entry(kind, status, because, from).title(), title);
        }
    }

    #[test]
    fn how_the_environment_stood_reads_back() {
        let held = Held {
            revision: Some(("shop".parse().unwrap(), "12".repeat(20).parse().unwrap())),
            good: None,
            deploy: Some(DeployId(3)),
            reason: "503".into(),
            by: "mainstay".into(),
            strict: true,
            since: Timestamp::UNIX_EPOCH,
        };
        let stands = Stands { current: Some(1), holds: vec![held], ..Stands::default() };
        let text = serde_json::to_string(&stands).unwrap();
        assert_eq!(serde_json::from_str::<Stands>(&text).unwrap(), stands);
    }
}
