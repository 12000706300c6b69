//! A step's log holds every line once, whatever happens to the process that writes it, and nothing of a secret.

use bytes::Bytes;
use futures_util::StreamExt;
use mainstay::logs::file::{LogLimit, LogSummary, LogWriter};
use mainstay::logs::hub::LogStore;
use mainstay::logs::mark::{Mark, MarkFilter, Passed};
use mainstay::logs::mask::Masker;
use mainstay::logs::read::LogReader;
use mainstay::model::log::{LogChunk, LogCursor, LogLine, Stream, StreamPosition};
use mainstay::model::{AttemptId, RunId, StepName};
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const SECOND: i64 = 1_000_000_000;

/// What a container engine keeps of an attempt, and how it answers: everything from the start of a whole second on.
struct EngineLog(Vec<LogChunk>);

impl EngineLog {
    fn from(&self, cursor: &LogCursor) -> Vec<LogChunk> {
        let mut skip = [&cursor.stdout, &cursor.stderr].map(|p| p.bytes - p.bytes_before_second);
        let position = |stream| if stream == Stream::Stdout { (0, cursor.stdout) } else { (1, cursor.stderr) };
        let mut chunks = Vec::new();
        for chunk in &self.0 {
            let (index, StreamPosition { second, .. }) = position(chunk.stream);
            if chunk.at_nanos < second * SECOND {
                continue;
            }
            let skipped = skip[index].min(chunk.data.len() as u64);
            skip[index] -= skipped;
            if skipped < chunk.data.len() as u64 {
                chunks.push(LogChunk { data: chunk.data.slice(skipped as usize..), ..chunk.clone() });
            }
        }
        chunks
    }
}

fn chunk(stream: Stream, at_nanos: i64, data: impl Into<Bytes>) -> LogChunk {
    LogChunk { stream, at_nanos, data: data.into() }
}

/// Takes over `count` more chunks (all if `None`, and finishes then), flushing as the daemon does every so often.
fn take_over(
    path: &Path,
    log: &EngineLog,
    masker: &Arc<Masker>,
    limit: LogLimit,
    count: Option<usize>,
    flush_every: usize,
) -> Vec<Mark> {
    let (mut writer, cursor) = LogWriter::open(path, masker.clone(), limit).unwrap();
    let mut filter = MarkFilter::new("nonce", &cursor);
    let (mut marks, mut passed) = (Vec::new(), Vec::new());
    let chunks = log.from(&cursor);
    for (index, chunk) in chunks.into_iter().take(count.unwrap_or(usize::MAX)).enumerate() {
        filter.push(chunk, &mut passed);
        put(&mut writer, &mut passed, &mut marks);
        if index % flush_every == 0 && writer.pending() {
            writer.flush().unwrap();
        }
    }
    if count.is_none() {
        filter.finish(&mut passed);
        put(&mut writer, &mut passed, &mut marks);
        writer.finish(false).unwrap();
    }
    marks
}

fn put(writer: &mut LogWriter, passed: &mut Vec<Passed>, marks: &mut Vec<Mark>) {
    for part in passed.drain(..) {
        match part {
            Passed::Text(chunk) => writer.push(&chunk).unwrap(),
            Passed::Skipped { stream, at_nanos, bytes } => writer.skip(stream, at_nanos, bytes).unwrap(),
            Passed::Mark(mark) => marks.push(mark),
        }
    }
}

fn lines(path: &Path) -> Vec<LogLine> {
    LogReader::open(path).unwrap().map(Result::unwrap).collect()
}

/// A few seconds of two streams in all the shapes an engine gives: whole lines, pieces, several lines, progress bars,
/// bytes that are no text, marks, secrets across chunks.
fn lively_log() -> EngineLog {
    let mut log = vec![chunk(Stream::Stdout, 5 * SECOND, "\x1emainstay:begin:nonce:5000000000\n")];
    let mut at = 5 * SECOND;
    for i in 0..12_i64 {
        at += SECOND / 3;
        log.push(chunk(Stream::Stdout, at, format!("line {i}\npart of ")));
        log.push(chunk(Stream::Stderr, at - SECOND / 7, format!("warning {i}: hunter2-")));
        log.push(chunk(Stream::Stdout, at + 5, format!("{}\r\n10 %\r20 %", "long ".repeat(20))));
        log.push(chunk(Stream::Stderr, at + SECOND / 9, &b"secret \xff\xfe\n"[..]));
        log.push(chunk(Stream::Stdout, at + SECOND / 8, "\r100 %\n"));
    }
    log.push(chunk(Stream::Stdout, at + SECOND, "last words\x1emainstay:end:no"));
    log.push(chunk(Stream::Stdout, at + SECOND, "nce:QT0xCg==\n"));
    EngineLog(log)
}

