//! Branch and tag patterns with include and exclude.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// Which names match: any of the included (all, when none is named) and none of the excluded. `*` stops at `/`,
/// `**` does not.
#[derive(Debug, Clone)]
pub struct Globs {
    /// As written; excluded ones begin with `!`.
    patterns: Vec<String>,
    include: GlobSet,
    exclude: GlobSet,
}

impl Globs {
    /// Compiles patterns.
    ///
    /// # Errors
    /// The position in `include` (or, counted on, in `exclude`) of a pattern that does not read, and why.
    pub(super) fn new(include: &[&str], exclude: &[&str]) -> Result<Self, (usize, String)> {
        let compile = |patterns: &[&str], skip: usize| {
            let mut set = GlobSetBuilder::new();
            for (n, pattern) in patterns.iter().enumerate() {
                let glob = GlobBuilder::new(pattern).literal_separator(true).backslash_escape(true).build();
                set.add(glob.map_err(|e| (skip + n, e.kind().to_string()))?);
            }
            // Many patterns that are fine one by one may be too much together.
            set.build().map_err(|e| (skip, e.kind().to_string()))
        };
        let written = include.iter().map(|p| (*p).to_owned()).chain(exclude.iter().map(|p| format!("!{p}")));
        Ok(Globs {
            patterns: written.collect(),
            include: compile(include, 0)?,
            exclude: compile(exclude, include.len())?,
        })
    }

    /// Everything matches.
    pub fn all() -> Self {
        Globs { patterns: Vec::new(), include: GlobSet::empty(), exclude: GlobSet::empty() }
    }

    /// Whether the name matches.
    pub fn matches(&self, name: &str) -> bool {
        (self.include.is_empty() || self.include.is_match(name)) && !self.exclude.is_match(name)
    }

    /// The patterns as written, `**` when there are none.
    pub fn words(&self) -> String {
        if self.patterns.is_empty() { "**".to_owned() } else { self.patterns.join(", ") }
    }
}

impl PartialEq for Globs {
    fn eq(&self, other: &Self) -> bool {
        self.patterns == other.patterns
    }
}
impl Eq for Globs {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn include_exclude_and_slashes() {
        let globs = Globs::new(&["main", "release/*", "team/**"], &["release/old"]).unwrap();
        for yes in ["main", "release/1", "team/a/b"] {
            assert!(globs.matches(yes), "{yes}");
        }
        for no in ["mainly", "release/old", "release/1/x", "feature"] {
            assert!(!globs.matches(no), "{no}");
        }
        let only_excluded = Globs::new(&[], &["feature/*"]).unwrap();
        assert!(only_excluded.matches("main") && !only_excluded.matches("feature/x"));
        assert!(Globs::all().matches("any/thing"));
        assert_eq!(Globs::new(&["ok"], &["[a"]).unwrap_err().0, 1);
    }
}
