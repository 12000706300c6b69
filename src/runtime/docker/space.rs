//! Spaces: a network, a volume and a running holder each, made in advance where possible, used by one run only.

use super::container::{self, state_of, workspace_mount};
use super::engine::{Engine, is_gone, status};
use super::image::{self, HELPER_PATH};
use super::network::{Subnets, ids_of};
use super::{SHORT_WIDTH, holder};
use crate::git::Base;
use crate::model::RepoName;
use crate::runtime::{Found, RuntimeError, SpaceName, WorkspaceSource};
use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, RestartPolicy, RestartPolicyNameEnum, VolumeCreateRequest,
};
use bollard::query_parameters::{
    CreateContainerOptions, RemoveImageOptions, RemoveVolumeOptions, StartContainerOptions,
};
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// A holder is one small process; the memory is for the file system's cache of what it writes.
const HOLDER_MEMORY_BYTES: i64 = 256 << 20;
const HOLDER_PIDS: i64 = 16;
/// A network is free some moments after its last container is gone: looks and pause, together 5 s.
const NETWORK_LOOKS: u32 = 100;
const NETWORK_LOOK_EVERY: Duration = Duration::from_millis(50);

/// What this process knows of a space. A space it does not know belongs to a process before it.
#[derive(Debug, Clone, Default)]
struct Known {
    /// What its workspace was filled with, as long as nobody else wrote there.
    base: Option<Base>,
    /// Whom the workspace belongs to, as long as that is one user.
    owner: Option<(u32, u32)>,
    /// It waits in the pool, for that repository when filled.
    spare: Option<Option<RepoName>>,
}

pub(super) struct Spaces {
    subnets: Subnets,
    /// How many spaces wait in advance.
    pool: usize,
    known: Mutex<HashMap<SpaceName, Known>>,
    /// One warming at a time: it is work in the background, and must not crowd out the runs.
    warming: tokio::sync::Mutex<()>,
    helper: tokio::sync::OnceCell<()>,
    /// No spare is made any more.
    draining: std::sync::atomic::AtomicBool,
}

