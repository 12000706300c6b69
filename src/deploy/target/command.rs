//! Deploying by commands of the environment's own: `up`, `status` and `down`, in a container or as processes of this
//! machine. So Terraform, Ansible, Nomad or ssh are targets too.
//!
//! In comes a release, whose rendered form is a JSON document with the commands, the images and the variables; out goes
//! whatever `up` makes of it. What serves in the meantime is the commands' own affair: they are said once per try, never
//! twice, and left alone when this daemon dies, so that a command may also replace the daemon.
//!
//! ```text
//! DIR/last.json     the release that `up` was last said for; `status` and `down` are of that release
//! DIR/ended.json    how the last `up` ended, for whoever asks again
//! DIR/state/        $MAINSTAY_STATE of processes; containers have a volume at /state
//! DIR/tries/        processes that run or ended;  DIR/trees/  the files they work on
//! ```

use super::{Apply, Left, RenderInput, Rendered, Target, TargetError, notes};
use crate::config::daemon::environment::CommandTarget;
use crate::deploy::shell;
use crate::logs::mask::Masker;
use crate::model::deploy::{Instance, Observation, Release};
use crate::model::{EnvironmentName, InstanceId, Oid};
use crate::runtime::apart::CommandEnd;
use crate::runtime::docker::Docker;
use crate::runtime::docker::oneoff::{OneOff, STATE};
use crate::runtime::process::{Alone, Task, Trees};
use crate::runtime::{Runtime, RuntimeError, script_of};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// A `status` looks; one that takes longer than this is not well.
const STATUS_WITHIN: Duration = Duration::from_secs(60);
/// A container of a `status` that is older than this belongs to a daemon that was killed.
const STATUS_LOST_AFTER_SECS: i64 = 300;
/// Taking down a whole infrastructure takes longer than bringing up a version of it.
const DOWN_WITHIN: Duration = Duration::from_secs(3600);
/// Says which environment a container or volume belongs to: `INSTANCE/NAME`.
pub(crate) const ENVIRONMENT: &str = "mainstay.environment";
const VERB: &str = "mainstay.verb";

/// What this target is made from.
#[derive(Clone)]
pub struct CommandParts {
    /// The environment.
    pub environment: EnvironmentName,
    /// Whose environment: names in an engine hold it.
    pub instance: InstanceId,
    /// What `mainstay.yml` says.
    pub config: CommandTarget,
    /// The bare mirror of the target's repository.
    pub mirror: PathBuf,
    /// A folder of the environment's own, in the state folder.
    pub dir: PathBuf,
    /// The program that is started as `SHIM shim FOLDER`: ourselves.
    pub shim: PathBuf,
    /// The engine, for commands with an image.
    pub docker: Option<Docker>,
    /// Values of the environment's secrets now, for `status` and `down`.
    pub secrets: BTreeMap<String, String>,
}

/// Commands of the environment's own.
pub struct Command {
    parts: CommandParts,
    alone: Alone,
    trees: Trees,
}

/// The rendered form: everything a release of this kind is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    commit: Oid,
    image: Option<String>,
    images: BTreeMap<String, String>,
    variables: BTreeMap<String, String>,
    /// By name only.
    secrets: Vec<String>,
    up: Vec<String>,
    status: Vec<String>,
    down: Vec<String>,
}

/// What `up` was last said for.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Last {
    release: u64,
    /// The name of the try: processes work on files of that name.
    name: String,
    document: Document,
}

/// How the last `up` ended. Secrets were masked before it came here.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ended {
    name: String,
    code: i32,
    timed_out: bool,
    tail: Vec<String>,
}

fn image_variable(service: &str) -> String {
    let letters = service.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    format!("MAINSTAY_IMAGE_{}", letters.collect::<String>())
}

impl Document {
    fn read(rendered: &str) -> Result<Document, TargetError> {
        serde_json::from_str(rendered)
            .map_err(|error| TargetError::Render(format!("what was stored of it is no release of commands: {error}")))
    }

