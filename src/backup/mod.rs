//! Recovery: what databases hold goes into a repository, and comes back from it.
//!
//! source -> seal -> repository -> catalog -> restore -> verify. Nothing here knows the engine of pipelines, and nothing
//! needs the daemon: a repository, an identity and this program are enough to restore.
//!
//! | room | what it holds |
//! |---|---|
//! | [`source`] | what a server gives: facts, base backups, its write-ahead log |
//! | [`seal`] | plain bytes become sealed objects with a signed receipt, and come back from them |
//! | [`repository`] | where objects are kept: one contract, an S3 bucket and a folder; every name |
//! | [`catalog`] | what a repository holds, read back from it: backups, windows, gaps; what may go |
//! | [`keeper`] | what is due for each source, and doing it |
//! | [`logical`] | copies of single databases by `pg_dump`, and the way back into a running server |
//! | [`ship`] | the log as it is written: pieces, whole segments, frontiers |
//! | [`take`] | one base backup, from the first byte to the manifest that makes it exist |
//! | [`restore`] | plan, fetch, feed the log, start, report |
//! | [`verify`] | are the objects what they were |

pub mod catalog;
pub mod keeper;
pub mod logical;
pub mod repository;
pub mod restore;
pub mod seal;
pub mod ship;
pub mod source;
pub mod take;
pub mod verify;
