//! What environments served, written into Git: one chain of signed commits per environment, which survives the loss of
//! this daemon and is read with `git log`.

use super::candidate::short;
use super::{DeployError, Shared};
use crate::config::daemon::environment::RollbackGit;
use crate::git::{Mirror, Pushed, ReleaseEntry, SigningKey};
use crate::model::EnvironmentName;
use crate::model::deploy::{DeployKind, DeployStatus};
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
        let (key, environment) = (Arc::clone(&shared.key), name.clone());
        let number = entries.first().map(|entry| entry.release.number);
        let written = tokio::task::spawn_blocking(move || {
            let place = write(&mirror, &environment, &entries, &key)?;
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
    let mut entries = Vec::new();
    let entry = |release, kind, because: Option<String>| ReleaseEntry {
        release,
        deploy: row.id,
        kind,
        status: row.status,
        at,
        by: row.request.by.clone(),
        because,
    };
    if let Some(number) = row.release
        && let Some(found) = shared.store.release(name, number).await?
    {
        entries.push(entry(found.release, row.request.kind, None));
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

/// Appends what is not there yet, pushes, and says where it is.
fn write(
    mirror: &Mirror,
    environment: &EnvironmentName,
    entries: &[ReleaseEntry],
    key: &SigningKey,
) -> Result<String, crate::git::GitError> {
    // After a crash in the middle the newest entry is one of these: what comes before it is there too.
    let newest = mirror.read_releases(environment, &[key.public()])?.entries.into_iter().next();
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
