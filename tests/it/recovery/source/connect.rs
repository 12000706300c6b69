//! Sign-in, TLS and several hosts, good and bad.

use crate::support::postgres::{Options, Server, Stop};
use mainstay::backup::source::postgres::{Address, Connection, Host, PostgresError, Purpose};
use mainstay::config::secret::Secret;
use std::time::{Duration, Instant};

async fn open(url: &str) -> Result<Connection, PostgresError> {
    Connection::open(&Address::parse(url).unwrap(), None, Purpose::Replication).await
}

/// Why it was refused, in full.
async fn refused(url: &str) -> String {
    match open(url).await {
        Ok(connection) => panic!("{url}: signed in to {connection:?}"),
        Err(error) => error.to_string(),
    }
}

/// Roles with each kind of password; lines of `pg_hba.conf` that ask for it, over TLS and without.
async fn roles(version: u32, tls: bool) -> Server {
    let mut hba = Vec::new();
    for (role, way) in [
        ("r_scram", "scram-sha-256"),
        ("r_md5", "md5"),
        ("r_clear", "password"),
        ("r_trust", "trust"),
        ("r_plain", "trust"),
    ] {
        for database in ["replication", "all"] {
            hba.push(format!("local {database} {role} {way}"));
            // `r_plain` is let in without TLS only.
            let kind = if role == "r_plain" { "hostnossl" } else { "host" };
            hba.push(format!("{kind} {database} {role} 127.0.0.1/32 {way}"));
        }
    }
    hba.push("host all r_plain all reject".into());
    hba.push("host replication r_plain all reject".into());
    let server = Server::start(version, Options { tls, hba, ..Options::default() }).await;
    for (role, encryption) in [
        ("r_scram", "scram-sha-256"),
        ("r_md5", "md5"),
        ("r_clear", "scram-sha-256"),
        ("r_trust", "md5"),
        ("r_plain", "md5"),
        ("r_none", "md5"),
    ] {
        let right = if role == "r_none" { "NOREPLICATION" } else { "REPLICATION" };
        server
            .sql(&format!(
                "SET password_encryption = '{encryption}'; CREATE ROLE {role} LOGIN {right} PASSWORD 'p@ss:wörd'"
            ))
            .await;
    }
    server
}

#[tokio::test]
async fn each_way_to_sign_in_works_with_the_password_only() {
    for version in Server::versions() {
        let server = roles(version, false).await;
        let port = server.port();
        for (role, mode) in [("r_scram", "prefer"), ("r_md5", "prefer"), ("r_clear", "disable"), ("r_trust", "prefer")]
        {
            let mut connection =
                open(&format!("postgres://{role}:p%40ss%3Aw%C3%B6rd@127.0.0.1:{port}/?sslmode={mode}")).await.unwrap();
            connection.identify().await.unwrap();
            assert!(!connection.is_encrypted());
            if role == "r_trust" {
                continue;
            }
            let error = refused(&format!("postgres://{role}:s3cret@127.0.0.1:{port}/?sslmode={mode}")).await;
            assert!(error.contains("28P01") && !error.contains("s3cret"), "{error}");
            let error = refused(&format!("postgres://{role}@127.0.0.1:{port}/?sslmode={mode}")).await;
            assert!(error.contains("wants a password, and none is given"), "{error}");
        }
        // A password beside the address goes before the one in it. Over the socket, clear text is as good as any.
        let socket = server.socket().display().to_string().replace('/', "%2F");
        let address = Address::parse(&format!("postgres://r_clear:wrong@{socket}:{port}/")).unwrap();
        let password = Secret::new("p@ss:wörd");
        Connection::open(&address, Some(&password), Purpose::Replication).await.unwrap();
        // Nobody asks for a password in clear text by surprise.
        let error = refused(&format!("postgres://r_clear:s3cret@127.0.0.1:{port}/")).await;
        assert!(error.contains("clear text") && error.contains("hint:") && !error.contains("s3cret"), "{error}");
        // Without the right to replicate.
        let error = open(&format!("postgres://r_none:p%40ss%3Aw%C3%B6rd@127.0.0.1:{port}/")).await.unwrap_err();
        assert_eq!(error.code(), Some("42501"), "{error}");
        assert!(!error.is_passing());
        let error = open(&format!("postgres://nobody@127.0.0.1:{port}/")).await.unwrap_err();
        assert_eq!(error.code(), Some("28000"), "{error}");
        // No TLS there.
        let error = refused(&format!("postgres://r_trust@127.0.0.1:{port}/?sslmode=require")).await;
        assert!(error.contains("the server has no TLS") && error.contains("hint:"), "{error}");
        let error =
            refused(&format!("postgres://r_scram:p%40ss%3Aw%C3%B6rd@127.0.0.1:{port}/?channel_binding=require")).await;
        assert!(error.contains("channel_binding=require"), "{error}");
    }
}

