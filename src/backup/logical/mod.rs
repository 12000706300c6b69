//! Logical copies: what `pg_dump` writes of one database or several, with the roles of their server.
//!
//! In: the address of a server. Out: sealed objects in the same repository as base backups, the manifest last; and the way
//! back, into a running server of the same major version or a later one. Callers: `keeper::logical`, the commands `backup` and
//! `restore`. What a repository holds of them is read by `catalog`; `retention`, `expire` and `verify` treat them there.
//!
//! | part | what it does |
//! |---|---|
//! | [`dump()`] | streams into objects, and the manifest that makes them a copy |
//! | [`plan()`] | which copy a restore takes; no I/O |
//! | [`restore()`] | a copy into databases beside those that are there; they take their names when all is well |
//! | `ground` | what is on the server already, and whether that may be put aside |
//! | `programs` | PostgreSQL's own programs, of this machine or of an image: found, called without a password in their arguments, believed by their exit code |
//! | `sql` | statements out of what `pg_dumpall` and `pg_restore` write; no I/O |

mod dump;
mod feed;
mod ground;
mod plan;
mod programs;
mod restore;
mod roles;
mod server;
mod sql;

pub use dump::{DumpError, Job, dump, reaches};
pub use plan::{NoCopy, Plan, Wanted, plan};
pub use programs::{InImage, LABEL, ProgramError, Programs, Way, Whose, places, usual_folders};
pub use restore::{Options, Report, RestoreError, Restored, restore, survey};
