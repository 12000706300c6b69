//! The daemon: the only room that knows all others.
//!
//! `cli serve` calls [`serve`]; it returns when the daemon has stopped. Start: configuration, lock, store, runtimes,
//! engine, triggers, listeners, then recovery, then readiness. Stop (SIGTERM, SIGINT): no new work is taken, processes of
//! steps are left running for the next daemon, everyone is waited for. SIGHUP reads the configuration again.

mod alerts;
mod changed;
mod control;
mod gates;
mod lock;
mod loops;
mod people;
mod recovery;
pub mod sweep;
pub mod wire;

use crate::approval::{Approvals, Rules};
use crate::backup::keeper::Keeper;
use crate::config::daemon::{Daemon, WebhookKind};
use crate::deploy::Deploys;
use crate::engine::Engine;
use crate::git::Mirror;
use crate::logs::hub::LogStore;
use crate::model::api::MessageFigures;
use crate::model::{Asker, RepoName};
use crate::notify::Channels;
use crate::runtime::Runtime;
use crate::signing::SigningKey;
use crate::store::{Act, ActKind, Store};
use crate::trigger::{Intake, WatchedRepo, WebhookConfig, socket, webhook};
use crate::web::{self, App, auth, listen};
use anyhow::Context;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, Notify, watch};

/// The socket for commands, in the state folder.
pub const SOCKET: &str = "mainstay.sock";
/// The socket that hooks may only notify, in the state folder.
pub const HOOK_SOCKET: &str = "hook.sock";
/// Signs what is written into Git about environments, in the state folder; its public line is beside it.
const SIGN_KEY: &str = "sign.key";
/// The token for TCP clients, in the state folder.
pub const TOKEN: &str = "token";

/// The running daemon's parts, shared by its loops and the web room.
pub struct Core {
    config_path: PathBuf,
    config: Arc<RwLock<Arc<Daemon>>>,
    wired: RwLock<Arc<Parts>>,
    engine: Engine,
    wake: Arc<Notify>,
    intake: Arc<Intake>,
    approvals: Approvals,
    deploys: Deploys,
    keeper: Keeper,
    data: recovery::DataSteps,
    /// What messages are sent with, as it is in force.
    channels: watch::Sender<Arc<Channels>>,
    started_at: Timestamp,
    stopping: watch::Sender<bool>,
    health: RwLock<Health>,
    /// Held while the configuration is read again: two at once could leave the older one in force.
    reloading: Mutex<()>,
}

/// What is replaced as a whole when the configuration is read again.
struct Parts {
    runtimes: Vec<wire::Made>,
    mirrors: BTreeMap<RepoName, Arc<Mirror>>,
}

/// What the last look at the runtimes and the store found; health checks are answered from it.
#[derive(Debug, Clone, Default)]
struct Health {
    runtime: String,
    runtime_ok: bool,
    not_ready: Vec<String>,
    queued: usize,
    running: usize,
    inbox_pending: usize,
    finished: BTreeMap<String, u64>,
    messages: MessageFigures,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When it cannot start: a wrong configuration, a state folder in use, a port taken.
pub async fn serve(config_path: &Path) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let config = Arc::new(crate::config::daemon::load(config_path)?);
    let backups = crate::config::backup::load(config_path)?;
    let _lock = lock::StateLock::take(&config.state)?;
    let core = Core::start(config_path, &config)?;
    let sources = recovery::wanted(&config, &backups, core.engine.store(), &core.who_is_told())?;
    core.approvals.recover().await?;
    let socket = listen::Socket::bind(&config.state.join(SOCKET))?;
    let tcp = tokio::net::TcpListener::bind(config.server.listen).await.with_context(|| {
        format!("listen on {}\nhint: `server.listen` in mainstay.yml names another address", config.server.listen)
    })?;
    let address = tcp.local_addr().context("listen")?;
    let app = core.app(&config, address)?;
    let serving = tokio::spawn(listen::serve(web::router(app), socket, Some(tcp), core.stopping.subscribe()));

    let hook = socket::Listener::bind(&config.state.join(HOOK_SOCKET))
        .with_context(|| format!("listen on {}", config.state.join(HOOK_SOCKET).display()))?;

    // As it is before anything goes on: what is not alive now was left by an earlier daemon.
    let left = sweep::Left::of_earlier(&core.engine, core.runtimes()).await?;
    // Before runs and deploys go on: their steps ask for sources.
    core.keeper.configure(sources);
    core.engine.recover().await?;
    core.deploys.start();
    let loops = loops::start(&core, hook, left);
    tracing::info!(%address, state = %config.state.display(), repos = config.repos.len(), version = env!("CARGO_PKG_VERSION"), "ready");
    notify(&[sd_notify::NotifyState::Ready]);

