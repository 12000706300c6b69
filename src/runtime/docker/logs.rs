//! An attempt's output from the engine's own log file, from any place on, each byte once.
//!
//! The engine finds places by whole seconds only, and hands the frames of the two streams over in no order. So reading
//! on begins at the start of a second known from the cursor, and skips, per stream, what was taken over before.
//!
//! A log that the engine ended may lack the last lines, so after the process has ended it is asked once more. Looking
//! for a second makes the engine read a log from its start, which for a long one takes as long as following it did.
//! Hence its end is asked for first: when the last frames seen are found in it, what follows them is all there is left.

use super::container::state_of;
use super::engine::Engine;
use super::frames::{Broken, Frame, Frames};
use crate::model::log::{LogChunk, LogCursor, Stream, StreamPosition};
use crate::runtime::{Found, RuntimeError, advance};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use std::sync::Arc;
use std::time::Duration;

/// How long to wait before asking again when the engine ended the log of something that still runs.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// So much of a log's end is asked for: engines find it from behind, and more is rarely missing.
const TAIL_LINES: usize = 256;
/// So many frames, each with its time to the nanosecond, mark a place in a log that no other place is like.
const LANDMARK_FRAMES: usize = 4;

/// What is left to skip of one stream after a new start.
#[derive(Clone, Copy)]
struct Skip {
    /// Frames of earlier seconds are known to be taken over.
    before_second: i64,
    /// Bytes taken over of what follows.
    bytes: u64,
}

impl Skip {
    fn new(position: StreamPosition) -> Self {
        if position.second <= 0 {
            return Skip { before_second: 0, bytes: position.bytes };
        }
        let bytes = position.bytes.saturating_sub(position.bytes_before_second);
        Skip { before_second: if bytes > 0 { position.second } else { 0 }, bytes }
    }

    /// What of a frame is new.
    fn apply(&mut self, at_nanos: i64, mut data: Bytes) -> Bytes {
        if self.bytes == 0 {
            return data;
        }
        if at_nanos.div_euclid(1_000_000_000) < self.before_second {
            return Bytes::new();
        }
        let known = (self.bytes).min(data.len() as u64);
        self.bytes -= known;
        data.split_off(known as usize)
    }
}

struct Follow {
    engine: Arc<Engine>,
    name: String,
    cursor: LogCursor,
    skip: [Skip; 2],
    source: Option<Frames>,
    /// Frames of the source's last batch, still to be handed over.
    batch: std::vec::IntoIter<Frame>,
    clock: Clock,
    /// The last frames of the source, to find its end again.
    landmark: Vec<Frame>,
    /// The process had ended before the current source was opened: when this source ends, all was read.
    last: bool,
    /// What is in the batch is the rest, or an error was handed over.
    done: bool,
}

/// The output of a container from a cursor to its end.
pub(super) fn follow(
    engine: Arc<Engine>,
    name: String,
    from: LogCursor,
) -> BoxStream<'static, Result<LogChunk, RuntimeError>> {
    let skip = [Skip::new(from.stdout), Skip::new(from.stderr)];
    let state = Follow {
        engine,
        name,
        cursor: from,
        skip,
        source: None,
        batch: Vec::new().into_iter(),
        landmark: Vec::new(),
        clock: Clock::default(),
        last: false,
        done: false,
    };
    stream::unfold(state, |mut state| async move {
        let item = state.next().await.transpose()?;
        // After an error the caller decides, and comes back with its own cursor.
        if item.is_err() {
            state.done = true;
            state.batch = Vec::new().into_iter();
        }
        Some((item, state))
    })
    .boxed()
}