const SMALL: LogLimit = LogLimit { bytes: 1024 * 1024, line_bytes: 48 };

fn secret() -> Arc<Masker> {
    Arc::new(Masker::new([b"hunter2-secret".to_vec()]))
}

#[test]
fn a_file_cut_at_any_byte_is_completed_to_the_same_lines() {
    let folder = tempfile::tempdir().unwrap();
    let (log, masker) = (lively_log(), secret());
    let whole_path = folder.path().join("whole.log");
    let marks = take_over(&whole_path, &log, &masker, SMALL, None, 9);
    assert_eq!(marks, [Mark::Begin { at_nanos: 5_000_000_000 }, Mark::End { raw: b"A=1\n".to_vec() }]);
    let whole = lines(&whole_path);
    let shown: Vec<_> = whole.iter().map(|l| String::from_utf8_lossy(&l.bytes).into_owned()).collect();
    assert_eq!(shown[0], "line 0");
    assert_eq!(shown[4], "100 %");
    assert_eq!(shown.last().unwrap(), "last words");
    assert!(whole.iter().any(|l| l.bytes == b"warning 3: *** \xff\xfe"), "{shown:?}");
    let bytes = std::fs::read(&whole_path).unwrap();
    let path = folder.path().join("cut.log");
    for cut in 0..bytes.len() {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        take_over(&path, &log, &masker, SMALL, None, 9);
        assert_eq!(lines(&path), whole, "cut at byte {cut} of {}", bytes.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Writers that die after any number of chunks, with or without a flush, in any order of the streams.
    #[test]
    fn writers_that_die_anywhere_lose_and_double_nothing(
        parts in proptest::collection::vec(
            (any::<bool>(), 0..SECOND * 2, prop_oneof![
                "[ab\n\r]{0,20}", Just("hunter2-".into()), Just("secret".into()), "[x]{60,200}", Just("\n".into()),
            ]), 0..60),
        deaths in proptest::collection::vec(0_usize..12, 0..12),
        flush_every in 1_usize..8,
    ) {
        let mut at = 5 * SECOND;
        let log = EngineLog(parts.into_iter().map(|(out, later, text)| {
            // The streams come out of order by up to a second, each in order by itself.
            at += later / 2;
            let (stream, late) = if out { (Stream::Stdout, 0) } else { (Stream::Stderr, SECOND) };
            chunk(stream, at - late, text)
        }).collect());
        let folder = tempfile::tempdir().unwrap();
        let masker = secret();
        let (whole, died) = (folder.path().join("whole.log"), folder.path().join("died.log"));
        take_over(&whole, &log, &masker, SMALL, None, 1_000);
        for count in deaths {
            take_over(&died, &log, &masker, SMALL, Some(count), flush_every);
        }
        take_over(&died, &log, &masker, SMALL, None, flush_every);
        let whole = lines(&whole);
        prop_assert_eq!(lines(&died), &whole[..]);
        // A secret that a program has split over two lines is no longer one.
        let mut joined = [Vec::new(), Vec::new()];
        for line in whole {
            let joined = &mut joined[usize::from(line.stream == Stream::Stderr)];
            if !line.continues {
                joined.push(b'\n');
            }
            joined.extend_from_slice(&line.bytes);
        }
        for text in joined {
            prop_assert!(!String::from_utf8_lossy(&text).contains("hunter2-secret"));
        }
    }

    /// A damaged file never panics a reader, and what it gives is the beginning of what was written.
    #[test]
    fn a_damaged_file_reads_as_a_prefix(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        take_over(&path, &lively_log(), &secret(), SMALL, None, 9);
        let whole = lines(&path);
        let mut bytes = std::fs::read(&path).unwrap();
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        std::fs::write(&path, &bytes).unwrap();
        let read = lines(&path);
        prop_assert_eq!(&read[..], &whole[..read.len()]);
        let mut reader = LogReader::open(&path).unwrap();
        reader.seek_tail(3).unwrap();
        for line in reader {
            let line = line.unwrap();
            prop_assert_eq!(&line, &whole[line.number as usize - 1]);
        }
        // A writer makes of it the same log again.
        take_over(&path, &lively_log(), &secret(), SMALL, None, 9);
        prop_assert_eq!(lines(&path), whole);
    }

    #[test]
    fn noise_is_no_log(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        std::fs::write(&path, &bytes).unwrap();
        prop_assert_eq!(lines(&path), []);
        let mut reader = LogReader::open(&path).unwrap();
        reader.seek_tail(5).unwrap();
        prop_assert_eq!(reader.summary().unwrap(), (LogSummary::default(), false));
        prop_assert_eq!(LogWriter::open(&path, secret(), SMALL).unwrap().1, LogCursor::default());
    }
}

#[test]
fn a_dropped_writer_keeps_an_unfinished_line_for_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.log");
    let log =
        EngineLog(vec![chunk(Stream::Stdout, SECOND, "whole\nunfin"), chunk(Stream::Stdout, 2 * SECOND, "ished\n")]);
    let (mut writer, _) = LogWriter::open(&path, secret(), SMALL).unwrap();
    writer.push(&log.0[0]).unwrap();
    assert!(writer.pending());
    writer.flush().unwrap();
    assert!(!writer.pending());
    drop(writer);
    let (_, cursor) = LogWriter::open(&path, secret(), SMALL).unwrap();
    assert_eq!(cursor.stdout, StreamPosition { bytes: 6, second: 1, bytes_before_second: 0 });
    take_over(&path, &log, &secret(), SMALL, None, 1);
    assert_eq!(lines(&path).iter().map(|l| &l.bytes[..]).collect::<Vec<_>>(), [&b"whole"[..], b"unfinished"]);
}

#[test]
fn a_log_stops_growing_at_its_limit_and_counts_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.log");
    let limit = LogLimit { bytes: 1_000, line_bytes: 64 * 1024 };
    let log = EngineLog((0..500).map(|i| chunk(Stream::Stdout, i * SECOND / 50, format!("line {i:04}\n"))).collect());
    for count in [0, 50, 101, 300] {
        take_over(&path, &log, &secret(), limit, Some(count), 7);
    }
    take_over(&path, &log, &secret(), limit, None, 7);
    let (summary, finished) = LogReader::open(&path).unwrap().summary().unwrap();
    let lines = lines(&path);
    assert!(finished);
    assert_eq!(lines.len(), 101);
    assert_eq!(lines[99].bytes, b"line 0099");
    assert_eq!((lines[100].stream, summary.lines), (Stream::System, 101));
    assert_eq!(summary.dropped_bytes, 400 * 10);
    let (mut writer, cursor) = LogWriter::open(&path, secret(), limit).unwrap();
    assert_eq!(cursor.stdout.bytes, 5_000, "the cursor goes on behind the limit");
    writer.push_system("why it ended").unwrap();
    writer.finish(true).unwrap();
    assert_eq!(self::lines(&path).last().unwrap().bytes, b"why it ended");
}

