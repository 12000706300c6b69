//! What environments served, written into Git: one chain of signed commits per environment, which survives the loss of
//! this daemon and is read with `git log`.

use super::candidate::short;
use super::{DeployError, Shared};
use crate::config::daemon::environment::RollbackGit;
use crate::git::{Held, Mirror, Pushed, ReleaseEntry, Stands};
use crate::model::deploy::{DeployKind, DeployStatus};
use crate::model::{EnvironmentName, PublicKey};
use crate::signing::SigningKey;
use crate::store::DeployRow;
use std::sync::Arc;

/// Deploys written down in one go; the rest come with the next look.
const AT_ONCE: u32 = 20;

/// Writes down every deploy that ended and is not written down yet, and what is to be taken back of it. A repository that cannot be pushed to keeps its chain
/// in the mirror, and what is stored says so.
pub(super) async fn catch_up(shared: &Arc<Shared>, name: &EnvironmentName) -> Result<(), DeployError> {
    for row in shared.store.unrecorded_deploys(name, AT_ONCE).await? {
        let entries = entries(shared, &row).await?;
        let from = &row.request.provenance;
        let (Some(mirror), Ok(setup)) = (shared.setups().mirrors.get(&from.repo).cloned(), shared.setup(name)) else {
            shared
                .store
                .set_recorded(row.id, name, None, "nowhere: the repository is not watched any more".into(), None)
                .await?;
            continue;
        };
        let tag = (row.status == DeployStatus::RolledBack && setup.config.rollback.git == RollbackGit::Tag)
            .then(|| (format!("rolled-back/{name}-{}", row.release.unwrap_or_default()), from.commit.clone()));
        let revert = super::revert::wanted(shared, &row).await?;
        let (key, trusted, environment) = (Arc::clone(&shared.key), shared.trusted(), name.clone());
        let number = entries.first().map(|entry| entry.release.number);
        let written = tokio::task::spawn_blocking(move || {
            let place = write(&mirror, &environment, &entries, &key, &trusted)?;
            if let Some((tag, commit)) = tag
                && let Err(error) = mirror.push_own_tag(&tag, &commit)
            {
                tracing::warn!(environment = %environment, tag, %error, "failed to push the tag of what was rolled back");
            }
            Ok::<_, crate::git::GitError>(place)
        });
        let written = written.await.map_err(|error| DeployError::NotNow(format!("write the release down: {error}")))?;
        match written {
            Ok(place) => shared.store.set_recorded(row.id, name, number, place, revert).await?,
            Err(error) if error.is_passing() => {
                tracing::debug!(environment = %name, deploy = %row.id, %error, "the release is written down later");
                return Ok(());
            }
            // Trying for ever would not help, and what serves does not depend on it.
            Err(error) => {
                tracing::error!(environment = %name, deploy = %row.id, %error, "failed to write the release into Git");
                shared.store.set_recorded(row.id, name, number, format!("nowhere: {error}"), revert).await?;
            }
        }
        shared.announce();
    }
    Ok(())
}

/// What there is to tell about a deploy: its release, and the one that was put back.
async fn entries(shared: &Shared, row: &DeployRow) -> Result<Vec<ReleaseEntry>, DeployError> {
    let standing = shared.standing(row.id).await?;
    let name = &row.request.environment;
    let at = row.finished_at.unwrap_or(row.created_at);
    let (mut entries, stands) = (Vec::new(), stands(shared, name).await?);
    let entry = |release, kind, because: Option<String>| ReleaseEntry {
        release,
        deploy: row.id,
        kind,
        status: row.status,
        at,
        by: row.request.by.clone(),
        because,
        stands: Some(stands.clone()),
    };
    if let Some(number) = row.release
        && let Some(found) = shared.store.release(name, number).await?
    {
        let good = matches!(row.status, DeployStatus::Verified | DeployStatus::Unverified);
        let why = standing.state.why.clone().filter(|_| !good);
        entries.push(entry(found.release, row.request.kind, why));
    }
    if row.status == DeployStatus::RolledBack
        && let Some(number) = standing.state.fallback
        && let Some(found) = shared.store.release(name, number).await?
    {
        let commit = short(&row.request.provenance.commit).to_owned();
        let why = standing.state.why.map(|why| format!("{commit}: {why}"));
        entries.push(entry(found.release, DeployKind::Rollback, why));
    }
    Ok(entries)
}

/// How the environment stands now. A deploy that ended since is told of in an entry of its own, which comes next.
async fn stands(shared: &Shared, name: &EnvironmentName) -> Result<Stands, DeployError> {
    let row = shared.store.environment(name).await?;
    let held = shared.store.holds(name).await?.into_iter().map(|hold| Held {
        revision: hold.revision,
        good: hold.good,
        deploy: hold.deploy,
        reason: hold.reason,
        by: hold.by,
        strict: hold.strict,
        since: hold.since,
    });
    Ok(Stands {
        current: row.current,
        verified: row.verified,
        attention: row.attention,
        holds: held.collect(),
        items: row.observed.map(|observed| observed.items).unwrap_or_default(),
    })
}

/// Appends what is not there yet, pushes, and says where it is.
fn write(
    mirror: &Mirror,
    environment: &EnvironmentName,
    entries: &[ReleaseEntry],
    key: &SigningKey,
    trusted: &[PublicKey],
) -> Result<String, crate::git::GitError> {
    // A mirror is a cache that may be thrown away: the chain goes on where the repository has it.
    if mirror.release_tip(environment)?.is_none()
        && let Some(stopped) = mirror.take_over_releases(environment, trusted)?.stopped
    {
        tracing::warn!(environment = %environment, %stopped, "the repository's history is not believed: a new one is kept in the mirror");
    }
    // After a crash in the middle the newest entry is one of these: what comes before it is there too.
    let newest = mirror.newest_release(environment)?;
    let newest = newest.map(|entry| (entry.deploy, entry.release.number));
    let there = entries.iter().rposition(|entry| newest == Some((entry.deploy, entry.release.number)));
    let mut tip = None;
    for entry in entries.iter().skip(there.map_or(0, |at| at + 1)) {
        tip = Some(mirror.record_release(entry, key)?);
    }
    let tip = match tip {
        Some(tip) => Some(tip),
        None => mirror.release_tip(environment)?,
    };
    let tip = tip.map_or_else(String::new, |tip| tip.to_string());
    Ok(match mirror.push_release(environment)? {
        Pushed::OnlyInMirror { why } => format!("{tip} in the mirror only: {why}"),
        Pushed::Overtaken { found } => {
            format!(
                "{tip} in the mirror only: refs/mainstay/{environment} of the repository holds {found}, which is not ours"
            )
        }
        Pushed::Done | Pushed::AlreadyThere => format!("{tip} in refs/mainstay/{environment}"),
    })
}
