//! Statements out of SQL that PostgreSQL's own programs write. No I/O.
//!
//! Not a parser: it knows where a statement ends and what its words are, so that one can be run, changed in one name, or left
//! out. What does not lex is refused. Source: the manual's section "Lexical Structure".

use std::borrow::Cow;

/// A statement without its semicolon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement<'a> {
    pub(super) text: &'a str,
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A keyword, a name without quotes, a number.
    Word,
    /// A name in double quotes.
    Name,
    /// Anything else.
    Other,
}

/// A part of a statement's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token {
    kind: Kind,
    from: usize,
    to: usize,
}

impl<'a> Statement<'a> {
    /// Whether it begins with these words.
    pub(super) fn begins(&self, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(at, word)| self.is(at, word))
    }

    /// Whether its word at a place is this keyword.
    pub(super) fn is(&self, at: usize, word: &str) -> bool {
        self.tokens.get(at).is_some_and(|token| token.kind == Kind::Word && self.raw(token).eq_ignore_ascii_case(word))
    }

    /// Where a keyword stands for the first time.
    pub(super) fn find(&self, word: &str) -> Option<usize> {
        (0..self.tokens.len()).find(|at| self.is(*at, word))
    }

    /// The name at a place, as the server knows it.
    pub(super) fn name(&self, at: usize) -> Option<Cow<'a, str>> {
        let token = self.tokens.get(at)?;
        let raw = self.raw(token);
        match token.kind {
            Kind::Word => Some(raw.to_lowercase().into()),
            Kind::Name => Some(raw[1..raw.len() - 1].replace("\"\"", "\"").into()),
            Kind::Other => None,
        }
    }

    /// Its first words, for messages: never a value.
    pub(super) fn head(&self) -> String {
        let words = self.tokens.iter().take_while(|token| token.kind == Kind::Word).take(3);
        words.map(|token| self.raw(token)).collect::<Vec<_>>().join(" ")
    }

    /// With another name wherever the database `from` is named behind the word DATABASE.
    pub(super) fn renamed(&self, from: &str, to: &str) -> String {
        let (mut text, mut done) = (String::with_capacity(self.text.len()), 0);
        for at in 1..self.tokens.len() {
            if self.is(at - 1, "database") && self.name(at).is_some_and(|name| name == from) {
                let token = self.tokens[at];
                text.push_str(&self.text[done..token.from]);
                text.push_str(&quoted(to));
                done = token.to;
            }
        }
        text.push_str(&self.text[done..]);
        text
    }

    /// Without the clause that begins with the word at this place and goes on for `words` words.
    pub(super) fn without(&self, at: usize, words: usize) -> String {
        let (Some(first), Some(last)) = (self.tokens.get(at), self.tokens.get(at + words - 1)) else {
            return self.text.to_owned();
        };
        format!("{}{}", &self.text[..first.from], &self.text[last.to..])
    }

    fn raw(&self, token: &Token) -> &'a str {
        &self.text[token.from..token.to]
    }
}

/// As a name in SQL.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Cuts text into statements. Lines for `psql` between statements are left out.
///
/// # Errors
/// When a quote, a comment or the last statement does not end.
pub(super) fn statements(text: &str) -> Result<Vec<Statement<'_>>, String> {
    let bytes = text.as_bytes();
    let mut statements = Vec::new();
    let (mut begin, mut at): (Option<usize>, usize) = (None, 0);
    let mut tokens: Vec<Token> = Vec::new();
    while at < bytes.len() {
        let from = at;
        let kind = match bytes[at] {
            byte if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'-' if bytes[at..].starts_with(b"--") => {
                at = line_end(bytes, at);
                continue;
            }
            b'\\' if begin.is_none() => {
                at = line_end(bytes, at);
                continue;
            }
            b';' => {
                if let Some(begin) = begin.take() {
                    let base = |token: Token| Token { from: token.from - begin, to: token.to - begin, ..token };
                    let tokens = std::mem::take(&mut tokens).into_iter().map(base).collect();
                    statements.push(Statement { text: text[begin..at].trim_end(), tokens });
                }
                at += 1;
                continue;
            }
            b'"' => {
                at = closed(bytes, at, b'"', false).ok_or("a name in quotes does not end")?;
                Kind::Name
            }
            b'\'' => {
                at = closed(bytes, at, b'\'', false).ok_or("a text does not end")?;
                Kind::Other
            }
            b'e' | b'E' if bytes.get(at + 1) == Some(&b'\'') => {
                at = closed(bytes, at + 1, b'\'', true).ok_or("a text does not end")?;
                Kind::Other
            }
            b'$' => {
                at = dollars(text, at).ok_or("a text between dollars does not end")?;
                Kind::Other
            }
            byte if byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80 => {
                let inside = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || *byte >= 0x80;
                at += bytes[at..].iter().take_while(|byte| inside(byte)).count();
                Kind::Word
            }
            _ => {
                at += 1;
                Kind::Other
            }
        };
        begin.get_or_insert(from);
        tokens.push(Token { kind, from, to: at });
    }
    match begin {
        None => Ok(statements),
        Some(_) => Err("the last statement does not end".to_owned()),
    }
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    at + bytes[at..].iter().take_while(|byte| **byte != b'\n').count()
}