#[tokio::test]
async fn tls_is_as_strict_as_its_mode() {
    for version in Server::versions() {
        let server = roles(version, true).await;
        let other = tempfile::tempdir().unwrap();
        let stranger = other.path().join("stranger.crt");
        let mut command = std::process::Command::new("openssl");
        command.args([
            "req",
            "-x509",
            "-subj",
            "/CN=test CA",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ]);
        crate::support::postgres::run(command.arg("-keyout").arg(other.path().join("key")).arg("-out").arg(&stranger));
        let (port, ca, stranger) = (server.port(), server.ca().display().to_string(), stranger.display().to_string());
        let url = |host: &str, rest: &str| format!("postgres://r_scram:p%40ss%3Aw%C3%B6rd@{host}:{port}/?{rest}");

        for (host, rest) in [
            ("localhost", format!("sslmode=verify-full&sslrootcert={ca}")),
            ("localhost", format!("sslmode=verify-full&sslrootcert={ca}&channel_binding=require")),
            ("localhost", format!("sslmode=verify-full&sslrootcert={ca}&channel_binding=disable")),
            ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={ca}")),
            ("127.0.0.1", "sslmode=require".into()),
            ("127.0.0.1", "sslmode=prefer".into()),
        ] {
            let connection = open(&url(host, &rest)).await.unwrap_or_else(|error| panic!("{host} {rest}: {error}"));
            assert!(connection.is_encrypted(), "{host} {rest}");
        }
        for (host, rest) in [("127.0.0.1", "sslmode=disable"), ("127.0.0.1", "sslmode=allow")] {
            assert!(!open(&url(host, rest)).await.unwrap().is_encrypted());
        }
        for (host, rest, said) in [
            ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={ca}"), "for another name"),
            ("localhost", format!("sslmode=verify-full&sslrootcert={stranger}"), "hint: "),
            ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={stranger}"), "hint: "),
            // What the system trusts has not signed it.
            ("localhost", "sslmode=verify-full".into(), "sslrootcert=FILE"),
            ("localhost", "sslmode=verify-full&sslrootcert=/nonexistent/ca.pem".into(), "/nonexistent/ca.pem"),
        ] {
            let error = refused(&url(host, &rest)).await;
            assert!(error.contains(said), "{host} {rest}: {error}");
        }
        // Clear text and md5 are good enough over TLS, and cannot be bound to it.
        for role in ["r_clear", "r_md5"] {
            let url = format!("postgres://{role}:p%40ss%3Aw%C3%B6rd@127.0.0.1:{port}/?sslmode=require");
            assert!(open(&url).await.unwrap().is_encrypted());
            assert!(refused(&format!("{url}&channel_binding=require")).await.contains("cannot be bound"), "{role}");
        }
        // Trust proves nothing to whoever asked for a bound sign-in.
        let error =
            refused(&format!("postgres://r_trust@127.0.0.1:{port}/?sslmode=require&channel_binding=require")).await;
        assert!(error.contains("did not prove"), "{error}");
        // Let in without TLS only: what prefers TLS finds its way, what requires it does not.
        assert!(!open(&format!("postgres://r_plain@127.0.0.1:{port}/?sslmode=prefer")).await.unwrap().is_encrypted());
        let error = open(&format!("postgres://r_plain@127.0.0.1:{port}/?sslmode=require")).await.unwrap_err();
        assert_eq!(error.code(), Some("28000"), "{error}");
        // The log and base backups over TLS.
        let address = Address::parse(&url("localhost", &format!("sslmode=verify-full&sslrootcert={ca}"))).unwrap();
        let connection = Connection::open(&address, None, Purpose::Replication).await.unwrap();
        let mut backup =
            mainstay::backup::source::postgres::BaseBackup::start(connection, &Default::default(), None).await.unwrap();
        while backup.next().await.unwrap().is_some() {}
        assert!(backup.into_connection().is_some());
    }
}

#[tokio::test]
async fn several_hosts_are_tried_for_the_one_that_will_do() {
    let primary = Server::start(15, Options::default()).await;
    let mut standby = Server::standby(&primary, Options::default()).await;
    let (p, s) = (primary.port(), standby.port());
    let both = format!("postgres://postgres@127.0.0.1:{s},127.0.0.1:{p}/?sslmode=disable");
    for (attrs, port) in
        [("any", s), ("primary", p), ("read-write", p), ("standby", s), ("read-only", s), ("prefer-standby", s)]
    {
        let connection = open(&format!("{both}&target_session_attrs={attrs}")).await.unwrap();
        assert_eq!(*connection.host(), Host::Tcp("127.0.0.1".into(), port), "{attrs}");
    }
    standby.stop(Stop::Immediate).await;
    for attrs in ["any", "prefer-standby", "primary"] {
        let connection = open(&format!("{both}&target_session_attrs={attrs}")).await.unwrap();
        assert_eq!(*connection.host(), Host::Tcp("127.0.0.1".into(), p), "{attrs}");
    }
    let error = open(&format!("{both}&target_session_attrs=standby")).await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains("not a standby") && said.contains("refused") && said.contains(&s.to_string()), "{said}");
}

#[tokio::test]
async fn what_does_not_answer_is_given_up_in_time() {
    // It takes connections and says nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let began = Instant::now();
    let error = refused(&format!("postgres://b@127.0.0.1:{port}/?connect_timeout=1")).await;
    assert!(error.contains("no answer within 1 s"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(8));
    // It is no PostgreSQL.
    std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    for mode in ["disable", "require"] {
        let error = refused(&format!("postgres://b@127.0.0.1:{port}/?connect_timeout=5&sslmode={mode}")).await;
        assert!(error.contains("PostgreSQL"), "{error}");
    }
    let error = refused("postgres://b@%2Fnonexistent/").await;
    assert!(error.contains("/nonexistent/.s.PGSQL.5432"), "{error}");
}