impl Spaces {
    pub(super) fn new(subnets: Subnets, pool: usize) -> Self {
        Spaces {
            subnets,
            pool,
            known: Mutex::default(),
            warming: tokio::sync::Mutex::default(),
            helper: tokio::sync::OnceCell::new(),
            draining: std::sync::atomic::AtomicBool::new(false),
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<SpaceName, Known>> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// True for a space that this process made and has not removed.
    pub(super) fn is_made_here(&self, space: &str) -> bool {
        self.known().contains_key(&SpaceName(space.to_owned()))
    }

    pub(super) fn made_here(&self) -> Vec<SpaceName> {
        self.known().keys().cloned().collect()
    }

    pub(super) fn spares(&self) -> Vec<SpaceName> {
        self.known().iter().filter(|(_, known)| known.spare.is_some()).map(|(name, _)| name.clone()).collect()
    }

    /// Takes one out of the pool: `wanted` looks at its repository.
    fn pick(&self, wanted: impl Fn(Option<&RepoName>) -> bool) -> Option<SpaceName> {
        let mut known = self.known();
        let name = known.iter().find(|(_, k)| k.spare.as_ref().is_some_and(|repo| wanted(repo.as_ref())))?.0.clone();
        known.get_mut(&name)?.spare = None;
        Some(name)
    }

    /// A space for a run: one filled for its repository, else a blank one, else a new one.
    pub(super) async fn take(&self, engine: &Engine, repo: &RepoName) -> Result<SpaceName, RuntimeError> {
        loop {
            let spare = self.pick(|of| of == Some(repo)).or_else(|| self.pick(|of| of.is_none()));
            let Some(spare) = spare else { break };
            // Holders do not survive a restart of the engine.
            if state_of(engine, &spare.0).await? == Found::Alive {
                return Ok(spare);
            }
            self.remove(engine, &spare, false).await?;
        }
        match self.make(engine).await {
            // What waits for another repository is worth less than a run that could start.
            Err(RuntimeError::NoNetworkLeft { range, total }) => {
                let Some(other) = self.pick(|_| true) else {
                    return Err(RuntimeError::NoNetworkLeft { range, total });
                };
                self.remove(engine, &other, false).await?;
                self.make(engine).await
            }
            other => other,
        }
    }

    async fn make(&self, engine: &Engine) -> Result<SpaceName, RuntimeError> {
        self.helper.get_or_try_init(|| image::ensure_helper(engine)).await?;
        let random = getrandom::u64().map_err(|error| RuntimeError::Io {
            doing: "get random bytes".to_owned(),
            source: std::io::Error::other(error.to_string()),
        })?;
        let space = SpaceName(format!("{}p{random:016x}", name_prefix(engine)));
        // Known before it exists: a sweep at this moment must not take its parts for an earlier daemon's.
        let known = Known { base: None, owner: Some((0, 0)), spare: None };
        self.known().insert(space.clone(), known);
        let made = self.make_parts(engine, &space).await;
        if made.is_err() {
            // What cannot be removed now is swept at the next start.
            let _ = self.remove(engine, &space, false).await;
        }
        made.map(|()| space)
    }

    /// A network and a holder for a workspace that was kept.
    pub(super) async fn reopen(&self, engine: &Engine, kept: &SpaceName) -> Result<(), RuntimeError> {
        match engine.api.inspect_volume(&kept.0).await {
            Err(e) if is_gone(&e) => return Err(RuntimeError::Gone { what: format!("the kept workspace {}", kept.0) }),
            other => other.map_err(|e| engine.error("look at the kept workspace", &e))?,
        };
        self.helper.get_or_try_init(|| image::ensure_helper(engine)).await?;
        // A crash in an earlier try may have left one of the two.
        self.remove(engine, kept, true).await?;
        self.make_parts(engine, kept).await
    }

    async fn make_parts(&self, engine: &Engine, space: &SpaceName) -> Result<(), RuntimeError> {
        let volume_and_holder = async {
            let volume = VolumeCreateRequest {
                name: Some(space.0.clone()),
                labels: Some(engine.space_labels(space)),
                ..Default::default()
            };
            let made = engine.api.create_volume(volume).await;
            made.map_err(|e| engine.error("make the run's volume", &e))?;
            self.make_holder(engine, space).await
        };
        // The network takes longest; a holder can be made, if not started, before its network is there. Both are heard to
        // their end: what an engine goes on making after nobody listens is there after it was removed.
        let (network, holder) = tokio::join!(self.subnets.create(engine, space), volume_and_holder);
        network.and(holder)?;
        let started = engine.api.start_container(&space.0, None::<StartContainerOptions>).await;
        started.map_err(|e| engine.error("start the run's holder", &e))
    }

    async fn make_holder(&self, engine: &Engine, space: &SpaceName) -> Result<(), RuntimeError> {
        let strings = |items: &[&str]| items.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let body = || ContainerCreateBody {
            image: Some(image::helper_image()),
            entrypoint: Some(strings(&[HELPER_PATH, "hold"])),
            user: Some("0:0".to_owned()),
            open_stdin: Some(true),
            stdin_once: Some(false),
            labels: Some(engine.space_labels(space)),
            host_config: Some(HostConfig {
                network_mode: Some(space.0.clone()),
                // The helper's volume too: as long as a space exists nobody can remove what its steps will need.
                mounts: Some(vec![workspace_mount(&space.0), image::helper_mount()]),
                readonly_rootfs: Some(true),
                security_opt: Some(strings(&["no-new-privileges"])),
                cap_drop: Some(strings(&["ALL"])),
                // To write for any user, and to give what was written away.
                cap_add: Some(strings(&["CHOWN", "DAC_OVERRIDE", "FOWNER"])),
                memory: Some(HOLDER_MEMORY_BYTES),
                memory_swap: Some(HOLDER_MEMORY_BYTES),
                pids_limit: Some(HOLDER_PIDS),
                // Its answers are for whoever asked, at that moment.
                log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
                restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), ..Default::default() }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut again = true;
        for _ in 0..container::REMOVAL_LOOKS {
            let options = CreateContainerOptions { name: Some(space.0.clone()), ..Default::default() };
            match engine.api.create_container(Some(options), body()).await {
                Ok(_) => return Ok(()),
                // Another daemon that uses the same engine has stopped, and took the image along.
                Err(e) if std::mem::take(&mut again) && is_gone(&e) => image::ensure_helper(engine).await?,
                // A daemon that was killed while it opened this kept workspace had asked for it: made late, or given up.
                Err(e) if status(&e) == Some(409) => {
                    container::remove(engine, &space.0).await?;
                    tokio::time::sleep(container::REMOVAL_LOOK_EVERY).await;
                }
                Err(e) => return Err(engine.error("make the run's holder", &e)),
            }
        }
        Err(RuntimeError::Refused {
            doing: "make the run's holder".to_owned(),
            detail: format!("the name {} is not free", space.0),
        })
    }

    /// Fills the workspace: all of it, or what differs from what lies there.
    pub(super) async fn fill(
        &self,
        engine: &Engine,
        space: &SpaceName,
        source: &WorkspaceSource,
    ) -> Result<(), RuntimeError> {
        // While it is written nobody knows what lies there.
        let base = self.known().get_mut(space).and_then(|known| known.base.take());
        let base = holder::fill(engine, space, source, base).await?;
        if let Some(known) = self.known().get_mut(space) {
            known.base = base;
            known.owner = Some((0, 0));
        }
        Ok(())
    }

    /// Gives the workspace to the user a step runs as, unless it has it. Root needs nothing given, but what it makes
    /// then belongs to root, so that the next user is given everything again.
    pub(super) async fn own(&self, engine: &Engine, space: &SpaceName, user: (u32, u32)) -> Result<(), RuntimeError> {
        let owner = {
            let mut known = self.known();
            let known = known.entry(space.clone()).or_default();
            known.base = None;
            known.owner.take()
        };
        if user.0 == 0 {
            return Ok(());
        }
        if owner != Some(user) {
            holder::chown(engine, space, user.0, user.1).await?;
        }
        self.known().entry(space.clone()).or_default().owner = Some(user);
        Ok(())
    }

    /// Removes a space's holder, network and, unless it is kept, volume. Nothing there is success.
    pub(super) async fn remove(
        &self,
        engine: &Engine,
        space: &SpaceName,
        keep_workspace: bool,
    ) -> Result<(), RuntimeError> {
        self.known().remove(space);
        container::remove(engine, &space.0).await?;
        let volume = async { if keep_workspace { Ok(()) } else { remove_volume(engine, &space.0).await } };
        // Both are tried to their end: one that is refused does not keep the other.
        let (network, volume) = tokio::join!(remove_network(engine, &space.0), volume);
        network.and(volume)
    }

    /// Makes a spare ready for the next run of a repository.
    pub(super) async fn warm(
        &self,
        engine: &Engine,
        repo: &RepoName,
        source: &WorkspaceSource,
    ) -> Result<(), RuntimeError> {
        if self.pool == 0 {
            return Ok(());
        }
        let _one = self.warming.lock().await;
        // The pool was given up meanwhile: nobody would wait for what begins now.
        if self.is_draining() {
            return Ok(());
        }
        // A spare of the same repository gets the difference; else a blank one is filled; else one is made.
        let space = match self.pick(|of| of == Some(repo)).or_else(|| self.pick(|of| of.is_none())) {
            Some(space) if state_of(engine, &space.0).await? == Found::Alive => space,
            Some(dead) => {
                self.remove(engine, &dead, false).await?;
                self.make(engine).await?
            }
            None => self.make(engine).await?,
        };
        if let Err(error) = self.fill(engine, &space, source).await {
            let _ = self.remove(engine, &space, false).await;
            return Err(error);
        }
        self.put_back(engine, space, Some(repo.clone())).await?;
        if self.pool > 1 && !self.has_blank() && !self.is_draining() {
            let blank = self.make(engine).await?;
            self.put_back(engine, blank, None).await?;
        }
        Ok(())
    }

    fn has_blank(&self) -> bool {
        self.known().values().any(|known| known.spare == Some(None))
    }

    fn is_draining(&self) -> bool {
        self.draining.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Puts a space into the pool; when the pool is full, some spare of another repository has to go.
    async fn put_back(&self, engine: &Engine, space: SpaceName, repo: Option<RepoName>) -> Result<(), RuntimeError> {
        let surplus = {
            let mut known = self.known();
            let count = known.values().filter(|k| k.spare.is_some()).count();
            let surplus = (count >= self.pool).then(|| {
                let of_others = known.iter().find(|(_, k)| matches!(&k.spare, Some(of) if *of != repo));
                of_others.map_or_else(|| space.clone(), |(name, _)| name.clone())
            });
            if let Some(known) = known.get_mut(&space) {
                known.spare = Some(repo);
            }
            surplus
        };
        if self.is_draining() {
            return self.remove(engine, &space, false).await;
        }
        match surplus {
            Some(surplus) => self.remove(engine, &surplus, false).await,
            None => Ok(()),
        }
    }

    /// Removes all spares, and what the daemons of this engine share when no other uses it.
    pub(super) async fn drain(&self, engine: &Arc<Engine>) {
        self.draining.store(true, std::sync::atomic::Ordering::SeqCst);
        let _one = self.warming.lock().await;
        futures_util::stream::iter(self.spares())
            .for_each_concurrent(SHORT_WIDTH, |space| async move {
                if let Err(error) = self.remove(engine, &space, false).await {
                    tracing::warn!(space = space.0, %error, "a spare space stays until the next start");
                }
            })
            .await;
        // Both fail while anybody uses them, which is right.
        let _ = engine.api.remove_volume(&image::helper_volume(), None::<RemoveVolumeOptions>).await;
        let _ = engine.api.remove_image(&image::helper_image(), None::<RemoveImageOptions>, None).await;
    }
}

/// What the names of all volumes of a daemon begin with.
pub(super) fn name_prefix(engine: &Engine) -> String {
    format!("mainstay-{}-", engine.instance)
}

pub(super) async fn remove_volume(engine: &Engine, name: &str) -> Result<(), RuntimeError> {
    match engine.api.remove_volume(name, None::<RemoveVolumeOptions>).await {
        Err(e) if is_gone(&e) => Ok(()),
        other => other.map_err(|e| engine.error(format!("remove the volume {name}"), &e)),
    }
}

/// Removes the network of that name or id. Nothing there is success.
pub(super) async fn remove_network(engine: &Engine, name: &str) -> Result<(), RuntimeError> {
    let mut looks = 0;
    loop {
        match engine.api.remove_network(name).await {
            Err(e) if is_gone(&e) => return Ok(()),
            // Two of one name, one of which a killed daemon had asked for.
            Err(e) if e.to_string().contains("ambiguous") => {
                for id in ids_of(engine, name).await? {
                    Box::pin(remove_network(engine, &id)).await?;
                }
                return Ok(());
            }
            // Its last container is just leaving.
            Err(e) if matches!(status(&e), Some(403 | 409)) && looks < NETWORK_LOOKS => {
                looks += 1;
                tokio::time::sleep(NETWORK_LOOK_EVERY).await;
            }
            other => return other.map_err(|e| engine.error(format!("remove the network {name}"), &e)),
        }
    }
}
