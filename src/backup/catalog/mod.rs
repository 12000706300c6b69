//! What a repository holds, read back from it alone.
//!
//! `index` reads a listing and the open objects in it into a [`index::Catalogue`]; `holdings` is what it holds of one
//! cluster, `dumps` the logical copies among that; `window` says from when to when that can be restored, and where it cannot; `path` names the objects that one
//! restore needs; `retention` says what may go, and why the rest stays; `expire` lets it go. `window`, `path` and
//! `retention` do no I/O. Callers: `take` and `ship` (what is there already), `restore`, `verify`, the commands.

pub mod dumps;
pub mod expire;
pub mod history;
pub mod holdings;
pub mod index;
pub mod manifest;
pub mod marks;
pub mod path;
pub mod retention;
pub mod window;

/// Facts that writers put beside an object, readable without an identity: the names in [`Seal::note`](super::seal::Seal).
pub mod note {
    /// On segments and pieces: how far the log was acknowledged when they were sealed, as an LSN.
    pub const ACKNOWLEDGED: &str = "acknowledged";
    /// On segments and pieces: the server's clock with their newest byte.
    pub const SERVER_TIME: &str = "server-time";
    /// On history files: what they say, as `super::history::note` writes it.
    pub const ANCESTORS: &str = "ancestors";
}
