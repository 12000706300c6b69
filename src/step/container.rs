//! One attempt of a step with an image: give the word, take over its log, wait for its end.
//!
//! The same path serves a fresh attempt and one found after a restart. The engine, the helper's start mark and the log
//! cursor say how far it got; nothing here depends on having been there from the beginning.

use crate::logs::file::{LogLimit, LogWriter};
use crate::logs::hub::LogStore;
use crate::logs::mark::{self, MarkFilter, Marks, Passed};
use crate::logs::mask::Masker;
use crate::model::log::LogCursor;
use crate::model::outcome::AttemptResult;
use crate::model::{AttemptEnd, AttemptId, InstanceId};
use crate::runtime::{self, Found, Runtime, RuntimeError, StepSpec, Word};
use futures_util::StreamExt;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often buffered lines become visible to followers; short enough to feel live, long enough to compress well.
const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// First and longest pause between tries to reach an engine that does not answer.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often an attempt's container is made: one restart of the engine takes one, more in a row is no accident.
const MADE_MAX: u32 = 3;

/// Everything one attempt needs.
pub struct AttemptJob {
    /// Who executes it.
    pub runtime: Arc<dyn Runtime>,
    /// What is made.
    pub spec: StepSpec,
    /// What it is told.
    pub word: Word,
    /// Where its log goes.
    pub logs: LogStore,
    /// What must not be in the log.
    pub masker: Arc<Masker>,
    /// The log's bound.
    pub limit: LogLimit,
    /// When its start was recorded.
    pub started_at: Timestamp,
    /// When it is stopped.
    pub deadline: Timestamp,
    /// For messages.
    pub timeout_text: String,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Turns true when the run is cancelled.
    pub cancel: watch::Receiver<bool>,
    /// Turns true when the daemon stops: the process is left running, nothing is recorded.
    pub stop: watch::Receiver<bool>,
    /// Its start was recorded by an earlier daemon.
    pub recovered: bool,
    /// It must never begin twice.
    pub once: bool,
    /// The daemon's instance, from which marks are made.
    pub instance: InstanceId,
}

/// Why the attempt was told to end before it did so by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interruption {
    Deadline,
    Cancel,
}

/// Carries the attempt to its end. `None` when the daemon stops first.
pub async fn run(mut job: AttemptJob) -> Option<AttemptResult> {
    let mut stop = job.stop.clone();
    tokio::select! {
        biased;
        () = turned(&mut stop) => None,
        result = attempt(&mut job) => Some(result),
    }
}

async fn attempt(job: &mut AttemptJob) -> AttemptResult {
    let mut log = match TakenOver::open(job) {
        Ok(log) => log,
        Err(error) => {
            return ended(AttemptEnd::EngineError { detail: format!("failed to open the step's log: {error}") });
        }
    };
    if job.recovered
        && let Some(lost) = lost_while_away(job, &log).await
    {
        log.say(&format!("mainstay: {lost}"));
        log.finish();
        return log.result(AttemptEnd::LostContainer { detail: lost });
    }
    // A word that cannot be given any more (deadline, cancel) is not given: the process never begins.
    if let Some(reason) = interrupted(job) {
        return stop_and_finish(job, log, reason).await;
    }
    if let Err(error) = give_word(job).await {
        log.say(&format!("mainstay: failed to {error}"));
        log.finish();
        return log.result(match error {
            RuntimeError::Image { .. } => AttemptEnd::ImagePull { detail: error.to_string() },
            // An earlier daemon may have given it, and what it was given to is gone.
            _ if job.recovered => AttemptEnd::LostContainer { detail: error.to_string() },
            _ => AttemptEnd::EngineError { detail: error.to_string() },
        });
    }
    follow_to_end(job, log).await
}