    loop {
        match signals.next().await {
            Told::Stop => break,
            Told::Reload => match Core::reload(&core, Asker::signal("SIGHUP")).await {
                Ok(changes) => tracing::info!(?changes, "configuration read again"),
                Err(error) => tracing::error!("failed to read the configuration again, the old one stays: {error:#}"),
            },
        }
    }
    tracing::info!("stopping: no new work is taken, steps under way go on without the daemon");
    notify(&[sd_notify::NotifyState::Stopping]);
    core.stopping.send_replace(true);
    loops.join().await;
    core.keeper.join().await;
    core.deploys.stop().await;
    core.engine.stop().await;
    if let Err(error) = serving.await {
        tracing::error!(%error, "a listener ended badly");
    }
    sweep::leave_nothing(&core.engine, core.runtimes()).await;
    tracing::info!("stopped");
    Ok(())
}

impl Core {
    fn start(config_path: &Path, config: &Arc<Daemon>) -> anyhow::Result<Arc<Core>> {
        let store = Store::open(&config.state)?;
        let wired = wire::wire(config, store.instance(), &[])?;
        let wake = Arc::new(Notify::new());
        let logs = LogStore::new(&config.state);
        let engine = Engine::new(store.clone(), logs, wired.settings.clone(), Arc::clone(&wake));
        let approvals = Approvals::open(store.clone(), &config.state, Rules::of(config))?;
        let key = SigningKey::open(&config.state.join(SIGN_KEY))?;
        let setups = gates::setups(config, store.instance(), &wired.mirrors)?;
        let deploys = Deploys::new(store.clone(), approvals.clone(), key, setups);
        let channels = Channels::new(&config.notify, &config.people, store.instance())?;
        let stopping = watch::Sender::new(false);
        let keeper = Keeper::new(stopping.subscribe());
        let data = recovery::DataSteps::new(keeper.clone(), &config.state, config_path)?;
        deploys.set_points(Arc::new(gates::KeeperPoints(keeper.clone())));
        engine.set_gates(Arc::new(gates::DaemonGates { deploys: deploys.clone(), data: data.clone() }));
        let intake = Intake::new(store, watched(config, &wired.mirrors), Arc::clone(&wake));
        engine.configure(wired.repos, wired.settings);
        let core = Core {
            config_path: config_path.to_owned(),
            config: Arc::new(RwLock::new(Arc::clone(config))),
            wired: RwLock::new(Arc::new(Parts { runtimes: wired.runtimes, mirrors: wired.mirrors })),
            engine,
            wake,
            intake,
            approvals,
            deploys,
            keeper,
            data,
            channels: watch::Sender::new(Arc::new(channels)),
            started_at: Timestamp::now(),
            stopping,
            health: RwLock::new(Health { not_ready: vec!["the daemon is starting".into()], ..Health::default() }),
            reloading: Mutex::default(),
        };
        Ok(Arc::new(core))
    }

    fn app(self: &Arc<Self>, config: &Daemon, address: std::net::SocketAddr) -> anyhow::Result<Arc<App>> {
        let public = Some(config.server.public_url.as_str()).filter(|url| !url.is_empty());
        Ok(Arc::new(App {
            runs: Arc::new(self.engine.clone()),
            logs: self.engine.logs().clone(),
            control: Arc::new(Arc::clone(self)),
            intake: Arc::clone(self) as Arc<dyn web::Intake>,
            people: Arc::clone(self) as Arc<dyn web::People>,
            audit: Arc::new(self.engine.store().clone()),
            approvals: self.approvals.clone(),
            deploys: self.deploys.clone(),
            keeper: self.keeper.clone(),
            token: auth::Token::load_or_create(&config.state.join(TOKEN))?,
            hosts: auth::Hosts::new(Some(address), public),
            changes: self.engine.changes(),
            stopping: self.stopping.subscribe(),
            log_places: App::log_places(),
        }))
    }

    /// Reads the whole configuration again; on any error nothing changes. Once begun it goes on to its end, also when
    /// whoever asked does not wait for it: what is recorded must be in force.
    async fn reload(self: &Arc<Self>, by: Asker) -> anyhow::Result<Vec<String>> {
        let core = Arc::clone(self);
        tokio::spawn(async move { core.reload_to_the_end(by).await }).await.context("read the configuration again")?
    }

