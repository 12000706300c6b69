//! From a repository back to a server that answers.
//!
//! In: a repository, an identity, and what is wanted. Out: a data directory, or an open server, and a [`Report`]. Nothing
//! else is needed: no daemon, no database of ours, not the host that was lost. Callers: the commands and drills.
//!
//! | file | what it does |
//! |---|---|
//! | `plan`, `log`, `show` | which objects, how far, how long; no I/O |
//! | `place` | where it is written, and what an interrupted run has done |
//! | `fetch`, `base`, `chain` | objects, many at once; differences put on top of what they are to; `pg_control` last |
//! | `room` | does it fit on the disk |
//! | `feeder` with `stage`, `assembly`, `feed.sh` | the log, ahead of the server; it ends only where the catalogue proves that it ends |
//! | `tail` | the last record of the log, which the server is told to reach |
//! | `settings` | recovery, and nothing of the former life |
//! | `container` | an image and a volume of a container engine, as a place |
//! | `start` | the server, local or in a container, until it is open, and how far it came |
//! | `checks`, `report` | what it is asked then, and what is told to people |
//!
//! It fails closed in two independent ways. The feeding script lets recovery end only at names that the repository does
//! not have, and the server is told a target that it must meet (for the newest state: the last record of the log), or else
//! it refuses to open. So a log that ends early, for whatever reason, is an error and never a smaller database.

mod base;
mod chain;
mod checks;
pub mod container;
pub mod estimate;
pub mod feeder;
pub mod fetch;
mod log;
mod occupied;
pub mod place;
pub mod plan;
mod report;
mod room;
mod settings;
mod show;
pub mod start;
mod tablespaces;
pub mod tail;

pub(in crate::backup) use checks::ask_at;
pub use checks::{Check, Checked};
pub use container::Container;
pub use feeder::Feeding;
pub use fetch::{Moment, Progress};
pub use plan::{Ancestor, Plan, PlanError, Program, Rates, Tablespace, Target, Wish, plan};
pub use report::{Contained, Report, Seconds};
pub use start::LocalServer;

use super::catalog::holdings::Holdings;
use super::catalog::index::{Catalogue, CatalogueError};
use super::repository::{Item, Key, Repository, RepositoryError};
use super::seal::{Opener, SealError};
use super::take::{CombineError, UnpackError};
use crate::model::{Lsn, SourceName, SystemId};
use crate::runtime::RuntimeError;
use feeder::{Feeder, Stage};
use fetch::Fetch;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use place::{Place, Watched};
use report::Clock;
use settings::{Doors, Stop};
use start::{Host, Outcome, Reached, Running};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tail::Expected;
use tokio::sync::watch;

/// Receipts looked at at once, before anything is downloaded.
const LOOKS_AT_ONCE: usize = 8;

/// What becomes of the files.
#[derive(Debug, Clone)]
pub enum Into {
    /// Files only, with all of the log inside: whoever starts a server on them needs neither this program nor the
    /// repository. The files are given to this user and group.
    Folder {
        /// Whose they are to be; ours unless it is given.
        owner: Option<(u32, u32)>,
    },
    /// A server of local programs, recovered and open.
    Server(LocalServer),
    /// A place that a container engine's containers see; with an open server in one of them, or as files only.
    Container(Box<Container>),
}

impl Into {
    /// Whose the files are to be; `None` for ours.
    fn owner(&self) -> Option<(u32, u32)> {
        match self {
            Into::Folder { owner } => *owner,
            Into::Server(server) => server.user,
            Into::Container(container) => container.owner(),
        }
    }

    /// What runs a server there, where one is to run.
    fn host(&self) -> Option<Host<'_>> {
        match self {
            Into::Folder { .. } => None,
            Into::Server(server) => Some(Host::Local(server)),
            Into::Container(container) => container.serves().then_some(Host::Container(container)),
        }
    }
}

/// How a restore is done.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory; for a container what [`Container::place`] gave.
    pub data: PathBuf,
    /// What becomes of it.
    pub into: Into,
    /// Move aside what is there.
    pub force: bool,
    /// How the log is laid out.
    pub feeding: Feeding,
    /// What the open server is asked; nothing where none is started.
    pub checks: Vec<Check>,
}

