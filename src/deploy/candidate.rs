//! A deploy that has not begun: what it would put there, what is known about whether it may, and what people are asked.

use super::admit::{Admission, ApprovalFact, Facts, HoldFact, Relation, admit};
use super::line::NO_DEPLOY;
use super::target::{RenderInput, Rendered, TargetError};
use super::{DeployError, Setup, Shared};
use crate::approval::policy::{KnownAs, Named, Written, excluded};
use crate::config::daemon::environment::TargetConfig;
use crate::config::daemon::{People, freeze};
use crate::git::Mirror;
use crate::model::approval::{ApprovalRequest, ApprovalState, Excluded, Newer, Subject};
use crate::model::deploy::{DeployKind, DeployRequest, DeployStatus, Release};
use crate::model::input::Input;
use crate::model::{ApprovalId, DeployId, EnvironmentName, Oid, RepoName};
use crate::store::{DeployRow, EnvironmentRow, HoldRow};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A target's file is hand-written; a larger one is a mistake.
const FILE_MAX_BYTES: u64 = 1 << 20;
/// Commits since the last release looked through for their authors. With more, nobody can be sure not to approve their own.
const COMMITS_MAX: usize = 2_000;
/// Commits shown.
const COMMITS_SHOWN: usize = 50;
/// The configuration diff that is shown.
const DIFF_SHOWN_BYTES: usize = 32 << 10;

/// A deploy that has not begun, with all that is known about it.
pub(super) struct Candidate {
    /// What is to be done with it.
    pub(super) admission: Admission,
    /// What it would put there.
    pub(super) what: What,
    /// The request for approval that counts for it, if there is one.
    pub(super) approval: Option<ApprovalId>,
    setup: Arc<Setup>,
    stored: EnvironmentRow,
    serving: Option<Release>,
}

/// What else people are told when they are asked.
#[derive(Default)]
pub(super) struct Words {
    /// The deploy that waits, when it is one and not a step before it.
    pub(super) deploy: Option<DeployId>,
    /// Stands above everything else.
    pub(super) warning: Option<String>,
    /// Steps of the run so far and how they ended.
    pub(super) results: Vec<(String, String)>,
    /// What the pipeline says about it.
    pub(super) message: Option<String>,
    /// What may be given along with a yes.
    pub(super) inputs: Vec<Input>,
}

/// What a deploy would put there.
#[derive(Debug, Clone)]
pub(super) struct What {
    /// The rendered configuration.
    pub(super) rendered: Rendered,
    /// SHA-256 of its text.
    pub(super) config_hash: String,
    /// SHA-256 over all that an approval is about.
    pub(super) binding: String,
    /// The images by service, each by its identity.
    pub(super) images: BTreeMap<String, String>,
    /// Short digests of the variables that went in.
    pub(super) secrets: BTreeMap<String, String>,
}

/// The first digits of a commit, as people write them.
pub(super) fn short(commit: &Oid) -> &str {
    &commit.as_str()[..7]
}

/// A digest of a value that tells versions apart and tells nothing else.
fn short_digest(value: &str) -> String {
    format!("sha256:{}", hex::encode(&Sha256::digest(value.as_bytes())[..6]))
}

impl Shared {
    fn mirror(&self, repo: &RepoName) -> Result<Arc<Mirror>, DeployError> {
        let found = self.setups().mirrors.get(repo).cloned();
        found.ok_or_else(|| DeployError::Unknown(format!("read `{repo}`: it is not watched (any more)")))
    }

    /// What a request would put into its environment.
    pub(super) async fn what(&self, setup: &Arc<Setup>, request: &DeployRequest) -> Result<What, DeployError> {
        let (setup, mut request) = (Arc::clone(setup), request.clone());
        for image in request.images.values_mut() {
            *image = setup.target.pin(image).await.map_err(|error| match error {
                // The next look asks again.
                TargetError::Unreachable { .. } => DeployError::NotNow(error.to_string()),
                other => DeployError::Refused(other.to_string()),
            })?;
        }
        let mirror = self.mirror(setup.config.target.repo())?;
        let rendering = tokio::task::spawn_blocking(move || render(&setup, &mirror, &request));
        rendering.await.map_err(|error| DeployError::NotNow(format!("render the release: {error}")))?
    }