impl Follow {
    async fn next(&mut self) -> Result<Option<LogChunk>, RuntimeError> {
        loop {
            while let Some(frame) = self.batch.next() {
                if let Some(chunk) = self.take(frame)? {
                    return Ok(Some(chunk));
                }
            }
            if self.done {
                return Ok(None);
            }
            let Some(source) = &mut self.source else {
                self.open();
                continue;
            };
            match source.next().await {
                Some(batch) => {
                    let batch = batch.map_err(|broken| self.broken(broken))?;
                    self.note(&batch);
                    self.batch = batch.into_iter();
                }
                None if self.last => return Ok(None),
                None => {
                    // The engine may end a log before the process ends (it is stopping), and may end it just before
                    // the last lines are in: only what is read after the end is known to be all.
                    self.source = None;
                    self.last = matches!(state_of(&self.engine, &self.name).await?, Found::Exited { .. });
                    if !self.last {
                        tokio::time::sleep(AGAIN_AFTER).await;
                    } else if let Some(rest) = self.rest().await? {
                        self.batch = rest.into_iter();
                        self.done = true;
                    }
                }
            }
        }
    }

    fn open(&mut self) {
        self.skip = [Skip::new(self.cursor.stdout), Skip::new(self.cursor.stderr)];
        self.landmark.clear();
        let second = self.cursor.stdout.second.min(self.cursor.stderr.second).max(0);
        // Since zero is everything.
        self.source = Some(self.ask(&format!("follow={}&since={second}", !self.last)));
    }

    fn ask(&self, options: &str) -> Frames {
        let path = format!("/containers/{}/logs?stdout=true&stderr=true&timestamps=true&{options}", self.name);
        Frames::open(&self.engine.endpoint, &path)
    }

    fn note(&mut self, batch: &[Frame]) {
        let kept = LANDMARK_FRAMES.saturating_sub(batch.len()).min(self.landmark.len());
        self.landmark.drain(..self.landmark.len() - kept);
        self.landmark.extend_from_slice(&batch[batch.len().saturating_sub(LANDMARK_FRAMES)..]);
    }

    /// What the ended log holds behind the frames seen last; `None` when they are not found in its end.
    async fn rest(&self) -> Result<Option<Vec<Frame>>, RuntimeError> {
        if self.landmark.is_empty() {
            return Ok(None);
        }
        let mut source = self.ask(&format!("tail={TAIL_LINES}"));
        let mut tail = Vec::new();
        while let Some(batch) = source.next().await {
            tail.extend(batch.map_err(|broken| self.broken(broken))?);
        }
        Ok(behind(&self.landmark, tail))
    }

    fn broken(&self, broken: Broken) -> RuntimeError {
        match broken {
            Broken::Refused { status: 404, .. } => RuntimeError::Gone { what: format!("the log of {}", self.name) },
            Broken::Refused { message, .. } => {
                RuntimeError::Refused { doing: format!("read the log of {}", self.name), detail: message }
            }
            Broken::Connection(why) => self.engine.unreachable(why),
        }
    }

    fn take(&mut self, (stream, message): Frame) -> Result<Option<LogChunk>, RuntimeError> {
        let Some((at_nanos, length)) = self.clock.parse(&message) else {
            return Err(RuntimeError::Refused {
                doing: format!("read the log of {}", self.name),
                detail: format!("a line has no time: {:?}", String::from_utf8_lossy(&message[..message.len().min(60)])),
            });
        };
        let skip = &mut self.skip[usize::from(stream == Stream::Stderr)];
        let data = skip.apply(at_nanos, message.slice(length..));
        if data.is_empty() {
            return Ok(None);
        }
        let chunk = LogChunk { stream, at_nanos, data };
        advance(&mut self.cursor, &chunk);
        Ok(Some(chunk))
    }
}

/// The frames behind the only place in `tail` that has these frames one after the other.
fn behind(landmark: &[Frame], mut tail: Vec<Frame>) -> Option<Vec<Frame>> {
    let mut places = (0..tail.len()).filter(|&at| tail[at..].starts_with(landmark));
    let (place, None) = (places.next()?, places.next()) else { return None };
    Some(tail.split_off(place + landmark.len()))
}