    /// The variables of a command; `secrets` are values by name.
    fn environment(
        &self,
        environment: &EnvironmentName,
        release: u64,
        state: &str,
        secrets: &BTreeMap<String, String>,
    ) -> Result<Vec<(String, String)>, TargetError> {
        let mut all: BTreeMap<String, String> = self.variables.clone();
        for name in &self.secrets {
            let Some(value) = secrets.get(name) else {
                let missing =
                    format!("use the secret `{name}`: the release was made with it, and it is not there any more");
                return Err(TargetError::Missing(format!("{missing}\nhint: `mainstay secrets set {name}`")));
            };
            all.insert(name.clone(), value.clone());
        }
        all.extend(self.images.iter().map(|(service, image)| (image_variable(service), image.clone())));
        let own = [
            ("MAINSTAY_ENVIRONMENT", environment.to_string()),
            ("MAINSTAY_RELEASE", release.to_string()),
            ("MAINSTAY_COMMIT", self.commit.to_string()),
            ("MAINSTAY_STATE", state.to_owned()),
        ];
        all.extend(own.map(|(name, value)| (name.to_owned(), value)));
        Ok(all.into_iter().collect())
    }
}

/// An error of an engine as one of a target, when nothing of the new release has begun, or when some may have.
fn refused(error: RuntimeError, left: Left) -> TargetError {
    match error {
        RuntimeError::Unreachable { endpoint, detail } => TargetError::Unreachable { endpoint, detail },
        RuntimeError::Gone { what } => TargetError::Lost(what),
        other => TargetError::Bad { why: format!("failed to {other}"), left },
    }
}

impl Command {
    /// Reaches out to nobody.
    pub fn new(parts: CommandParts) -> Command {
        let alone = Alone::new(parts.dir.join("tries"), parts.shim.clone());
        let trees = Trees::new(parts.dir.join("trees"));
        Command { parts, alone, trees }
    }

    fn note(&self, name: &str) -> PathBuf {
        self.parts.dir.join(name)
    }

    fn last(&self) -> Result<Option<Last>, TargetError> {
        notes::read(&self.note("last.json"))
    }

    fn docker(&self) -> Result<&Docker, TargetError> {
        let missing = || TargetError::Missing("find the container engine that the commands' image needs".to_owned());
        self.parts.docker.as_ref().ok_or_else(missing)
    }

    /// The name of what belongs to the environment and to no try.
    fn own_name(&self) -> String {
        format!("mainstay-env-{}-{}", self.parts.instance, self.parts.environment)
    }

    fn labels(&self, verb: &str) -> BTreeMap<String, String> {
        let environment = format!("{}/{}", self.parts.instance, self.parts.environment);
        BTreeMap::from([(ENVIRONMENT.to_owned(), environment), (VERB.to_owned(), verb.to_owned())])
    }