/// Why nothing was restored. `Display` fits after "failed to restore: ".
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The catalogue does not read.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The place cannot be used.
    #[error("restore into {}: {source}", .path.display())]
    Place {
        /// It.
        path: PathBuf,
        /// Why.
        source: place::PlaceError,
    },
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// An object is not what it should be, or cannot be opened.
    #[error("open {key}: {source}")]
    Open {
        /// Its name.
        key: String,
        /// Why.
        source: SealError,
    },
    /// The base is not whole.
    #[error("{0}")]
    Incomplete(String),
    /// The base cannot be written.
    #[error("unpack the base: {0}")]
    Unpack(UnpackError),
    /// A difference cannot be put on top of what it is to.
    #[error(transparent)]
    Combine(#[from] CombineError),
    /// There is no room for it.
    #[error(transparent)]
    Room(#[from] room::NoRoom),
    /// A segment is not what it is called.
    #[error("read the log: {segment}: {source}")]
    Log {
        /// It.
        segment: String,
        /// Why.
        source: tail::BadLog,
    },
    /// Parts of a segment do not fit together.
    #[error("put the log together: {key}: {detail}")]
    Pieces {
        /// The part.
        key: String,
        /// What does not fit.
        detail: String,
    },
    /// The container engine.
    #[error(transparent)]
    Engine(#[from] RuntimeError),
    /// What is wanted of a container engine is in use, or not fit.
    #[error("restore into {what}: {why}")]
    Container {
        /// The volume, container, image or port.
        what: String,
        /// Why not, with what to try.
        why: String,
    },
    /// Something else listens where the server would.
    #[error(
        "start the server: port {0} of this machine is in use\nhint: name another with `--port N`; or free it, and give the same command again"
    )]
    Port(u16),
    /// The server did not open, or not as planned.
    #[error("recover: {0}")]
    Server(String),
    /// The machine.
    #[error("{doing}: {source}")]
    Io {
        /// What was done.
        doing: String,
        /// The cause.
        source: std::io::Error,
    },
}

impl RestoreError {
    pub(crate) fn io(doing: impl ToString, source: std::io::Error) -> RestoreError {
        RestoreError::Io { doing: doing.to_string(), source }
    }
}

/// Reads what the repository holds of a source, with the histories opened; gives the cluster that is asked for, or the
/// one that the source has now.
///
/// # Errors
/// When it cannot be read, or there is nothing.
pub async fn survey(
    repository: &dyn Repository,
    opener: &Opener,
    source: &SourceName,
    system: Option<SystemId>,
) -> Result<Holdings, RestoreError> {
    let mut catalogue = Catalogue::read(repository, opener.checker(), source).await?;
    catalogue.open_histories(repository, opener).await?;
    let found = match system {
        Some(system) => catalogue.clusters.get(&system),
        None => catalogue.newest_cluster(),
    };
    found.cloned().ok_or_else(|| PlanError::Nothing(source.clone()).into())
}

/// Plans for a data directory. A restore that began there and did not end goes on with the base backup it began with, also
/// when there is a newer one by now.
///
/// # Errors
/// As [`plan()`] does.
pub fn plan_for(data: Option<&Path>, holdings: &Holdings, wish: &Wish) -> Result<Plan, PlanError> {
    let newest = plan(holdings, wish)?;
    let Some((digest, base)) = data.and_then(place::begun).filter(|_| wish.backup.is_none()) else {
        return Ok(newest);
    };
    let begun = plan(holdings, &Wish { backup: Some(base), ..wish.clone() });
    Ok(begun.ok().filter(|begun| begun.digest() == digest).unwrap_or(newest))
}

/// Makes sure that the identities open what the plan names, by receipts alone: before anything is downloaded or written.
///
/// # Errors
/// When none of them does, or somebody else has signed.
pub async fn check_keys(repository: &dyn Repository, opener: &Opener, plan: &Plan) -> Result<(), RestoreError> {
    // Recipients change at a moment: the ends of the base and of the log are on both sides of it.
    let mut log = plan.log.segments.iter().flat_map(|segment| &segment.parts).map(|part| &part.key);
    let ends = [Some(&plan.index.key), plan.chunks.last().map(|chunk| &chunk.key), log.clone().next(), log.next_back()];
    let below = plan.ancestors.iter().map(|one| Some(&one.index.key));
    let looks = below.chain(ends).flatten().map(|key| async move {
        let receipt = match repository.receipt(key).await {
            // A piece that something larger stands for by now: its own keys are looked at when it is fetched.
            Err(RepositoryError::Absent { .. }) if matches!(key, Key::Of(_, Item::Piece { .. })) => return Ok(()),
            other => other?,
        };
        let wrong = |source| RestoreError::Open { key: key.to_string(), source };
        let seal = opener.checker().receipt(key, &receipt).map_err(wrong)?;
        opener.fits(&seal).map_err(wrong)
    });
    // The answers count in this order, whichever comes first.
    stream::iter(looks).buffered(LOOKS_AT_ONCE).try_collect().await
}