#[test]
fn reading_begins_at_any_line_and_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.log");
    let log = EngineLog((0..1_000).map(|i| chunk(Stream::Stdout, i, format!("{i}\n"))).collect());
    take_over(&path, &log, &secret(), LogLimit::default(), None, 37);
    let whole = lines(&path);
    let mut reader = LogReader::open(&path).unwrap();
    for n in [1, 2, 37, 38, 39, 500, 999, 1_000, 1_001] {
        reader.seek_line(n);
        let read: Vec<_> = reader.by_ref().map(Result::unwrap).collect();
        assert_eq!(read, whole[n as usize - 1..], "from line {n}");
    }
    let bytes = std::fs::read(&path).unwrap();
    for torn in [0, 1, 60, 200] {
        // A torn end makes the reader look from the start instead.
        std::fs::write(&path, &bytes[..bytes.len() - torn]).unwrap();
        let there = lines(&path).len();
        for n in [0, 1, 5, 37, 100, 999, 5_000] {
            let mut reader = LogReader::open(&path).unwrap();
            reader.seek_tail(n as u64).unwrap();
            let read: Vec<_> = reader.map(Result::unwrap).collect();
            assert_eq!(read, whole[there.saturating_sub(n)..there], "tail {n}, torn {torn}");
        }
    }
}

