//! The history of an environment that this daemon does not remember: read back from `refs/mainstay/ENV`, when the store
//! knows no release of it. After the loss of the state folder, that is.
//!
//! Enters what trusted keys vouch for ([`crate::git::Releases`]). Leaves the same releases, deploys, holds in the store, in
//! one transaction, as if they had never been lost. A history that nobody vouches for is not taken, and nothing is deployed
//! meanwhile: a second chain that begins with 1 could never be pushed, and what was held would be deployed again. Called by
//! the environment's task, and by whoever is about to decide from what is stored.

use super::state::DeployEvent;
use super::target::TargetError;
use super::{DeployError, Setup, Shared};
use crate::git::{Believed, GitError, Held, ReleaseEntry, Releases, Stopped};
use crate::model::deploy::{DeployKind, DeployRequest, DeployStatus, Observation};
use crate::model::{Asker, EnvironmentName, PublicKey};
use crate::store::{Act, ActKind, NewHold, PastDeploy, PastEnvironment, PastRelease};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// A history that is not believed is looked at again so often: somebody may have taken it out of the way.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// What is known of an environment's history in Git.
#[derive(Debug, Clone)]
pub(super) enum History {
    /// The store knows all that there is to know.
    Settled,
    /// There is one that cannot be taken, as of then; why, in words, with hints.
    Barred(Instant, String),
}

impl Shared {
    /// Makes sure that the store knows the environment's history. `Some`: there is one that cannot be taken, and why.
    ///
    /// # Errors
    /// When the repository does not answer, among others: whether there is a history is not known then.
    pub(super) async fn history(&self, setup: &Setup, name: &EnvironmentName) -> Result<Option<String>, DeployError> {
        match self.known_history(name) {
            Some(History::Settled) => return Ok(None),
            Some(History::Barred(at, why)) if at.elapsed() < AGAIN_AFTER => return Ok(Some(why)),
            _ => {}
        }
        let found = self.settle(setup, name).await?;
        let why = match &found {
            History::Settled => None,
            History::Barred(_, why) => Some(why.clone()),
        };
        // Said once, and not with every look.
        if let Some(why) = why.as_ref().filter(|why| self.barred_history(name).as_ref() != Some(*why)) {
            let first = why.lines().next().unwrap_or_default();
            tracing::error!(environment = %name, "{first}: nothing is deployed there");
        }
        self.histories.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), found);
        self.announce();
        Ok(why)
    }

    /// Why the environment's history cannot be taken, as of the last look.
    pub(super) fn barred_history(&self, name: &EnvironmentName) -> Option<String> {
        match self.known_history(name)? {
            History::Settled => None,
            History::Barred(_, why) => Some(why),
        }
    }

    /// Another configuration may trust other keys.
    pub(super) fn forget_barred_histories(&self) {
        let mut histories = self.histories.lock().unwrap_or_else(PoisonError::into_inner);
        histories.retain(|_, history| matches!(history, History::Settled));
    }

    fn known_history(&self, name: &EnvironmentName) -> Option<History> {
        self.histories.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The keys whose entries are believed.
    pub(super) fn trusted(&self) -> Vec<PublicKey> {
        let mut keys = self.setups().trusted.clone();
        keys.push(self.key.public());
        keys
    }

    async fn settle(&self, setup: &Setup, name: &EnvironmentName) -> Result<History, DeployError> {
        if !self.store.releases(name, 1).await?.is_empty() {
            return Ok(History::Settled);
        }
        let repo = setup.config.target.repo().clone();
        let Some(mirror) = self.setups().mirrors.get(&repo).cloned() else { return Ok(History::Settled) };
        let (environment, trusted, url) = (name.clone(), self.trusted(), mirror.url().to_owned());
        let reading = tokio::task::spawn_blocking(move || mirror.take_over_releases(&environment, &trusted));
        let found = match reading.await.map_err(|error| DeployError::NotNow(format!("read the history: {error}")))? {
            Ok(found) => found,
            Err(error) if error.is_passing() => return Err(error.into()),
            Err(error) => return Ok(History::Barred(Instant::now(), unreadable(name, &error))),
        };
        if let Some(stopped) = &found.stopped {
            return Ok(History::Barred(Instant::now(), unvouched(name, repo.as_str(), &url, stopped)));
        }
        let Some(newest) = found.entries.first() else { return Ok(History::Settled) };
        let keys: BTreeSet<_> = found.entries.iter().map(|entry| entry.by.fingerprint()).collect();
        let tip = newest.commit.clone();
        let past = past(&found)?;
        // The target comes first: what is stored says that all of this is done.
        if let Some((current, _)) = past.current
            && let Some(serving) = past.releases.iter().find(|past| past.release.number == current)
            && let Err(error) = setup.target.taken_over(&serving.release).await
        {
            if matches!(error, TargetError::Unreachable { .. }) {
                return Err(DeployError::NotNow(error.to_string()));
            }
            tracing::warn!(environment = %name, %error, "failed to tell the target what it serves");
        }
        let act = Act {
            by: Asker::daemon(),
            kind: ActKind::HistoryTaken,
            subject: format!("environment {name}"),
            details: serde_json::json!({ "from": tip, "releases": past.releases.len(), "signed_by": keys }),
        };
        let (releases, current) = (past.releases.len(), past.current.as_ref().map(|(number, _)| *number));
        crate::failpoint!("deploy.history.before");
        if self.store.take_history(name, past, act).await? {
            tracing::info!(environment = %name, releases, current, %tip, "took over the history of the environment");
        }
        crate::failpoint!("deploy.history.after");
        Ok(History::Settled)
    }
}

