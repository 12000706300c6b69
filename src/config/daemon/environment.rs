//! `environments`: where things are deployed to, by whom, after whose yes, and how it is known that they are well.

mod approval;
mod health;
mod read;
mod target;

pub(super) use read::Around;

use crate::config::globs::Globs;
use crate::config::secret::Secret;
use crate::model::Span;
use crate::model::approval::ApprovalPolicy;
use crate::model::ids::{EnvironmentName, PipelineName, RepoName};
use std::collections::BTreeMap;

/// A place that releases are deployed to.
#[derive(Debug, Clone, PartialEq)]
pub struct Environment {
    /// Who may deploy here; anything else is refused.
    pub from: Vec<Source>,
    /// What is brought to a release.
    pub target: TargetConfig,
    /// What must hold for a release to be well.
    pub health: Vec<HealthRule>,
    /// How long the rules are asked after they first held; zero ends the deploy as soon as they have.
    pub watch: Span,
    /// The longest time bringing the target to a release may take.
    pub timeout: Span,
    /// What happens when it turns bad.
    pub rollback: Rollback,
    /// Who has to say yes first, if anybody.
    pub approval: Option<ApprovalPolicy>,
    /// When nothing is deployed; rollbacks always are.
    pub freeze: Vec<Freeze>,
    /// A daemon that has not renewed its lease for this long is taken for dead.
    pub lease: Span,
    /// How often what runs is compared with what should.
    pub reconcile: Span,
    /// What was changed by hand is put back.
    pub self_heal: bool,
    /// The target may be without a serving version for moments.
    pub downtime_allowed: bool,
    /// Where `promote` takes the release from when it is not told.
    pub promote_from: Option<EnvironmentName>,
    /// Commands of this machine around a deploy.
    pub hooks: Hooks,
    /// How the version of the database schema is known.
    pub schema: Option<Schema>,
    /// Texts that the target's file may name as `${NAME}`.
    pub variables: BTreeMap<String, Variable>,
}

/// A text for the target's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variable {
    /// As written.
    Plain(String),
    /// From the secret store; stands in releases as a short digest only.
    Secret(Secret),
}

/// Who may deploy, and from where.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// The repository.
    pub repo: RepoName,
    /// Its branches; tags never match.
    pub branches: Globs,
    /// Its pipelines; all when empty.
    pub pipelines: Vec<PipelineName>,
}

/// What is deployed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetConfig {
    /// A stack of a Docker swarm.
    Swarm(SwarmTarget),
    /// A Compose project.
    Compose(ComposeTarget),
    /// Commands of your own.
    Command(CommandTarget),
}

/// A stack of a Docker swarm, or one service of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwarmTarget {
    /// The stack file, in the repository.
    pub stack: String,
    /// The repository with the file.
    pub repo: RepoName,
    /// The stack's name in the swarm; the environment's name when it is not said.
    pub name: String,
    /// A manager of the swarm: `unix:///PATH` or `tcp://HOST:PORT`; the usual socket when `None`.
    pub host: Option<String>,
}

/// A Compose project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposeTarget {
    /// The Compose file, in the repository.
    pub file: String,
    /// The repository with the file.
    pub repo: RepoName,
    /// The project's name; the environment's name when it is not said.
    pub project: String,
    /// The engine: `unix:///PATH` or `tcp://HOST:PORT`; the usual socket when `None`.
    pub host: Option<String>,
    /// Makes a second project beside the first, runs this command of this machine to move the traffic, and removes the
    /// first: no moment without a serving version. It is given the new project's name and the old one's.
    pub switch: Option<String>,
}

/// Commands of your own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandTarget {
    /// The image they run in, with the repository at the released commit in `/workspace` and a volume of the
    /// environment's own in `/state`. `None`: as processes of this machine, which `mainstay.yml` may say and nobody else.
    pub image: Option<String>,
    /// The repository with the files.
    pub repo: RepoName,
    /// Brings everything to the release; may be called again for the same release.
    pub up: Vec<String>,
    /// Prints `NAME=VALUE` lines of what is there; 0 when it is well.
    pub status: Vec<String>,
    /// Removes everything.
    pub down: Vec<String>,
}

/// What happens when a release turns bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollback {
    /// The last verified release is put back by itself.
    pub auto: bool,
    /// What is told to the repository.
    pub git: RollbackGit,
}

/// What a rollback tells the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RollbackGit {
    /// Nothing.
    None,
    /// A tag on the commit that turned bad.
    Tag,
    /// A branch that takes the bad release back, and a pull request for it.
    RevertPr,
}

