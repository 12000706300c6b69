//! The log, laid out for a recovering server ahead of its asking, and taken away behind it.
//!
//! In: the plan's log and a `Fetch`. Out: files in [`STAGE`] inside the data directory, for the script `feed.sh` that the
//! server runs as its `restore_command`. The two talk through files only, so the server may run as another user or in a
//! container:
//!
//! | file | written by | says |
//! |---|---|---|
//! | `wal/NAME`, `wal/NAME.ready` | feeder | this segment or history file is complete and synced |
//! | `asked/NAME` | script | the server has asked for it |
//! | `end` | feeder, before the server starts | names that the repository proves absent |
//! | `alive` | feeder, each second | a new number |
//! | `failed` | feeder | it cannot go on, and why |
//! | `whole` | feeder | everything is here: what is not will not come |
//!
//! The script ends the log for names in `end` only: it says 77, of which the command makes 1. All else that it cannot hand
//! out makes it wait while the feeder lives, and then stops the server without opening it (exit 200; above 125 is an error
//! to PostgreSQL, below is an end).

mod assembly;
mod stage;

pub use stage::STAGE;
pub(super) use stage::Stage;

use super::RestoreError;
use super::fetch::Fetch;
use super::plan::PlannedLog;
use super::settings::Stop;
use super::tail::{Expected, Tail, check_header, tail};
use crate::model::Lsn;
use assembly::Assembly;
use stage::io;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Segments kept behind the newest one that was asked for: at the end of recovery a server reads its last record again,
/// which begins in the last segment or shortly before it. Older ones that it asks for again are fetched again.
const KEEP_BEHIND: usize = 3;

/// How much of the log's end is looked at for its last record, at first. A border of pages of every length there is.
const LOOK_BACK: u64 = 1 << 20;

/// How often the server's questions are looked at. A segment takes 100 ms to replay; this is a look into one folder.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How the log is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feeding {
    /// The most that may lie ready, in bytes; at least two segments whatever it says.
    pub ahead_bytes: u64,
    /// Segments fetched at once; 1 fetches each only when its turn has come.
    pub at_once: usize,
    /// How long the script waits for a sign of life.
    pub patience: Duration,
}

impl Default for Feeding {
    /// 1 GiB ahead outlasts a store that is slow for ten seconds; 8 at once hide 50 ms of latency.
    fn default() -> Feeding {
        Feeding { ahead_bytes: 1 << 30, at_once: 8, patience: Duration::from_secs(30) }
    }
}

/// Lays out the log; one for a restore.
pub(super) struct Feeder {
    stage: Stage,
    fetch: Fetch,
    log: Arc<PlannedLog>,
    expected: Expected,
    feeding: Feeding,
    /// The segment that the server asked for last.
    asked: usize,
    /// Stored bytes counted once, also when a segment is fetched twice.
    counted: BTreeSet<usize>,
    staged: BTreeSet<usize>,
    under_way: BTreeSet<usize>,
    running: JoinSet<Result<usize, RestoreError>>,
    /// Where the last record begins and ends, once it was looked for.
    last: Option<(Lsn, Lsn)>,
}

impl Feeder {
    pub(super) fn new(
        stage: Stage,
        fetch: Fetch,
        log: Arc<PlannedLog>,
        expected: Expected,
        feeding: Feeding,
    ) -> Feeder {
        let (counted, staged, under_way) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (running, last) = (JoinSet::new(), None);
        Feeder { stage, fetch, log, expected, feeding, asked: 0, counted, staged, under_way, running, last }
    }

    /// What is done while the base is on its way, until `base` says that it is there: the history files, the end of the log
    /// where the plan has no other, then segment after segment from the first one on. One at a time: they only fill what
    /// the base leaves of the line and the processor, which both idle once the server replays.
    pub(super) async fn head_start(
        &mut self,
        to_the_end: bool,
        mut base: watch::Receiver<bool>,
    ) -> Result<(), RestoreError> {
        self.histories().await?;
        if to_the_end {
            self.last_record().await?;
        }
        let ahead = self.ahead().min(self.log.wanted).min(self.log.segments.len());
        while self.feeding.at_once > 1 && !*base.borrow() {
            if self.running.is_empty() {
                let Some(index) = (0..ahead).find(|index| self.is_free(*index)) else { break };
                self.begin(index);
            }
            tokio::select! {
                one = self.running.join_next() => self.ended(one)?,
                // What is under way goes on; `keep_ahead` waits for it. A sender that is gone has said all it will.
                _ = base.wait_for(|there| *there) => break,
            }
        }
        Ok(())
    }

    /// As many segments may lie ready.
    fn ahead(&self) -> usize {
        (self.feeding.ahead_bytes / self.expected.segment_size.bytes()).max(2) as usize
    }