#[test]
fn a_line_of_ten_mib_and_64_mib_of_output_take_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.log");
    let (mut writer, _) = LogWriter::open(&path, Arc::new(Masker::none()), LogLimit::default()).unwrap();
    // One buffer for all chunks: what grows is the writer's.
    let text = Bytes::from("the same old line, once more, with its number left out as ever\n".repeat(1024));
    let long = Bytes::from(vec![b'x'; 1024 * 1024]);
    let before = peak_kib();
    for i in 0..(64 * 16) {
        writer.push(&chunk(Stream::Stdout, i, text.clone())).unwrap();
    }
    for _ in 0..10 {
        writer.push(&chunk(Stream::Stderr, 0, long.clone())).unwrap();
    }
    let summary = writer.finish(false).unwrap();
    let grown = peak_kib() - before;
    assert!(grown < 12 * 1024, "the writer took {grown} KiB");
    assert_eq!(summary.lines, 64 * 16 * 1024 + 160);
    let mut reader = LogReader::open(&path).unwrap();
    reader.seek_tail(160).unwrap();
    let pieces: Vec<_> = reader.map(Result::unwrap).collect();
    assert!(!pieces[0].continues && pieces[1..].iter().all(|line| line.continues));
    assert_eq!(pieces.iter().map(|line| line.bytes.len()).sum::<usize>(), 10 * 1024 * 1024);
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn attempt(run: u64, step: &str) -> AttemptId {
    AttemptId { run: RunId(run), step: StepName::new(step).unwrap(), attempt: 1 }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_sees_every_line_and_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let store = LogStore::new(folder.path());
    let id = attempt(3, "a.b");
    assert_eq!(store.path(&id), folder.path().join("logs/3/a.b.1.log"));
    // It waits for a log that is not there yet.
    let follower = tokio::spawn(store.follow(&id, 2).map(Result::unwrap).collect::<Vec<_>>());
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (mut writer, _) = store.writer(&id, secret(), SMALL).unwrap();
    for i in 0..200 {
        writer.push(&chunk(Stream::Stdout, i, format!("{i}\n"))).unwrap();
        if i % 20 == 0 {
            writer.flush().unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    drop(writer);
    // The daemon that ends the log is another one, which wakes nobody here.
    let (mut writer, cursor) = LogStore::new(folder.path()).writer(&id, secret(), SMALL).unwrap();
    for i in 181..200 {
        assert_eq!(cursor.stdout.bytes, (0..181).map(|n| n.to_string().len() as u64 + 1).sum::<u64>());
        writer.push(&chunk(Stream::Stdout, i, format!("{i}\n"))).unwrap();
    }
    writer.finish(true).unwrap();
    let lines = tokio::time::timeout(Duration::from_secs(10), follower).await.unwrap().unwrap();
    let numbers: Vec<_> = lines.iter().map(|line| line.number).collect();
    assert_eq!(numbers, (2..=200).collect::<Vec<_>>());
    // Who comes later gets all of it and the end at once.
    assert_eq!(store.follow(&id, 1).count().await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_are_woken_at_once_and_stop_when_the_run_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = LogStore::new(folder.path());
    let (id, never) = (attempt(1, "test"), attempt(1, "never"));
    let (mut writer, _) = store.writer(&id, secret(), SMALL).unwrap();
    let mut follower = std::pin::pin!(store.follow(&id, 1));
    let waiting = tokio::spawn(store.follow(&never, 1).count());
    for i in 0..20 {
        let woken = tokio::time::timeout(Duration::from_millis(800), async {
            let (line, ()) = tokio::join!(follower.next(), async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                writer.push(&chunk(Stream::Stdout, i, "x\n")).unwrap();
                writer.flush().unwrap();
            });
            line.unwrap().unwrap().number
        });
        assert_eq!(woken.await.expect("woken before it looks by itself"), i as u64 + 1);
    }
    store.remove_run(RunId(1)).unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(5), follower.next()).await.unwrap().is_none());
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap(), 0);
    assert!(!folder.path().join("logs/1").exists());
    store.remove_run(RunId(1)).unwrap();
}
