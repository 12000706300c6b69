//! A source of logical copies: one is made when it is due, then what is stored is checked, and what is old is let go. Called by `tend` in place of shipping a log,
//! and by `mainstay backup` where no daemon does it.

use super::chores::{Chores, chores};
use super::tend::{LOOK, told};
use super::work::{Tries, Work, ended, show_end};
use super::{Setup, Wish, once, view};
use crate::backup::catalog::dumps::DumpManifest;
use crate::backup::catalog::index::Catalogue;
use crate::backup::logical::{self, Job};
use crate::backup::ship::lease::{Lease, Standing};
use crate::backup::take::{Phase, Progress, Telling};
use crate::config::backup::Logical;
use crate::model::source_view::{LastBackup, SourceState, SourceView, UnderWay};
use crate::model::text::moment;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Makes a logical copy of a source now.
///
/// # Errors
/// When there is none in the end; the error says why.
pub async fn copy(setup: &Setup, what: &Logical, tell: Telling) -> Result<DumpManifest, once::BackUpError> {
    let job = Job {
        source: setup.source.name.clone(),
        address: setup.source.postgres.clone(),
        databases: what.databases.clone(),
        programs: setup.programs.clone(),
        repository: setup.repository.clone(),
        sealer: setup.sealer.clone(),
        tell,
    };
    let manifest = logical::dump(job).await?;
    if !manifest.role_passwords {
        let source = &setup.source.name;
        tracing::warn!(%source, "the passwords of roles are not in the copy: its role may not read pg_authid");
    }
    once::store_source(setup).await?;
    Ok(manifest)
}

/// A phase in words, such as fit behind "backup: ".
pub fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Opening => "the server is asked what there is",
        Phase::Receiving => "data arrives and is stored",
        Phase::WaitingForLog | Phase::ReadingBack => "what was stored is read back",
        Phase::Done => "done",
    }
}

/// Until a stop or a failure.
pub(super) async fn tend(
    setup: &Setup,
    what: &Logical,
    lease: Lease,
    wishes: &mut mpsc::Receiver<Wish>,
    wanted: &mut Option<Wish>,
    shown: &watch::Sender<SourceView>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), String> {
    let mut standing = lease.standing();
    let last = newest(setup).await?;
    let mut tended = Tended { setup, what, view: shown, copying: None, last, tries: Tries::default(), failed: None };
    tended.show_last();
    let mut after = Chores::new();
    let chore = || {
        let (setup, view) = (setup.clone(), shown.clone());
        async move { chores(&setup, &view).await }
    };
    let ended = loop {
        tended.show(Timestamp::now());
        if let Standing::Lost(who) = &*standing.borrow_and_update() {
            break Err(format!("go on: {who}"));
        }
        if tended.copying.is_none() && (wanted.take().is_some() || tended.is_due(Timestamp::now())) {
            tended.begin();
        }
        if after.are_due() {
            after.begin(chore());
        }
        tokio::select! {
            () = told(&mut stop) => break Ok(()),
            // The one under way answers it, too.
            Some(wish) = wishes.recv() => *wanted = tended.copying.is_none().then_some(wish),
            ended = ended(&mut tended.copying) => {
                if tended.end(ended) {
                    after.begin(chore());
                }
            }
            () = after.ended() => {}
            Ok(()) = standing.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    };
    if let Some(copying) = tended.copying.take() {
        // Its programs end with it.
        copying.abort();
        let _ = copying.await;
    }
    lease.release().await;
    ended
}

/// The newest copy that can be used.
async fn newest(setup: &Setup) -> Result<Option<DumpManifest>, String> {
    let read = Catalogue::read(setup.repository.as_ref(), &setup.checker, &setup.source.name).await;
    let catalogue = read.map_err(|error| error.to_string())?;
    let dumps = catalogue.clusters.values().filter_map(|holdings| holdings.dumps.usable().next());
    Ok(dumps.map(|dump| dump.manifest.clone()).max_by_key(|manifest| manifest.ended))
}

struct Tended<'a> {
    setup: &'a Setup,
    what: &'a Logical,
    view: &'a watch::Sender<SourceView>,
    copying: Option<Work<DumpManifest>>,
    last: Option<DumpManifest>,
    /// Those that failed, and why the last one did.
    tries: Tries,
    failed: Option<String>,
}