    fn is_free(&self, index: usize) -> bool {
        !self.staged.contains(&index) && !self.under_way.contains(&index)
    }

    fn begin(&mut self, index: usize) {
        self.under_way.insert(index);
        let work = self.work(index);
        self.running.spawn(work);
    }

    /// Stages every history file of the plan; they are small and the server asks for them first.
    async fn histories(&mut self) -> Result<(), RestoreError> {
        for history in &self.log.histories {
            let (_, bytes) = self.fetch.open(&history.key, history.stored_bytes, history.stored_bytes).await?;
            let (name, new) = (&history.name, self.stage.wal(&format!("{}.new", history.name)));
            let mut file = self.stage.create(&new)?;
            file.write_all(&bytes).map_err(io("write", &new))?;
            self.stage.ready(name, &file)?;
        }
        Ok(())
    }

    /// Where the last whole record of the log begins, and where it ends. Stages the segments that are looked at.
    pub(super) async fn last_record(&mut self) -> Result<(Lsn, Lsn), RestoreError> {
        if let Some(known) = self.last {
            return Ok(known);
        }
        let none = || RestoreError::Server("the plan has no log".into());
        let (first, last) = self.log.segments.first().zip(self.log.segments.last()).ok_or_else(none)?;
        let (begins, end) = (first.begins, last.ends);
        let mut window = LOOK_BACK;
        loop {
            let from = Lsn((end.0 - 1).saturating_sub(window) / LOOK_BACK * LOOK_BACK).max(begins);
            let found = self.tail(from).await?;
            if let Some(record) = found.last {
                self.last = Some((record, found.end));
                return Ok((record, found.end));
            }
            if from == begins {
                return Err(RestoreError::Server(format!("the log from {begins} to {end} holds no whole record")));
            }
            // A record that is longer than what was looked at.
            window *= 4;
        }
    }

    /// Reads the log from a place at a border of its pages to its end.
    async fn tail(&mut self, from: Lsn) -> Result<Tail, RestoreError> {
        let (log, mut bytes, mut page) = (self.log.clone(), Vec::new(), 0);
        let reached = log.segments.iter().enumerate().filter(|(_, segment)| segment.ends > from);
        for (index, segment) in reached {
            while self.under_way.contains(&index) {
                let one = self.running.join_next().await;
                self.ended(one)?;
            }
            if !self.staged.contains(&index) {
                self.stage_one(index).await?;
            }
            let path = self.stage.wal(&segment.name.to_string());
            let file = File::open(&path).map_err(io("read", &path))?;
            let mut head = [0; 40];
            file.read_exact_at(&mut head, 0).map_err(io("read", &path))?;
            let wrong = |source| RestoreError::Log { segment: segment.name.to_string(), source };
            page = check_header(&head, segment.begins, segment.name.timeline, self.expected).map_err(wrong)?;
            let at = from.max(segment.begins);
            let old = bytes.len();
            bytes.resize(old + (segment.ends.0 - at.0) as usize, 0);
            file.read_exact_at(&mut bytes[old..], at.0 - segment.begins.0).map_err(io("read", &path))?;
        }
        let last = log.segments.last().map(|segment| segment.name.to_string()).unwrap_or_default();
        tail(&bytes, from, self.expected.segment_size, page)
            .map_err(|source| RestoreError::Log { segment: last, source })
    }

    /// Stages all that a server may read that is started by hand: to the end of the log, or of the part that counts where it
    /// stops at the end of the backup.
    pub(super) async fn everything(&mut self, stop: &Stop) -> Result<(), RestoreError> {
        let most = match stop {
            // From 15 on a server looks ahead while it replays, and an answer above 125 would end it. To this one the log may
            // end here: short of the backup's end it opens neither with this target nor with a `backup_label`.
            Stop::Consistent => {
                let names = self.log.end_names.iter().chain(&self.log.behind_wanted);
                self.stage.end_at(names)?;
                self.log.wanted
            }
            _ => self.log.segments.len(),
        };
        for index in 0..most {
            if !self.is_free(index) {
                continue;
            }
            while self.running.len() >= self.feeding.at_once.max(1) {
                let one = self.running.join_next().await;
                self.ended(one)?;
            }
            self.begin(index);
        }
        while let Some(one) = self.running.join_next().await {
            self.ended(Some(one))?;
        }
        self.stage.whole()
    }