    fn filters(&self, verb: &str) -> Vec<String> {
        self.labels(verb).into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    fn state(&self, document: &Document) -> Result<String, TargetError> {
        if document.image.is_some() {
            return Ok(STATE.to_owned());
        }
        let path = self.parts.dir.join("state");
        let made = std::fs::create_dir_all(&path).and_then(|()| path.canonicalize());
        let made = made.map_err(|e| TargetError::Missing(format!("make the folder {}: {e}", path.display())))?;
        made.into_os_string()
            .into_string()
            .map_err(|_| TargetError::Missing("name the state folder: its path is not UTF-8".to_owned()))
    }

    /// Says one of the commands, or waits for it. `name` is that of the try, `verb` what is said.
    async fn say(
        &self,
        (name, verb): (&str, &str),
        document: &Document,
        environment: &[(String, String)],
        timeout: Duration,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<CommandEnd, RuntimeError> {
        let commands = match verb {
            "down" => &document.down,
            _ => &document.up,
        };
        let (script, full) = (script_of(commands), format!("{name}-{verb}"));
        match (&document.image, &self.parts.docker) {
            (Some(image), Some(docker)) => {
                progress(format!("running `{verb}` in a container of {image}"));
                let one = OneOff {
                    name: &full,
                    labels: &self.labels(verb),
                    image,
                    files: (&self.parts.mirror, &document.commit),
                    volume: &self.own_name(),
                    script: &script,
                    environment,
                };
                docker.one_off(&one, timeout, progress).await
            }
            _ => {
                progress(format!("running `{verb}` on this machine"));
                let tree = self.trees.path(name);
                if !self.alone.has_begun(&full)? {
                    // Never on files that another command has worked on, except to take down what they brought up.
                    self.trees.make(name, &self.parts.mirror, &document.commit, verb == "up").await?;
                }
                self.alone
                    .run(
                        &Task { name: &full, script: &script, folder: &tree, environment, leaves_servers: false },
                        timeout,
                    )
                    .await
            }
        }
    }

    /// Whether what is said under that name may have begun.
    async fn may_have_begun(&self, full: &str, document: &Document) -> bool {
        match (&document.image, &self.parts.docker) {
            // Nobody knows, so it may.
            (Some(_), Some(docker)) => docker.has_one_off(full).await.unwrap_or(true),
            _ => self.alone.has_begun(full).unwrap_or(true),
        }
    }

    /// Ends and forgets everything that was said, but what is called `keep`.
    async fn forget_others(&self, keep: &str) -> Result<(), TargetError> {
        let error = |error| refused(error, Left::Before);
        if let Some(docker) = &self.parts.docker {
            for verb in ["up", "down"] {
                for (name, _) in docker.one_offs(&self.filters(verb)).await.map_err(error)? {
                    if name != keep {
                        docker.remove_one_off(&name).await.map_err(error)?;
                    }
                }
            }
        }
        for name in self.alone.names().map_err(error)? {
            if name != keep {
                self.alone.forget(&name).await.map_err(error)?;
            }
        }
        Ok(())
    }

    async fn forget(&self, full: &str) -> Result<(), TargetError> {
        let error = |error| refused(error, Left::Mixed);
        if let Some(docker) = &self.parts.docker {
            docker.remove_one_off(full).await.map_err(error)?;
        }
        self.alone.forget(full).await.map_err(error)
    }

    /// How a `status` of that release ends: its exit code, when it has one, what it printed, and its last words.
    async fn status(&self, last: &Last) -> Result<(Option<i32>, String, String), TargetError> {
        let document = &last.document;
        let state = self.state(document)?;
        let environment = document.environment(&self.parts.environment, last.release, &state, &self.parts.secrets)?;
        let script = document.status.join("\n");
        let Some(image) = &document.image else {
            let tree = self.trees.path(&last.name);
            let error = |error| refused(error, Left::Mixed);
            self.trees.make(&last.name, &self.parts.mirror, &document.commit, false).await.map_err(error)?;
            let line =
                shell::Line { line: &script, folder: Some(&tree), environment: &environment, timeout: STATUS_WITHIN };
            let ended = shell::run(&line).await;
            let ended = ended.map_err(|e| TargetError::Missing(format!("start a shell for `status`: {e}")))?;
            let said = ended.last_line().unwrap_or_default().to_owned();
            return Ok((ended.code, ended.stdout, said));
        };
        let docker = self.docker()?;
        let error = |error| refused(error, Left::Mixed);
        for (name, age_secs) in docker.one_offs(&self.filters("status")).await.map_err(error)? {
            if age_secs > STATUS_LOST_AFTER_SECS {
                docker.remove_one_off(&name).await.map_err(error)?;
            }
        }
        let random = getrandom::u32().map_err(|e| TargetError::Missing(format!("get random bytes: {e}")))?;
        let name = format!("{}-status-{random:08x}", self.own_name());
        let one = OneOff {
            name: &name,
            labels: &self.labels("status"),
            image,
            files: (&self.parts.mirror, &document.commit),
            volume: &self.own_name(),
            script: &script,
            environment: &environment,
        };
        let ended = docker.one_off(&one, STATUS_WITHIN, &|_| {}).await;
        docker.remove_one_off(&name).await.map_err(error)?;
        let ended = ended.map_err(error)?;
        let code = (!ended.timed_out).then_some(ended.code);
        Ok((code, ended.stdout, ended.tail.last().cloned().unwrap_or_default()))
    }
}

/// What went wrong, with the last lines that were printed.
fn why(verb: &str, end: &Ended, timeout: Duration) -> String {
    let how = match end.timed_out {
        true => format!("`{verb}` took longer than {} and was stopped", crate::model::Span(timeout)),
        false => format!("`{verb}` ended with exit code {}", end.code),
    };
    match end.tail.is_empty() {
        true => format!("{how}, and printed nothing"),
        false => format!("{how}; it printed last:\n  {}", end.tail.join("\n  ")),
    }
}

/// Hides the values of secrets in lines.
fn masked(lines: Vec<String>, secrets: &BTreeMap<String, String>) -> Vec<String> {
    let masker = Masker::new(secrets.values().map(|value| value.clone().into_bytes()));
    lines.iter().map(|line| String::from_utf8_lossy(&masker.mask_line(line.as_bytes())).into_owned()).collect()
}

/// The `NAME=VALUE` lines of what a `status` printed. Values that hold a secret become short digests.
fn items(printed: &str, secrets: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'/'))
    };
    let pairs = printed.lines().filter_map(|line| line.trim().split_once('='));
    let pairs = pairs.filter(|(name, _)| is_name(name));
    pairs.map(|(name, value)| (name.to_owned(), super::hide(value, secrets))).collect()
}

