//! `${NAME}`, `${file:PATH}` and `${secret:NAME}` in the values of `mainstay.yml` and `backups/*.yml`. A missing one is an error with its
//! place, never an empty text. `$${` is a literal `${`.

use super::finding::{Finding, shown};
use super::secret::{Secret, SecretStore, read_text};
use super::yaml::{Node, Scalar, Value};
use std::path::Path;

/// Where values come from.
pub(super) struct Sources<'a> {
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    /// Relative paths start here: the folder of the file.
    pub(super) folder: &'a Path,
    /// `None` while the state folder itself is being read.
    pub(super) secrets: Option<&'a SecretStore>,
}

/// Fills in every text of a tree. Secrets and file contents that were put in are added to `found`.
pub(super) fn fill(
    node: &mut Node,
    source: &str,
    from: &Sources<'_>,
    found: &mut Vec<Secret>,
    wrong: &mut Vec<Finding>,
) {
    let place = node.place;
    match &mut node.value {
        Value::Null => {}
        Value::Scalar(scalar) => {
            if let Err(finding) = fill_scalar(scalar, from, found) {
                wrong.push(Finding { hints: finding.1, ..Finding::at(source, place, finding.0) });
            }
        }
        Value::List(items) => items.iter_mut().for_each(|item| fill(item, source, from, found, wrong)),
        Value::Map(entries) => entries.iter_mut().for_each(|(_, value)| fill(value, source, from, found, wrong)),
    }
}

type Wrong = (String, Vec<String>);

fn fill_scalar(scalar: &mut Scalar, from: &Sources<'_>, found: &mut Vec<Secret>) -> Result<(), Wrong> {
    if !scalar.text.contains("${") {
        return Ok(());
    }
    let mut out = String::new();
    let mut rest = scalar.text.as_str();
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            out.push_str(&rest[..start]);
            out.push('{');
            rest = &rest[start + 2..];
            continue;
        }
        let end = rest[start..].find('}').map(|end| start + end);
        let end = end
            .ok_or_else(|| ("`${` has no `}` after it".to_owned(), vec!["write `$${` for a plain `${`".to_owned()]))?;
        out.push_str(&rest[..start]);
        out.push_str(&value_of(&rest[start + 2..end], from, found)?);
        scalar.interpolated = true;
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    scalar.text = out;
    Ok(())
}

fn value_of(name: &str, from: &Sources<'_>, found: &mut Vec<Secret>) -> Result<String, Wrong> {
    let shown_name = shown(name);
    if let Some(path) = name.strip_prefix("file:") {
        let path = from.folder.join(path);
        let value = read_text(&path).map_err(|error| {
            (format!("failed to read `{}`: {error}", shown(&path.display().to_string())), Vec::new())
        })?;
        found.push(Secret::new(value.clone()));
        return Ok(value);
    }
    if let Some(secret) = name.strip_prefix("secret:") {
        let Some(store) = from.secrets else {
            return Err(("`state` says where secrets are kept, and cannot itself hold one".to_owned(), Vec::new()));
        };
        let secret_name = shown(secret);
        return match store.get(secret) {
            Ok(Some(value)) => {
                found.push(value.clone());
                Ok(value.expose().to_owned())
            }
            Ok(None) => Err((
                format!("there is no secret `{secret_name}`"),
                vec![format!("keep one with `mainstay secrets set {secret_name}`")],
            )),
            Err(error) => Err((format!("failed to {error}"), Vec::new())),
        };
    }
    if super::check::variable_name(name).is_err() {
        return Err((
            format!("`${{{shown_name}}}` is not known here"),
            vec!["there are `${NAME}`, `${file:PATH}` and `${secret:NAME}`; write `$${` for a plain `${`".to_owned()],
        ));
    }
    (from.env)(name).ok_or_else(|| (format!("the environment variable `{shown_name}` is not set"), Vec::new()))
}