    /// Keeps the log ahead of the server until `stop` says so. Whatever goes wrong is written down for the script first.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), RestoreError> {
        self.fetch = self.fetch.beside_a_server();
        let beating = tokio::spawn(beat(self.stage.clone()));
        let done = tokio::select! {
            // First: what was fetched ahead and is not wanted any more may fail.
            biased;
            _ = stop.wait_for(|stop| *stop) => Ok(()),
            done = self.keep_ahead() => done,
        };
        beating.abort();
        if let Err(error) = &done {
            self.stage.fail(&error.to_string());
        }
        done
    }

    async fn keep_ahead(&mut self) -> Result<(), RestoreError> {
        let names: BTreeMap<String, usize> =
            self.log.segments.iter().enumerate().map(|(index, segment)| (segment.name.to_string(), index)).collect();
        let ahead = self.ahead();
        // A starting server syncs its folder, file by file, and this one with it: while new files keep coming, each of its
        // waits is one for them. What is laid out by then keeps it busy until it is heard.
        let mut heard = false;
        // What the server waits for now, which may lie behind: it reads the checkpoint's record before it goes back to
        // where replay begins.
        let mut wanted = BTreeSet::new();
        loop {
            for name in self.stage.asked()? {
                heard = true;
                let Some(index) = names.get(&name).copied() else {
                    // Histories are there from the beginning. What is neither planned nor proven absent is a doubt.
                    match self.log.histories.iter().any(|history| history.name == name) {
                        true => continue,
                        false => return Err(RestoreError::Server(unforeseen(&name))),
                    }
                };
                self.asked = index;
                if self.is_free(index) {
                    wanted.insert(index);
                }
            }
            let at = self.asked;
            self.clear_behind(at, ahead)?;
            // What lies behind the target is fetched when it is asked for, one ahead.
            let mut coming = at..(at + ahead).min(self.log.wanted.max(at + 2)).min(self.log.segments.len());
            let width = self.feeding.at_once.max(1);
            while self.running.len() < width {
                // With one at a time nothing is fetched that nobody has asked for.
                let free = |index: &usize| self.is_free(*index) && width > 1 && heard;
                let Some(index) = wanted.pop_first().or_else(|| coming.find(free)) else { break };
                self.begin(index);
            }
            tokio::select! {
                one = self.running.join_next(), if !self.running.is_empty() => self.ended(one)?,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Removes what the server has passed, and what lies too far ahead since it went back. The last segment stays: it is
    /// read again at the end.
    fn clear_behind(&mut self, at: usize, ahead: usize) -> Result<(), RestoreError> {
        let keep = at.saturating_sub(KEEP_BEHIND)..at + ahead.max(KEEP_BEHIND);
        let last = self.log.segments.len().saturating_sub(1);
        let gone: Vec<usize> =
            self.staged.iter().copied().filter(|index| !keep.contains(index) && *index != last).collect();
        for index in gone {
            self.stage.take_back(&self.log.segments[index].name.to_string())?;
            self.staged.remove(&index);
        }
        Ok(())
    }

    /// Notes that a segment is laid out.
    fn ended(
        &mut self,
        one: Option<Result<Result<usize, RestoreError>, tokio::task::JoinError>>,
    ) -> Result<(), RestoreError> {
        let Some(one) = one else { return Ok(()) };
        let index = one.map_err(|error| RestoreError::io("lay out the log", std::io::Error::other(error)))??;
        self.under_way.remove(&index);
        self.staged.insert(index);
        if self.counted.insert(index) {
            let stored = self.log.segments[index].parts.iter().map(|part| part.stored_bytes).sum();
            self.fetch.progress.log(stored);
        }
        Ok(())
    }

    async fn stage_one(&mut self, index: usize) -> Result<(), RestoreError> {
        let done = self.work(index).await;
        self.ended(Some(Ok(done)))
    }

    /// Fetches one segment, whole or piece by piece, and lays it out.
    fn work(&self, index: usize) -> impl Future<Output = Result<usize, RestoreError>> + Send + use<> {
        let (stage, fetch, log, expected) = (self.stage.clone(), self.fetch.clone(), self.log.clone(), self.expected);
        async move {
            let segment = &log.segments[index];
            let mut assembly = Assembly::new(&stage, segment, expected)?;
            for part in &segment.parts {
                let (fetched, first) = fetch.fetch_part(part, log.segment_size).await?;
                let part = part.clone();
                let added = fetch.take(fetched, move |opening| {
                    assembly.add(&part, first, opening)?;
                    Ok(assembly)
                });
                assembly = added.await?;
            }
            let name = segment.name.to_string();
            let ended = tokio::task::spawn_blocking(move || assembly.end(&name)).await;
            ended.map_err(|error| RestoreError::io("lay out the log", std::io::Error::other(error)))??;
            Ok(index)
        }
    }
}

fn unforeseen(name: &str) -> String {
    format!("the server asks for {name}, which is not in the plan and not proven absent either")
}

/// A new number each second, so that the script sees that somebody is there.
async fn beat(stage: Stage) {
    let mut number = 0_u64;
    loop {
        number += 1;
        if let Err(error) = stage.write("alive", format!("{number}\n").as_bytes()) {
            tracing::warn!(%error, "cannot show that the restore is alive");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