#[async_trait]
impl Target for Command {
    fn kind(&self) -> &'static str {
        "command"
    }

    async fn ping(&self) -> Result<String, TargetError> {
        match self.parts.config.image {
            None => Ok("processes of this machine".to_owned()),
            Some(_) => self.docker()?.ping().await.map_err(|error| refused(error, Left::Before)),
        }
    }

    fn render(&self, input: &RenderInput) -> Result<Rendered, TargetError> {
        let config = &self.parts.config;
        let mut names = BTreeMap::new();
        for service in input.images.keys() {
            if let Some(other) = names.insert(image_variable(service), service) {
                let both = image_variable(service);
                return Err(TargetError::Render(format!("the images of `{other}` and `{service}` are both {both}")));
            }
        }
        let (secrets, variables): (BTreeMap<_, _>, BTreeMap<_, _>) =
            input.variables.clone().into_iter().partition(|(name, _)| input.secret_names.contains(name));
        let document = Document {
            commit: input.commit.clone(),
            image: config.image.clone(),
            images: input.images.clone(),
            variables,
            secrets: secrets.into_keys().collect(),
            up: config.up.clone(),
            status: config.status.clone(),
            down: config.down.clone(),
        };
        let text = serde_json::to_string_pretty(&document).map_err(|error| TargetError::Render(error.to_string()))?;
        Ok(Rendered { text: text + "\n", replicas: BTreeMap::new() })
    }

    async fn apply(&self, apply: &Apply<'_>) -> Result<(), TargetError> {
        let document = Document::read(&apply.release.rendered)?;
        if document.image.is_some() {
            self.docker()?;
        }
        let state = self.state(&document)?;
        let environment = document.environment(&self.parts.environment, apply.release.number, &state, apply.secrets)?;
        let full = format!("{}-up", apply.name);
        let ended: Option<Ended> = notes::read(&self.note("ended.json"))?;
        let ended = match ended.filter(|ended| ended.name == apply.name) {
            Some(ended) => ended,
            None => {
                // What an earlier try began is ended first: two of them at once would work against each other.
                self.forget_others(&full).await?;
                self.trees.keep_only(apply.name).await.map_err(|error| refused(error, Left::Before))?;
                let last =
                    Last { release: apply.release.number, name: apply.name.to_owned(), document: document.clone() };
                notes::write(&self.note("last.json"), &last)?;
                let said = self.say((apply.name, "up"), &document, &environment, apply.timeout, apply.progress).await;
                let end = match said {
                    Ok(end) => end,
                    Err(error) => {
                        let left = match self.may_have_begun(&full, &document).await {
                            true => Left::Mixed,
                            false => Left::Before,
                        };
                        return Err(refused(error, left));
                    }
                };
                let tail = masked(end.tail, apply.secrets);
                let ended = Ended { name: apply.name.to_owned(), code: end.code, timed_out: end.timed_out, tail };
                notes::write(&self.note("ended.json"), &ended)?;
                ended
            }
        };
        // How it ended is noted, so the name will not begin again.
        self.forget(&full).await?;
        match ended.code {
            0 if !ended.timed_out => Ok(()),
            _ => Err(TargetError::Bad { why: why("up", &ended, apply.timeout), left: Left::Mixed }),
        }
    }

    async fn taken_over(&self, release: &Release) -> Result<(), TargetError> {
        if self.last()?.is_some() {
            return Ok(());
        }
        let document = Document::read(&release.rendered)?;
        let name = format!("{}-taken-over", self.own_name());
        notes::write(&self.note("last.json"), &Last { release: release.number, name, document })
    }

    async fn observe(&self) -> Result<Observation, TargetError> {
        let Some(last) = self.last()? else { return Ok(Observation::default()) };
        let (code, printed, said) = self.status(&last).await?;
        let secrets = &self.parts.secrets;
        let mut items = items(&printed, secrets);
        if items.is_empty() {
            items.insert("commit".to_owned(), last.document.commit.to_string());
        }
        let said = masked(vec![said], secrets).concat();
        let state = match code {
            Some(0) => "`status` says that it is well".to_owned(),
            Some(code) => format!("`status` ended with exit code {code}: {said}"),
            None => format!("`status` took longer than {}", crate::model::Span(STATUS_WITHIN)),
        };
        let instance = Instance {
            service: self.parts.environment.to_string(),
            name: self.parts.environment.to_string(),
            image: last.document.images.values().next().cloned().unwrap_or_default(),
            healthy: code == Some(0),
            restarts: 0,
            state,
        };
        Ok(Observation { items, instances: vec![instance] })
    }

    async fn remove(&self) -> Result<(), TargetError> {
        let Some(last) = self.last()? else { return Ok(()) };
        let document = &last.document;
        let name = self.own_name();
        let full = format!("{name}-down");
        self.forget_others(&full).await?;
        let state = self.state(document)?;
        let environment = document.environment(&self.parts.environment, last.release, &state, &self.parts.secrets)?;
        self.trees.rename(&last.name, &name).await.map_err(|error| refused(error, Left::Mixed))?;
        let end = self.say((&name, "down"), document, &environment, DOWN_WITHIN, &|_| {}).await;
        let end = end.map_err(|error| refused(error, Left::Mixed))?;
        if end.code != 0 || end.timed_out {
            // The next call says it anew.
            self.forget(&full).await?;
            let tail = masked(end.tail, &self.parts.secrets);
            let ended = Ended { name, code: end.code, timed_out: end.timed_out, tail };
            return Err(TargetError::Bad { why: why("down", &ended, DOWN_WITHIN), left: Left::Mixed });
        }
        if document.image.is_some() {
            let docker = self.docker()?;
            let error = |error| refused(error, Left::Mixed);
            for (status, _) in docker.one_offs(&self.filters("status")).await.map_err(error)? {
                docker.remove_one_off(&status).await.map_err(error)?;
            }
            self.forget(&full).await?;
            docker.remove_environment_volume(&self.own_name()).await.map_err(error)?;
        }
        self.trees.remove().await.map_err(|error| refused(error, Left::Mixed))?;
        for part in ["ended.json", "tries", "state"] {
            notes::remove(&self.note(part))?;
        }
        // Last: as long as it is there something may be.
        notes::remove(&self.note("last.json"))
    }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