fn unreadable(name: &EnvironmentName, error: &GitError) -> String {
    format!(
        "nobody knows whether refs/mainstay/{name} holds a history: failed to {error}\nhint: nothing is deployed to {name} until that is known"
    )
}

fn unvouched(name: &EnvironmentName, repo: &str, url: &str, stopped: &Stopped) -> String {
    let anew = format!(
        "hint: if it is that of a daemon which still lives, give this environment another name\nhint: to begin anew with release 1, take that history out of the way: git push {url} :refs/mainstay/{name}"
    );
    let at = stopped.commit.short();
    match &stopped.key {
        Some(key) => format!(
            "refs/mainstay/{name} of {repo} holds a history that no trusted key vouches for: {at} is signed with {}\nhint: if that was your daemon's, trust it in mainstay.yml and say `mainstay reload`: releases: {{ trusted: [\"{key}\"] }}\n{anew}",
            key.fingerprint()
        ),
        None => format!(
            "refs/mainstay/{name} of {repo} holds a history that nobody can believe: {at}: {}\n{anew}",
            stopped.why
        ),
    }
}

/// What a history, its newest entry first, adds up to.
fn past(found: &Releases) -> Result<PastEnvironment, serde_json::Error> {
    let mut past = PastEnvironment::default();
    // Deploys with the release that each went back to.
    let mut deploys: Vec<(&ReleaseEntry, Option<u64>)> = Vec::new();
    for Believed { commit, entry, .. } in found.entries.iter().rev() {
        let number = entry.release.number;
        let known = past.releases.iter().position(|past| past.release.number == number);
        let index = known.unwrap_or_else(|| {
            let recorded = format!("{commit} in refs/mainstay/{}", entry.release.environment);
            let (release, deploy) = (entry.release.clone(), entry.deploy);
            past.releases.push(PastRelease { release, deploy, verified_at: None, recorded });
            past.releases.len() - 1
        });
        past.current = Some((number, None));
        let before = deploys.last_mut().filter(|(deploy, _)| {
            deploy.deploy == entry.deploy
                && deploy.status == DeployStatus::RolledBack
                && entry.kind == DeployKind::Rollback
        });
        if let Some((_, fallback)) = before {
            // The second entry of that deploy: what it went back to had been verified.
            past.releases[index].verified_at.get_or_insert(entry.at);
            *fallback = Some(number);
            continue;
        }
        match entry.status {
            DeployStatus::Verified => {
                past.releases[index].verified_at.get_or_insert(entry.at);
                past.verified = Some(number);
                past.attention = None;
            }
            DeployStatus::Failed | DeployStatus::RollbackFailed => {
                let why = entry.because.as_deref().unwrap_or(entry.status.as_str());
                past.attention = Some(format!("deploy #{}: {why}", entry.deploy));
            }
            _ => {}
        }
        deploys.push((entry, None));
    }
    past.deploys = deploys.into_iter().enumerate().map(deploy).collect::<Result<_, _>>()?;
    let Some(newest) = found.entries.first().map(|newest| &newest.entry) else { return Ok(past) };
    let Some(stands) = newest.stands.clone() else { return Ok(past) };
    past.holds = stands.holds.into_iter().map(|held| hold(&newest.release.environment, held)).collect();
    let known = |number: &Option<u64>| {
        number.is_none_or(|number| past.releases.iter().any(|past| past.release.number == number))
    };
    // Written while a later deploy had ended that was not written down any more: what the entries say is older, and whole.
    if known(&stands.current) && known(&stands.verified) {
        let observed = (!stands.items.is_empty()).then(|| Observation { items: stands.items, instances: Vec::new() });
        past.current = stands.current.map(|number| (number, observed));
        past.verified = stands.verified;
        past.attention = stands.attention;
    }
    Ok(past)
}