    /// Looks at a deploy that has not begun. `open` are the environment's open deploys, the oldest first.
    pub(super) async fn candidate(
        &self,
        setup: &Arc<Setup>,
        row: &DeployRow,
        open: &[DeployRow],
    ) -> Result<Candidate, DeployError> {
        let request = &row.request;
        let environment = &request.environment;
        self.history(setup, environment).await?;
        let stored = self.store.environment(environment).await?;
        let serving = match stored.current {
            Some(number) => self.store.release(environment, number).await?.map(|row| row.release),
            None => None,
        };
        if let Some(number) = request.release {
            let earlier = self.store.release(environment, number).await?;
            let earlier =
                earlier.ok_or_else(|| DeployError::Unknown(format!("find release {number} of {environment}")))?;
            let what = what_of(&earlier.release, request);
            let facts =
                self.facts(setup, row, open, &stored, serving.as_ref(), (ApprovalFact::NotNeeded, None)).await?;
            let admission = admit(&facts);
            return Ok(Candidate { admission, what, approval: None, setup: Arc::clone(setup), stored, serving });
        }
        let what = self.what(setup, request).await?;
        let (fact, denied, approval) = self.approval_fact(setup, request, &what).await?;
        let facts = self.facts(setup, row, open, &stored, serving.as_ref(), (fact, denied)).await?;
        let admission = admit(&facts);
        Ok(Candidate { admission, what, approval, setup: Arc::clone(setup), stored, serving })
    }

    async fn approval_fact(
        &self,
        setup: &Setup,
        request: &DeployRequest,
        what: &What,
    ) -> Result<(ApprovalFact, Option<String>, Option<ApprovalId>), DeployError> {
        if setup.config.approval.is_none() {
            return Ok((ApprovalFact::NotNeeded, None, None));
        }
        let key = approval_key(request, &what.binding);
        let Some(id) = self.approvals.find(&key).await? else { return Ok((ApprovalFact::Unasked, None, None)) };
        let Some(view) = self.approvals.view(id).await? else { return Ok((ApprovalFact::Unasked, None, None)) };
        let why = |state: &str| Some(view.note.clone().unwrap_or_else(|| format!("approval {id} {state}")));
        let (fact, denied) = match view.state {
            // An unknown pusher, or everybody who may is its author: waiting for a day would change nothing.
            ApprovalState::Open if (view.eligible.len() as u32) < view.required => {
                (ApprovalFact::Open, why("can be given by nobody"))
            }
            ApprovalState::Open => (ApprovalFact::Open, None),
            ApprovalState::Granted => (ApprovalFact::Granted, None),
            // Used by this very deploy, before it was recorded that it began; or by one that put the same bytes there for
            // the same run.
            ApprovalState::Used => (ApprovalFact::Granted, None),
            ApprovalState::Rejected => (ApprovalFact::Open, why("was rejected")),
            ApprovalState::Expired => (ApprovalFact::Open, why("expired")),
            ApprovalState::Void => (ApprovalFact::Unasked, why("is void")),
        };
        Ok((fact, denied, Some(id)))
    }

