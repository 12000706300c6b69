//! `target`: what an environment is deployed to.

use super::super::{COMMAND_TARGET_KEYS, COMPOSE_KEYS, Reader, SWARM_KEYS, TARGET_KEYS};
use super::read::Around;
use super::{CommandTarget, ComposeTarget, SwarmTarget, TargetConfig};
use crate::config::check::{Fields, shown_text};
use crate::config::yaml::{Node, Place};
use crate::model::ids::{EnvironmentName, RepoName};
use std::path::{Component, Path};

/// The names of services, networks and volumes are made from it, and engines take 63 bytes.
const PLACE_MAX_BYTES: usize = 40;
/// The longest path that Git and every file system of ours carry.
const PATH_MAX_BYTES: usize = 1_000;

impl Reader<'_, '_> {
    pub(super) fn target(&mut self, name: &EnvironmentName, node: &Node, around: &Around<'_>) -> Option<TargetConfig> {
        let fields = self.check.fields(node, "`target`", TARGET_KEYS, &["kubernetes"])?;
        let kinds: Vec<_> = fields.entries.iter().filter(|(k, _)| TARGET_KEYS.contains(&k.name.as_str())).collect();
        match kinds.as_slice() {
            [] if fields.entries.is_empty() => {
                let message = "`target` names what is deployed to: `swarm`, `compose` or `command`";
                self.check.error(node.place, message);
                None
            }
            // An unknown key is told about already.
            [] => None,
            [(key, node)] => match key.name.as_str() {
                "swarm" => self.swarm(name, node, around).map(TargetConfig::Swarm),
                "compose" => self.compose(name, node, around).map(TargetConfig::Compose),
                _ => self.command_target(node, around).map(TargetConfig::Command),
            },
            [(first, _), (second, _), ..] => {
                let message = format!("an environment has one target; here are `{}` and `{}`", first.name, second.name);
                self.check.error_with_hint(second.place, message, "write two environments");
                None
            }
        }
    }

    fn swarm(&mut self, name: &EnvironmentName, node: &Node, around: &Around<'_>) -> Option<SwarmTarget> {
        let fields = self.check.fields(node, "`swarm`", SWARM_KEYS, &[])?;
        self.needs(&fields, node, "`swarm`", &["stack", "repo"]);
        let stack = fields.get("stack").and_then(|n| self.file_of_repo(n, "`stack`"));
        let repo = fields.get("repo").and_then(|n| self.repo_name(n, around));
        let host = fields.get("host").and_then(|n| self.engine_host(n));
        let stack_name = self.place_name(&fields, "name", name, node.place, is_stack_name, "a stack in a swarm");
        Some(SwarmTarget { stack: stack?, repo: repo?, name: stack_name?, host })
    }

    fn compose(&mut self, name: &EnvironmentName, node: &Node, around: &Around<'_>) -> Option<ComposeTarget> {
        let fields = self.check.fields(node, "`compose`", COMPOSE_KEYS, &[])?;
        self.needs(&fields, node, "`compose`", &["file", "repo"]);
        let file = fields.get("file").and_then(|n| self.file_of_repo(n, "`file`"));
        let repo = fields.get("repo").and_then(|n| self.repo_name(n, around));
        let host = fields.get("host").and_then(|n| self.engine_host(n));
        let switch = fields.get("switch").and_then(|n| self.check.line(n, "`switch`")).map(str::to_owned);
        let project = self.place_name(&fields, "project", name, node.place, is_project_name, "a Compose project");
        Some(ComposeTarget { file: file?, repo: repo?, project: project?, host, switch })
    }

    fn command_target(&mut self, node: &Node, around: &Around<'_>) -> Option<CommandTarget> {
        let fields = self.check.fields(node, "`command`", COMMAND_TARGET_KEYS, &[])?;
        self.needs(&fields, node, "`command`", &["repo", "up", "status", "down"]);
        let image = fields.get("image").and_then(|n| self.check.line(n, "`image`")).map(str::to_owned);
        let repo: Option<RepoName> = fields.get("repo").and_then(|n| self.repo_name(n, around));
        let mut lines =
            |key: &str| fields.get(key).map(|n| self.check.lines(n, &format!("`{key}`"))).unwrap_or_default();
        let (up, status, down) = (lines("up"), lines("status"), lines("down"));
        Some(CommandTarget { image, repo: repo?, up, status, down })
    }

    /// Notes the keys that must be there and are not.
    pub(in crate::config) fn needs(&mut self, fields: &Fields<'_>, node: &Node, what: &str, keys: &[&str]) {
        for key in keys.iter().filter(|key| fields.get(key).is_none()) {
            self.check.error(node.place, format!("{what} needs `{key}`"));
        }
    }

    /// A file of the repository: nothing that leads out of it.
    fn file_of_repo(&mut self, node: &Node, what: &str) -> Option<String> {
        let text = self.check.text(node, what)?;
        let path = Path::new(text);
        let why = if text.is_empty() || text.len() > PATH_MAX_BYTES {
            "has 1 to 1000 bytes"
        } else if text.chars().any(char::is_control) || text.starts_with('-') {
            "begins with no `-` and holds no control characters"
        } else if !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            "begins in the repository and stays there: no `/` in front, no `..`"
        } else if text.ends_with('/') || path.file_name().is_none() {
            "names a file"
        } else {
            let parts = path.components().filter_map(|part| match part {
                Component::Normal(part) => part.to_str(),
                _ => None,
            });
            return Some(parts.collect::<Vec<_>>().join("/"));
        };
        self.check.error(node.place, format!("`{}` is no file of a repository: a path {why}", shown_text(node, text)));
        None
    }

    /// The name in the engine: the environment's own, unless another is written.
    fn place_name(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        environment: &EnvironmentName,
        place: Place,
        fits: fn(&str) -> bool,
        what: &str,
    ) -> Option<String> {
        let Some(node) = fields.get(key) else {
            if !fits(environment.as_str()) {
                self.check.error_with_hint(
                    place,
                    format!("`{environment}` cannot be the name of {what}"),
                    format!("give it another here: `{key}: NAME`"),
                );
                return None;
            }
            return Some(environment.to_string());
        };
        let text = self.check.text(node, &format!("`{key}`"))?;
        if fits(text) {
            return Some(text.to_owned());
        }
        self.check.error(node.place, format!("`{}` cannot be the name of {what}", shown_text(node, text)));
        None
    }
}

/// What is left when nothing that a service, a network or a volume may not have in its name is allowed.
fn is_stack_name(name: &str) -> bool {
    name.len() <= PLACE_MAX_BYTES
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// The rule of Compose.
fn is_project_name(name: &str) -> bool {
    is_stack_name(name) && !name.bytes().any(|b| b.is_ascii_uppercase())
}
