//! Recovery points: the instant right before a release, marked in the log of every source that is kept.
//!
//! A point of a release has one name in all sources, `mainstay:ENV/N`: the data as they were before release N, with which
//! release N - 1 ran. `mainstay restore SOURCE --to-release ENV/N-1` goes back to it, without this daemon. Called when a
//! release is made; the daemon answers from the keeper of sources.

use crate::model::{EnvironmentName, SourceName};
use async_trait::async_trait;
use std::collections::BTreeMap;

/// Who marks an instant.
#[async_trait]
pub trait Points: Send + Sync {
    /// Marks now by this name in every source that can be marked, within seconds. Each with its place in the source's log.
    async fn mark(&self, name: &str) -> BTreeMap<SourceName, String>;
}

/// No sources.
#[derive(Debug, Clone, Copy)]
pub struct NoPoints;

#[async_trait]
impl Points for NoPoints {
    async fn mark(&self, _name: &str) -> BTreeMap<SourceName, String> {
        BTreeMap::new()
    }
}

/// The name of the point right before a release. PostgreSQL takes 63 bytes: a longer one is cut in the environment's name,
/// and still ends with the number.
pub fn name(environment: &EnvironmentName, release: u64) -> String {
    const MAX_BYTES: usize = 63;
    let (begin, end) = ("mainstay:", format!("/{release}"));
    let room = MAX_BYTES - begin.len() - end.len();
    let environment = environment.as_str();
    format!("{begin}{}{end}", &environment[..environment.floor_char_boundary(room)])
}

/// What a release says of its point: `mainstay:production/13: shop-db at 0/16B3748`, or `none`.
pub(super) fn words(name: &str, marked: &BTreeMap<SourceName, String>) -> String {
    if marked.is_empty() {
        return "none".to_owned();
    }
    let places: Vec<_> = marked.iter().map(|(source, place)| format!("{source} at {place}")).collect();
    format!("{name}: {}", places.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_has_a_name_that_every_server_takes_and_says_where_it_is() {
        let production: EnvironmentName = "production".parse().unwrap();
        assert_eq!(name(&production, 13), "mainstay:production/13");
        let long: EnvironmentName = "e".repeat(63).parse().unwrap();
        let cut = name(&long, u64::MAX);
        assert!(cut.len() == 63 && cut.ends_with(&format!("e/{}", u64::MAX)), "{cut}");
        assert_eq!(words("x", &BTreeMap::new()), "none");
        let marked = BTreeMap::from([("shop-db".parse().unwrap(), "0/16B3748".to_owned())]);
        assert_eq!(words("mainstay:production/13", &marked), "mainstay:production/13: shop-db at 0/16B3748");
    }
}
