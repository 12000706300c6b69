//! Logical copies of real servers, and the way back into other ones, of another major version too.

/// The same test with programs of this machine and with those of an image.
macro_rules! both_ways {
    ($($name:ident),+ $(,)?) => {
        mod here {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Bench::here()).await;
            })+
        }
        mod in_image {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Bench::in_image()).await;
            })+
        }
    };
}

mod bench;
mod broken;
mod contained;
mod into;
mod story;

both_ways!(a_copy_has_every_object_and_its_manifest_last, what_cannot_be_copied_is_no_copy);

use self::bench::Bench;
use crate::support::postgres::{Options, Server};
use mainstay::backup::logical::{DumpError, ProgramError};
use mainstay::backup::repository::Key;
use mainstay::config::backup::Databases;
use mainstay::config::secret::Secret;

async fn a_copy_has_every_object_and_its_manifest_last(bench: Bench) {
    let server = Server::start(15, Options::default()).await;
    for sql in [
        "CREATE DATABASE one",
        "CREATE DATABASE \"two 'and' \"\"three\"\"\"",
        "CREATE DATABASE shut ALLOW_CONNECTIONS false",
    ] {
        server.sql(sql).await;
    }
    let copy = bench.dump(&server, Databases::All).await.unwrap();
    let names: Vec<&str> = copy.databases.iter().map(|database| database.name.as_str()).collect();
    assert_eq!(names, ["one", "postgres", "two 'and' \"three\""]);
    assert_eq!((copy.major(), copy.role_passwords, copy.globals.chunks), (15, true, 1));
    let holdings = bench.holdings().await;
    let dump = &holdings.dumps.good[&copy.backup];
    assert_eq!((&dump.manifest, dump.unusable(), holdings.has_physical()), (&copy, None, false));
    assert!(dump.extra.is_empty() && holdings.dumps.unfinished.is_empty());
    // Nothing of it lies there in the clear, but for the manifest.
    for object in &copy.objects {
        let stored = bench.repository().get(&object.key.parse::<Key>().unwrap()).await.unwrap();
        assert!(stored.bytes().starts_with(b"age-encryption.org/v1"), "{}", object.key);
    }
}

async fn what_cannot_be_copied_is_no_copy(bench: Bench) {
    let hba = vec!["host all guarded 127.0.0.1/32 scram-sha-256".to_owned()];
    let server = Server::start(15, Options { hba, ..Options::default() }).await;
    server.sql("CREATE ROLE guarded LOGIN SUPERUSER PASSWORD 'right'").await;
    // A wrong password, then the right one: it is found nowhere but in the address.
    let mut address = server.address();
    address.user = "guarded".into();
    address.password = Some(Secret::new("wrong"));
    let named = || Databases::Named(vec!["postgres".to_owned()]);
    let refused = bench.dump_from(&address, named()).await.unwrap_err();
    assert!(matches!(&refused, DumpError::Postgres(_)) && refused.to_string().contains("28P01"), "{refused}");
    assert!(bench.names().await.is_empty());
    address.password = Some(Secret::new("right"));
    bench.dump_from(&address, named()).await.unwrap();

    // A role that may not read everything, and one that may not read the passwords of others.
    server.sql("CREATE ROLE lesser LOGIN; CREATE TABLE hidden (a int)").await;
    address = server.address();
    address.user = "lesser".into();
    let refused = bench.dump_from(&address, named()).await.unwrap_err();
    assert!(refused.to_string().contains("permission denied for table hidden"), "{refused}");
    server.sql("GRANT pg_read_all_data TO lesser; REVOKE SELECT ON pg_authid FROM lesser").await;
    server.sql("ALTER ROLE lesser RENAME TO reader").await;
    address.user = "reader".into();
    let copy = bench.dump_from(&address, named()).await.unwrap();
    // It reads all data, those of pg_authid too.
    assert!(copy.role_passwords);

    let refused = bench.dump(&server, Databases::Named(vec!["nowhere".into()])).await.unwrap_err();
    assert!(matches!(&refused, DumpError::NoDatabase(name) if name == "nowhere"), "{refused}");
    let nowhere = Bench::at("/nowhere");
    let refused = nowhere.dump(&server, named()).await.unwrap_err();
    assert!(refused.to_string().contains("there is none in /nowhere"), "{refused}");
    assert_eq!(bench.holdings().await.dumps.good.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_newer_than_the_programs_is_refused() {
    let server = Server::start(17, Options::default()).await;
    let bench = Bench::at(Server::bin(15));
    let refused = bench.dump(&server, Databases::All).await.unwrap_err();
    let DumpError::Program(ProgramError::NotFound { program: "pg_dump", at_least: 17, what }) = &refused else {
        panic!("{refused}")
    };
    assert!(what.contains("pg_dump (PostgreSQL) 15."), "{refused}");
    assert!(bench.names().await.is_empty());
}
