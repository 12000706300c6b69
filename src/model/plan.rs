//! What a run will do, decided before it begins and stored with it. Made by `plan`, never changed afterwards.

use super::ids::{EnvironmentName, PipelineName, SourceName, StepName};
use super::input::Input;
use super::quantity::{ByteSize, Span};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A pipeline at one commit, checked and expanded into a graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The pipeline's name.
    pub pipeline: PipelineName,
    /// The file it was read from, in the repository.
    pub file: String,
    /// SHA-256 of that file's bytes, in hex.
    pub digest: String,
    /// The steps, in an order in which each comes after all that it needs.
    pub steps: Vec<PlannedStep>,
}

impl Plan {
    /// The step of that name.
    pub fn step(&self, name: &StepName) -> Option<&PlannedStep> {
        self.steps.iter().find(|s| s.name == *name)
    }
}

/// One step of a plan, with all defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// Its name.
    pub name: StepName,
    /// The image as written; the digest is pinned when the run first uses it.
    pub image: String,
    /// Shell lines, run under `sh -e` with each echoed. Empty: the image's own entrypoint runs with `args`.
    pub commands: Vec<String>,
    /// Arguments for the image's entrypoint; only without `commands`.
    pub args: Vec<String>,
    /// The step's `environment`. Values may hold `${{ steps.NAME.KEY }}` and `${{ inputs.NAME }}`, filled in when it starts.
    pub environment: BTreeMap<String, String>,
    /// Names of the secrets it is given as environment variables.
    pub secrets: Vec<String>,
    /// The steps that must have ended before it starts.
    pub needs: Vec<StepName>,
    /// It is stopped after this long.
    pub timeout: Span,
    /// How often and for what it is tried again.
    pub retries: Retries,
    /// Its failure does not count.
    pub allow_failure: bool,
    /// For which states of the run so far it runs.
    pub when_status: Vec<WhenStatus>,
    /// Never begun a second time: when it cannot be known whether it ran, the step fails and says so.
    pub once: bool,
    /// Limits of its own; the daemon's `limits` where `None`.
    pub resources: Resources,
    /// It may use the network namespace of the run's holder: no step that shares it can ever run beside it.
    pub shares_holder: bool,
    /// What an attempt of it does.
    #[serde(default)]
    pub kind: StepKind,
}

/// What an attempt of a step does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// Runs a container of `image`.
    #[default]
    Container,
    /// Brings an environment to the run's commit, and waits until its watch has ended.
    Deploy(DeployStep),
    /// Waits for people.
    Approval(ApprovalStep),
    /// Waits until a base backup of a source exists.
    Backup(BackupStep),
    /// Brings a source back, to the place that its file names.
    Restore(RestoreStep),
}

impl StepKind {
    /// It needs no container, no workspace and no turn: it waits for others.
    pub fn only_waits(&self) -> bool {
        !self.is_container()
    }

    /// It runs a container.
    pub fn is_container(&self) -> bool {
        matches!(self, StepKind::Container)
    }

    /// What stands in the place of an image where steps are shown: `deploy → production`, `approval · production`.
    pub fn words(&self) -> Option<String> {
        match self {
            StepKind::Container => None,
            StepKind::Deploy(deploy) => Some(match (&deploy.promote, &deploy.rollback) {
                (Some(from), _) => format!("promote {from} → {}", deploy.environment),
                (None, Some(_)) => format!("roll back {}", deploy.environment),
                (None, None) => format!("deploy → {}", deploy.environment),
            }),
            StepKind::Backup(backup) => Some(format!("back up {}", backup.source)),
            StepKind::Restore(restore) => Some(format!("restore {} {}", restore.source, restore.to)),
            StepKind::Approval(approval) => Some(match &approval.environment {
                Some(environment) => format!("approval · {environment}"),
                None => {
                    let first: Vec<&str> = approval.from.iter().take(SHOWN_MAX).map(String::as_str).collect();
                    let more = approval.from.len().saturating_sub(SHOWN_MAX);
                    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                    let many = if approval.required > 1 { format!("{} of ", approval.required) } else { String::new() };
                    format!("approval · {many}{}{more}", first.join(", "))
                }
            }),
        }
    }
}

/// More names than this do not fit beside a step.
const SHOWN_MAX: usize = 3;

/// The `deploy` of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DeployStep {
    /// Which environment of `mainstay.yml`.
    pub environment: EnvironmentName,
    /// Images by service. Values may hold `${{ steps.NAME.KEY }}` and `${{ inputs.NAME }}`, filled in when it starts.
    pub images: BTreeMap<String, String>,
    /// Takes the images, and nothing else, from the release that serves in this environment.
    pub promote: Option<EnvironmentName>,
    /// Puts an earlier release of the environment back, and takes no images: a [`RollbackTo`] as text. May hold
    /// expressions, filled in when it starts.
    #[serde(default)]
    pub rollback: Option<String>,
}

/// Which release a `rollback` puts back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RollbackTo {
    /// The last verified one before the one that serves.
    Previous,
    /// The one of that number.
    Release(u64),
}

impl std::str::FromStr for RollbackTo {
    type Err = String;
    /// Takes `previous`, `12` and `#12`.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == "previous" {
            return Ok(RollbackTo::Previous);
        }
        let number = text.strip_prefix('#').unwrap_or(text);
        let plain = number.bytes().all(|b| b.is_ascii_digit());
        number.parse().ok().filter(|number| plain && *number > 0).map(RollbackTo::Release).ok_or_else(|| {
            let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
            format!("`{shown}` is no release to go back to; write `previous` or a release's number")
        })
    }
}

/// The `backup` of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct BackupStep {
    /// Which source: a file of `backups/`.
    #[schemars(with = "String")]
    pub source: SourceName,
}