/// Follows log and process to their end; a deadline or cancel stops the process, whose last words are still taken.
async fn follow_to_end(job: &mut AttemptJob, mut log: TakenOver) -> AttemptResult {
    let (id, runtime) = (job.spec.id.clone(), Arc::clone(&job.runtime));
    let mut interruption = None;
    let mut engine_was_away = false;
    let resumed = log.cursor != LogCursor::default();
    let found = {
        let follow = async {
            log.follow(&*runtime, &id, &mut engine_was_away).await;
            let found = patiently(|| runtime.wait(&id)).await;
            if resumed {
                log.find_marks(&*runtime, &id).await;
            }
            found
        };
        tokio::pin!(follow);
        loop {
            tokio::select! {
                found = &mut follow => break found,
                reason = interruption_of(job), if interruption.is_none() => {
                    interruption = Some(reason);
                    let (runtime, id, grace) = (Arc::clone(&runtime), id.clone(), job.grace);
                    // On its own: the output of the dying process is taken over meanwhile.
                    tokio::spawn(async move { patiently(|| runtime.stop(&id, grace)).await });
                }
            }
        }
    };
    let disturbed = interruption.is_none() && (engine_was_away || was_disturbed(job, &log, &found).await);
    let short_of_memory = matches!(&found, Ok(Found::Exited { out_of_memory: true, .. }));
    let end = conclude(&log, found, interruption, disturbed);
    if short_of_memory && !log.broken {
        log.say(&out_of_memory(job));
    }
    match &end {
        _ if log.broken => {}
        AttemptEnd::TimedOut => log.say(&format!("mainstay: stopped after its timeout of {}", job.timeout_text)),
        AttemptEnd::Cancelled => log.say("mainstay: stopped, the run was cancelled"),
        AttemptEnd::LostContainer { detail } => log.say(&format!("mainstay: {detail}")),
        _ => {}
    }
    log.finish();
    log.result(end)
}

/// An exit code of 137 alone tells nobody why.
fn out_of_memory(job: &AttemptJob) -> String {
    let limit = job.spec.resources.memory.map_or_else(String::new, |memory| format!(" of {memory}"));
    format!(
        "mainstay: out of memory: the kernel killed a process of this step at its limit{limit}; \
         `resources.memory` of the step or `limits.memory` in mainstay.yml raises it"
    )
}

fn conclude(
    log: &TakenOver,
    found: Result<Found, RuntimeError>,
    interruption: Option<Interruption>,
    disturbed: bool,
) -> AttemptEnd {
    let began = log.began_at().is_some();
    match (found, interruption) {
        (_, Some(Interruption::Deadline)) => AttemptEnd::TimedOut,
        (_, Some(Interruption::Cancel)) => AttemptEnd::Cancelled,
        // A restarted engine has killed what ran: the exit code is its doing, not the step's.
        (Ok(Found::Exited { code, .. }), None) if disturbed && code >= 128 => AttemptEnd::LostContainer {
            detail: format!("the engine went away while the step ran, and its process ended with {code}"),
        },
        (Ok(Found::Exited { code, .. }), None) if disturbed && !began => AttemptEnd::LostContainer {
            detail: format!(
                "the engine went away, and the container ended with {code}; whether the step began is not known"
            ),
        },
        (Ok(Found::Exited { code, .. }), None) if !began => AttemptEnd::EngineError {
            detail: format!("the container ended with {code} before the step's process began"),
        },
        (Ok(Found::Exited { code, .. }), None) => AttemptEnd::Exited { code },
        (Ok(Found::Absent | Found::Alive), None) | (Err(RuntimeError::Gone { .. }), None) => {
            AttemptEnd::LostContainer { detail: "the container was removed by somebody else while the step ran".into() }
        }
        (Err(error), None) => AttemptEnd::EngineError { detail: format!("failed to {error}") },
    }
}

/// Whether an end that looks like the engine's doing may be that. One that cannot be asked is going away.
async fn was_disturbed(job: &AttemptJob, log: &TakenOver, found: &Result<Found, RuntimeError>) -> bool {
    match found {
        Ok(Found::Exited { out_of_memory: false, code }) if *code >= 128 || log.began_at().is_none() => {
            !job.runtime.undisturbed(&job.spec.space, &job.spec.id).await.unwrap_or(false)
        }
        _ => false,
    }
}

async fn stop_and_finish(job: &AttemptJob, mut log: TakenOver, reason: Interruption) -> AttemptResult {
    if let Err(error) = patiently(|| job.runtime.stop(&job.spec.id, job.grace)).await {
        tracing::warn!(attempt = %job.spec.id, %error, "failed to stop an attempt; closing the run will try again");
    }
    let mut away = false;
    log.follow(&*job.runtime, &job.spec.id, &mut away).await;
    log.finish();
    log.result(match reason {
        Interruption::Deadline => AttemptEnd::TimedOut,
        Interruption::Cancel => AttemptEnd::Cancelled,
    })
}

/// What is known about a container that is gone: that it ran, or that a `once` step may have.
async fn lost_while_away(job: &AttemptJob, log: &TakenOver) -> Option<String> {
    match patiently(|| job.runtime.find(&job.spec.id)).await {
        Ok(Found::Absent) if log.began_at().is_some() => {
            Some("the container was gone when Mainstay came back, after the step had begun".into())
        }
        Ok(Found::Absent) if job.once => Some(
            "the container was gone when Mainstay came back; whether this `once` step ran cannot be known, look before you retry"
                .into(),
        ),
        _ => None,
    }
}

