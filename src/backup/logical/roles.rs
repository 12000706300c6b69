//! What of a copy's globals is done on a server that has roles of its own. In: a statement, the roles that were there. Out: what
//! to do with it. No I/O.
//!
//! A role that is there is left as it is: its password, its rights, what it is a member of. Tablespaces are folders of another
//! machine and are left out.

use super::sql::Statement;
use std::collections::BTreeSet;

/// What is done with a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// It makes this role.
    Make(String, String),
    /// It is run, and is about what did not exist before, or about this session.
    Run(String),
    /// It is about this role, which was there before.
    LeaveRole(String),
    /// It is about tablespaces.
    LeaveTablespace,
    /// It is not known here; its first words.
    Unknown(String),
}

/// Decides. `before` are the roles that the server had, `now` those that it has.
pub(super) fn act(statement: &Statement<'_>, before: &BTreeSet<String>, now: &BTreeSet<String>) -> Act {
    let text = || statement.text.to_owned();
    let unknown = || Act::Unknown(statement.head());
    if statement.begins(&["set"]) || statement.begins(&["select"]) {
        return Act::Run(text());
    }
    let defines = ["create", "alter"].iter().any(|word| statement.begins(&[word, "tablespace"]));
    if defines || statement.find("tablespace").is_some_and(|at| at > 0 && statement.is(at - 1, "on")) {
        return Act::LeaveTablespace;
    }
    let about = |at: usize, act: &dyn Fn(String) -> Act| match statement.name(at) {
        Some(name) if before.contains(name.as_ref()) => Act::LeaveRole(name.into_owned()),
        Some(name) => act(name.into_owned()),
        None => unknown(),
    };
    if statement.begins(&["create", "role"]) {
        return about(2, &|name| Act::Make(name, text()));
    }
    if statement.begins(&["alter", "role"]) {
        return about(2, &|_| Act::Run(text()));
    }
    if statement.begins(&["comment", "on", "role"]) {
        return about(3, &|_| Act::Run(text()));
    }
    if statement.begins(&["security", "label"])
        && let Some(at) = statement.find("role")
    {
        return about(at + 1, &|_| Act::Run(text()));
    }
    let to = if statement.begins(&["grant"]) { statement.find("to") } else { None };
    let from = if statement.begins(&["revoke"]) { statement.find("from") } else { None };
    match to.or(from) {
        // Everybody was there before.
        Some(at) if statement.is(at + 1, "public") => Act::LeaveRole("public".into()),
        Some(at) => about(at + 1, &|_| {
            // Who granted it may be nobody here: then it is who restores.
            let by = statement.find("granted").filter(|by| statement.is(by + 1, "by"));
            match by.and_then(|by| Some((by, statement.name(by + 2)?))) {
                Some((by, name)) if !now.contains(name.as_ref()) => Act::Run(statement.without(by, 3)),
                _ => Act::Run(text()),
            }
        }),
        None => unknown(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sql::statements;
    use super::*;

    #[test]
    fn roles_that_are_there_are_left_alone() {
        let before = BTreeSet::from(["postgres".to_owned(), "Old One".to_owned()]);
        let now = before.iter().cloned().chain(["new".to_owned()]).collect();
        let run = |text: &str| Act::Run(text.to_owned());
        let leave = |name: &str| Act::LeaveRole(name.to_owned());
        for (text, wanted) in [
            ("SET client_encoding = 'UTF8'", run("SET client_encoding = 'UTF8'")),
            ("CREATE ROLE New", Act::Make("new".into(), "CREATE ROLE New".into())),
            ("CREATE ROLE \"Old One\"", leave("Old One")),
            ("ALTER ROLE postgres WITH SUPERUSER PASSWORD 'x'", leave("postgres")),
            ("ALTER ROLE new WITH LOGIN", run("ALTER ROLE new WITH LOGIN")),
            ("COMMENT ON ROLE \"Old One\" IS 'to new'", leave("Old One")),
            ("GRANT \"Old One\" TO new GRANTED BY postgres", run("GRANT \"Old One\" TO new GRANTED BY postgres")),
            ("GRANT \"Old One\" TO new GRANTED BY gone", run("GRANT \"Old One\" TO new ")),
            ("GRANT new TO \"Old One\"", leave("Old One")),
            ("GRANT SET ON PARAMETER work_mem TO PUBLIC", leave("public")),
            ("CREATE TABLESPACE fast OWNER new LOCATION '/x'", Act::LeaveTablespace),
            ("GRANT CREATE ON TABLESPACE fast TO new", Act::LeaveTablespace),
            ("COMMENT ON TABLESPACE fast IS 'x'", Act::LeaveTablespace),
            ("CREATE ROLE tablespace", Act::Make("tablespace".into(), "CREATE ROLE tablespace".into())),
            ("DROP ROLE new", Act::Unknown("DROP ROLE new".into())),
        ] {
            let text = format!("{text};");
            assert_eq!(act(&statements(&text).unwrap()[0], &before, &now), wanted, "{text}");
        }
    }
}