/// The place after what is quoted from `at` on.
fn closed(bytes: &[u8], mut at: usize, quote: u8, escapes: bool) -> Option<usize> {
    at += 1;
    loop {
        match *bytes.get(at)? {
            b'\\' if escapes => at += 2,
            byte if byte == quote && bytes.get(at + 1) == Some(&quote) => at += 2,
            byte if byte == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// The place after `$tag$ … $tag$`; after a single `$` that begins no such text.
fn dollars(text: &str, at: usize) -> Option<usize> {
    let rest = &text[at + 1..];
    let length = rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80).count();
    if rest.as_bytes().get(length) != Some(&b'$') {
        return Some(at + 1);
    }
    let tag = &text[at..at + length + 2];
    let body = at + tag.len();
    text[body..].find(tag).map(|end| body + end + tag.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_where_they_end() {
        let text = "--\n-- a; b\n\\restrict x;\nSET a = 'it''s; so';\nCREATE ROLE \"we\"\"ird; one\";\n\\connect x\n\
                    COMMENT ON ROLE a IS E'a\\'; b';\nDO $x$ ; $$ ; $x$;\nselect $1;;\n";
        let all = statements(text).unwrap();
        let texts: Vec<&str> = all.iter().map(|one| one.text).collect();
        assert_eq!(
            texts,
            [
                "SET a = 'it''s; so'",
                "CREATE ROLE \"we\"\"ird; one\"",
                "COMMENT ON ROLE a IS E'a\\'; b'",
                "DO $x$ ; $$ ; $x$",
                "select $1"
            ]
        );
        assert_eq!(all[1].name(2).unwrap(), "we\"ird; one");
        assert!(all[1].begins(&["create", "ROLE"]) && !all[1].begins(&["create", "table"]));
        assert_eq!((all[2].head().as_str(), all[2].name(3).unwrap().as_ref()), ("COMMENT ON ROLE", "a"));
        for cut in ["CREATE ROLE a", "SELECT 'x", "SELECT $a$ $b$;", "CREATE ROLE \"a;"] {
            assert!(statements(cut).is_err(), "{cut}");
        }
        assert_eq!(statements("\n-- only words").unwrap(), []);
    }

    #[test]
    fn a_database_is_named_anew_only_where_it_is_meant() {
        let text = "ALTER ROLE shop IN DATABASE shop SET a TO 'DATABASE shop'; GRANT ALL ON DATABASE \"Shop\" TO \"Shop\"; \
                    COMMENT ON DATABASE Shop IS $$DATABASE shop$$;";
        let all = statements(text).unwrap();
        assert_eq!(all[0].renamed("shop", "new\""), "ALTER ROLE shop IN DATABASE \"new\"\"\" SET a TO 'DATABASE shop'");
        assert_eq!(all[1].renamed("Shop", "b"), "GRANT ALL ON DATABASE \"b\" TO \"Shop\"");
        assert_eq!(all[1].renamed("shop", "b"), all[1].text);
        assert_eq!(all[2].renamed("shop", "b"), "COMMENT ON DATABASE \"b\" IS $$DATABASE shop$$");
        let grant = &statements("GRANT a TO b GRANTED BY c;").unwrap()[0];
        assert_eq!(grant.without(grant.find("granted").unwrap(), 3), "GRANT a TO b ");
    }
}
