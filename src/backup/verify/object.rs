//! One object, read and judged.

use super::{Finding, VerifyError};
use crate::backup::catalog::holdings::LogObject;
use crate::backup::catalog::index::{Bad, BadKind, place_bad, seal_bad};
use crate::backup::catalog::manifest::ObjectFacts;
use crate::backup::repository::{Key, Repository, Stored};
use crate::backup::seal::{Checker, Opener, Seal, SealError};
use crate::model::{SegmentSize, SystemId};

/// What is to be read, and what it should be.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) key: Key,
    /// What a manifest says of it.
    pub(super) facts: Option<ObjectFacts>,
    /// Which part of the log it is, of which cluster.
    pub(super) log: Option<(LogObject, Option<SegmentSize>, SystemId)>,
}

/// What became of reading it.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is what it should be: so many bytes were read.
    Good(u64),
    /// It is not there any more, and rightly so.
    Passed,
    /// It is not.
    Bad(Finding),
    /// The place could not be reached, or refused.
    Unread(String),
}

/// Reads an object and judges it.
pub(super) async fn ask(
    repository: &dyn Repository,
    checker: &Checker,
    opener: Option<&Opener>,
    asked: Asked,
) -> Result<Outcome, VerifyError> {
    let stored = match repository.get(&asked.key).await {
        Ok(stored) => stored,
        Err(error) => {
            return Ok(match place_bad(&asked.key, error) {
                Ok(bad) => Outcome::Bad(finding(bad)),
                Err(error) => Outcome::Unread(error.to_string()),
            });
        }
    };
    let (checker, opener) = (checker.clone(), opener.cloned());
    let bytes = stored.extent().bytes;
    // Digests and keys of 16 MiB are tens of milliseconds of a core.
    let judged = tokio::task::spawn_blocking(move || judge(&checker, opener.as_ref(), &asked, &stored)).await;
    match judged {
        Ok(Ok(None)) => Ok(Outcome::Good(bytes)),
        Ok(Ok(Some(bad))) => Ok(Outcome::Bad(finding(bad))),
        Ok(Err(error)) => Err(error),
        Err(error) => Ok(Outcome::Unread(error.to_string())),
    }
}

fn finding(bad: Bad) -> Finding {
    Finding { name: bad.key.to_string(), kind: bad.kind, why: bad.why }
}

fn judge(
    checker: &Checker,
    opener: Option<&Opener>,
    asked: &Asked,
    stored: &Stored,
) -> Result<Option<Bad>, VerifyError> {
    let bad = |kind, why: String| Ok(Some(Bad { key: asked.key.clone(), kind, why }));
    let opened = match opener {
        Some(opener) => opener.open(&asked.key, stored).map(|(seal, plain)| (seal, Some(plain))),
        None => checker.check(&asked.key, stored).map(|seal| (seal, None)),
    };
    let (seal, plain): (Seal, Option<Vec<u8>>) = match opened {
        Ok(opened) => opened,
        // The identity that was given says nothing about the object.
        Err(error @ (SealError::NoIdentity { .. } | SealError::Broken(_))) => {
            return Err(VerifyError::Identity { name: asked.key.to_string(), error });
        }
        Err(error) => return Ok(Some(seal_bad(&asked.key, &error))),
    };
    if let Some(facts) = &asked.facts
        && (facts.stored != seal.stored || facts.plain != seal.plain)
    {
        return bad(BadKind::Contents, "it is signed, and is not the object that the backup's manifest names".into());
    }
    let Some((log, size, system)) = asked.log else { return Ok(None) };
    if seal.plain.bytes != log.last.0 - log.first.0 {
        return bad(
            BadKind::Contents,
            format!("it holds {} bytes of log, its name says {}", seal.plain.bytes, log.last.0 - log.first.0),
        );
    }
    match plain.zip(size).filter(|(_, size)| log.first.segment_start(*size) == log.first) {
        Some((plain, size)) => Ok(header(&plain, log, size, system).map(|why| Bad {
            key: asked.key.clone(),
            kind: BadKind::Contents,
            why,
        })),
        None => Ok(None),
    }
}

/// What is wrong with the long header that every segment begins with. Source: `XLogLongPageHeaderData` in PostgreSQL's
/// `xlog_internal.h`, little-endian as on every machine that servers of today run on.
fn header(plain: &[u8], log: LogObject, size: SegmentSize, system: SystemId) -> Option<String> {
    let eight = |at: usize| plain.get(at..at + 8).and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
    let four = |at: usize| plain.get(at..at + 4).and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)));
    // A piece may end inside its header.
    let (place, of, length) = (eight(8)?, eight(24)?, four(32)?);
    if of != system.0 {
        return Some(format!("it is log of the cluster {of}"));
    }
    if place != log.first.0 {
        return Some(format!("it is log from {}", crate::model::Lsn(place)));
    }
    (u64::from(length) != size.bytes()).then(|| format!("it is of a server with segments of {length} bytes"))
}