/// The `restore` of a step. Where to, and what then, stands in the source's file alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RestoreStep {
    /// Which source: a file of `backups/`.
    #[schemars(with = "String")]
    pub source: SourceName,
    /// Which of its states.
    pub to: RestoreTo,
}

/// Which state a `restore` brings back. Texts may hold expressions, filled in when the step starts; what they then say is
/// read as the options of `mainstay restore` are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreTo {
    /// The newest that there is.
    Latest,
    /// That of a time.
    At(String),
    /// That of a place in the log.
    Lsn(String),
    /// That of a restore point.
    Point(String),
    /// That at the end of a backup.
    Backup(String),
}

impl RestoreTo {
    /// The option of `mainstay restore` that asks for it, and its value.
    pub fn option(&self) -> (&'static str, Option<&str>) {
        match self {
            RestoreTo::Latest => ("latest", None),
            RestoreTo::At(text) => ("at", Some(text)),
            RestoreTo::Lsn(text) => ("lsn", Some(text)),
            RestoreTo::Point(text) => ("point", Some(text)),
            RestoreTo::Backup(text) => ("backup", Some(text)),
        }
    }

    /// The one that an option asks for; `None` when there is no such option.
    pub fn from_option(option: &str, text: String) -> Option<RestoreTo> {
        match option {
            "at" => Some(RestoreTo::At(text)),
            "lsn" => Some(RestoreTo::Lsn(text)),
            "point" => Some(RestoreTo::Point(text)),
            "backup" => Some(RestoreTo::Backup(text)),
            _ => None,
        }
    }
}

impl std::fmt::Display for RestoreTo {
    /// As it stands behind `restore SOURCE`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.option() {
            (option, None) => write!(f, "--{option}"),
            (option, Some(text)) => write!(f, "--{option} {text}"),
        }
    }
}

/// The `approval` of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ApprovalStep {
    /// The environment whose policy in `mainstay.yml` decides. Exactly one of this and `from` is there.
    pub environment: Option<EnvironmentName>,
    /// Names of people and groups: a gate of the pipeline itself, which whoever may change the pipeline may change.
    pub from: Vec<String>,
    /// How many of `from`.
    pub required: u32,
    /// Without an answer within this time it is rejected; the environment's own time when it names one.
    pub expires: Option<Span>,
    /// What people are told.
    pub message: Option<String>,
    /// What they may give along; these become the step's outputs.
    pub inputs: Vec<Input>,
}

/// When a failed attempt is followed by another.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Retries {
    /// Attempts after the first; 0 to 10.
    pub max: u32,
    /// The kinds of end that are retried.
    pub on: Vec<RetryOn>,
}

/// A kind of failure that may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// The process exited with a code other than 0.
    Failure,
    /// The timeout passed.
    Timeout,
    /// The container was lost (engine restarted, container removed by somebody).
    LostContainer,
    /// The image could not be pulled.
    ImagePull,
}

/// A state of the run so far for which a step may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WhenStatus {
    /// Nothing that counts has failed. The default.
    Success,
    /// Something that counts has failed. A deploy that was rolled back has.
    Failure,
    /// A deploy was rolled back.
    RolledBack,
    /// The run was cancelled. (`always` is all four.)
    Cancelled,
}

/// CPU, memory and process limits of one step.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// In thousandths of a CPU.
    pub millicpus: Option<u64>,
    /// Memory, without swap.
    pub memory: Option<ByteSize>,
    /// How many processes and threads.
    pub pids: Option<u32>,
}
impl Eq for Resources {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_to_go_back_to() {
        for (text, wanted) in
            [("previous", RollbackTo::Previous), ("12", RollbackTo::Release(12)), (" #3 ", RollbackTo::Release(3))]
        {
            assert_eq!(text.parse(), Ok(wanted), "{text}");
        }
        for bad in ["", "0", "-1", "+1", "1.5", "last", "##1", "Previous", &"9".repeat(40)] {
            assert!(bad.parse::<RollbackTo>().unwrap_err().contains("is no release"), "{bad}");
        }
    }

    #[test]
    fn what_stands_in_the_place_of_an_image() {
        let environment = EnvironmentName::new("production").unwrap();
        let deploy = |promote: Option<&str>, rollback: Option<&str>| {
            let promote = promote.map(|name| name.parse().unwrap());
            let rollback = rollback.map(str::to_owned);
            let step = DeployStep { environment: environment.clone(), images: BTreeMap::new(), promote, rollback };
            StepKind::Deploy(step).words().unwrap()
        };
        let approval = |environment: Option<EnvironmentName>, from: &[&str], required| {
            let from = from.iter().map(|&name| name.to_owned()).collect();
            let step = ApprovalStep { environment, from, required, expires: None, message: None, inputs: Vec::new() };
            StepKind::Approval(step).words().unwrap()
        };
        assert_eq!(StepKind::Container.words(), None);
        assert_eq!(deploy(None, None), "deploy → production");
        assert_eq!(deploy(Some("staging"), None), "promote staging → production");
        assert_eq!(deploy(None, Some("previous")), "roll back production");
        assert_eq!(approval(Some(environment.clone()), &[], 1), "approval · production");
        assert_eq!(approval(None, &["ana"], 1), "approval · ana");
        assert_eq!(approval(None, &["a", "b", "c", "d", "e"], 2), "approval · 2 of a, b, c and 2 more");
    }

    #[test]
    fn a_plan_stored_before_there_were_kinds_is_of_containers() {
        let deploy: DeployStep =
            serde_json::from_str(r#"{"environment": "live", "images": {}, "promote": null}"#).unwrap();
        assert_eq!(deploy.rollback, None);
        assert!(serde_json::from_str::<StepKind>("\"container\"").unwrap().is_container());
    }
}
