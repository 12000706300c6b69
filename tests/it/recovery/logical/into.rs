//! Into servers: an empty one of another major version, one that has something, one where somebody works.

use super::bench::{Bench, ask, databases};
use crate::support::postgres::{Options, Server};
use mainstay::backup::logical::{self, RestoreError, survey};
use mainstay::backup::restore::Check;
use mainstay::backup::source::postgres::{Address, Connection, Purpose};
use mainstay::config::backup::Databases;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

both_ways!(
    what_15_held_is_in_17_with_names_bytes_and_large_objects,
    what_is_there_is_put_aside_only_when_that_is_wanted,
);

/// A name with everything that a shell, a connection string, a list or SQL could take for something else.
const NAME: &str = "sh'op \"Ünï\" = \\ $x; -- DATABASE";

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What is asked before and after: rows, bytes, large objects, settings, rights.
const QUESTIONS: &[&str] = &[
    "SELECT count(*) || ' ' || md5(string_agg(t::text, '|' ORDER BY id)) FROM \"we\"\"ird; schema\".\"Bytes\" t",
    "SELECT md5(string_agg(md5(lo_get(oid)), '' ORDER BY oid)) || ' ' || count(*) FROM pg_largeobject_metadata",
    "SELECT string_agg(a || ' ' || b, ',') FROM seen",
    "SELECT nextval('numbers')",
    "SELECT pg_get_userbyid(datdba) || ' ' || datconnlimit || ' ' || coalesce(shobj_description(oid, 'pg_database'), 'none') \
     FROM pg_database WHERE datname = current_database()",
    "SELECT has_database_privilege('guest', current_database(), 'TEMP') || ' ' || has_database_privilege('public', \
     current_database(), 'CONNECT') || ' ' || current_setting('work_mem')",
    "SELECT rolname || ' ' || rolcanlogin || ' ' || coalesce(shobj_description(oid, 'pg_authid'), 'none') FROM pg_roles WHERE rolname = 'own\"er'",
    "SELECT rolpassword FROM pg_authid WHERE rolname = 'own\"er'",
    "SELECT string_agg(roleid::regrole || ' ' || member::regrole, ',' ORDER BY 1::text) FROM pg_auth_members m WHERE member = 'own\"er'::regrole",
    "SELECT count(*) FROM pg_class WHERE relname IN ('only_here') AND relkind = 'm'",
    "SELECT body(3)",
];

async fn fill(server: &Server) {
    for sql in [
        "CREATE ROLE \"own\"\"er\" LOGIN PASSWORD 'it''s; secret'",
        "COMMENT ON ROLE \"own\"\"er\" IS E'a \\\\ role; of\\nours'",
        "CREATE ROLE guest",
        "GRANT guest TO \"own\"\"er\"",
        &format!("CREATE DATABASE {} OWNER \"own\"\"er\" CONNECTION LIMIT 17", quoted(NAME)),
        &format!("COMMENT ON DATABASE {} IS 'the \"shop\"; DATABASE'", quoted(NAME)),
        &format!("ALTER DATABASE {} SET work_mem = '7MB'", quoted(NAME)),
        &format!("REVOKE ALL ON DATABASE {} FROM PUBLIC", quoted(NAME)),
        &format!("GRANT TEMP ON DATABASE {} TO guest", quoted(NAME)),
    ] {
        server.sql(sql).await;
    }
    for sql in [
        "CREATE SCHEMA \"we\"\"ird; schema\"",
        // Every byte there is, text that looks like the end of a copy, and more than one object of 16 MiB.
        "CREATE TABLE \"we\"\"ird; schema\".\"Bytes\" AS SELECT id, decode(repeat(md5(id::text), 250), 'hex') AS bytes, \
         E'\\\\.\\n\\t\\\\N; ä€🦀' AS text FROM generate_series(1, 4500) id",
        "ALTER TABLE \"we\"\"ird; schema\".\"Bytes\" ADD PRIMARY KEY (id)",
        "SELECT lo_from_bytea(0, decode(repeat('00ff10', 700000), 'hex')), lo_from_bytea(0, ''), lo_from_bytea(77777, 'x')",
        "CREATE TABLE seen (a int GENERATED ALWAYS AS IDENTITY, b text); INSERT INTO seen (b) VALUES ('one'), (NULL), ('')",
        "CREATE SEQUENCE numbers START 40; SELECT nextval('numbers')",
        "CREATE MATERIALIZED VIEW only_here AS SELECT count(*) FROM seen",
        "CREATE FUNCTION body(a int) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT a * 2; END",
    ] {
        ask(server, NAME, sql).await;
    }
}