/// Carries out a plan. May be called again after any failure or end of the process, with the same plan and options: what is
/// done is not done again.
///
/// # Errors
/// When the state of the plan could not be reached. Then no server is left open, and none can be started by mistake.
pub async fn restore(
    repository: Arc<dyn Repository>,
    opener: Opener,
    plan: &Plan,
    options: &Options,
    progress: Arc<Progress>,
) -> Result<Report, RestoreError> {
    let mut clock = Clock::new(plan.estimate.total_secs);
    place::apart_from(&*repository, &options.data, plan)?;
    check_keys(&*repository, &opener, plan).await?;
    let (owner, host) = (options.into.owner(), options.into.host());
    let watched = match &options.into {
        Into::Container(_) => Watched::ByEngine,
        _ => Watched::ByItsFile,
    };
    if let Into::Server(server) = &options.into {
        place::check(&options.data, plan, options.force, watched)?;
        server.check_port()?;
    }
    let mut place = place::prepare(&options.data, owner, plan, options.force, watched)?;
    if let Some(host) = host {
        host.clear().await?;
    }
    progress.expect(plan.base_bytes, plan.log_bytes);
    let fetch = Fetch::new(repository, opener, progress);

    let mut feeder = lay_out(plan, &place, &fetch, options.feeding)?;
    base_and_log(plan, &mut place, &fetch, &mut feeder, options.force).await?;
    clock.base_done();
    let mut flow = Flow { plan, place, fetch, options, reach: plan.base.stop };
    let stop = match plan.stop() {
        Some(stop) => stop,
        None => flow.last_record(&mut feeder).await?,
    };
    let changes = match flow.place.opened() {
        // An earlier run came further than it could say: its server has opened, and recovers no more.
        true => Vec::new(),
        false => flow.settings(&stop)?,
    };
    let mut report = Report::new(plan, &flow.place, changes);

    if let Into::Container(container) = &options.into {
        report.contained(container);
    }
    match host {
        None => {
            feeder.everything(&stop).await?;
            for folder in [&flow.place.data, &flow.place.data.join(feeder::STAGE)] {
                place::give_all(folder, owner)?;
            }
            place::sync(std::slice::from_ref(&flow.place.data))?;
            match &options.into {
                Into::Container(container) => report.run_by_hand(container),
                _ => report.start_by_hand(plan, &flow.place.data),
            }
        }
        Some(host) => {
            let reached = flow.recover(feeder, host, stop, &mut report).await?;
            report.reached(plan, &reached, host);
        }
    }
    flow.place.finish()?;
    report.seconds = clock.end();
    if let Some(host) = host {
        report.checks = checks::ask(host, &report.data, &options.checks).await;
    }
    Ok(report)
}

/// What lays out the log in the folder that is being restored into.
fn lay_out(plan: &Plan, place: &Place, fetch: &Fetch, feeding: Feeding) -> Result<Feeder, RestoreError> {
    let log = Arc::new(plan.log.clone());
    let stage = Stage::make(&place.data, place.owner(), &log, &feeding)?;
    let expected = Expected { system: plan.system, segment_size: plan.log.segment_size, page_size: None };
    Ok(Feeder::new(stage, fetch.clone(), log, expected, feeding))
}

/// The base into its place, unless it is there, and beside it the beginning of the log.
async fn base_and_log(
    plan: &Plan,
    place: &mut Place,
    fetch: &Fetch,
    feeder: &mut Feeder,
    force: bool,
) -> Result<(), RestoreError> {
    let (say, there) = watch::channel(place.base_complete);
    let base = async {
        match place.base_complete {
            true => fetch.progress.base(plan.base_bytes),
            false => base::restore(fetch, plan, place, force).await?,
        }
        say.send_replace(true);
        Ok(())
    };
    tokio::try_join!(base, feeder.head_start(plan.stop().is_none(), there)).map(drop)
}

