//! Deploying a Compose project by the Compose tool that is installed: `docker compose`, or `docker-compose`.
//!
//! In comes a release, whose rendered form is the Compose file with images and variables put in; out go containers. Every
//! release is a project of its own, `NAME-rN`, beside the one before it. With `switch` the new one serves, and is well,
//! before the command that leads the traffic over is said; then the old one is removed. Without it the old one's
//! containers are stopped first and kept, and started again when the new ones are not well. Volumes have the same names
//! in all of them.
//!
//! ```text
//! DIR/compose.json   which project serves, and which try is under way
//! DIR/trees/         the files of each project's commit, which its containers may have mounted
//! DIR/tries/         the tool and the switch command: started once each, and found again after a crash
//! ```

mod tool;
mod well;

use super::command::ENVIRONMENT;
use super::{Apply, Left, RenderInput, Rendered, Target, TargetError, document, hide, notes};
use crate::config::daemon::environment::ComposeTarget;
use crate::model::deploy::{Instance, Observation, Release};
use crate::model::{EnvironmentName, InstanceId};
use crate::runtime::docker::Docker;
use crate::runtime::docker::project::{Member, PROJECT};
use crate::runtime::process::{Alone, Trees};
use crate::runtime::{Runtime, RuntimeError};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The rendered file, beside the one it was made from: what it names by relative paths is found as before.
const FILE: &str = ".mainstay-compose.json";
/// A container that was asked for is in the engine's list after this, also on a busy machine.
const LATE_AFTER: Duration = Duration::from_secs(1);
const RELEASE: &str = "mainstay.release";
/// What was stopped a moment ago has started before, and has this long to be well again.
const BACK_WITHIN: Duration = Duration::from_secs(120);
/// Names that a release's project may have: each lost note in a row adds one.
const NAMES_TRIED: u32 = 3;

/// What this target is made from.
#[derive(Clone)]
pub struct ComposeParts {
    /// The environment.
    pub environment: EnvironmentName,
    /// Whose environment.
    pub instance: InstanceId,
    /// What `mainstay.yml` says.
    pub config: ComposeTarget,
    /// The target may be without a serving version for moments.
    pub downtime_allowed: bool,
    /// The bare mirror of the target's repository.
    pub mirror: PathBuf,
    /// A folder of the environment's own, in the state folder.
    pub dir: PathBuf,
    /// The program that is started as `SHIM shim FOLDER`: ourselves.
    pub shim: PathBuf,
    /// The engine that `config.host` names.
    pub docker: Docker,
    /// Values of the environment's secrets now, to know them where they are seen.
    pub secrets: BTreeMap<String, String>,
}

/// A Compose project.
pub struct Compose {
    parts: ComposeParts,
    alone: Alone,
    trees: Trees,
}

/// One release as a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Project {
    name: String,
    release: u64,
    config_hash: String,
}

/// What has to be known after a crash.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Noted {
    /// The one that serves, or did before the try began.
    serving: Option<Project>,
    /// What is being brought up, and the name of the try.
    attempt: Option<(String, Project)>,
    /// Containers of the serving project that ran when the try began: these are started again, and no job that is done.
    stopped: BTreeSet<String>,
    /// A project of a daemon before this one. It carries that one's label, and goes with the next release.
    #[serde(default)]
    adopted: Option<String>,
}

fn bad(why: impl Into<String>, left: Left) -> TargetError {
    TargetError::Bad { why: why.into(), left }
}

fn refused(error: RuntimeError) -> TargetError {
    match error {
        RuntimeError::Unreachable { endpoint, detail } => TargetError::Unreachable { endpoint, detail },
        RuntimeError::Gone { what } => TargetError::Lost(what),
        other => bad(format!("failed to {other}"), Left::Before),
    }
}

impl Compose {
    /// Reaches out to nobody.
    pub fn new(parts: ComposeParts) -> Compose {
        let alone = Alone::new(parts.dir.join("tries"), parts.shim.clone());
        let trees = Trees::new(parts.dir.join("trees"));
        Compose { parts, alone, trees }
    }