impl Tended<'_> {
    fn show(&self, now: Timestamp) {
        let (state, words) =
            stand(self.last.as_ref(), self.failed.as_deref(), self.setup.source.rpo.map(|rpo| rpo.0), now);
        self.view.send_if_modified(|view| {
            let before = (view.state, view.words.clone());
            view::turn(view, state, words);
            before != (view.state, view.words.clone())
        });
    }

    fn show_last(&self) {
        let last = self.last.as_ref().map(LastBackup::from);
        let next = self.scheduled();
        self.view.send_modify(|view| (view.last_backup, view.next_backup) = (last, next));
    }

    /// When the schedule asks for the next one.
    fn scheduled(&self) -> Option<Timestamp> {
        let schedule = self.setup.source.schedule.as_ref()?;
        schedule.next_after(self.last.as_ref().map_or_else(Timestamp::now, |manifest| manifest.began))
    }

    /// Whether one is due: there is none, or the schedule says so. One that was missed is made up for once.
    fn is_due(&self, now: Timestamp) -> bool {
        let wanted = self.last.is_none() || self.scheduled().is_some_and(|due| due <= now);
        wanted && self.tries.have_rested(now)
    }

    fn begin(&mut self) {
        let (setup, what) = (self.setup.clone(), self.what.clone());
        let (view, began) = (self.view.clone(), Timestamp::now());
        tracing::info!(source = %setup.source.name, "a logical copy begins");
        let show = move |view: &watch::Sender<SourceView>, bytes, now| {
            let phase = phase(now).to_owned();
            view.send_modify(|view| {
                view.backup = Some(UnderWay { began, bytes, of_bytes: None, phase, incremental: false });
            });
        };
        // From now on: whoever waits for its end must not take this for it, and hears when it is cut off.
        show(&view, 0, Phase::Opening);
        let tell = move |progress: Progress| show(&view, progress.received_bytes, progress.phase);
        self.copying = Some(tokio::spawn(async move { copy(&setup, &what, Arc::new(tell)).await }));
    }

    /// Whether there is a copy more.
    fn end(&mut self, ended: Result<DumpManifest, String>) -> bool {
        self.copying = None;
        let source = &self.setup.source.name;
        show_end(self.view, &ended);
        let good = match ended {
            Ok(manifest) => {
                tracing::info!(%source, backup = %manifest.backup, "a logical copy was made");
                (self.last, self.tries, self.failed) = (Some(manifest), Tries::default(), None);
                true
            }
            Err(why) => {
                tracing::error!(%source, "failed to make a logical copy: {why}");
                self.tries.failed(Timestamp::now());
                self.failed = Some(why);
                false
            }
        };
        self.show_last();
        good
    }
}

/// How it stands: bad when the last try failed, or the newest copy is older than what may be lost.
fn stand(
    last: Option<&DumpManifest>,
    failed: Option<&str>,
    rpo: Option<Duration>,
    now: Timestamp,
) -> (SourceState, String) {
    if let Some(why) = failed {
        return (SourceState::Failing, format!("failed to {why}"));
    }
    // What was committed after its beginning may not be in it.
    let old = last.map(|manifest| (manifest.began, now.duration_since(manifest.began).unsigned_abs()));
    match (old, rpo) {
        (None, _) => (SourceState::Starting, "there is no copy yet".into()),
        (Some((began, age)), Some(rpo)) if age > rpo => (
            SourceState::Failing,
            format!("the newest copy is of {}, which is longer ago than `rpo` allows", moment(began)),
        ),
        (Some((began, _)), _) => (SourceState::Scheduled, format!("the newest copy is of {}", moment(began))),
    }
}

impl From<&DumpManifest> for LastBackup {
    fn from(manifest: &DumpManifest) -> LastBackup {
        LastBackup {
            id: manifest.backup.to_string(),
            began: manifest.began,
            ended: manifest.ended,
            parent: None,
            whole_because: None,
            cluster: Some(manifest.system.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::catalog::dumps::make::{at, with_copies};

    #[test]
    fn an_old_copy_and_a_failed_try_are_bad() {
        let holdings = with_copies(&[0]);
        let last = holdings.dumps.good.values().next().map(|dump| &dump.manifest);
        let day = Some(Duration::from_secs(86_400));
        assert_eq!(stand(None, None, day, at(0)).0, SourceState::Starting);
        assert_eq!(stand(last, None, day, at(24)).0, SourceState::Scheduled);
        assert_eq!(stand(last, None, day, at(25)).0, SourceState::Failing);
        assert_eq!(stand(last, None, None, at(2_500)).0, SourceState::Scheduled);
        assert_eq!(stand(last, Some("connect"), None, at(2)), (SourceState::Failing, "failed to connect".into()));
    }
}