/// Gives the word. A container that was started ahead and ended while it waited (its engine was restarted) is made anew,
/// as long as nobody can have told it anything before: then its step has not begun.
async fn give_word(job: &AttemptJob) -> Result<(), RuntimeError> {
    crate::failpoint!("step.release.before");
    let mut may_have_begun = job.recovered;
    let mut made = 1;
    let mut pause = PATIENCE.0;
    let released = loop {
        match job.runtime.release(&job.spec, &job.word).await {
            Ok(false) if !may_have_begun && made < MADE_MAX => {
                tracing::info!(attempt = %job.spec.id, "its container ended while it waited for its turn; another one is made");
                made += 1;
                if let Err(error) = patiently(|| job.runtime.remove(&job.spec.id)).await {
                    break Err(error);
                }
            }
            Err(RuntimeError::Unreachable { endpoint, detail }) => {
                tracing::debug!(attempt = %job.spec.id, endpoint, detail, "engine does not answer");
                may_have_begun = true;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PATIENCE.1);
            }
            answer => break answer.map(|_| ()),
        }
    };
    crate::failpoint!("step.release.after");
    released
}

fn interrupted(job: &AttemptJob) -> Option<Interruption> {
    if *job.cancel.borrow() {
        Some(Interruption::Cancel)
    } else if Timestamp::now() >= job.deadline {
        Some(Interruption::Deadline)
    } else {
        None
    }
}

async fn interruption_of(job: &AttemptJob) -> Interruption {
    let mut cancel = job.cancel.clone();
    let left = Timestamp::now().until(job.deadline).ok().and_then(|span| Duration::try_from(span).ok());
    tokio::select! {
        () = turned(&mut cancel) => Interruption::Cancel,
        () = tokio::time::sleep(left.unwrap_or(Duration::ZERO)) => Interruption::Deadline,
    }
}

/// Returns once the flag is true; never when its sender is gone while it is false.
pub async fn turned(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|on| *on).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Asks again, with growing pauses, while the engine does not answer: its restart costs time, never work.
pub async fn patiently<T, F, Fut>(mut ask: F) -> Result<T, RuntimeError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, RuntimeError>>,
{
    let mut pause = PATIENCE.0;
    loop {
        match ask().await {
            Err(RuntimeError::Unreachable { endpoint, detail }) => {
                tracing::debug!(endpoint, detail, pause_millis = pause.as_millis() as u64, "engine does not answer");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PATIENCE.1);
            }
            answer => return answer,
        }
    }
}

fn ended(end: AttemptEnd) -> AttemptResult {
    AttemptResult { end, outputs: BTreeMap::new(), began_at: None, ended_at: Timestamp::now() }
}

/// The attempt's log on its way from the engine to our file, with the marks taken out.
struct TakenOver {
    logs: LogStore,
    id: AttemptId,
    masker: Arc<Masker>,
    limit: LogLimit,
    nonce: String,
    writer: LogWriter,
    /// From where the engine's log is read: what is stored up to here is in our file.
    cursor: LogCursor,
    marks: Marks,
    /// When its process began as far as known without its mark: an earlier daemon took that over.
    began_before: Option<Timestamp>,
    broken: bool,
}

impl TakenOver {
    fn open(job: &AttemptJob) -> std::io::Result<Self> {
        let id = &job.spec.id;
        let (writer, cursor) = job.logs.writer(id, Arc::clone(&job.masker), job.limit)?;
        Ok(TakenOver {
            logs: job.logs.clone(),
            id: id.clone(),
            masker: Arc::clone(&job.masker),
            limit: job.limit,
            nonce: runtime::nonce(&job.instance, id),
            writer,
            cursor,
            marks: Marks::default(),
            // The mark is the first thing on stdout: a cursor past it means that an earlier daemon took it over.
            began_before: (cursor.stdout.bytes > 0).then_some(job.started_at),
            broken: false,
        })
    }

    fn began_at(&self) -> Option<Timestamp> {
        let marked = self.marks.begin.and_then(|nanos| Timestamp::from_nanosecond(i128::from(nanos)).ok());
        marked.or(self.began_before)
    }