    fn base(&self) -> String {
        // What Compose takes as a project's name.
        let letter = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c.to_ascii_lowercase() } else { '-' };
        self.parts.config.project.chars().map(letter).collect()
    }

    fn label(&self) -> String {
        format!("{ENVIRONMENT}={}/{}", self.parts.instance, self.parts.environment)
    }

    fn noted(&self) -> Result<Noted, TargetError> {
        Ok(notes::read(&self.parts.dir.join("compose.json"))?.unwrap_or_default())
    }

    fn note(&self, noted: &Noted) -> Result<(), TargetError> {
        notes::write(&self.parts.dir.join("compose.json"), noted)
    }

    /// The folder of the Compose file in a project's tree.
    fn folder(&self, project: &str) -> PathBuf {
        let file = PathBuf::from(&self.parts.config.file);
        let inside = file.parent().map(PathBuf::from).unwrap_or_default();
        self.trees.path(project).join(inside)
    }

    async fn ours(&self) -> Result<Vec<Member>, TargetError> {
        let mut members = self.parts.docker.members(&self.label()).await.map_err(refused)?;
        if let Some(adopted) = self.noted()?.adopted {
            members.retain(|member| member.project != adopted);
            members.extend(self.of_project(&adopted).await?);
        }
        Ok(members)
    }

    async fn of_project(&self, project: &str) -> Result<Vec<Member>, TargetError> {
        self.parts.docker.members(&format!("{PROJECT}={project}")).await.map_err(refused)
    }

    /// The project that serves: the noted one, or, where the note is lost, the newest with a container that runs.
    async fn serving(&self, noted: &Noted) -> Result<Option<Project>, TargetError> {
        if noted.serving.is_some() || noted.attempt.is_some() {
            return Ok(noted.serving.clone());
        }
        let running = self.ours().await?.into_iter().filter(|member| member.running);
        let prefix = format!("{}-r", self.base());
        let release = |name: &str| name.strip_prefix(&prefix)?.parse::<u64>().ok();
        let newest = running.filter_map(|one| Some((release(&one.project)?, one.project))).max();
        // Nobody knows what it was made from, so that it is taken for something else than any release.
        Ok(newest.map(|(release, name)| Project { name, release, config_hash: String::new() }))
    }

    /// Writes a project's files: those of the commit, and the rendered one.
    async fn write_files(&self, project: &Project, rendered: &mut Value) -> Result<(), TargetError> {
        let commit = document::commit_of(rendered);
        let commit = commit.ok_or_else(|| TargetError::Render("what was stored of it names no commit".to_owned()))?;
        self.trees.make(&project.name, &self.parts.mirror, &commit, false).await.map_err(refused)?;
        let environment = format!("{}/{}", self.parts.instance, self.parts.environment);
        document::label_networks(rendered, &[(ENVIRONMENT, environment.clone())]);
        document::label(rendered, &[(ENVIRONMENT, environment), (RELEASE, project.release.to_string())]);
        notes::write(&self.folder(&project.name).join(FILE), rendered)
    }

    /// Finds or pulls every image, while what serves still does.
    async fn images(&self, rendered: &Value, apply: &Apply<'_>) -> Result<(), TargetError> {
        let services = rendered["services"].as_object();
        let images = services.into_iter().flatten().filter_map(|(_, service)| service["image"].as_str());
        for image in images.map(|image| image.replace("$$", "$")).collect::<BTreeSet<_>>() {
            // One with a secret in its name is Compose's to find.
            if !image.contains("${") {
                self.parts.docker.resolve_image(&image, apply.progress).await.map_err(refused)?;
            }
        }
        Ok(())
    }

    /// Stops, and where asked removes, all our projects but one.
    async fn end_others(&self, keep: &[&str], remove: bool) -> Result<(), TargetError> {
        for member in self.ours().await?.into_iter().filter(|one| !keep.contains(&&*one.project)) {
            match remove {
                true => self.parts.docker.remove_member(&member.name).await,
                false => self.parts.docker.stop_member(&member.name).await,
            }
            .map_err(refused)?;
        }
        if !remove {
            return Ok(());
        }
        if let Some(adopted) = self.noted()?.adopted {
            self.parts.docker.remove_networks(&format!("{PROJECT}={adopted}"), keep).await.map_err(refused)?;
        }
        self.parts.docker.remove_networks(&self.label(), keep).await.map_err(refused)
    }

    /// Removes all our projects but one, once more where an engine may still be making what the tool of a try that was
    /// cut off had asked for.
    async fn sweep(&self, keep: &[&str], was_cut_off: bool) -> Result<(), TargetError> {
        self.end_others(keep, true).await?;
        if was_cut_off {
            tokio::time::sleep(LATE_AFTER).await;
            self.end_others(keep, true).await?;
        }
        Ok(())
    }

    /// Removes one project, whatever of it is there.
    async fn remove_project(&self, project: &str) -> Result<(), TargetError> {
        for member in self.of_project(project).await? {
            self.parts.docker.remove_member(&member.name).await.map_err(refused)?;
        }
        self.parts.docker.remove_networks(&format!("{PROJECT}={project}"), &[]).await.map_err(refused)
    }

    /// Says the command that leads the traffic from one project to the other.
    async fn switch(&self, apply: &Apply<'_>, way: &str, new: &str, old: &str, until: Instant) -> Result<(), String> {
        let Some(line) = &self.parts.config.switch else { return Ok(()) };
        (apply.progress)(format!("switching to {new}"));
        let environment = [
            ("MAINSTAY_NEW", new.to_owned()),
            ("MAINSTAY_OLD", old.to_owned()),
            ("MAINSTAY_ENVIRONMENT", self.parts.environment.to_string()),
            ("MAINSTAY_RELEASE", apply.release.number.to_string()),
        ];
        let environment: Vec<_> = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let folder = self.folder(new);
        let name = format!("{}-{way}", apply.name);
        let task = crate::runtime::process::Task {
            name: &name,
            script: line,
            folder: &folder,
            environment: &environment,
            leaves_servers: false,
        };
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        match self.alone.run(&task, left).await {
            Ok(end) if end.code == 0 && !end.timed_out => Ok(()),
            Ok(end) => Err(tool::why("the switch command", &end)),
            Err(error) => Err(format!("failed to {error}")),
        }
    }

    /// Brings the new project up until it is well. The old one's containers are stopped first where they may be.
    async fn bring_up(
        &self,
        apply: &Apply<'_>,
        noted: &Noted,
        new: &Project,
        until: Instant,
    ) -> Result<(), TargetError> {
        let replicas = &apply.release.replicas;
        let side_by_side = self.parts.config.switch.is_some();
        let in_place = noted.serving.as_ref() == Some(new);
        if !side_by_side {
            (apply.progress)(format!("making the containers of {}", new.name));
            self.compose(apply, new, tool::Act::Create, until).await?;
            (apply.progress)("stopping the containers of the version before".to_owned());
            self.end_others(&[&new.name], false).await?;
        }
        (apply.progress)(match in_place {
            true => format!("putting {} in order", new.name),
            false => format!("starting {}", new.name),
        });
        self.compose(apply, new, tool::Act::Up, until).await?;
        self.wait_well(&new.name, replicas, until).await.map_err(|why| bad(why, Left::Mixed))
    }

    /// After a failure: what served serves again.
    async fn put_back(&self, apply: &Apply<'_>, noted: &Noted, new: &Project) -> Result<(), String> {
        let fail = |error: TargetError| error.to_string();
        self.remove_project(&new.name).await.map_err(fail)?;
        let Some(old) = &noted.serving else { return Ok(()) };
        let members = self.of_project(&old.name).await.map_err(fail)?;
        let mut replicas = BTreeMap::new();
        for member in members.iter().filter(|member| noted.stopped.contains(&member.name)) {
            *replicas.entry(member.service.clone()).or_insert(0u64) += 1;
            if !member.running {
                (apply.progress)(format!("starting {} again", member.name));
                self.parts.docker.start_member(&member.name).await.map_err(|error| format!("failed to {error}"))?;
            }
        }
        self.wait_well(&old.name, &replicas, Instant::now() + BACK_WITHIN).await
    }
}