/// Reads times like `2025-11-22T21:58:00.123456789Z`; most lines share their second with the one before.
#[derive(Default)]
struct Clock {
    text: [u8; 19],
    seconds: i64,
}

impl Clock {
    /// Nanoseconds since 1970, and how many bytes time and the blank behind it take.
    fn parse(&mut self, line: &[u8]) -> Option<(i64, usize)> {
        let date = line.first_chunk::<19>()?;
        if *date != self.text {
            self.seconds = seconds(date)?;
            self.text = *date;
        }
        let mut at = 19;
        let mut nanos = 0i64;
        if line.get(at) == Some(&b'.') {
            at += 1;
            let mut unit = 100_000_000;
            while let Some(digit) = line.get(at).filter(|b| b.is_ascii_digit()) {
                nanos += i64::from(digit - b'0') * unit;
                unit /= 10;
                at += 1;
            }
        }
        let mut offset = 0;
        match line.get(at)? {
            b'Z' => at += 1,
            // Engines that tell local time: +01:00
            sign @ (b'+' | b'-') => {
                let zone = line.get(at + 1..at + 6)?;
                let minutes = two(&zone[..2])? * 60 + two(&zone[3..])?;
                offset = if *sign == b'-' { -minutes * 60 } else { minutes * 60 };
                at += 6;
            }
            _ => return None,
        }
        (line.get(at) == Some(&b' ')).then_some(((self.seconds - offset) * 1_000_000_000 + nanos, at + 1))
    }
}

fn two(digits: &[u8]) -> Option<i64> {
    let [a @ b'0'..=b'9', b @ b'0'..=b'9'] = digits else { return None };
    Some(i64::from(a - b'0') * 10 + i64::from(b - b'0'))
}

fn seconds(date: &[u8; 19]) -> Option<i64> {
    let year = two(&date[..2])? * 100 + two(&date[2..4])?;
    let (month, day) = (two(&date[5..7])?, two(&date[8..10])?);
    let clock = two(&date[11..13])? * 3600 + two(&date[14..16])? * 60 + two(&date[17..19])?;
    // Days since 1970 in the Gregorian calendar, years counted from March so that a leap day comes last.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some(days * 86_400 + clock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_log_is_what_stands_behind_the_last_frames_once() {
        let frame = |text: &str| (Stream::Stdout, Bytes::from(text.to_owned()));
        let frames = |texts: &str| texts.chars().map(|c| frame(&c.to_string())).collect::<Vec<_>>();
        assert_eq!(behind(&frames("cd"), frames("abcdef")), Some(frames("ef")));
        assert_eq!(behind(&frames("ef"), frames("abcdef")), Some(Vec::new()));
        assert_eq!(behind(&frames("cd"), frames("efgh")), None, "too much is missing");
        assert_eq!(behind(&frames("a"), frames("abab")), None, "which of the two is not known");
        let other = vec![(Stream::Stderr, Bytes::from("c"))];
        assert_eq!(behind(&other, frames("abc")), None, "the same words on another stream");
    }

    #[test]
    fn times_are_read_as_the_calendar_has_them() {
        for text in [
            "1970-01-01T00:00:00Z",
            "2000-02-29T23:59:59.5Z",
            "2024-12-31T23:59:59.999999999Z",
            "2026-03-01T00:00:00.000000001Z",
            "2026-11-22T21:58:00.123456789+01:30",
            "2100-03-01T12:00:00.1-05:00",
        ] {
            let expected = text.parse::<jiff::Timestamp>().unwrap().as_nanosecond() as i64;
            let line = format!("{text} words");
            assert_eq!(Clock::default().parse(line.as_bytes()), Some((expected, text.len() + 1)), "{text}");
        }
        for bad in ["", "words", "2026-11-22T21:58:00", "2026-11-22T21:58:00Zwords", "2026-1x-22T21:58:00Z "] {
            assert_eq!(Clock::default().parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