/// A restore whose base is in place.
struct Flow<'a> {
    plan: &'a Plan,
    place: Place,
    fetch: Fetch,
    options: &'a Options,
    /// The place that the server must come to.
    reach: Lsn,
}

impl Flow<'_> {
    /// The end of the log as a target: its last record, read from its last segments.
    async fn last_record(&mut self, feeder: &mut Feeder) -> Result<Stop, RestoreError> {
        let (last, end) = feeder.last_record().await?;
        self.reach = self.reach.max(end);
        Ok(Stop::After(last))
    }

    fn settings(&self, stop: &Stop) -> Result<Vec<String>, RestoreError> {
        let (place, plan) = (&self.place, self.plan);
        let doors = match self.options.into {
            Into::Container(_) => Doors::Container,
            _ => Doors::Machine,
        };
        let changes = settings::before(&place.data, place.owner(), &plan.base.server, stop, plan.timeline, doors)?;
        crate::failpoint!("restore-settings-written");
        Ok(changes.notes)
    }

    /// Starts the server, feeds it, and gives how far it came. A server that does not come as far as planned is stopped.
    async fn recover(
        &mut self,
        feeder: Feeder,
        host: Host<'_>,
        stop: Stop,
        report: &mut Report,
    ) -> Result<Reached, RestoreError> {
        let (mut running, mut outcome) = self.fed(feeder, host).await?;
        if outcome == Outcome::EndedEarly && matches!(stop, Stop::Time(_) | Stop::Before(_)) {
            // Every transaction of the log ended before that, and the log is known to reach beyond it: the state that was
            // asked for is that at the end of the log.
            report.notes.push(format!("nothing was written between the end of the log and {}", self.plan.target));
            let mut again = lay_out(self.plan, &self.place, &self.fetch, self.options.feeding)?;
            again.head_start(true, watch::channel(true).1).await?;
            let stop = self.last_record(&mut again).await?;
            self.settings(&stop)?;
            (running, outcome) = self.fed(again, host).await?;
        }
        match outcome {
            Outcome::Open => {}
            Outcome::Refused(why) => return Err(RestoreError::Server(why)),
            Outcome::EndedEarly => return Err(RestoreError::Server(self.ended_early())),
        }
        match self.check(&running).await {
            Ok(reached) => {
                settings::after(&self.place.data, self.place.owner())?;
                crate::failpoint!("restore-settings-after");
                running.settle().await?;
                Stage::at(&self.place.data).remove()?;
                Ok(reached)
            }
            Err(error) => Err(running.give_up(error).await),
        }
    }

    fn ended_early(&self) -> String {
        let hint = match &self.plan.target {
            Target::Point(_) => {
                "\nhint: it may have been made before this backup ended; `mainstay backups` shows from when on places can be restored"
            }
            _ => "",
        };
        format!("the log ends before {} is reached, and the server did not open{hint}", self.plan.target)
    }

    /// Runs the feeder beside the server until that is open or gone. A feeder that fails takes the server with it.
    async fn fed(&self, feeder: Feeder, host: Host<'_>) -> Result<(Running, Outcome), RestoreError> {
        let (stop, stopped) = watch::channel(false);
        let mut running = host.start(&self.place.data).await?;
        crate::failpoint!("restore-server-started");
        let feeding = feeder.run(stopped);
        tokio::pin!(feeding);
        let outcome = tokio::select! {
            outcome = running.outcome() => {
                stop.send_replace(true);
                feeding.await.and(outcome)
            }
            failed = &mut feeding => {
                Err(failed.err().unwrap_or_else(|| RestoreError::Server("the log is no longer laid out".into())))
            }
        };
        match outcome {
            Ok(outcome) => Ok((running, outcome)),
            Err(error) => Err(running.give_up(error).await),
        }
    }

    /// Whether the open server came as far as the plan says, and on the planned timelines.
    async fn check(&self, running: &Running) -> Result<Reached, RestoreError> {
        let (plan, reached) = (self.plan, running.reached().await?);
        let Reached { timeline, lsn, .. } = reached;
        if plan.timeline_at(lsn) != Some(timeline) {
            let why = format!("it followed timeline {timeline} to {lsn}, which is not on the way of {}", plan.timeline);
            return Err(RestoreError::Server(why));
        }
        match lsn < self.reach {
            true => Err(RestoreError::Server(format!("it came to {lsn} only, and the plan ends at {}", self.reach))),
            false => Ok(reached),
        }
    }
}