#[async_trait]
impl Target for Compose {
    fn kind(&self) -> &'static str {
        "compose"
    }

    async fn ping(&self) -> Result<String, TargetError> {
        let engine = self.parts.docker.ping().await.map_err(refused)?;
        Ok(format!("{}, {engine}", tool::find().await?.version))
    }

    async fn pin(&self, image: &str) -> Result<String, TargetError> {
        if image.contains('@') || image.starts_with("sha256:") {
            return Ok(image.to_owned());
        }
        match self.parts.docker.resolve_image(image, &|_| {}).await {
            Ok(found) => Ok(found.id),
            Err(RuntimeError::Unreachable { endpoint, detail }) => Err(TargetError::Unreachable { endpoint, detail }),
            Err(other) => Err(TargetError::Render(format!("failed to {other}"))),
        }
    }

    fn render(&self, input: &RenderInput) -> Result<Rendered, TargetError> {
        let side_by_side = self.parts.config.switch.is_some();
        if !side_by_side && !self.parts.downtime_allowed {
            return Err(TargetError::Render(format!(
                "a Compose project is stopped before its next version starts, and the environment `{}` allows no downtime\nhint: give the target a `switch` command, or say `downtime: allowed`",
                self.parts.environment
            )));
        }
        document::render(input, &self.base(), side_by_side)
            .map_err(|why| TargetError::Render(format!("{}: {why}", self.parts.config.file)))
    }

    async fn apply(&self, apply: &Apply<'_>) -> Result<(), TargetError> {
        let until = Instant::now() + apply.timeout;
        let mut rendered: Value = serde_json::from_str(&apply.release.rendered)
            .map_err(|error| TargetError::Render(format!("what was stored of it is no Compose file: {error}")))?;
        let mut noted = self.noted()?;
        noted.serving = self.serving(&noted).await?;
        let number = apply.release.number;
        let mut new = Project {
            name: format!("{}-r{number}", self.base()),
            release: number,
            config_hash: apply.release.config_hash.clone(),
        };
        // The same number for something else: that of another daemon's state, or of a note that was lost.
        while noted.serving.as_ref().is_some_and(|serving| serving.name == new.name && *serving != new) {
            new.name.push_str("-b");
        }
        let in_place = noted.serving.as_ref() == Some(&new);
        let cut_off = noted.attempt.take();
        // Where another try may have led the traffic already.
        let elsewhere = cut_off.as_ref().map(|(_, project)| project).filter(|project| **project != new);
        if cut_off.as_ref().is_none_or(|(name, project)| name != apply.name || *project != new) {
            for name in self.alone.names().map_err(refused)? {
                self.alone.forget(&name).await.map_err(refused)?;
            }
        }
        self.images(&rendered, apply).await?;
        self.write_files(&new, &mut rendered).await?;
        noted.attempt = Some((apply.name.to_owned(), new.clone()));
        if let Some(serving) = &noted.serving {
            let running = self.of_project(&serving.name).await?.into_iter().filter(|member| member.running);
            noted.stopped.extend(running.map(|member| member.name));
        }
        self.note(&noted)?;
        let mut failed = self.bring_up(apply, &noted, &new, until).await.err();
        let old = noted.serving.as_ref().filter(|old| **old != new).or(elsewhere);
        let old_name = old.map(|old| old.name.clone()).unwrap_or_default();
        let mut switched = false;
        if failed.is_none() && (!in_place || elsewhere.is_some()) {
            switched = self.parts.config.switch.is_some();
            let said = self.switch(apply, "switch", &new.name, &old_name, until).await;
            failed = said.err().map(|why| bad(why, Left::Mixed));
        }
        if let Some(failed) = failed {
            return Err(self.gone_wrong(apply, noted, &new, &old_name, (failed, switched, in_place)).await);
        }
        let adopted = noted.adopted.take();
        self.note(&Noted { serving: Some(new.clone()), adopted: adopted.clone(), ..Noted::default() })?;
        self.sweep(&[&new.name], cut_off.is_some()).await?;
        if adopted.is_some() {
            // Whatever is left carries our own label.
            self.note(&Noted { serving: Some(new.clone()), ..Noted::default() })?;
        }
        self.trees.keep_only(&new.name).await.map_err(refused)?;
        for name in self.alone.names().map_err(refused)? {
            self.alone.forget(&name).await.map_err(refused)?;
        }
        Ok(())
    }

    async fn taken_over(&self, release: &Release) -> Result<(), TargetError> {
        let noted = self.noted()?;
        if noted.serving.is_some() || noted.attempt.is_some() {
            return Ok(());
        }
        let mut project = Project {
            name: format!("{}-r{}", self.base(), release.number),
            release: release.number,
            config_hash: release.config_hash.clone(),
        };
        // Or the same number for something else, as `apply` names it.
        for _ in 0..NAMES_TRIED {
            if self.of_project(&project.name).await?.iter().any(|member| member.running) {
                let adopted = Some(project.name.clone());
                return self.note(&Noted { serving: Some(project), adopted, ..Noted::default() });
            }
            project.name.push_str("-b");
        }
        Ok(())
    }

    async fn observe(&self) -> Result<Observation, TargetError> {
        let noted = self.noted()?;
        let serving = self.serving(&noted).await?.or_else(|| noted.attempt.map(|(_, project)| project));
        let Some(serving) = serving else { return Ok(Observation::default()) };
        Ok(seen(&self.of_project(&serving.name).await?, &self.parts.secrets))
    }

    async fn remove(&self) -> Result<(), TargetError> {
        for name in self.alone.names().map_err(refused)? {
            self.alone.forget(&name).await.map_err(refused)?;
        }
        self.sweep(&[], self.noted()?.attempt.is_some()).await?;
        self.trees.remove().await.map_err(refused)?;
        for part in ["tries", "compose.json"] {
            notes::remove(&self.parts.dir.join(part))?;
        }
        Ok(())
    }
}