/// A time in which nothing is deployed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freeze {
    /// When it begins: `Fri 16:00 Europe/Paris`, or `2026-12-23 18:00 Europe/Paris`, as written.
    pub from: FreezeTime,
    /// When it ends.
    pub to: FreezeTime,
}

/// A moment of every week, or a moment once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FreezeTime {
    /// Every week.
    Weekly {
        /// The day.
        day: jiff::civil::Weekday,
        /// The time of day there.
        time: jiff::civil::Time,
        /// The time zone.
        zone: jiff::tz::TimeZone,
    },
    /// Once.
    Once {
        /// The moment.
        at: jiff::Timestamp,
    },
}

/// Commands of this machine around a deploy; each is a line for `sh -e`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hooks {
    /// Before the target is touched; a failure ends the deploy with nothing changed.
    pub before: Vec<String>,
    /// After the release serves and its health rules held; a failure is a bad release.
    pub after: Vec<String>,
    /// After a rollback.
    pub rollback: Vec<String>,
}

/// How the version of the database schema is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    /// A command of this machine that prints the version.
    pub version: String,
    /// A command of this machine that ends with 0 when the way back from `$FROM` to `$TO` loses nothing.
    pub reversible: Option<String>,
}

/// Something that must hold.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthRule {
    /// What is asked.
    pub check: HealthCheck,
    /// How often; 1 s when it is not said.
    pub every: Span,
    /// So many bad answers in a row make a release bad; 3 when it is not said.
    pub failures: u32,
    /// After the release serves, the rule must hold within this time; 60 s when it is not said.
    pub within: Span,
    /// One question may take this long; 5 s when it is not said, and never longer than it is useful.
    pub timeout: Span,
}

/// What a health rule asks.
#[derive(Debug, Clone, PartialEq)]
pub enum HealthCheck {
    /// A GET.
    Http {
        /// Of this.
        url: String,
        /// The answer's status must be one of these; 200 to 299 when empty.
        status: Vec<u16>,
        /// The answer's body must hold this text.
        body: Option<String>,
        /// The answer must be whole within this time.
        latency: Option<Span>,
    },
    /// A connection to `HOST:PORT`.
    Tcp(String),
    /// A command of this machine, a line for `sh -e`, must end with 0.
    Command(String),
    /// No container of the target may have been started anew more often than this since the release serves.
    Restarts(u64),
    /// A Prometheus query; every value of its answer must satisfy the comparison.
    Prometheus {
        /// The server, as `http://HOST:PORT`.
        url: String,
        /// The query.
        query: String,
        /// What must be true of each value.
        expect: Expect,
    },
}

/// A comparison with a number: `< 0.01`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expect {
    /// How.
    pub compare: Compare,
    /// With what.
    pub than: f64,
}

/// How two numbers are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `==`
    Equal,
}

impl Source {
    /// Whether what comes from there may be deployed. `git_ref` is a full ref name.
    pub fn allows(&self, repo: &RepoName, git_ref: &str, pipeline: &PipelineName) -> bool {
        let branch = git_ref.strip_prefix("refs/heads/");
        *repo == self.repo
            && branch.is_some_and(|branch| self.branches.matches(branch))
            && (self.pipelines.is_empty() || self.pipelines.contains(pipeline))
    }
}

impl Environment {
    /// The variables as texts, secrets among them.
    pub fn texts(&self) -> BTreeMap<String, String> {
        let text = |variable: &Variable| match variable {
            Variable::Plain(text) => text.clone(),
            Variable::Secret(secret) => secret.expose().to_owned(),
        };
        self.variables.iter().map(|(name, variable)| (name.clone(), text(variable))).collect()
    }

    /// The secrets among the variables.
    pub fn secrets(&self) -> BTreeMap<String, String> {
        let secret = |variable: &Variable| match variable {
            Variable::Plain(_) => None,
            Variable::Secret(secret) => Some(secret.expose().to_owned()),
        };
        self.variables.iter().filter_map(|(name, variable)| Some((name.clone(), secret(variable)?))).collect()
    }
}

impl TargetConfig {
    /// The repository that holds the target's file.
    pub fn repo(&self) -> &RepoName {
        match self {
            TargetConfig::Swarm(swarm) => &swarm.repo,
            TargetConfig::Compose(compose) => &compose.repo,
            TargetConfig::Command(command) => &command.repo,
        }
    }
    /// The word for its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            TargetConfig::Swarm(_) => "swarm",
            TargetConfig::Compose(_) => "compose",
            TargetConfig::Command(_) => "command",
        }
    }
}

#[cfg(test)]
mod tests;
