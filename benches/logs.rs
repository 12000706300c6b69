//! CPU time and memory of a step's output on its way to the disk: a million lines of 80 bytes, as the engine gives
//! them (a chunk each), with twenty secrets masked in all forms.
//!
//! `cargo bench --bench logs`

use bytes::Bytes;
use mainstay::logs::file::{LogLimit, LogWriter};
use mainstay::logs::mark::{MarkFilter, Passed};
use mainstay::logs::mask::Masker;
use mainstay::logs::read::LogReader;
use mainstay::model::log::{LogChunk, Stream};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

const LINES: u64 = 1_000_000;

fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("getrusage works on ourselves");
    (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6
}

fn line(number: u64) -> Bytes {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut line = format!("2026-01-01T00:00:00Z INFO  request {number} took {} us id={mixed:016x}", mixed % 9973);
    line.truncate(79);
    Bytes::from(format!("{line:.<79}\n"))
}

fn write(path: &Path, masker: &Arc<Masker>) {
    let (mut writer, cursor) = LogWriter::open(path, masker.clone(), LogLimit::default()).expect("the log opens");
    let mut filter = MarkFilter::new("0123456789abcdef", &cursor);
    let mut passed = Vec::new();
    for number in 0..LINES {
        let stream = if number % 10 == 0 { Stream::Stderr } else { Stream::Stdout };
        filter.push(LogChunk { stream, at_nanos: number as i64 * 1_000, data: line(number) }, &mut passed);
        for part in passed.drain(..) {
            match part {
                Passed::Text(chunk) => writer.push(&chunk).expect("the log takes a chunk"),
                Passed::Skipped { stream, at_nanos, bytes } => {
                    writer.skip(stream, at_nanos, bytes).expect("the log takes a mark");
                }
                Passed::Mark(_) => {}
            }
        }
    }
    writer.finish(true).expect("the log is finished");
}

fn main() {
    let mut out = std::io::stdout().lock();
    let secrets: Vec<_> =
        (0..20).map(|n| format!("s3cr3t-{n:02}-{:020x}/+=", n * 0x1234_5678_9abc_u64).into_bytes()).collect();
    let folder = tempfile::tempdir().expect("there is room for a log");
    let before = cpu_seconds();
    (0..LINES).for_each(|number| drop(std::hint::black_box(line(number))));
    let making = cpu_seconds() - before;
    for (name, masker) in [("no secrets", Masker::none()), ("20 secrets", Masker::new(secrets))] {
        let path = folder.path().join(name);
        let before = cpu_seconds();
        write(&path, &Arc::new(masker));
        let writing = cpu_seconds() - before - making;
        let stored = std::fs::metadata(&path).expect("the log is there").len();
        let before = cpu_seconds();
        let lines = LogReader::open(&path).expect("the log opens").count();
        let reading = cpu_seconds() - before;
        let _ =
            writeln!(out, "{name}: {writing:.2} CPU s to write {lines} lines ({stored} bytes), {reading:.2} to read");
    }
    let peak = getrusage(UsageWho::RUSAGE_SELF).expect("getrusage works on ourselves").max_rss();
    let _ = writeln!(out, "peak {peak} KiB");
}