impl Compose {
    /// Puts back what served, as far as that goes; the error says what is left.
    async fn gone_wrong(
        &self,
        apply: &Apply<'_>,
        mut noted: Noted,
        new: &Project,
        old: &str,
        (failed, switched, in_place): (TargetError, bool, bool),
    ) -> TargetError {
        let (TargetError::Bad { why, .. } | TargetError::Missing(why)) = failed else { return failed };
        if in_place {
            // What serves is what was to be put in order; there is nothing to go back to.
            return bad(why, Left::Mixed);
        }
        if switched && !old.is_empty() {
            // Nobody knows how far it came.
            let back = self.switch(apply, "back", old, &new.name, Instant::now() + BACK_WITHIN).await;
            if let Err(again) = back {
                return bad(format!("{why}\nand the way back failed: {again}"), Left::Mixed);
            }
        }
        match self.put_back(apply, &noted, new).await {
            Ok(()) => {
                noted.attempt = None;
                noted.stopped.clear();
                match self.note(&noted) {
                    Ok(()) => bad(why, Left::Before),
                    Err(error) => bad(format!("{why}\nand then failed to {error}"), Left::Mixed),
                }
            }
            Err(again) => bad(format!("{why}\nand the version before did not come back: {again}"), Left::Mixed),
        }
    }
}