    async fn facts(
        &self,
        setup: &Setup,
        row: &DeployRow,
        open: &[DeployRow],
        stored: &EnvironmentRow,
        serving: Option<&Release>,
        (approval, denied): (ApprovalFact, Option<String>),
    ) -> Result<Facts, DeployError> {
        let request = &row.request;
        let from = &request.provenance;
        let mirror = self.mirror(&from.repo).ok();
        let holds = self.store.holds(&request.environment).await?;
        let serving = serving.filter(|release| release.provenance.repo == from.repo);
        let serving = serving.map(|release| release.provenance.commit.clone());
        let later: Vec<(DeployId, Oid)> = open
            .iter()
            .filter(|other| other.id > row.id && other.request.provenance.repo == from.repo)
            .filter(|other| matches!(other.status, DeployStatus::Queued | DeployStatus::Waiting))
            .filter(|other| matches!(other.request.kind, DeployKind::Deploy | DeployKind::Promote))
            // What may not come here takes nobody's place.
            .filter(|other| allowed(setup, &other.request))
            .map(|other| (other.id, other.request.provenance.commit.clone()))
            .collect();
        let waits = setup.config.approval.as_ref().is_some_and(|policy| policy.newer == Newer::Wait);
        let deploy = Some(row.id).filter(|id| *id != NO_DEPLOY);
        let before = self.comes_first(setup, request, deploy).await?;
        let (repo, commit) = (from.repo.clone(), from.commit.clone());
        let history =
            tokio::task::spawn_blocking(move || history(mirror.as_deref(), &repo, &commit, holds, serving, later));
        let (holds, behind, newer) =
            history.await.map_err(|error| DeployError::NotNow(format!("read the history: {error}")))??;
        Ok(Facts {
            kind: request.kind,
            allowed: allowed(setup, request),
            comes_from: format!(
                "{}, {}, pipeline {}",
                from.repo,
                from.git_ref
                    .strip_prefix("refs/heads/")
                    .map_or(from.git_ref.clone(), |branch| format!("branch {branch}")),
                from.pipeline
            ),
            history: self.barred_history(&request.environment),
            frozen_until: freeze::frozen_until(&setup.config.freeze, Timestamp::now()),
            behind,
            newer: newer.filter(|_| !waits),
            before,
            holds,
            attention: stored.attention.clone(),
            approval,
            denied,
            environment: request.environment.to_string(),
        })
    }

    /// The request for approval that an approval step, or a deploy without one, makes.
    pub(super) async fn approval_request(
        &self,
        candidate: &Candidate,
        request: &DeployRequest,
        words: Words,
    ) -> Result<Option<ApprovalRequest>, DeployError> {
        let Some(policy) = candidate.setup.config.approval.clone() else { return Ok(None) };
        let Words { deploy, warning, results, message, inputs } = words;
        let from = &request.provenance;
        let mirror = self.mirror(&from.repo)?;
        let since = candidate.serving.as_ref().filter(|release| release.provenance.repo == from.repo);
        let (since, commit) = (since.map(|release| release.provenance.commit.clone()), from.commit.clone());
        let between = tokio::task::spawn_blocking(move || mirror.commits_between(since.as_ref(), &commit, COMMITS_MAX));
        let between = between.await.map_err(|error| DeployError::NotNow(format!("read the history: {error}")))??;
        // Before the first release there is no border behind which changes are old: the commit itself is what is new.
        let first = candidate.serving.is_none();
        if between.more && !first && !policy.allow_self {
            return Err(DeployError::Refused(format!(
                "ask for approval: more than {COMMITS_MAX} commits since the last release; nobody can be sure not to approve their own\nhint: `allow-self` in the environment's approval policy"
            )));
        }
        let written: Vec<Written> = between
            .commits
            .iter()
            .take(if first { 1 } else { usize::MAX })
            .map(|commit| Written {
                commit: short(&commit.sha).to_owned(),
                author: commit.author_mail.clone(),
                committer: commit.committer_mail.clone(),
            })
            .collect();
        let people = self.approvals.people();
        let (excluded, unknown_pusher) = started(&people, from.actor.as_ref(), &request.started_by, &written);
        let before = candidate.serving.as_ref().map_or("", |release| release.rendered.as_str());
        let way_back = match candidate.stored.verified {
            Some(number) => format!("mainstay rollback {} (to release {number})", request.environment),
            None => "none: nothing was verified here yet".to_owned(),
        };
        let staging = match &candidate.setup.config.promote_from {
            Some(other) => Some(self.in_a_line(other).await?),
            None => None,
        };
        Ok(Some(ApprovalRequest {
            key: approval_key(request, &candidate.what.binding),
            environment: Some(request.environment.clone()),
            run: Some(from.run),
            step: request.step.clone(),
            deploy,
            binding: candidate.what.binding.clone(),
            subject: Subject {
                title: format!("deploy {} {} to {}", from.repo, short(&from.commit), request.environment),
                warning,
                repo: from.repo.to_string(),
                git_ref: from.git_ref.clone(),
                commit: from.commit.to_string(),
                commits: between
                    .commits
                    .iter()
                    .take(COMMITS_SHOWN)
                    .map(|commit| format!("{} {}: {}", short(&commit.sha), commit.author_name, commit.subject))
                    .collect(),
                images: candidate.what.images.clone(),
                config_diff: diff(before, &candidate.what.rendered.text),
                results,
                staging,
                way_back,
                message,
            },
            policy,
            excluded,
            unknown_pusher,
            inputs,
        }))
    }