    /// Takes over everything until the process has ended, coming back with the stored cursor whenever the engine was away.
    async fn follow(&mut self, runtime: &dyn Runtime, id: &AttemptId, engine_was_away: &mut bool) {
        let mut pause = PATIENCE.0;
        loop {
            match self.follow_once(runtime, id).await {
                Ok(()) | Err(RuntimeError::Gone { .. }) => return,
                Err(RuntimeError::Unreachable { endpoint, detail }) => {
                    tracing::warn!(attempt = %id, endpoint, detail, "lost the engine while following a log");
                    *engine_was_away = true;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PATIENCE.1);
                }
                Err(error) => {
                    tracing::error!(attempt = %id, %error, "failed to read a step's log");
                    self.say(&format!("mainstay: failed to read the rest of this log: {error}"));
                    return;
                }
            }
            if let Err(error) = self.reopen() {
                tracing::error!(attempt = %id, %error, "failed to reopen a step's log");
                return;
            }
        }
    }

    async fn follow_once(&mut self, runtime: &dyn Runtime, id: &AttemptId) -> Result<(), RuntimeError> {
        let mut chunks = runtime.logs(id, self.cursor).await?;
        let mut filter = MarkFilter::new(&self.nonce, &self.cursor);
        let mut passed = Vec::new();
        let mut flush = tokio::time::interval(FLUSH_EVERY);
        flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = flush.tick(), if self.writer.pending() => self.flush(),
                chunk = chunks.next() => match chunk {
                    Some(chunk) => filter.push(chunk?, &mut passed),
                    None => break,
                },
            }
            self.store(&mut passed);
        }
        filter.finish(&mut passed);
        self.store(&mut passed);
        Ok(())
    }

    /// Looks for the marks in the whole output again: an earlier daemon may have stored a cursor past them and died
    /// before it recorded what they say.
    async fn find_marks(&mut self, runtime: &dyn Runtime, id: &AttemptId) {
        let nonce = &self.nonce;
        let find = || async { mark::find(nonce, runtime.logs(id, LogCursor::default()).await?).await };
        match patiently(find).await {
            Ok(marks) => self.marks = marks,
            Err(error) => tracing::warn!(attempt = %id, %error, "failed to read the marks of a step again"),
        }
    }

    fn store(&mut self, passed: &mut Vec<Passed>) {
        for part in passed.drain(..) {
            let written = match part {
                Passed::Text(chunk) => self.writer.push(&chunk),
                Passed::Skipped { stream, at_nanos, bytes } => self.writer.skip(stream, at_nanos, bytes),
                Passed::Mark(mark) => {
                    self.marks.add(mark);
                    Ok(())
                }
            };
            self.complain(written);
        }
    }

    fn flush(&mut self) {
        let flushed = self.writer.flush();
        self.complain(flushed);
    }

    /// A log that cannot be written (full disk) must not end the step: its lines are lost, and that is said once.
    fn complain(&mut self, written: std::io::Result<()>) {
        if let Err(error) = written
            && !std::mem::replace(&mut self.broken, true)
        {
            tracing::error!(attempt = %self.id, %error, "failed to write a step's log; the step goes on without it");
        }
    }

    fn reopen(&mut self) -> std::io::Result<()> {
        let (writer, cursor) = self.logs.writer(&self.id, Arc::clone(&self.masker), self.limit)?;
        self.writer = writer;
        self.cursor = cursor;
        Ok(())
    }

    fn say(&mut self, words: &str) {
        let written = self.writer.push_system(words);
        self.complain(written);
    }

    /// Makes everything durable; the end is recorded only after this.
    fn finish(&mut self) {
        match self.writer.finish(true) {
            Ok(summary) => tracing::debug!(attempt = %self.id, ?summary, "log finished"),
            Err(error) => tracing::error!(attempt = %self.id, %error, "failed to write a step's log to disk"),
        }
        self.logs.hub().close(&self.id);
    }

    fn result(mut self, end: AttemptEnd) -> AttemptResult {
        let began_at = self.began_at();
        let (outputs, complaints) = self.marks.end.take().map_or_else(Default::default, |raw| mark::outputs(&raw));
        for complaint in complaints {
            tracing::info!(attempt = %self.id, complaint, "an output was not taken");
        }
        // Outputs are shown to everybody who may see the run.
        let mask = |value: String| String::from_utf8_lossy(&self.masker.mask_line(value.as_bytes())).into_owned();
        let outputs = outputs.into_iter().map(|(key, value)| (key, mask(value))).collect();
        AttemptResult { end, outputs, began_at, ended_at: Timestamp::now() }
    }
}
