//! What `doctor` says mends what it found: each piece of SQL and each line is run, and the finding is gone.

use crate::support::postgres::{Options, Server, Stop};
use mainstay::backup::source::postgres::Address;
use mainstay::backup::source::postgres::advise::{Check, Needs, Verdict, check};
use std::fs;

fn of<'a>(checks: &'a [Check], what: &str) -> &'a Check {
    checks.iter().find(|check| check.what == what).unwrap_or_else(|| panic!("no check of {what}: {checks:?}"))
}

/// Does what the check says, as a person would.
async fn mend(server: &mut Server, check: &Check) {
    for step in &check.mend {
        if step == "restart the server" {
            server.stop(Stop::Fast).await;
            server.start_again().await;
        } else if let Some(line) =
            step.split_once("add to pg_hba.conf, above any line that refuses it: ").map(|(_, line)| line)
        {
            let file = server.data().join("pg_hba.conf");
            let text = format!("{line}\n{}", fs::read_to_string(&file).unwrap());
            fs::write(&file, text).unwrap();
        } else if let Some((sql, _)) = step.split_once(';') {
            server.sql(sql).await;
        }
    }
}

#[tokio::test]
async fn settings_that_will_not_do_are_mended_by_what_is_said() {
    for version in Server::versions() {
        let mut server = Server::start(version, Options::with(&["wal_sender_timeout = 2s"])).await;
        // Where ALTER SYSTEM writes to, which goes before the file that the harness writes.
        for sql in ["SET wal_level = 'minimal'", "SET max_wal_senders = 0", "SET max_replication_slots = 0"] {
            server.sql(&format!("ALTER SYSTEM {sql}")).await;
        }
        server.stop(Stop::Fast).await;
        server.start_again().await;
        let needs = Needs { slot: Some("mainstay".into()), synchronous: true, step_down: true, incremental: true };
        let checks = check(&server.address(), None, &needs).await;
        // Nobody can connect for replication, and the rest is asked over SQL.
        assert_eq!(of(&checks, "replication").verdict, Verdict::Bad);
        for (what, verdict) in [
            ("SQL", Verdict::Good),
            ("wal_level", Verdict::Bad),
            ("max_wal_senders", Verdict::Bad),
            ("max_replication_slots", Verdict::Bad),
            ("max_slot_wal_keep_size", Verdict::Careful),
            ("wal_sender_timeout", Verdict::Careful),
            ("synchronous_standby_names", Verdict::Bad),
            ("slot", Verdict::Bad),
        ] {
            assert_eq!(of(&checks, what).verdict, verdict, "{version}: {:?}", of(&checks, what));
        }
        let old = version < 17;
        assert_eq!(checks.iter().any(|check| check.what == "summarize_wal"), !old);
        let incremental = checks.iter().find(|check| check.what == "incremental");
        assert_eq!(incremental.map(|check| check.verdict), old.then_some(Verdict::Careful), "{version}");
        // No SQL mends that.
        let needs = Needs { incremental: !old, ..needs };
        let whats = [
            "replication",
            "max_replication_slots",
            "max_slot_wal_keep_size",
            "wal_sender_timeout",
            "summarize_wal",
            "synchronous_standby_names",
        ];
        for what in whats {
            if let Some(check) = checks.iter().find(|check| check.what == what) {
                assert!(!check.mend.is_empty(), "{check:?}");
                mend(&mut server, check).await;
            }
        }
        server.until("SHOW wal_sender_timeout", "1min").await;
        let checks = check(&server.address(), None, &needs).await;
        let left: Vec<_> = checks.iter().filter(|check| check.verdict != Verdict::Good).collect();
        assert!(left.is_empty(), "{version}: {left:?}");
    }
}

#[tokio::test]
async fn refusals_are_told_by_their_codes_and_mended() {
    for version in Server::versions() {
        let hba = vec![
            "host replication backup all reject".to_owned(),
            "host all backup 127.0.0.1/32 scram-sha-256".to_owned(),
        ];
        let mut server = Server::start(version, Options { hba, ..Options::default() }).await;
        let port = server.port();
        let address = Address::parse(&format!("postgres://backup:secret@127.0.0.1:{port}/")).unwrap();
        let needs = Needs::default();
        let first = |checks: &[Check]| (of(checks, "replication").clone(), of(checks, "SQL").clone());

        // pg_hba.conf refuses one, and there is no such role for the other.
        let (replication, sql) = first(&check(&address, None, &needs).await);
        assert_eq!((replication.verdict, sql.verdict), (Verdict::Bad, Verdict::Careful));
        assert!(
            replication.mend[0].contains("host replication \"backup\" 127.0.0.1/32 scram-sha-256"),
            "{replication:?}"
        );
        mend(&mut server, &replication).await;
        // A wrong password and a missing role look the same with SCRAM.
        let (replication, _) = first(&check(&address, None, &needs).await);
        assert!(
            replication.found.contains("28P01") && replication.mend[0].contains("ALTER ROLE \"backup\" PASSWORD"),
            "{replication:?}"
        );
        server.sql("CREATE ROLE backup LOGIN PASSWORD 'secret'").await;
        // It may not replicate.
        let (replication, sql) = first(&check(&address, None, &needs).await);
        assert_eq!(sql.verdict, Verdict::Good, "{sql:?}");
        assert_eq!(replication.mend, ["ALTER ROLE \"backup\" REPLICATION;"]);
        mend(&mut server, &replication).await;
        let (replication, _) = first(&check(&address, None, &needs).await);
        assert_eq!(replication.verdict, Verdict::Good, "{replication:?}");
        // Trusted, but unknown.
        let nobody = Address::parse(&format!("postgres://no%22body@127.0.0.1:{port}/")).unwrap();
        let (replication, _) = first(&check(&nobody, None, &needs).await);
        assert!(replication.mend[0].starts_with("CREATE ROLE \"no\"\"body\" LOGIN REPLICATION"), "{replication:?}");
        // Nobody there.
        server.stop(Stop::Immediate).await;
        let checks = check(&address, None, &needs).await;
        assert!(of(&checks, "replication").mend[0].contains("listen_addresses"), "{checks:?}");
        assert_eq!(checks.len(), 2);
    }
}
