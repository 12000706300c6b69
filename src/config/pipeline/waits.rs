//! Steps that run no container: `deploy` and `approval`, and what they have in common with `backup` and `restore`.

use super::{APPROVAL_KEYS, DEPLOY_KEYS, EXPIRES_MIN, IMAGE_MAX_BYTES, MESSAGE_MAX_CHARS, Placed, Reader};
use crate::config::check::Fields;
use crate::config::expression::{self, Reference};
use crate::config::finding::shown;
use crate::config::needs::Needs;
use crate::config::yaml::{Key, Node, Place, Value};
use crate::model::Span;
use crate::model::ids::{EnvironmentName, GroupName};
use crate::model::plan::{ApprovalStep, DeployStep, RollbackTo, StepKind, WhenStatus};
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// The keys that make a step something other than a container.
pub(super) const KINDS: [&str; 4] = ["deploy", "approval", "backup", "restore"];

/// Keys of containers, and what to do instead: for a deploy or an approval, and for a backup or a restore.
const CONTAINERS_ONLY: [(&str, &str, &str); 8] = [
    ("image", NOTHING_RUNS, NOTHING_RUNS),
    ("commands", NOTHING_RUNS, NOTHING_RUNS),
    ("args", NOTHING_RUNS, NOTHING_RUNS),
    (
        "environment",
        VARIABLES,
        "how the source is reached, and where it is restored to, stands in its file in `backups/`",
    ),
    ("secrets", VARIABLES, "passwords of a source stand in the secret store, and its file in `backups/` names them"),
    ("resources", "it uses nothing that could be limited; what is deployed says that in its own file", UNLIMITED),
    ("once", "it is never done twice in any case: the environment knows what it was asked for", TWICE),
    ("retries", SECOND_TRY, SECOND_TRY),
];
const NOTHING_RUNS: &str = "nothing runs in a container here; what has to run is a step of its own";
const VARIABLES: &str =
    "texts and secrets for what is deployed stand under `variables` of the environment in `mainstay.yml`";
const UNLIMITED: &str = "the daemon does it, and bounds the memory that it takes";
const TWICE: &str = "a backup may be taken twice without harm, and a restore never begins twice for one step";
const SECOND_TRY: &str = "a second try is a decision: `mainstay retry RUN --from STEP`";

/// As long as the policy of an environment when it says nothing.
const EXPIRES: Span = Span(Duration::from_secs(24 * 3_600));

