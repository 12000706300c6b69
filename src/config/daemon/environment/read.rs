//! One entry under `environments`. What it is deployed to, how it is known to be well, and who has to say yes stand in
//! files of their own.

use super::super::{
    COMPARED_LEAST, ENVIRONMENT_KEYS, Environments, HOOKS_KEYS, LEASE_LEAST, People, ROLLBACK_KEYS, Reader,
    SCHEMA_KEYS, SOURCE_KEYS, freeze,
};
use super::{Environment, Freeze, Hooks, Rollback, RollbackGit, Schema, Source, TargetConfig, Variable};
use crate::config::check::{Fields, is_interpolated};
use crate::config::daemon::{FREEZE_KEYS, Notify};
use crate::config::globs::Globs;
use crate::config::yaml::{Key, Node, Place, Value};
use crate::model::Span;
use crate::model::ids::{EnvironmentName, PipelineName, RepoName};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What environments may refer to.
pub(in crate::config::daemon) struct Around<'a> {
    /// The names of the watched repositories, also of those that did not read.
    pub(in crate::config::daemon) repo_names: Vec<&'a str>,
    /// Those of them that say nothing of a forge.
    pub(in crate::config::daemon) without_forge: Vec<&'a str>,
    pub(in crate::config::daemon) people: &'a People,
    pub(in crate::config::daemon) notify: &'a Notify,
    /// There is a `notify.smtp`, whether it reads or not.
    pub(in crate::config::daemon) has_smtp: bool,
    /// The names of the environments, also of those that do not read.
    pub(in crate::config::daemon) names: Vec<&'a str>,
}

const WATCH: Span = Span(Duration::from_secs(300));
const TIMEOUT: Span = Span(Duration::from_secs(600));
const LEASE: Span = Span(Duration::from_secs(30));
const RECONCILE: Span = Span(Duration::from_secs(60));
/// Under this long no target has done anything.
const TIMEOUT_LEAST: Duration = Duration::from_secs(1);