fn deploy((index, (entry, fallback)): (usize, (&ReleaseEntry, Option<u64>))) -> Result<PastDeploy, serde_json::Error> {
    let release = &entry.release;
    let again = matches!(entry.kind, DeployKind::Rollback | DeployKind::Repair);
    let event =
        DeployEvent::ReadBack { status: entry.status, release: release.number, fallback, why: entry.because.clone() };
    Ok(PastDeploy {
        id: entry.deploy,
        request: DeployRequest {
            environment: release.environment.clone(),
            kind: entry.kind,
            // Runs are counted from 1 again, so the key that it had may come again for something else.
            key: format!("history/{}/{}", release.environment, index + 1),
            provenance: release.provenance.clone(),
            started_by: vec![entry.by.clone()],
            step: None,
            images: release.images.clone(),
            release: again.then_some(release.number),
            promoted_from: release.promoted_from.clone(),
            by: entry.by.clone(),
            skip_watch: false,
        },
        status: entry.status,
        release: release.number,
        at: entry.at,
        event: serde_json::to_string(&event)?,
    })
}

fn hold(environment: &EnvironmentName, held: Held) -> (NewHold, Timestamp) {
    let Held { revision, good, deploy, reason, by, strict, since } = held;
    (NewHold { environment: environment.clone(), revision, good, deploy, reason, by, strict }, since)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::state::DeployState;
    use crate::git::Stands;
    use crate::model::deploy::{Provenance, Release};
    use crate::model::{DeployId, Oid, RunId};
    use crate::store::Store;
    use std::collections::BTreeMap;

    fn commit(number: u64) -> Oid {
        format!("{number:040x}").parse().unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn entry(deploy: u64, kind: DeployKind, number: u64, status: DeployStatus, why: Option<&str>) -> ReleaseEntry {
        ReleaseEntry {
            release: Release {
                environment: "production".parse().unwrap(),
                number,
                at: at(number as i64),
                provenance: Provenance {
                    repo: "shop".parse().unwrap(),
                    git_ref: "refs/heads/main".into(),
                    commit: commit(number),
                    pipeline: "release".parse().unwrap(),
                    run: RunId(number),
                    actor: None,
                },
                images: BTreeMap::from([("api".into(), format!("image-{number}"))]),
                target: "command".into(),
                rendered: format!("{number}"),
                config_hash: String::new(),
                replicas: BTreeMap::new(),
                secrets: BTreeMap::new(),
                schema: None,
                recovery_point: "none".into(),
                promoted_from: None,
            },
            deploy: DeployId(deploy),
            kind,
            status,
            at: at(100 + deploy as i64),
            by: "ana".into(),
            because: why.map(str::to_owned),
            stands: None,
        }
    }

    /// The oldest comes first.
    fn releases(entries: &[ReleaseEntry]) -> Releases {
        let by = PublicKey::new([7; 32]);
        let believed = |entry: &ReleaseEntry| Believed { commit: commit(9), by: by.clone(), entry: entry.clone() };
        Releases { entries: entries.iter().rev().map(believed).collect(), stopped: None }
    }

    fn story() -> Vec<ReleaseEntry> {
        use {DeployKind as K, DeployStatus as S};
        vec![
            entry(4, K::Deploy, 1, S::Verified, None),
            entry(5, K::Deploy, 2, S::RolledBack, Some("503")),
            entry(5, K::Rollback, 1, S::RolledBack, Some("0000002: 503")),
            entry(8, K::Deploy, 3, S::Unverified, None),
        ]
    }

    #[test]
    fn entries_add_up_to_releases_and_deploys() {
        let past = past(&releases(&story())).unwrap();
        let numbers: Vec<_> = past.releases.iter().map(|p| (p.release.number, p.deploy.0, p.verified_at)).collect();
        assert_eq!(numbers, [(1, 4, Some(at(104))), (2, 5, None), (3, 8, None)]);
        assert_eq!((past.current.clone(), past.verified), (Some((3, None)), Some(1)));
        let deploys: Vec<_> = past.deploys.iter().map(|p| (p.id.0, p.status, p.release)).collect();
        use DeployStatus as S;
        assert_eq!(deploys, [(4, S::Verified, 1), (5, S::RolledBack, 2), (8, S::Unverified, 3)]);
        for deploy in &past.deploys {
            let mut state = DeployState::new(deploy.request.kind);
            state.apply(&serde_json::from_str(&deploy.event).unwrap(), deploy.at).unwrap();
            assert_eq!((state.status, state.release), (deploy.status, Some(deploy.release)));
        }
        let failed = entry(9, DeployKind::Deploy, 4, S::Failed, Some("no"));
        let past = super::past(&releases(&[story(), vec![failed]].concat())).unwrap();
        assert_eq!(past.attention.as_deref(), Some("deploy #9: no"));
    }

    #[test]
    fn how_the_environment_stood_is_taken_from_the_newest_entry_if_it_fits() {
        let mut story = story();
        let held = Held {
            revision: Some(("shop".parse().unwrap(), commit(2))),
            good: Some(commit(1)),
            deploy: Some(DeployId(5)),
            reason: "503".into(),
            by: "mainstay".into(),
            strict: false,
            since: at(105),
        };
        let items = BTreeMap::from([("api.image".to_owned(), "image-1".to_owned())]);
        let stands =
            Stands { current: Some(1), verified: Some(1), attention: Some("look".into()), holds: vec![held], items };
        story[3].stands = Some(stands.clone());
        let past = past(&releases(&story)).unwrap();
        assert_eq!((past.verified, past.attention.as_deref()), (Some(1), Some("look")));
        let (current, observed) = past.current.unwrap();
        assert_eq!((current, observed.unwrap().items["api.image"].as_str()), (1, "image-1"));
        assert_eq!((past.holds.len(), past.holds[0].1), (1, at(105)));
        // It tells of a release that no entry does.
        story[3].stands = Some(Stands { current: Some(4), ..stands });
        let past = super::past(&releases(&story)).unwrap();
        assert_eq!((past.current, past.attention, past.holds.len()), (Some((3, None)), None, 1));
    }

    #[tokio::test]
    async fn a_history_is_taken_once_whole_and_never_over_one_that_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let name: EnvironmentName = "production".parse().unwrap();
        let act = || Act {
            by: Asker::daemon(),
            kind: ActKind::HistoryTaken,
            subject: "environment production".into(),
            details: serde_json::json!({}),
        };
        // Something waits already, and has the number of a deploy of the past.
        let waiting =
            DeployRequest { key: "run/1/a/1".into(), ..past(&releases(&story())).unwrap().deploys[0].request.clone() };
        for n in 0..4 {
            let request = DeployRequest { key: format!("run/{n}"), ..waiting.clone() };
            store.create_deploy(request, None).await.unwrap();
        }
        for first in [true, false] {
            let taken = store.take_history(&name, past(&releases(&story())).unwrap(), act()).await.unwrap();
            assert_eq!(taken, first);
            let rows = store.releases(&name, 10).await.unwrap();
            assert_eq!(rows.iter().map(|row| row.release.number).collect::<Vec<_>>(), [3, 2, 1]);
            assert_eq!(store.next_release(&name).await.unwrap(), 4);
            // #4 was taken; its release names the number that it got.
            assert_eq!(store.list_deploys(&name, 10).await.unwrap().len(), 7);
            let made = store.load_deploy(rows[2].deploy).await.unwrap().unwrap().0;
            assert_eq!((made.release, made.status), (Some(1), DeployStatus::Verified));
            assert!(store.unrecorded_deploys(&name, 10).await.unwrap().is_empty());
        }
        assert_eq!(store.verify_audit(None).await.unwrap().entries, 1);
    }
}