impl Reader<'_> {
    /// The `deploy`, `approval`, `backup` or `restore` of a step; `None` when it is a container.
    pub(super) fn waiting_kind(
        &mut self,
        fields: &Fields<'_>,
        references: &mut Vec<(Reference, Place)>,
    ) -> Option<(StepKind, Place)> {
        let mut kinds = fields.entries.iter().filter(|(key, _)| KINDS.contains(&key.name.as_str()));
        let (key, node) = kinds.next()?;
        if let Some((other, _)) = kinds.next() {
            let message = format!("a step does one thing; here are `{}` and `{}`", key.name, other.name);
            self.check.error_with_hint(other.place, message, "write two steps, of which one `needs` the other");
        }
        self.no_container_keys(key, fields);
        let kind = match key.name.as_str() {
            "deploy" => self.deploy(node, references).map(StepKind::Deploy),
            "backup" => self.backup(node).map(StepKind::Backup),
            "restore" => self.restore(node, references).map(StepKind::Restore),
            _ => {
                self.always_counts(fields);
                self.approval(node).map(StepKind::Approval)
            }
        };
        // What did not read stops the file anyway; any kind does for the checks that follow.
        Some((kind.unwrap_or_default(), key.place))
    }

    fn no_container_keys(&mut self, kind: &Key, fields: &Fields<'_>) {
        let data = matches!(kind.name.as_str(), "backup" | "restore");
        for (name, releases, recovery) in CONTAINERS_ONLY {
            let hint = if data { recovery } else { releases };
            if let Some((key, _)) = fields.entry(name) {
                let message = format!("`{name}` means nothing beside `{}`", kind.name);
                self.check.error_with_hint(key.place, message, hint);
            }
        }
    }

    /// An approval that was skipped, or failed and was let pass, would look like one that was given.
    fn always_counts(&mut self, fields: &Fields<'_>) {
        if let Some((key, node)) = fields.entry("allow-failure")
            && matches!(&node.value, Value::Scalar(scalar) if scalar.text.eq_ignore_ascii_case("true"))
        {
            self.check.error_with_hint(
                key.place,
                "an approval cannot be allowed to fail",
                "what should run without anybody's yes does not need the approval",
            );
        }
    }

    /// The same for its `when`.
    pub(super) fn approval_runs_on_success(&mut self, kind: &StepKind, when: &[WhenStatus], node: Option<&Node>) {
        if let (StepKind::Approval(_), Some(node)) = (kind, node)
            && !when.is_empty()
            && !when.contains(&WhenStatus::Success)
        {
            self.check.error_with_hint(
                node.place,
                "an approval is asked for when all went well: its `status` needs `success`",
                "what runs after a failure is a step of its own, and needs nobody's yes",
            );
        }
    }

    fn deploy(&mut self, node: &Node, references: &mut Vec<(Reference, Place)>) -> Option<DeployStep> {
        let fields = self.check.fields(node, "`deploy`", DEPLOY_KEYS, &[])?;
        let environment = match fields.get("environment") {
            Some(node) => self.environment_name(node),
            None => {
                let hint = "name one of `environments` in `mainstay.yml`: `deploy: { environment: staging }`";
                self.check.error_with_hint(node.place, "`deploy` needs `environment`", hint);
                None
            }
        };
        let sources: Vec<_> = ["images", "promote", "rollback"].iter().filter_map(|key| fields.entry(key)).collect();
        if let [(first, _), (second, _), ..] = sources.as_slice() {
            self.check.error_with_hint(
                second.place,
                format!("`deploy` has both `{}` and `{}`", first.name, second.name),
                "`images` come from this run, `promote` takes those of another environment, `rollback` those of an earlier release",
            );
        }
        let images = fields.get("images").map(|n| self.images(n, references)).unwrap_or_default();
        let promote = fields.get("promote").and_then(|node| {
            let from = self.environment_name(node)?;
            if environment.as_ref() == Some(&from) {
                self.check.error(node.place, "an environment is not promoted from itself");
            }
            Some(from)
        });
        let rollback = fields.get("rollback").and_then(|node| {
            let text = self.check.text(node, "`rollback`")?;
            if self.expressions(node, text, references) == 0
                && let Err(why) = text.parse::<RollbackTo>()
            {
                self.check.error(node.place, format!("`rollback`: {why}"));
            }
            Some(text.to_owned())
        });
        Some(DeployStep { environment: environment?, images, promote, rollback })
    }

    fn environment_name(&mut self, node: &Node) -> Option<EnvironmentName> {
        if let Value::Scalar(scalar) = &node.value
            && scalar.text.contains("${{")
        {
            self.check.error_with_hint(
                node.place,
                "an environment is named, never computed",
                "who must say yes has to be known before the run; write a step for each environment",
            );
            return None;
        }
        self.check.parsed(node, "`environment`")
    }

    fn images(&mut self, node: &Node, references: &mut Vec<(Reference, Place)>) -> BTreeMap<String, String> {
        let mut images = BTreeMap::new();
        for (key, node) in self.check.entries(node, "`images`").unwrap_or_default() {
            let service = key.name.as_str();
            let plain = service.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            if service.is_empty() || service.len() > 63 || !plain {
                let message = format!("`{}` is no name of a service: letters, digits, `-`, `_`, `.`", shown(service));
                self.check.error(key.place, message);
            }
            let what = format!("the image of `{}`", shown(service));
            let Some(text) = self.check.text(node, &what) else { continue };
            let found = self.expressions(node, text, references);
            if text.is_empty() || text.len() > IMAGE_MAX_BYTES {
                self.check.error(node.place, format!("an image has 1 to {IMAGE_MAX_BYTES} bytes"));
            } else if found == 0 {
                self.is_image(node, text);
            }
            images.insert(service.to_owned(), text.to_owned());
        }
        images
    }

    fn approval(&mut self, node: &Node) -> Option<ApprovalStep> {
        let fields = self.check.fields(node, "`approval`", APPROVAL_KEYS, &[])?;
        let environment = fields.get("environment").map(|node| self.environment_name(node));
        if environment.is_some() {
            for (key, _) in ["from", "required", "expires"].iter().filter_map(|key| fields.entry(key)) {
                self.check.error_with_hint(
                    key.place,
                    format!("`{}` cannot stand beside `environment`", key.name),
                    "who must say yes for an environment stands in `mainstay.yml` alone",
                );
            }
        } else if fields.get("from").is_none() {
            self.check.error_with_hint(
                node.place,
                "`approval` needs `environment` or `from`",
                "`environment` asks by the policy in `mainstay.yml`; `from` names people and groups, for a gate of this pipeline's own",
            );
        }
        let mut from: Vec<String> = Vec::new();
        if let Some(node) = fields.get("from") {
            for item in self.check.items(node, "`from`") {
                let Some(name) = self.check.text(item, "the name of a person or group") else { continue };
                if GroupName::new(name).is_err() {
                    self.check.error(item.place, format!("`{}` is no name of a person or group", shown(name)));
                } else if from.iter().any(|other| other == name) {
                    self.check.error(item.place, format!("`{name}` is named twice"));
                } else {
                    from.push(name.to_owned());
                }
            }
            if matches!(&node.value, Value::List(items) if items.is_empty()) {
                self.check.error(node.place, "`from` is empty: nobody could ever say yes");
            }
        }
        let required = fields.get("required").and_then(|n| self.check.number(n, "`required`", 1..=100));
        let expires = fields.get("expires").and_then(|node| {
            let span: Span = self.check.parsed(node, "`expires`")?;
            if span.0 < EXPIRES_MIN {
                self.check.error(node.place, "`expires` is at least 1s");
            }
            Some(span)
        });
        let message = fields.get("message").and_then(|node| {
            let text = self.check.text(node, "`message`")?;
            if text.contains("${{") {
                self.check.error_with_hint(
                    node.place,
                    "`${{ }}` is not read in `message`",
                    "commit, images and results are shown to the approver in any case",
                );
            } else if text.chars().count() > MESSAGE_MAX_CHARS {
                self.check.error(node.place, format!("`message` has at most {MESSAGE_MAX_CHARS} characters"));
            }
            Some(text.to_owned())
        });
        let inputs = fields.get("inputs").map(|n| self.inputs(n)).unwrap_or_default();
        let expires = if environment.is_some() { None } else { Some(expires.unwrap_or(EXPIRES)) };
        let environment = match environment {
            Some(read) => Some(read?),
            None => None,
        };
        Some(ApprovalStep { environment, from, required: required.map_or(1, |n| n as u32), expires, message, inputs })
    }

    /// Whoever says yes to a deploy must be able to see what it brings: what makes its images has to have ended before
    /// anybody is asked.
    pub(super) fn approvals_know_what_they_approve(&mut self, placed: &[Placed], needs: &Needs) {
        let mut approvals: Vec<(usize, &EnvironmentName, HashSet<usize>)> = Vec::new();
        for (n, p) in placed.iter().enumerate() {
            if let StepKind::Approval(ApprovalStep { environment: Some(environment), .. }) = &p.step.kind {
                approvals.push((n, environment, needs.before(n)));
            }
        }
        if approvals.is_empty() {
            return;
        }
        for (n, p) in placed.iter().enumerate() {
            let StepKind::Deploy(deploy) = &p.step.kind else { continue };
            let texts = deploy.images.values().flat_map(|text| expression::references(text).unwrap_or_default());
            let makers: HashSet<usize> = texts
                .filter_map(|reference| match reference {
                    Reference::Output { step, .. } => placed.iter().position(|other| other.step.name == step),
                    Reference::Input(_) => None,
                })
                .collect();
            if makers.is_empty() || self.check.is_full() {
                continue;
            }
            let before = needs.before(n);
            for (at, environment, known) in &approvals {
                if *environment != &deploy.environment || !before.contains(at) {
                    continue;
                }
                let mut unknown: Vec<usize> = makers.difference(known).copied().collect();
                unknown.sort_unstable();
                let Some(&maker) = unknown.first() else { continue };
                let (approval, maker) = (&placed[*at].step.name, &placed[maker].step.name);
                self.check.error_with_hint(
                    placed[*at].kind_at,
                    format!(
                        "`{approval}` would not know what it approves: `{}` deploys what `{maker}` makes",
                        p.step.name
                    ),
                    format!("add `{maker}` to the `needs` of `{approval}`"),
                );
            }
        }
    }
}
