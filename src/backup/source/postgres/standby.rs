//! What a watcher asks and changes over SQL: how much log a slot holds back, and whether commits wait for us.
//!
//! `synchronous_standby_names` is read and written as the manual's chapter "Replication" describes it. What is written has
//! every name in quotes.

use super::ask::quoted;
use super::connect::{Connection, Purpose};
use super::error::PostgresError;
use super::slot::SlotState;
use crate::model::Lsn;
use std::time::Duration;
use tokio::time::Instant;

/// The setting takes effect when the server's main process has read it again: a moment, on a busy machine seconds.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(10);
/// Before this version only a superuser may set it.
const GRANTS_SINCE: u32 = 15;

/// How much log a slot holds back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The oldest byte that the server keeps for it.
    pub restart: Lsn,
    /// From there to the end of the server's log.
    pub bytes: u64,
}

/// What `synchronous_standby_names` says, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbyNames {
    /// Its text.
    pub text: String,
    /// It stands in a file that people write, as far as the role may see that: `RESET` brings it back.
    pub by_hand: bool,
}

/// Why a name cannot be taken out of `synchronous_standby_names`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read synchronous_standby_names: `{0}` is not in a form that is known here")]
pub struct Unreadable(String);

impl Connection {
    /// How much log a slot holds back; `None` when there is no such slot, or it keeps nothing.
    ///
    /// # Errors
    /// When the connection breaks, and on one for replication to 13 or 14.
    pub async fn held(&mut self, slot: &str) -> Result<Option<Held>, PostgresError> {
        let Some(SlotState { restart: Some(restart), .. }) = self.slot(slot).await? else { return Ok(None) };
        let end = match self.purpose {
            Purpose::Replication => self.identify().await?.flushed,
            Purpose::Sql => {
                let rows = self.query("SELECT pg_catalog.pg_current_wal_flush_lsn() AS at").await?;
                let read = rows.first("at").and_then(|text| text.parse::<Lsn>().ok());
                read.ok_or_else(|| self.wire.wrong("an end of the log that does not read"))?
            }
        };
        Ok(Some(Held { restart, bytes: end.0.saturating_sub(restart.0) }))
    }

    /// What `synchronous_standby_names` says now.
    ///
    /// # Errors
    /// When the connection breaks, or is none for SQL.
    pub async fn standby_names(&mut self) -> Result<StandbyNames, PostgresError> {
        let sql = "SELECT setting, sourcefile FROM pg_catalog.pg_settings WHERE name = 'synchronous_standby_names'";
        let rows = self.query(sql).await?;
        let file = rows.first("sourcefile");
        let by_hand = file.is_some_and(|file| !file.ends_with("postgresql.auto.conf"));
        Ok(StandbyNames { text: rows.first("setting").unwrap_or_default().to_owned(), by_hand })
    }