    /// How an environment is doing, in a line.
    async fn in_a_line(&self, environment: &EnvironmentName) -> Result<String, DeployError> {
        let stored = self.store.environment(environment).await?;
        let serving = match stored.current {
            Some(number) if stored.verified == Some(number) => format!("release {number}, verified"),
            Some(number) => format!("release {number}, not verified"),
            None => "nothing yet".to_owned(),
        };
        Ok(match stored.attention {
            Some(attention) => format!("{environment}: {serving}; {attention}"),
            None => format!("{environment}: {serving}"),
        })
    }

    /// What is to be done with a request that is not a deploy yet: that of an approval step.
    pub(super) async fn candidate_of(&self, request: &DeployRequest) -> Result<Candidate, DeployError> {
        let setup = self.setup(&request.environment)?;
        let row = DeployRow {
            id: NO_DEPLOY,
            request: request.clone(),
            status: DeployStatus::Queued,
            release: None,
            created_at: Timestamp::now(),
            finished_at: None,
        };
        self.candidate(&setup, &row, &[]).await
    }
}

/// Who may not say yes: who pushed, who started it by hand, who wrote it; and the pusher when nobody knows them.
pub(super) fn started(
    people: &People,
    pushed: Option<&String>,
    by_hand: &[String],
    written: &[Written],
) -> (Vec<Excluded>, Option<String>) {
    let named = |name: &String| Named { name: Some(name.clone()), known_as: KnownAs::Any };
    let by_hand: Vec<_> =
        by_hand.iter().filter(|name| Some(*name) != pushed).map(|name| (named(name), "started it")).collect();
    let pushed = Named { name: pushed.cloned(), known_as: KnownAs::Any };
    excluded(people, &pushed, &by_hand, written)
}

/// An approval step and the deploy step after it ask with the same key, so that one answer counts for both.
fn approval_key(request: &DeployRequest, binding: &str) -> String {
    format!("deploy/{}/{}", request.environment, binding)
}

fn binding(request: &DeployRequest, config_hash: &str) -> String {
    let from = &request.provenance;
    // A promotion is asked by a person each time; what a run deploys is asked about once per run.
    let asked_as = if request.step.is_some() { format!("run {}", from.run) } else { request.key.clone() };
    let document = serde_json::json!([
        "mainstay-binding-1",
        request.environment,
        asked_as,
        from.repo,
        from.commit,
        request.images,
        config_hash
    ]);
    hex::encode(Sha256::digest(document.to_string().as_bytes()))
}

fn what_of(release: &Release, request: &DeployRequest) -> What {
    What {
        rendered: Rendered { text: release.rendered.clone(), replicas: release.replicas.clone() },
        config_hash: release.config_hash.clone(),
        binding: binding(request, &release.config_hash),
        images: release.images.clone(),
        secrets: release.secrets.clone(),
    }
}

