//! `${{ steps.NAME.KEY }}` and `${{ inputs.NAME }}` in our own keys: found when a file is read, filled in when a step
//! starts. Never inside commands: what a stranger's branch name or commit message says must not become shell text.

use crate::model::StepName;

/// What an expression asks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    /// An output of a step.
    Output {
        /// The step.
        step: StepName,
        /// The key it wrote to `$MAINSTAY_OUTPUT`.
        key: String,
    },
    /// An input of a manual run.
    Input(String),
}

/// Why an expression was refused or could not be filled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadExpression {
    /// `${{` without its end.
    #[error("`${{{{` has no `}}}}` after it")]
    Open,
    /// Neither a step's output nor an input.
    #[error("`{0}` is not a value that can be used here; there are `steps.NAME.KEY` and `inputs.NAME`")]
    Unknown(String),
    /// Nothing has that name now.
    #[error("`{0}` has no value")]
    NoValue(String),
}

enum Piece<'a> {
    Text(&'a str),
    Expression(&'a str),
}

/// Cuts a text into what stands and what is to be filled in. `$${{` is a literal `${{`.
fn pieces(text: &str) -> Result<Vec<Piece<'_>>, BadExpression> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("${{") {
        if rest[..start].ends_with('$') {
            pieces.push(Piece::Text(&rest[..start - 1]));
            pieces.push(Piece::Text("${{"));
            rest = &rest[start + 3..];
            continue;
        }
        let end = rest[start..].find("}}").ok_or(BadExpression::Open)? + start;
        pieces.push(Piece::Text(&rest[..start]));
        pieces.push(Piece::Expression(rest[start + 3..end].trim()));
        rest = &rest[end + 2..];
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

/// Reads what stands between `${{` and `}}`.
fn reference(inner: &str) -> Result<Reference, BadExpression> {
    let unknown = || BadExpression::Unknown(super::finding::shown(inner));
    if let Some(name) = inner.strip_prefix("inputs.") {
        return if is_key(name) { Ok(Reference::Input(name.to_owned())) } else { Err(unknown()) };
    }
    // A step's name may hold dots, a key may not.
    let (step, key) = inner.strip_prefix("steps.").and_then(|rest| rest.rsplit_once('.')).ok_or_else(unknown)?;
    let step = StepName::new(step).map_err(|_| unknown())?;
    if is_key(key) { Ok(Reference::Output { step, key: key.to_owned() }) } else { Err(unknown()) }
}

/// A name that outputs, inputs, secrets and environment variables may have: letters, digits and `_`, not beginning with
/// a digit; `-` is allowed inside for outputs and inputs.
pub(super) fn is_key(name: &str) -> bool {
    name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// Everything a text refers to.
///
/// # Errors
/// The first expression that does not read.
pub fn references(text: &str) -> Result<Vec<Reference>, BadExpression> {
    let expressions = pieces(text)?.into_iter().filter_map(|piece| match piece {
        Piece::Expression(inner) => Some(reference(inner)),
        Piece::Text(_) => None,
    });
    expressions.collect()
}

/// Fills in a text. `lookup` is asked for `steps.NAME.KEY` and `inputs.NAME`; what it answers is taken as it is, and
/// never read for expressions again.
///
/// # Errors
/// When an expression does not read, or `lookup` has no value for it.
pub fn fill(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, BadExpression> {
    let mut out = String::with_capacity(text.len());
    for piece in pieces(text)? {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Expression(inner) => {
                reference(inner)?;
                out.push_str(&lookup(inner).ok_or_else(|| BadExpression::NoValue(inner.to_owned()))?);
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill_from(text: &str) -> Result<String, String> {
        let lookup = |name: &str| match name {
            "steps.image.digest" => Some("sha256:1 ${{ inputs.level }}".to_owned()),
            "steps.a.b.key" => Some("dotted".to_owned()),
            "inputs.level" => Some("quick".to_owned()),
            _ => None,
        };
        fill(text, &lookup).map_err(|e| e.to_string())
    }

    #[test]
    fn values_are_put_in_and_not_read_again() {
        assert_eq!(fill_from("a ${{steps.image.digest}} b").unwrap(), "a sha256:1 ${{ inputs.level }} b");
        assert_eq!(fill_from("${{ inputs.level }}${{ steps.a.b.key }}").unwrap(), "quickdotted");
        assert_eq!(fill_from("$${{ inputs.level }} $HOME ${X} $").unwrap(), "${{ inputs.level }} $HOME ${X} $");
        assert_eq!(fill_from("").unwrap(), "");
    }

    #[test]
    fn what_cannot_be_filled_is_named() {
        assert!(fill_from("${{ steps.image.tag }}").unwrap_err().contains("`steps.image.tag` has no value"));
        assert!(fill_from("${{ inputs.level").unwrap_err().contains("has no `}}`"));
        for odd in ["env.HOME", "steps.image", "inputs.", "steps..x", "inputs.a b", "", "steps.a.1"] {
            assert!(fill_from(&format!("${{{{ {odd} }}}}")).unwrap_err().contains("is not a value"), "{odd}");
        }
    }
}