    async fn reload_to_the_end(&self, by: Asker) -> anyhow::Result<Vec<String>> {
        let _alone = self.reloading.lock().await;
        let old = self.config();
        let new = Arc::new(crate::config::daemon::load(&self.config_path)?);
        let backups = crate::config::backup::load(&self.config_path)?;
        let mut changes = Vec::new();
        for (what, fixed) in [("state", old.state == new.state), ("server", old.server == new.server)] {
            if !fixed {
                anyhow::bail!(
                    "change `{what}` while the daemon runs\nhint: restart the daemon; steps under way survive that"
                );
            }
        }
        let before = self.parts();
        let instance = self.engine.store().instance();
        let wired = wire::wire(&new, instance, &before.runtimes)?;
        let setups = gates::setups(&new, instance, &wired.mirrors)?;
        let channels = Arc::new(Channels::new(&new.notify, &new.people, instance)?);
        let sources = recovery::wanted(&new, &backups, self.engine.store(), &self.who_is_told())?;
        changes.extend(self.keeper.differences(&sources));
        // The values of secrets for steps stand in the store alone: the file may be the same, word for word.
        let held = self.engine.repos();
        for (name, setup) in &wired.repos {
            if held.get(name).is_some_and(|before| before.secrets != setup.secrets) {
                changes.push(format!("{name} has other secrets"));
            }
        }
        if *old == *new && changes.is_empty() {
            return Ok(changes);
        }
        for name in new.repos.keys().filter(|name| !old.repos.contains_key(*name)) {
            changes.push(format!("{name} is watched now"));
        }
        for name in old.repos.keys().filter(|name| !new.repos.contains_key(*name)) {
            changes.push(format!("{name} is no longer watched"));
        }
        for (name, repo) in &new.repos {
            if old.repos.get(name).is_some_and(|before| before != repo) {
                changes.push(format!("{name} has other settings"));
            }
        }
        if old.limits != new.limits {
            changes.push("other limits".into());
        }
        if old.keep != new.keep {
            changes.push("old runs are kept for another time".into());
        }
        changes.extend(people::changes(&old.people, &new.people));
        changes.extend(changed::deploys(&old, &new));
        // First the record, then the deed, which cannot fail any more. A daemon killed in between starts with the new file.
        let details = serde_json::json!({ "changes": changes });
        let act = Act { by, kind: ActKind::Reload, subject: "mainstay.yml".into(), details };
        self.engine.store().record_act(act).await?;
        self.engine.configure(wired.repos, wired.settings);
        self.intake.replace(watched(&new, &wired.mirrors));
        if let Err(error) = self.approvals.configure(Rules::of(&new)).await {
            // In force all the same: every answer and every use counts anew.
            tracing::error!(%error, "failed to count approvals anew");
        }
        self.deploys.configure(setups);
        self.keeper.configure(sources);
        self.channels.send_replace(channels);
        for gone in before.runtimes.iter().filter(|old| !wired.runtimes.iter().any(|new| new.is(old))) {
            // Runs under way keep it; only what it holds ready for the next ones goes.
            let runtime = Arc::clone(&gone.runtime);
            tokio::spawn(async move { runtime.drain_pool().await });
        }
        let parts = Parts { runtimes: wired.runtimes, mirrors: wired.mirrors };
        *self.wired.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(parts);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = new;
        self.wake.notify_one();
        Ok(changes)
    }

    fn config(&self) -> Arc<Daemon> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn who_is_told(&self) -> recovery::Who {
        let config = Arc::clone(&self.config);
        Arc::new(move || alerts::told(&config.read().unwrap_or_else(PoisonError::into_inner)))
    }

    fn parts(&self) -> Arc<Parts> {
        Arc::clone(&self.wired.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn runtimes(&self) -> Vec<Arc<dyn Runtime>> {
        self.parts().runtimes.iter().map(|made| Arc::clone(&made.runtime)).collect()
    }
}

/// The repositories as the triggers need them.
fn watched(config: &Daemon, mirrors: &BTreeMap<RepoName, Arc<Mirror>>) -> Vec<WatchedRepo> {
    let repos = config.repos.iter().filter_map(|(name, repo)| Some((name, repo, mirrors.get(name)?)));
    repos
        .map(|(name, repo, mirror)| WatchedRepo {
            name: name.clone(),
            mirror: Mirror::clone(mirror),
            poll: Some(repo.poll.0),
            branch: repo.branch.clone(),
            runs_per_push: config.limits.runs_per_push as usize,
            webhook: repo.webhook.as_ref().map(|hook| WebhookConfig {
                kind: match hook.kind {
                    WebhookKind::Github => webhook::Kind::Github,
                    WebhookKind::Gitlab => webhook::Kind::Gitlab,
                    WebhookKind::Gitea | WebhookKind::Forgejo => webhook::Kind::Gitea,
                    WebhookKind::Generic => webhook::Kind::Generic,
                },
                secret: hook.secret.expose().to_owned(),
            }),
        })
        .collect()
}

enum Told {
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
        }
    }
}

/// Tells systemd, where there is one.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "no service manager listens");
    }
}