fn render(setup: &Setup, mirror: &Mirror, request: &DeployRequest) -> Result<What, DeployError> {
    let from = &request.provenance;
    let config = &setup.config;
    let path = match &config.target {
        TargetConfig::Swarm(swarm) => Some(&swarm.stack),
        TargetConfig::Compose(compose) => Some(&compose.file),
        TargetConfig::Command(_) => None,
    };
    // A file in the deployed repository is read at the deployed commit; one in another repository as it is there now.
    let commit = if *config.target.repo() == from.repo {
        mirror.ensure(&from.commit)?;
        from.commit.clone()
    } else {
        mirror.fetch()?;
        mirror.resolve("")?.commit
    };
    let file = match path {
        None => None,
        Some(path) => {
            let bytes = mirror.read_file(&commit, path, FILE_MAX_BYTES)?;
            let bytes = bytes.ok_or_else(|| {
                DeployError::Refused(format!(
                    "render the release: `{path}` is not in {} at {}",
                    config.target.repo(),
                    short(&commit)
                ))
            })?;
            let text = String::from_utf8(bytes);
            Some(text.map_err(|_| DeployError::Refused(format!("render the release: `{path}` is not UTF-8 text")))?)
        }
    };
    let variables = setup.config.texts();
    let secret_names = setup.config.secrets().into_keys().collect();
    let digests = variables.iter().map(|(name, value)| (name.clone(), short_digest(value))).collect();
    let input = RenderInput {
        environment: request.environment.clone(),
        file,
        commit,
        images: request.images.clone(),
        variables,
        secret_names,
    };
    let rendered = setup.target.render(&input).map_err(|error| DeployError::Refused(error.to_string()))?;
    let config_hash = hex::encode(Sha256::digest(rendered.text.as_bytes()));
    let binding = binding(request, &config_hash);
    Ok(What { rendered, config_hash, binding, images: request.images.clone(), secrets: digests })
}

type History = (Vec<HoldFact>, bool, Option<DeployId>);

/// Whether what is asked for comes from where the environment says it may.
pub(super) fn allowed(setup: &Setup, request: &DeployRequest) -> bool {
    let from = &request.provenance;
    setup.config.from.iter().any(|source| source.allows(&from.repo, &from.git_ref, &from.pipeline))
}

/// How a commit stands to what is held, what serves, and what was asked for later.
fn history(
    mirror: Option<&Mirror>,
    repo: &RepoName,
    commit: &Oid,
    holds: Vec<HoldRow>,
    serving: Option<Oid>,
    later: Vec<(DeployId, Oid)>,
) -> Result<History, DeployError> {
    let inside = |ancestor: &Oid, of: &Oid| match mirror {
        // A commit that the mirror no longer has can be told by its name alone.
        Some(mirror) if mirror.contains(ancestor)? && mirror.contains(of)? => mirror.is_ancestor(ancestor, of),
        _ => Ok(ancestor == of),
    };
    let mut facts = Vec::new();
    for hold in holds {
        let relation = match &hold.revision {
            Some((held_repo, held)) if held_repo == repo => {
                if held == commit {
                    Relation::Same
                } else if !inside(held, commit)? {
                    Relation::Unrelated
                } else if mirror.is_some_and(|mirror| mirror.undoes(held, hold.good.as_ref(), commit).unwrap_or(false))
                {
                    Relation::Undone
                } else {
                    Relation::Contains
                }
            }
            _ => Relation::Unrelated,
        };
        facts.push(HoldFact {
            id: hold.id,
            commit: hold.revision.as_ref().map(|(_, held)| short(held).to_owned()),
            reason: hold.reason,
            by: hold.by,
            strict: hold.strict,
            relation,
        });
    }
    let behind = match &serving {
        Some(serving) => serving != commit && inside(commit, serving)?,
        None => false,
    };
    let mut newer = None;
    for (id, other) in later {
        if inside(commit, &other)? {
            newer = Some(id);
        }
    }
    Ok((facts, behind, newer))
}

/// The difference of two configurations, as people read it.
fn diff(before: &str, after: &str) -> String {
    if before == after {
        return String::new();
    }
    let patch = crate::git::unified_diff(before, after);
    if patch.len() <= DIFF_SHOWN_BYTES {
        return patch;
    }
    let cut = patch.char_indices().map(|(at, _)| at).take_while(|at| *at <= DIFF_SHOWN_BYTES).last().unwrap_or(0);
    format!("{}\n… {} bytes more", &patch[..cut], patch.len() - cut)
}