    /// Sets `synchronous_standby_names` (`None` takes back what was set so) and waits until it says `wanted`.
    ///
    /// # Errors
    /// When the role may not, or something else sets it, such as the server's command line.
    pub async fn set_standby_names(&mut self, value: Option<&str>, wanted: &str) -> Result<(), PostgresError> {
        let sql = match value {
            // An empty list would be written as it stands, without quotes.
            Some(text) => format!("ALTER SYSTEM SET synchronous_standby_names = {}", quoted(text)),
            None => "ALTER SYSTEM RESET synchronous_standby_names".to_owned(),
        };
        self.query(&sql).await?;
        self.query("SELECT pg_catalog.pg_reload_conf()").await?;
        let end = Instant::now() + IN_FORCE_WITHIN;
        loop {
            let now = self.standby_names().await?.text;
            if now == wanted {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(PostgresError::Usage(format!(
                    "set synchronous_standby_names: the server goes on with `{now}`\nhint: something else sets it, such as the server's command line: SELECT source FROM pg_settings WHERE name = 'synchronous_standby_names'"
                )));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Whether this role may set `synchronous_standby_names` and have it read again.
    ///
    /// # Errors
    /// When the connection breaks, or is none for SQL.
    pub async fn may_set_standby_names(&mut self) -> Result<bool, PostgresError> {
        let setting = match self.major() >= GRANTS_SINCE {
            true => "pg_catalog.has_parameter_privilege('synchronous_standby_names', 'ALTER SYSTEM')",
            false => "(SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)",
        };
        let sql = format!(
            "SELECT {setting} AND pg_catalog.has_function_privilege('pg_catalog.pg_reload_conf()', 'EXECUTE') AS may"
        );
        Ok(self.query(&sql).await?.first("may") == Some("t"))
    }

    /// Whether a standby of that name has everything that the server has written: then no commit waits for it.
    ///
    /// # Errors
    /// When the connection breaks, or is none for SQL.
    pub async fn is_kept_up(&mut self, standby: &str) -> Result<bool, PostgresError> {
        let sql = format!(
            "SELECT coalesce(bool_or(flush_lsn >= pg_catalog.pg_current_wal_flush_lsn()), false) AS kept FROM pg_catalog.pg_stat_replication WHERE application_name = {}",
            quoted(standby)
        );
        Ok(self.query(&sql).await?.first("kept") == Some("t"))
    }
}

/// The commands that let a role step down, for people. Before 15 there are no such rights to give.
pub fn grants(role: &str, major: u32) -> Vec<String> {
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    if major < GRANTS_SINCE {
        return vec![format!("ALTER ROLE {role} SUPERUSER;")];
    }
    vec![
        format!("GRANT ALTER SYSTEM ON PARAMETER synchronous_standby_names TO {role};"),
        format!("GRANT EXECUTE ON FUNCTION pg_reload_conf() TO {role};"),
    ]
}

/// What a setting means: how many of which standbys a commit waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    any: bool,
    count: usize,
    names: Vec<String>,
}

/// `synchronous_standby_names` without one name, so that no commit waits for it; empty when nobody else is left. A `*` stands
/// for that one too, and goes.
///
/// # Errors
/// When the setting is in no form that is known.
pub fn without(setting: &str, name: &str) -> Result<String, Unreadable> {
    if setting.trim().is_empty() {
        return Ok(String::new());
    }
    let rule = parse(setting).ok_or_else(|| Unreadable(setting.escape_debug().to_string()))?;
    let ours = |one: &String| one == "*" || one.eq_ignore_ascii_case(name);
    if !rule.names.iter().any(ours) {
        return Ok(setting.to_owned());
    }
    let left: Vec<String> = rule.names.iter().filter(|one| !ours(one)).cloned().collect();
    if left.is_empty() {
        return Ok(String::new());
    }
    let count = rule.count.min(left.len());
    let how = if rule.any { "ANY" } else { "FIRST" };
    let names: Vec<String> = left.iter().map(|one| format!("\"{}\"", one.replace('"', "\"\""))).collect();
    Ok(format!("{how} {count} ({})", names.join(", ")))
}

/// Whether commits wait for a standby of that name, by the setting.
pub fn names_standby(setting: &str, name: &str) -> bool {
    parse(setting).is_some_and(|rule| rule.names.iter().any(|one| one == "*" || one.eq_ignore_ascii_case(name)))
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A word, and whether it stood in quotes.
    Word(String, bool),
    Open,
    Close,
    Comma,
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            c if c.is_whitespace() => {}
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            ',' => tokens.push(Token::Comma),
            '*' => tokens.push(Token::Word("*".into(), true)),
            '"' => {
                let mut word = String::new();
                loop {
                    match rest.next()? {
                        '"' if rest.peek() == Some(&'"') => word.extend(rest.next()),
                        '"' => break,
                        c => word.push(c),
                    }
                }
                tokens.push(Token::Word(word, true));
            }
            c => {
                let mut word = String::from(c);
                while let Some(c) = rest.next_if(|c| !c.is_whitespace() && !"(),\"*".contains(*c)) {
                    word.push(c);
                }
                tokens.push(Token::Word(word, false));
            }
        }
    }
    Some(tokens)
}

fn parse(setting: &str) -> Option<Rule> {
    let tokens = tokens(setting)?;
    let is =
        |token: &Token, wanted: &str| matches!(token, Token::Word(word, false) if word.eq_ignore_ascii_case(wanted));
    let number = |token: &Token| match token {
        Token::Word(word, _) => word.parse::<usize>().ok().filter(|count| *count > 0),
        _ => None,
    };
    match &tokens[..] {
        [how, count, Token::Open, list @ .., Token::Close] if is(how, "ANY") || is(how, "FIRST") => {
            Some(Rule { any: is(how, "ANY"), count: number(count)?, names: list_of(list)? })
        }
        [count, Token::Open, list @ .., Token::Close] => {
            Some(Rule { any: false, count: number(count)?, names: list_of(list)? })
        }
        list => Some(Rule { any: false, count: 1, names: list_of(list)? }),
    }
}

/// Names with commas in between.
fn list_of(tokens: &[Token]) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match (token, at % 2) {
            (Token::Word(word, _), 0) => names.push(word.clone()),
            (Token::Comma, 1) => {}
            _ => return None,
        }
    }
    (tokens.len() % 2 == 1).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_is_taken_out_and_the_others_are_waited_for_as_before() {
        let table = [
            ("mainstay", ""),
            ("", ""),
            ("FIRST 1 (mainstay)", ""),
            ("*", ""),
            ("ANY 1 (*)", ""),
            ("\"Mainstay\"", ""),
            ("mainstay, s2", "FIRST 1 (\"s2\")"),
            ("FIRST 2 (mainstay, s2)", "FIRST 1 (\"s2\")"),
            ("first 2 (s1, \"mainstay\", s3)", "FIRST 2 (\"s1\", \"s3\")"),
            ("ANY 2 (s1, mainstay, \"a \"\"b\")", "ANY 2 (\"s1\", \"a \"\"b\")"),
            ("2(s1,mainstay,s3)", "FIRST 2 (\"s1\", \"s3\")"),
            ("ANY 1 (s1, s2)", "ANY 1 (s1, s2)"),
            ("any, mainstay", "FIRST 1 (\"any\")"),
        ];
        for (setting, left) in table {
            assert_eq!(without(setting, "mainstay").as_deref(), Ok(left), "{setting}");
            assert_eq!(names_standby(setting, "mainstay"), left != setting, "{setting}");
        }
    }

    #[test]
    fn what_is_not_understood_is_not_changed() {
        for setting in ["FIRST (a)", "ANY 0 (a)", "a b", "(a", "\"a", "a,", "FIRST 1 (a b)", "ANY x (a)"] {
            assert!(without(setting, "a").is_err(), "{setting}");
        }
    }
}