/// What the containers of a project show.
fn seen(members: &[Member], secrets: &BTreeMap<String, String>) -> Observation {
    let mut items: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut replicas: BTreeMap<String, u64> = BTreeMap::new();
    let mut instances = Vec::new();
    for member in members {
        let service = &member.service;
        let mut put = |item: String, value: &str| items.entry(item).or_default().insert(hide(value, secrets));
        put(format!("{service}.image"), &member.image);
        put(format!("{service}.command"), &member.command.join(" "));
        for variable in &member.environment {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            put(format!("{service}.env.{name}"), value);
        }
        for (place, source) in &member.mounts {
            put(format!("{service}.mount.{place}"), source);
        }
        for (port, host) in &member.ports {
            put(format!("{service}.port.{port}"), host);
        }
        let ended_well = well::ended_well(member);
        *replicas.entry(service.clone()).or_default() += u64::from(member.running || ended_well);
        instances.push(Instance {
            service: service.clone(),
            name: member.name.clone(),
            image: member.image.clone(),
            healthy: ended_well || member.running && member.well != Some(false),
            restarts: member.restarts,
            state: well::words(member),
        });
    }
    // Where the containers of a service differ, all that is found stands there.
    let joined = |values: BTreeSet<String>| values.into_iter().collect::<Vec<_>>().join(" | ");
    let mut items: BTreeMap<_, _> = items.into_iter().map(|(item, values)| (item, joined(values))).collect();
    items.extend(replicas.into_iter().map(|(service, count)| (format!("{service}.replicas"), count.to_string())));
    Observation { items, instances }
}