async fn answers(server: &Server, database: &str) -> Vec<String> {
    let mut answers = Vec::new();
    for question in QUESTIONS {
        answers.push(ask(server, database, question).await);
    }
    answers
}

async fn what_15_held_is_in_17_with_names_bytes_and_large_objects(bench: Bench) {
    let (from, to) = tokio::join!(Server::start(15, Options::default()), Server::start(17, Options::default()));
    fill(&from).await;
    // What is there already is left as it is.
    to.sql("CREATE ROLE guest LOGIN CONNECTION LIMIT 3").await;
    let copy = bench.dump(&from, Databases::All).await.unwrap();
    assert!(copy.databases.iter().any(|database| database.name == NAME && database.stream.chunks > 1), "{copy:?}");
    let (system, taken) = (copy.system, copy.backup.clone());
    let before = answers(&from, NAME).await;

    let check = |sql: &str| Check { sql: sql.to_owned(), database: NAME.to_owned() };
    let mut options = bench.options(&to);
    options.checks = vec![check("SELECT count(*) = 3 FROM seen"), check("SELECT count(*) = 4 FROM seen")];
    let report = bench.restore(&options).await.unwrap();
    assert_eq!(answers(&to, NAME).await, before);
    assert_eq!(
        to.value("SELECT rolcanlogin || ' ' || rolconnlimit FROM pg_roles WHERE rolname = 'guest'").await,
        "true 3"
    );
    assert_eq!((report.system, report.copy.clone(), report.good()), (system, taken, false));
    let passed: Vec<bool> = report.checks.iter().map(|check| check.passed).collect();
    assert_eq!(passed, [true, false], "{:?}", report.checks);
    let roles = |names: &std::collections::BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!((roles(&report.roles_made), roles(&report.roles_left)), ("own\"er".into(), "guest postgres".into()));
    // The database that was empty is put aside, not dropped.
    let aside = report.databases.iter().find(|one| one.name == "postgres").unwrap().moved_aside.clone().unwrap();
    let mut there = vec![aside, "postgres".into(), NAME.into(), "template0".into(), "template1".into()];
    there.sort();
    assert_eq!(databases(&to).await, there);
    let written = to.log();
    assert!(!written.contains("secret"), "the server's log has a password");
}

