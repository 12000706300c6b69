//! A release that was rolled back is taken back in its repository too: a commit on a branch of Mainstay's own, and a pull
//! request that a person merges.
//!
//! Enters: what `record` found to be taken back, a row in the store. Leaves: the branch, the pull request, and in the row
//! its address or why there is none, which people are told. One task does it for all environments, so that a forge that
//! does not answer keeps nothing waiting but other pull requests. Each try begins with a look at what is there: a branch
//! that was pushed and a pull request that was opened are found again, whenever the one before was killed.

use super::candidate::short;
use super::{DeployError, Shared, tell};
use crate::config::daemon::environment::RollbackGit;
use crate::git::{GitError, Mirror, Pushed, Revert, Reverted};
use crate::model::deploy::{DeployKind, DeployStatus};
use crate::model::trigger::OWN_BRANCHES;
use crate::model::{Asker, Oid};
use crate::notify::channels::Failure;
use crate::notify::forge::{Forge, Proposal};
use crate::notify::message::Message;
use crate::notify::outbox::{GIVE_UP_AFTER, pause};
use crate::step::container::turned;
use crate::store::{Act, ActKind, DeployRow, RevertEnd, RevertRow, RevertState, RevertWanted, StoreError};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// A wake-up that was lost costs this much.
const TICK: Duration = Duration::from_secs(2);
/// Tried in one look; the rest comes with the next.
const AT_ONCE: u32 = 10;
/// Characters of a reason in a commit and a pull request: what a health rule saw of a page.
const REASON_MAX: usize = 500;
/// Releases looked through for the one that a person rolled back.
const RELEASES_LOOKED_AT: u32 = 1_000;

/// What a deploy that ended has rolled back and is to be taken back, when its environment says so.
pub(super) async fn wanted(shared: &Shared, row: &DeployRow) -> Result<Option<RevertWanted>, DeployError> {
    let name = &row.request.environment;
    let Ok(setup) = shared.setup(name) else { return Ok(None) };
    if setup.config.rollback.git != RollbackGit::RevertPr {
        return Ok(None);
    }
    let state = shared.standing(row.id).await?.state;
    let went_well = matches!(row.status, DeployStatus::Verified | DeployStatus::Unverified);
    let (bad, good) = if row.status == DeployStatus::RolledBack {
        (row.release, state.fallback)
    } else if row.request.kind == DeployKind::Rollback && went_well {
        // What served before is what this deploy held.
        let Some((repo, commit)) = shared.store.held_by_deploy(row.id).await? else { return Ok(None) };
        let releases = shared.store.releases(name, RELEASES_LOOKED_AT).await?;
        let held = releases
            .into_iter()
            .map(|row| row.release)
            .find(|release| (&release.provenance.repo, &release.provenance.commit) == (&repo, &commit));
        (held.map(|release| release.number), row.release)
    } else {
        return Ok(None);
    };
    let (Some(bad), Some(good)) = (bad, good) else { return Ok(None) };
    let (Some(bad), Some(good)) = (shared.store.release(name, bad).await?, shared.store.release(name, good).await?)
    else {
        return Ok(None);
    };
    let (bad, good) = (bad.release, good.release);
    let (from, to) = (&bad.provenance, &good.provenance);
    // With the same commit only images, variables or the target's settings were other: nothing in the branch is wrong.
    let Some(base) = from.git_ref.strip_prefix("refs/heads/") else { return Ok(None) };
    if from.repo != to.repo || from.commit == to.commit {
        return Ok(None);
    }
    let why = state.why.unwrap_or_else(|| format!("{} rolled it back", row.request.by));
    Ok(Some(RevertWanted {
        deploy: row.id,
        environment: name.clone(),
        repo: from.repo.clone(),
        base: base.to_owned(),
        release: bad.number,
        bad: from.commit.clone(),
        good_release: good.number,
        good: to.commit.clone(),
        why,
        run: from.run,
        at: row.finished_at.unwrap_or(row.created_at),
    }))
}

