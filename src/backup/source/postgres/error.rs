//! Why a conversation with a server failed, in types that callers choose by.

use crate::model::{Lsn, SystemId, Timeline};
use std::io;

/// What a server said went wrong: an `ErrorResponse`. Its words are on the heap: errors are handed through many calls.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerError(Box<ServerWords>);

/// The words of a [`ServerError`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerWords {
    /// `ERROR`, `FATAL`, `PANIC`.
    pub severity: String,
    /// The five characters of its SQLSTATE, which do not change with the server's language.
    pub code: String,
    /// In its words.
    pub message: String,
    /// More of them.
    pub detail: Option<String>,
    /// What it advises.
    pub hint: Option<String>,
}

impl std::ops::Deref for ServerError {
    type Target = ServerWords;
    fn deref(&self) -> &ServerWords {
        &self.0
    }
}

impl From<ServerWords> for ServerError {
    fn from(words: ServerWords) -> ServerError {
        ServerError(Box::new(words))
    }
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.code)?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

/// Why a conversation with a server failed. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No host could be reached, or none would do; each with its reason.
    #[error("connect to {address}: {reasons}")]
    Unreachable {
        /// As [`super::Address`] prints it.
        address: String,
        /// Host by host.
        reasons: String,
        /// The last server's own words, where it was a server that refused.
        refusal: Option<ServerError>,
    },
    /// The server refused.
    #[error("{doing}: {error}")]
    Refused {
        /// What was asked for.
        doing: String,
        /// Its words.
        error: ServerError,
    },
    /// The server is going down, starting up, or ended this connection on purpose. The caller waits before it comes back.
    #[error("{doing}: the server ended the connection: {error}")]
    ShuttingDown {
        /// What was being done.
        doing: String,
        /// Its words.
        error: ServerError,
    },
    /// The connection broke.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The cause.
        source: io::Error,
    },
    /// The connection ended in the middle.
    #[error("{doing}: the connection ended")]
    Cut {
        /// What was being done.
        doing: String,
    },
    /// Nothing came for too long, not even an answer to a question.
    #[error("{doing}: the server was silent for {seconds} s")]
    Silent {
        /// What was being done.
        doing: String,
        /// For how long.
        seconds: u64,
    },
    /// The server said what the protocol does not allow.
    #[error(
        "{doing}: {what}\nhint: is there a PostgreSQL server of version 13 or later at this address, or a proxy that does not know replication?"
    )]
    Protocol {
        /// What was being done.
        doing: String,
        /// What was wrong.
        what: String,
    },
    /// TLS could not be had as asked.
    #[error("secure the connection: {0}")]
    Tls(String),
    /// The server's answer to a sign-in could not be accepted, or it asked for what is not there.
    #[error("sign in: {0}")]
    SignIn(String),
    /// A base backup came to its end, and the server says that pages of it are damaged. Its data are tainted.
    #[error(
        "take a base backup: the server found damaged pages: {error}{files}\nhint: the data on the server itself are damaged; see its log, and restore from an older backup"
    )]
    Damaged {
        /// Its words.
        error: ServerError,
        /// Its warnings, which name the files, each after a line break.
        files: String,
    },
    /// A difference cannot be had; a whole backup can.
    #[error("take an incremental backup: {why}")]
    TakeWhole {
        /// Why, in words.
        why: String,
    },
    /// The log does not go on where it must.
    #[error("read the log: the server sent {got} where {expected} was to come: bytes are missing or doubled")]
    Hole {
        /// The place that was to come.
        expected: Lsn,
        /// The place that came.
        got: Lsn,
    },
    /// The server's log ends before the place that was asked for.
    #[error(
        "read the log: the server's log ends at {end}, before {from}, which is in the repository already\nhint: the server lost data, or is an older copy of the cluster: is it the right one? a promoted one goes on with a new timeline"
    )]
    Ahead {
        /// The place that was asked for.
        from: Lsn,
        /// Where the server's log ends.
        end: Lsn,
    },
    /// The server has removed log that is needed.
    #[error(
        "read the log: {error}\nhint: the log from {from} on timeline {timeline} is gone from the server: a gap, and a new base backup after it"
    )]
    LogRemoved {
        /// Its words.
        error: ServerError,
        /// The place that was asked for.
        from: Lsn,
        /// On which timeline.
        timeline: Timeline,
    },
    /// Another cluster than the one that was asked for.
    #[error(
        "use the server: it is the cluster {found}, not {wanted}\nhint: was it made anew, upgraded, or restored as another? its log cannot go on in the same history"
    )]
    OtherCluster {
        /// What `IDENTIFY_SYSTEM` says.
        found: SystemId,
        /// What was asked for.
        wanted: SystemId,
    },
    /// What was asked cannot be asked of this server or on this connection.
    #[error("{0}")]
    Usage(String),
    /// It replays another server's log, where one that writes its own was wanted.
    #[error(
        "read the log: this server is a standby now and follows another\nhint: point the source at the server that was promoted, or name all of them with target_session_attrs=primary"
    )]
    Standby,
}

/// SQLSTATEs by which a server says that it stops, starts, or ends connections.
const GOING: [&str; 4] = ["57P01", "57P02", "57P03", "57P05"];

impl PostgresError {
    /// From a server's words.
    pub(super) fn from_server(doing: &str, error: ServerError) -> PostgresError {
        if GOING.contains(&error.code.as_str()) {
            return PostgresError::ShuttingDown { doing: doing.to_owned(), error };
        }
        PostgresError::Refused { doing: doing.to_owned(), error }
    }

    /// The protocol was broken.
    pub(super) fn protocol(doing: &str, what: impl Into<String>) -> PostgresError {
        PostgresError::Protocol { doing: doing.to_owned(), what: what.into() }
    }

    /// The SQLSTATE, when it was the server that refused.
    pub fn code(&self) -> Option<&str> {
        match self {
            PostgresError::Refused { error, .. }
            | PostgresError::ShuttingDown { error, .. }
            | PostgresError::Damaged { error, .. }
            | PostgresError::LogRemoved { error, .. }
            | PostgresError::Unreachable { refusal: Some(error), .. } => Some(&error.code),
            _ => None,
        }
    }

    /// Whether to come back later is all there is to do: the server is away, or going.
    pub fn is_passing(&self) -> bool {
        match self {
            PostgresError::ShuttingDown { .. } | PostgresError::Io { .. } => true,
            PostgresError::Cut { .. } | PostgresError::Silent { .. } => true,
            // 53300: too many connections; a refusal of any other kind needs a person.
            PostgresError::Unreachable { refusal, .. } => {
                refusal.as_ref().is_none_or(|e| GOING.contains(&e.code.as_str()) || e.code == "53300")
            }
            PostgresError::Refused { error, .. } => error.code == "53300",
            _ => false,
        }
    }
}