async fn what_is_there_is_put_aside_only_when_that_is_wanted(bench: Bench) {
    let server = Server::start(15, Options::default()).await;
    server.sql("CREATE DATABASE shop").await;
    ask(&server, "shop", "CREATE TABLE orders AS SELECT generate_series(1, 100) id").await;
    bench.dump(&server, Databases::Named(vec!["shop".into()])).await.unwrap();
    ask(&server, "shop", "DELETE FROM orders WHERE id > 1").await;

    let mut options = bench.options(&server);
    let refused = bench.restore(&options).await.unwrap_err();
    assert!(matches!(&refused, RestoreError::Refused(why) if why.contains("holds something")), "{refused}");
    assert_eq!(ask(&server, "shop", "SELECT count(*) FROM orders").await, "1");

    // Somebody works in it.
    options.force = true;
    let working = server.socket_address();
    let working = Address { database: Some("shop".into()), ..working };
    let session = Connection::open(&working, None, Purpose::Sql).await.unwrap();
    // A server takes a moment to see that those before have gone.
    server.until("SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop'", "1").await;
    let refused = bench.restore(&options).await.unwrap_err();
    assert!(matches!(&refused, RestoreError::Refused(why) if why.contains("in use by 1 session\n")), "{refused}");
    session.close().await;
    server.until("SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop'", "0").await;

    let report = bench.restore(&options).await.unwrap();
    let aside = report.databases[0].moved_aside.clone().unwrap();
    assert!(aside.starts_with("shop_before_2"), "{aside}");
    assert_eq!(ask(&server, "shop", "SELECT count(*) FROM orders").await, "100");
    assert_eq!(ask(&server, &aside, "SELECT count(*) FROM orders").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_killed_restores_left_is_named_with_the_sql_that_takes_it_away() {
    let server = Server::start(15, Options::default()).await;
    server.sql("CREATE DATABASE shop").await;
    let bench = Bench::here();
    bench.dump(&server, Databases::Named(vec!["shop".into()])).await.unwrap();
    let options = bench.options(&server);
    let survey = || async { survey(&bench.plan().await, &options).await.unwrap() };
    let said = survey().await;
    assert!(!said.iter().any(|note| note.contains("unfinished")), "{said:?}");
    // One that nobody fills any more, and one that somebody does.
    let (left, filled) = ("mainstay_unfinished_5_20261123101500", "mainstay_unfinished_6_20261123101500_0000abcd");
    for name in [left, filled] {
        server.sql(&format!("CREATE DATABASE {name}")).await;
    }
    let filling = Address { database: Some(filled.into()), ..server.address() };
    let session = Connection::open(&filling, None, Purpose::Sql).await.unwrap();
    let named = |notes: &[String]| {
        let note = notes.iter().find(|note| note.contains("unfinished")).expect("nothing is said of it").clone();
        assert!(note.contains(&format!("DROP DATABASE \"{left}\"")) && !note.contains(filled), "{note}");
        note.rsplit_once("with: ").unwrap().1.to_owned()
    };
    named(&survey().await);
    let report = bench.restore(&options).await.unwrap();
    server.sql(&named(&report.notes)).await;
    session.close().await;
    server.until("SELECT count(*) FROM pg_stat_activity WHERE datname LIKE 'mainstay_unfinished%'", "0").await;
    let there = databases(&server).await;
    assert!(!there.contains(&left.to_owned()) && there.contains(&filled.to_owned()), "{there:?}");
    // A restore that fails says so, too: what is left takes room.
    let plan = bench.plan().await;
    let (object, read) = (bench.root.join(&plan.copy.objects.last().unwrap().key), AtomicUsize::new(0));
    let gone_then: Arc<dyn Fn(u64) + Send + Sync> = Arc::new(move |_| {
        // The roles, the list and what makes the database are read by then, and its rows are not.
        if read.fetch_add(1, Ordering::Relaxed) == 2 {
            std::fs::remove_file(&object).unwrap();
        }
    });
    server.sql("DROP DATABASE shop").await;
    let failed = logical::restore(bench.repository(), bench.opener.clone(), &plan, &options, gone_then).await;
    let failed = failed.unwrap_err().to_string();
    assert!(failed.contains("hint: from before: ") && failed.contains(filled), "{failed}");
}

/// The commands of `docs/repository-format.md`, as they stand there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_format_says_restores_a_copy_with_public_tools_alone() {
    let (from, to) = tokio::join!(Server::start(15, Options::default()), Server::start(17, Options::default()));
    fill(&from).await;
    let bench = Bench::here();
    let copy = bench.dump(&from, Databases::Named(vec![NAME.into()])).await.unwrap();
    let before = answers(&from, NAME).await;
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/repository-format.md")).unwrap();
    let section = page.split_once("\n## A logical copy by hand\n").expect("the section is there").1;
    let script = section.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let (system, oid) = (copy.system.to_string(), copy.databases[0].oid.to_string());
    let names =
        [("7432101234567890123", &system), ("20261123T101500Z-1a2b3c4d", &copy.backup.to_string()), ("16385", &oid)];
    let script = names.into_iter().fold(script.to_owned(), |script, (theirs, ours)| script.replace(theirs, ours));
    let hand = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&bench.root, hand.path().join("R")).unwrap();
    std::fs::write(hand.path().join("identity.txt"), &bench.identity).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-euc", &script]).current_dir(hand.path());
    shell.env("PATH", format!("{}:/usr/bin:/bin", Server::bin(15).display()));
    shell.env("PGHOST", "127.0.0.1").env("PGPORT", to.port().to_string()).env("PGUSER", "postgres");
    let out = shell.output().unwrap();
    assert!(out.status.success(), "{script}\n{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(answers(&to, NAME).await, before);
}