/// Starts the task that takes back, when there is none.
pub(super) fn ensure(shared: &Arc<Shared>) {
    let mut task = shared.reverts();
    if *shared.stop.borrow() || task.as_ref().is_some_and(|task| !task.is_finished()) {
        return;
    }
    *task = Some(tokio::spawn(run(Arc::clone(shared))));
}

async fn run(shared: Arc<Shared>) {
    let (mut stop, mut changed) = (shared.stop.subscribe(), shared.changed.subscribe());
    let mut in_force = shared.setups();
    loop {
        // What was wrong with the settings may be right now.
        let now = shared.setups();
        let reloaded = !Arc::ptr_eq(&in_force, &now);
        in_force = now;
        let looked = tokio::select! {
            biased;
            () = turned(&mut stop) => return,
            looked = look(&shared, reloaded) => looked,
        };
        match looked {
            Ok(()) => {}
            Err(DeployError::Store(StoreError::Closed)) => return,
            Err(error) => tracing::error!(%error, "failed to look after reverts; it will be tried again"),
        }
        tokio::select! {
            biased;
            () = turned(&mut stop) => return,
            _ = changed.changed() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

async fn look(shared: &Arc<Shared>, reloaded: bool) -> Result<(), DeployError> {
    if reloaded {
        shared.store.hasten_reverts(Timestamp::now()).await?;
    }
    for row in shared.store.reverts_due(Timestamp::now(), AT_ONCE).await? {
        let now = Timestamp::now();
        let wanted = &row.wanted;
        let end = match attempt(shared, &row).await? {
            Tried::Ended(end) => end,
            Tried::Later { why, .. } if now.duration_since(row.created_at) >= GIVE_UP_AFTER => {
                given_up(format!("not done within three days; the last try: {why}"))
            }
            Tried::Later { why, after } => {
                let pause = pause(row.tries + 1, getrandom::u32().unwrap_or(u32::MAX / 2)).max(after);
                tracing::warn!(environment = %wanted.environment, deploy = %wanted.deploy, why, "failed to propose to take a release back; it will be tried again");
                shared.store.revert_failed(wanted.deploy, why, now + pause).await?;
                continue;
            }
        };
        finish(shared, &row, end).await?;
    }
    Ok(())
}

/// What came of one try.
enum Tried {
    Ended(RevertEnd),
    Later { why: String, after: Duration },
}

impl Tried {
    fn later(why: impl Into<String>) -> Tried {
        Tried::Later { why: why.into(), after: Duration::ZERO }
    }

    fn given_up(why: impl Into<String>) -> Tried {
        Tried::Ended(given_up(why))
    }
}

fn given_up(why: impl Into<String>) -> RevertEnd {
    RevertEnd { state: RevertState::GivenUp, url: None, why: Some(why.into()) }
}

impl From<Failure> for Tried {
    fn from(failure: Failure) -> Tried {
        match failure {
            // Nobody asks for longer than the pauses get by themselves.
            Failure::Later { why, after } => {
                Tried::Later { why, after: after.unwrap_or_default().min(Duration::from_secs(3600)) }
            }
            Failure::Never(why) => Tried::given_up(why),
        }
    }
}

async fn attempt(shared: &Arc<Shared>, row: &RevertRow) -> Result<Tried, DeployError> {
    let wanted = &row.wanted;
    let setups = shared.setups();
    // What is missing may come back with the next reload.
    let Some(mirror) = setups.mirrors.get(&wanted.repo).cloned() else {
        return Ok(Tried::later(format!("mainstay.yml names no repository `{}`", wanted.repo)));
    };
    let Some(forge) = setups.forges.get(&wanted.repo).cloned() else {
        return Ok(Tried::later(format!("mainstay.yml names no `forge` of `{}`", wanted.repo)));
    };
    let (of, had, from) = (wanted.clone(), row.commit.clone(), Arc::clone(&mirror));
    let looked = tokio::task::spawn_blocking(move || look_at_branch(&from, &of, had.as_ref()));
    let looked = looked.await.map_err(|error| DeployError::NotNow(format!("look at the branch: {error}")))?;
    let branch = match looked {
        Ok(branch) => branch,
        Err(error) => return Ok(Tried::later(format!("failed to {error}"))),
    };
    let commit = match branch {
        Branch::There(commit) => commit,
        Branch::ToPush(commit) => {
            shared.store.revert_made(wanted.deploy, &commit).await?;
            crate::failpoint!("deploy.revert.made");
            if let Some(tried) = push(mirror, wanted, commit.clone()).await? {
                return Ok(tried);
            }
            crate::failpoint!("deploy.revert.pushed");
            commit
        }
        Branch::Needless(why) => {
            // Merged, and its branch removed, before it could be written down that it was opened.
            if let Some(commit) = &row.commit
                && let Ok(Some(url)) = forge.find(&proposal(wanted, commit)).await
            {
                return Ok(Tried::Ended(opened(url)));
            }
            return Ok(Tried::Ended(RevertEnd { state: RevertState::Needless, url: None, why: Some(why) }));
        }
        Branch::Never(why) => return Ok(Tried::given_up(why)),
    };
    let proposed = propose(&forge, wanted, &commit).await;
    crate::failpoint!("deploy.revert.opened");
    Ok(proposed)
}

async fn propose(forge: &Forge, wanted: &RevertWanted, commit: &Oid) -> Tried {
    match forge.propose(&proposal(wanted, commit)).await {
        Ok(url) => Tried::Ended(opened(url)),
        Err(Failure::Never(why)) => Tried::given_up(format!(
            "{why}\nhint: the branch {} is there: a pull request for {} can be opened by hand",
            branch_of(wanted),
            wanted.base
        )),
        Err(later) => later.into(),
    }
}

fn opened(url: String) -> RevertEnd {
    RevertEnd { state: RevertState::Open, url: Some(url), why: None }
}

/// Pushes the branch; what stands in the way of that, when something does.
async fn push(mirror: Arc<Mirror>, wanted: &RevertWanted, commit: Oid) -> Result<Option<Tried>, DeployError> {
    let name = branch_of(wanted);
    let pushing = tokio::task::spawn_blocking(move || mirror.push_own_branch(&name, &commit));
    let pushed = pushing.await.map_err(|error| DeployError::NotNow(format!("push the branch: {error}")))?;
    Ok(match pushed {
        Ok(Pushed::Done | Pushed::AlreadyThere) => None,
        // Somebody was quicker: the next look sees who.
        Ok(Pushed::Overtaken { .. }) => Some(Tried::later(format!("{} was made by somebody else", branch_of(wanted)))),
        Ok(Pushed::OnlyInMirror { why }) => Some(Tried::given_up(format!(
            "{why}\nhint: Mainstay must be allowed to push branches to {}: `auth` of the repository, or its ssh key",
            wanted.repo
        ))),
        Err(error) if error.is_passing() => Some(Tried::later(format!("failed to {error}"))),
        Err(error) => Some(Tried::given_up(format!("failed to {error}"))),
    })
}

/// How the repository stands to what is to be pushed.
enum Branch {
    /// The branch is there and holds it.
    There(Oid),
    /// The commit is in the mirror, and no branch of that name is there.
    ToPush(Oid),
    /// There is nothing to take back.
    Needless(String),
    /// A person has to do it.
    Never(String),
}

/// Looks at the repository as it is now. `had` was pushed, or was about to be.
fn look_at_branch(mirror: &Mirror, wanted: &RevertWanted, had: Option<&Oid>) -> Result<Branch, GitError> {
    let refs = mirror.fetch()?.refs;
    let name = branch_of(wanted);
    let own = refs.get(&format!("{OWN_BRANCHES}{}", name.trim_start_matches("mainstay/")));
    if let (Some(own), Some(had)) = (own, had)
        // With more on top of it, somebody works on it: that is for the pull request.
        && (own == had || mirror.contains(had)? && mirror.is_ancestor(had, own)?)
    {
        return Ok(Branch::There(own.clone()));
    }
    let Some(tip) = refs.get(&format!("refs/heads/{}", wanted.base)) else {
        return Ok(Branch::Needless(format!("the branch {} is gone", wanted.base)));
    };
    mirror.ensure(&wanted.bad)?;
    mirror.ensure(&wanted.good)?;
    let revert = Revert {
        bad: wanted.bad.clone(),
        good: wanted.good.clone(),
        onto: tip.clone(),
        message: message(wanted),
        at: wanted.at,
    };
    Ok(match (mirror.make_revert(&revert)?, own) {
        (Reverted::Commit(commit), None) => Branch::ToPush(commit),
        (Reverted::Commit(commit), Some(own)) if commit == *own => Branch::There(commit),
        (Reverted::Commit(_), Some(own)) => {
            Branch::Never(format!("the branch {name} is there already and holds {}, which is not ours", own.short()))
        }
        (Reverted::Nothing { why }, _) => Branch::Needless(why),
        (Reverted::Conflict { paths, count }, _) => {
            let more = if count > paths.len() { format!(" and {} more", count - paths.len()) } else { String::new() };
            Branch::Never(format!(
                "{} has changed since in the same places: {}{more}\nhint: take it back by hand: git revert {}..{}",
                wanted.base,
                paths.join(", "),
                short(&wanted.good),
                short(&wanted.bad)
            ))
        }
    })
}

/// Written down, audited and told in one transaction.
async fn finish(shared: &Arc<Shared>, row: &RevertRow, end: RevertEnd) -> Result<(), DeployError> {
    let wanted = &row.wanted;
    let name = &wanted.environment;
    let RevertEnd { state, url, why } = &end;
    match state {
        RevertState::Open => {
            tracing::info!(environment = %name, deploy = %wanted.deploy, url, "proposed to take a release back");
        }
        _ => {
            tracing::warn!(environment = %name, deploy = %wanted.deploy, why, "a release is not taken back by a pull request");
        }
    }
    let details = serde_json::json!({
        "deploy": wanted.deploy, "release": wanted.release, "commit": wanted.bad, "branch": branch_of(wanted),
        "state": state.as_str(), "url": url, "why": why,
    });
    let act = Act { by: Asker::daemon(), kind: ActKind::Revert, subject: format!("environment {name}"), details };
    let message = Message::Revert {
        environment: name.clone(),
        deploy: wanted.deploy,
        release: wanted.release,
        title: format!("{} {}", wanted.repo, short(&wanted.bad)),
        branch: branch_of(wanted),
        base: wanted.base.clone(),
        url: url.clone(),
        why: why.clone(),
        needless: *state == RevertState::Needless,
        run: Some(wanted.run),
    };
    let messages = tell::outgoing(&shared.setups(), name, &format!("revert/{}", wanted.deploy), &message);
    shared.store.end_revert(wanted.deploy, end, act, messages).await?;
    shared.announce();
    Ok(())
}

pub(super) fn branch_of(wanted: &RevertWanted) -> String {
    format!("mainstay/revert-{}-{}", wanted.environment, wanted.release)
}

fn title(wanted: &RevertWanted) -> String {
    format!(
        "Take {} back: {} was rolled back from release {} to {}",
        short(&wanted.bad),
        wanted.environment,
        wanted.release,
        wanted.good_release
    )
}

/// Fit to stand in a commit and a pull request, whatever a page or a command said: one line, indented as what is quoted.
fn reason(wanted: &RevertWanted) -> String {
    let line: String = wanted.why.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_MAX).collect();
    format!("    {}", line.trim())
}

fn message(wanted: &RevertWanted) -> String {
    format!(
        "{}\n\n{}\n\nThis takes back what changed from {} to {}.\n\nDeploy: {}\n",
        title(wanted),
        reason(wanted),
        wanted.good,
        wanted.bad,
        wanted.deploy
    )
}

fn proposal(wanted: &RevertWanted, commit: &Oid) -> Proposal {
    let RevertWanted { environment, base, release, good_release, bad, good, .. } = wanted;
    Proposal {
        branch: branch_of(wanted),
        base: base.clone(),
        commit: commit.to_string(),
        title: title(wanted),
        body: format!(
            "Release {release} of {environment} turned bad, and release {good_release} serves again:\n\n{}\n\n\
             This branch takes back what changed from {good} to {bad}. What was pushed to {base} since then stays.\n\n\
             {} is held until {base} no longer has it: merged, this goes the usual way and lifts that.\n",
            reason(wanted),
            short(bad),
        ),
    }
}
