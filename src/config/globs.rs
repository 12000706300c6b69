//! Branch and tag patterns with include and exclude.

use super::check::Checker;
use super::yaml::{Node, Place, Value};
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

/// The keys of the long form.
const KEYS: &[&str] = &["include", "exclude"];

impl Checker<'_> {
    /// Patterns with include and exclude, in either form.
    pub(super) fn globs(&mut self, node: &Node, what: &str) -> Globs {
        let mut include: Vec<(&str, Place)> = Vec::new();
        let mut exclude: Vec<(&str, Place)> = Vec::new();
        if let Value::Map(_) = node.value {
            let Some(fields) = self.fields(node, what, KEYS, &[]) else { return Globs::all() };
            for (key, list) in [("include", &mut include), ("exclude", &mut exclude)] {
                for item in fields.get(key).map(|n| self.items(n, &format!("`{key}`"))).unwrap_or_default() {
                    list.extend(self.text(item, "a pattern").map(|text| (text, item.place)));
                }
            }
        } else {
            for item in self.items(node, what) {
                let Some(text) = self.text(item, "a pattern") else { continue };
                match text.strip_prefix('!') {
                    Some(text) => exclude.push((text, item.place)),
                    None => include.push((text, item.place)),
                }
            }
            if include.is_empty() && exclude.is_empty() && matches!(node.value, Value::List(_)) {
                self.error(node.place, format!("{what} is empty: nothing would match"));
            }
        }
        for (text, place) in include.iter().chain(&exclude) {
            if text.is_empty() || text.len() > 255 {
                self.error(*place, "a pattern has 1 to 255 bytes");
                return Globs::all();
            }
        }
        let texts = |list: &[(&'_ str, Place)]| list.iter().map(|(text, _)| (*text).to_owned()).collect::<Vec<_>>();
        let (include_texts, exclude_texts) = (texts(&include), texts(&exclude));
        let include_texts: Vec<&str> = include_texts.iter().map(String::as_str).collect();
        let exclude_texts: Vec<&str> = exclude_texts.iter().map(String::as_str).collect();
        Globs::new(&include_texts, &exclude_texts).unwrap_or_else(|(n, why)| {
            let place = include.iter().chain(&exclude).nth(n).map_or(node.place, |(_, place)| *place);
            self.error(place, format!("this pattern does not read: {why}"));
            Globs::all()
        })
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