impl Reader<'_, '_> {
    pub(in crate::config::daemon) fn environments(&mut self, node: &Node, around: &Around<'_>) -> Environments {
        let mut environments = Environments::new();
        let mut places: BTreeMap<(&'static str, Option<String>, String), EnvironmentName> = BTreeMap::new();
        for (key, node) in self.check.entries(node, "`environments`").unwrap_or_default() {
            let name = match EnvironmentName::new(key.name.as_str()) {
                Ok(name) => name,
                Err(why) => {
                    self.check.error(key.place, why.to_string());
                    continue;
                }
            };
            // Releases are written to `refs/mainstay/NAME`, and Git refuses these.
            if name.as_str().contains("..") || name.as_str().ends_with('.') || name.as_str().ends_with(".lock") {
                let message = format!("the environment's name `{name}` cannot stand in the name of a Git ref");
                self.check.error_with_hint(key.place, message, "no `..` in it, and no `.` or `.lock` at its end");
            }
            let Some(environment) = self.environment(&name, key, node, around) else { continue };
            if let Some(place) = place_of(&environment.target)
                && let Some(other) = places.insert(place, name.clone())
            {
                self.check.error_with_hint(
                    key.place,
                    format!("`{name}` and `{other}` are deployed to the same place: each would undo the other"),
                    "give their targets different names, or different hosts",
                );
            }
            environments.insert(name, environment);
        }
        environments
    }

    fn environment(
        &mut self,
        name: &EnvironmentName,
        key: &Key,
        node: &Node,
        around: &Around<'_>,
    ) -> Option<Environment> {
        let what = format!("the environment `{name}`");
        let fields = self.check.fields(node, &what, ENVIRONMENT_KEYS, &[])?;
        let mut missing = |key_name: &str, hint: &str| {
            self.check.error_with_hint(key.place, format!("{what} needs `{key_name}`"), hint);
        };
        if fields.get("from").is_none() {
            missing("from", "say who may deploy to it: `from: [{ repo: NAME, branches: [main] }]`");
        }
        if fields.get("target").is_none() {
            missing("target", "say what is deployed to: `target: { swarm: { stack: deploy/stack.yml, repo: NAME } }`");
        }
        let from = fields
            .get("from")
            .map(|n| self.sources(n, Some(&around.repo_names), "nothing could ever be deployed here"));
        let from = from.unwrap_or_default();
        let target = fields.get("target").and_then(|n| self.target(name, n, around));
        let health = fields.get("health").map(|n| self.health(n)).unwrap_or_default();
        // Without rules there is nothing to ask in that time.
        let usual = if health.is_empty() { Span(Duration::ZERO) } else { WATCH };
        let watch = self.span(&fields, "watch", usual, Duration::ZERO);
        let timeout = self.span(&fields, "timeout", TIMEOUT, TIMEOUT_LEAST);
        let rollback = self.rollback(fields.get("rollback"), &from, around);
        let approval = fields.get("approval").and_then(|n| self.approval(n, around));
        let freeze = fields.get("freeze").map(|n| self.freezes(n)).unwrap_or_default();
        let lease = self.span(&fields, "lease", LEASE, LEASE_LEAST);
        let reconcile = self.span(&fields, "reconcile", RECONCILE, COMPARED_LEAST);
        let self_heal = fields.get("self-heal").and_then(|n| self.check.boolean(n, "`self-heal`")).unwrap_or(false);
        let words = [("allowed", true), ("never", false)];
        let downtime = fields.get("downtime").map(|n| self.check.word(n, "`downtime`", &words));
        let promote_from = fields.get("promote-from").and_then(|n| self.promote_from(name, n, around));
        let hooks = fields.get("hooks").map(|n| self.hooks(n)).unwrap_or_default();
        let schema = fields.get("schema").and_then(|n| self.schema(n));
        let variables = fields.get("variables").map(|n| self.texts(n)).unwrap_or_default();
        let target = target?;
        // A `downtime` that did not read is told about already.
        if downtime.is_none_or(|read| read == Some(false)) {
            self.no_gap(&target, fields.entry("target").map_or(key.place, |(key, _)| key.place));
        }
        if let Some(node) = fields.get("from") {
            self.of_the_targets_repo(node, &from, &target);
        }
        Some(Environment {
            from,
            target,
            health,
            watch,
            timeout,
            rollback,
            approval,
            freeze,
            lease,
            reconcile,
            self_heal,
            downtime_allowed: downtime.flatten().unwrap_or(false),
            promote_from,
            hooks,
            schema,
            variables,
        })
    }

    /// `from`: who may. `repos` are the names it may refer to, where they are known; `nothing` says what an empty list
    /// would mean.
    pub(in crate::config) fn sources(&mut self, node: &Node, repos: Option<&[&str]>, nothing: &str) -> Vec<Source> {
        let mut list = Vec::new();
        for item in self.check.items(node, "`from`") {
            list.extend(self.source(item, repos));
        }
        if matches!(&node.value, Value::List(items) if items.is_empty()) {
            self.check.error(node.place, format!("`from` is empty: {nothing}"));
        }
        list
    }

    fn source(&mut self, node: &Node, repos: Option<&[&str]>) -> Option<Source> {
        let fields = self.check.fields(node, "an entry of `from`", SOURCE_KEYS, &[])?;
        for (key, hint) in [("repo", "the name of a watched repository"), ("branches", "every branch: `[\"**\"]`")] {
            if fields.get(key).is_none() {
                self.check.error_with_hint(node.place, format!("an entry of `from` needs `{key}`"), hint);
            }
        }
        let repo = fields.get("repo").and_then(|node| match repos {
            Some(repos) => self.repo_of(node, repos),
            None => self.check.parsed(node, "`repo`"),
        });
        let branches = fields.get("branches").map(|node| {
            // What says nothing would let everything in.
            if matches!(&node.value, Value::Map(entries) if entries.is_empty()) {
                self.check.error(node.place, "`branches` is empty: nothing would match");
            }
            self.check.globs(node, "`branches`")
        });
        let mut pipelines = Vec::new();
        if let Some(node) = fields.get("pipelines") {
            for item in self.check.items(node, "`pipelines`") {
                pipelines.extend(self.check.parsed::<PipelineName>(item, "`pipelines`"));
            }
            if matches!(&node.value, Value::List(items) if items.is_empty()) {
                self.check.error(node.place, "`pipelines` is empty; leave it out to take every pipeline");
            }
        }
        Some(Source { repo: repo?, branches: branches.unwrap_or_else(Globs::all), pipelines })
    }

    /// The name of a watched repository.
    pub(super) fn repo_name(&mut self, node: &Node, around: &Around<'_>) -> Option<RepoName> {
        self.repo_of(node, &around.repo_names)
    }

    fn repo_of(&mut self, node: &Node, repos: &[&str]) -> Option<RepoName> {
        let name = self.known(node, "repository", repos, "`repos` in `mainstay.yml` names the watched repositories")?;
        RepoName::new(name).ok()
    }

    /// A name that must be one of these.
    pub(in crate::config::daemon) fn known<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        known: &[&str],
        otherwise: &str,
    ) -> Option<&'n str> {
        let text = self.check.text(node, &format!("the name of a {what}"))?;
        if known.contains(&text) {
            return Some(text);
        }
        if is_interpolated(node) {
            self.check.error(node.place, format!("the value put in here is the name of no {what}"));
        } else {
            self.check.unknown_name(node.place, what, text, known, Some(otherwise));
        }
        None
    }

    /// The target's file is read at the commit that is deployed, so both are of one repository.
    fn of_the_targets_repo(&mut self, node: &Node, from: &[Source], target: &TargetConfig) {
        if let Some(other) = from.iter().find(|source| source.repo != *target.repo()) {
            self.check.error_with_hint(
                node.place,
                format!("`{}` may deploy here, but the target's file is in `{}`", other.repo, target.repo()),
                "the file is read at the commit that is deployed: keep it in the repository whose pipelines deploy",
            );
        }
    }

    fn no_gap(&mut self, target: &TargetConfig, place: Place) {
        let (message, hint) = match target {
            // Whether the services of a stack have host ports shows only when the file is rendered.
            TargetConfig::Swarm(_) => return,
            TargetConfig::Compose(compose) if compose.switch.is_some() => return,
            TargetConfig::Compose(_) => (
                "Compose stops the old containers before the new ones serve",
                "give the target a `switch` command, which moves the traffic to a second project; or write `downtime: allowed`",
            ),
            TargetConfig::Command(_) => (
                "whether commands of your own leave a moment without a serving version cannot be known here",
                "write `downtime: allowed` in this environment",
            ),
        };
        self.check.error_with_hint(place, message, hint);
    }

    /// A duration under that key.
    pub(super) fn span(&mut self, fields: &Fields<'_>, key: &str, usual: Span, least: Duration) -> Span {
        let Some(node) = fields.get(key) else { return usual };
        let Some(span) = self.check.parsed::<Span>(node, &format!("`{key}`")) else { return usual };
        if span.0 < least {
            self.check.error(node.place, format!("`{key}` is at least {}", Span(least)));
        }
        span
    }

    fn rollback(&mut self, node: Option<&Node>, from: &[Source], around: &Around<'_>) -> Rollback {
        let mut rollback = Rollback { auto: true, git: RollbackGit::None };
        let fields = node.and_then(|node| self.check.fields(node, "`rollback`", ROLLBACK_KEYS, &[]));
        let Some(fields) = fields else { return rollback };
        if let Some(node) = fields.get("auto") {
            rollback.auto = self.check.boolean(node, "`auto`").unwrap_or(true);
        }
        let Some(node) = fields.get("git") else { return rollback };
        let words = [("none", RollbackGit::None), ("tag", RollbackGit::Tag), ("revert-pr", RollbackGit::RevertPr)];
        rollback.git = self.check.word(node, "`git`", &words).unwrap_or(RollbackGit::None);
        if rollback.git == RollbackGit::RevertPr {
            self.has_forges(node, from, around);
        }
        rollback
    }

    /// Found out at the first rollback, it would be late.
    fn has_forges(&mut self, node: &Node, from: &[Source], around: &Around<'_>) {
        let mut told = BTreeSet::new();
        for Source { repo, .. } in from {
            if around.without_forge.contains(&repo.as_str()) && told.insert(repo) {
                self.check.error_with_hint(
                    node.place,
                    format!("`revert-pr` opens a pull request, and the repository `{repo}` has no `forge`"),
                    format!(
                        "`repos: {{ {repo}: {{ url: …, forge: {{ kind: gitea, token: \"${{secret:FORGE}}\" }} }} }}`, or `git: tag`"
                    ),
                );
            }
        }
    }

    fn freezes(&mut self, node: &Node) -> Vec<Freeze> {
        let mut list = Vec::new();
        for item in self.check.items(node, "`freeze`") {
            list.extend(self.freeze(item));
        }
        if freeze::never_ends(&list) {
            self.check.error(node.place, "`freeze` leaves no moment of the week: nothing could ever be deployed");
        }
        list
    }

    fn freeze(&mut self, node: &Node) -> Option<Freeze> {
        let fields = self.check.fields(node, "an entry of `freeze`", FREEZE_KEYS, &[])?;
        let mut ends = FREEZE_KEYS.iter().map(|key| {
            let Some(node) = fields.get(key) else {
                self.check.error(node.place, format!("an entry of `freeze` needs `{key}`"));
                return None;
            };
            let text = self.check.text(node, &format!("`{key}`"))?;
            let end = if *key == "from" { freeze::End::From } else { freeze::End::To };
            match freeze::read(text, end) {
                Ok(time) => Some(time),
                Err(_) if is_interpolated(node) => {
                    self.check.error(node.place, format!("`{key}`: the value put in here is not valid"));
                    None
                }
                Err(why) => {
                    self.check.error_with_hint(node.place, format!("`{key}`: {why}"), freeze::FORMS);
                    None
                }
            }
        });
        let (from, to) = (ends.next()?, ends.next()?);
        drop(ends);
        let freeze = Freeze { from: from?, to: to? };
        if let Err(why) = freeze.check() {
            self.check.error(node.place, why);
            return None;
        }
        Some(freeze)
    }

    fn promote_from(&mut self, name: &EnvironmentName, node: &Node, around: &Around<'_>) -> Option<EnvironmentName> {
        let from = self.known(node, "environment", &around.names, "`environments` names them")?;
        if from == name.as_str() {
            self.check.error(node.place, "an environment is not promoted from itself");
            return None;
        }
        EnvironmentName::new(from).ok()
    }

    fn hooks(&mut self, node: &Node) -> Hooks {
        let mut hooks = Hooks::default();
        let Some(fields) = self.check.fields(node, "`hooks`", HOOKS_KEYS, &[]) else { return hooks };
        let lists = [("before", &mut hooks.before), ("after", &mut hooks.after), ("rollback", &mut hooks.rollback)];
        for (key, list) in lists {
            if let Some(node) = fields.get(key) {
                *list = self.check.lines(node, &format!("`{key}`"));
            }
        }
        hooks
    }

    fn schema(&mut self, node: &Node) -> Option<Schema> {
        let fields = self.check.fields(node, "`schema`", SCHEMA_KEYS, &[])?;
        let reversible = fields.get("reversible").and_then(|n| self.check.line(n, "`reversible`"));
        let Some(version) = fields.get("version") else {
            self.check.error_with_hint(
                node.place,
                "`schema` needs `version`",
                "a command of this machine that prints the version of the database schema",
            );
            return None;
        };
        Some(Schema {
            version: self.check.line(version, "`version`")?.to_owned(),
            reversible: reversible.map(str::to_owned),
        })
    }

    fn texts(&mut self, node: &Node) -> BTreeMap<String, Variable> {
        let mut variables = BTreeMap::new();
        for (key, value, text) in self.check.variables(node, "`variables`") {
            if key.name.starts_with("MAINSTAY_") {
                self.check.error(key.place, "names that begin with `MAINSTAY_` are set by Mainstay itself");
            }
            // What was put in is never shown, wherever it came from: a release stands in the repository for all to read.
            let variable = if is_interpolated(value) {
                let Some(secret) = self.secret(value, &format!("`{}` of `variables`", key.name)) else { continue };
                Variable::Secret(secret)
            } else {
                Variable::Plain(text.to_owned())
            };
            variables.insert(key.name.clone(), variable);
        }
        variables
    }
}

/// What is deployed to: two environments with the same would take turns in undoing each other. What commands deploy to
/// is not known here.
fn place_of(target: &TargetConfig) -> Option<(&'static str, Option<String>, String)> {
    match target {
        TargetConfig::Swarm(swarm) => Some(("swarm", swarm.host.clone(), swarm.name.clone())),
        TargetConfig::Compose(compose) => Some(("compose", compose.host.clone(), compose.project.clone())),
        TargetConfig::Command(_) => None,
    }
}
