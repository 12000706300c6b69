use super::*;
use crate::backup::source::postgres::{Host, Tls};
use std::fs;

fn with<T>(folder: &Path, act: impl FnOnce(&Around<'_>) -> T) -> T {
    let env = |name: &str| match name {
        "IMAGE" => Some("hub.example.com/postgres:17".to_owned()),
        "PASSWORD" => Some("hush-hush".to_owned()),
        "URL" => Some("postgres://who:hush-hush@db.example.com/?sslmode=prefer".to_owned()),
        "EMPTY" => Some(String::new()),
        "SQL" => Some("select 'hush-hush'".to_owned()),
        _ => None,
    };
    let store = SecretStore::new(&folder.join("state"));
    act(&Around { env: &env, folder, store: &store, repos: Some(&["shop"]) })
}

fn read_in(folder: &Path, text: &str) -> Result<Source, Findings> {
    with(folder, |around| parse(&SourceName::new("Shop-DB").unwrap(), "backups/Shop-DB.yml", text, around))
}

fn read(text: &str) -> Result<Source, Findings> {
    read_in(Path::new("/srv/ci/backups"), text)
}

/// A good file with these lines in it.
fn source(more: &str) -> Source {
    let text = format!("postgres: 'postgres://b@[::1]'\n{more}\n");
    read(&text).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn with_nothing_but_a_server_it_works() {
    let source = source("");
    assert_eq!((source.name.as_str(), source.slot.as_str()), ("Shop-DB", "mainstay_shop_db"));
    assert_eq!((source.rpo, source.rto, source.schedule.is_none()), (None, None, true));
    assert_eq!((source.ship_every, source.synchronous, source.step_down), ("1s".parse().unwrap(), false, None));
    assert_eq!((source.keep.window.to_string().as_str(), source.keep.backups), ("14d", 7));
    assert_eq!(source.wal_lag, WalLag::default());
    assert!(source.from.is_empty() && source.restore.is_none() && source.secret_values().is_empty());
    assert!(source.incremental.is_none());
    assert_eq!(source.written, "postgres: 'postgres://b@[::1]'\n\n");
}

#[test]
fn everything_is_understood_and_no_password_prints() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ca.pem"), "x").unwrap();
    let text = r#"
postgres: "postgres://backup@db.example.com:6432/shop?sslmode=verify-ca&sslrootcert=ca.pem"
password: "${PASSWORD}"
kind: physical
rpo: 0s
rto: 1h
schedule: "0 2 * * * Europe/Paris"
incremental: { schedule: "30 * * * *", chain: 12 }
synchronous: true
step-down: 30s
slot: shop_1
wal-lag: { policy: drop-slot, warn: 1GiB, alarm: 8GiB, drop: 32GiB }
keep: { window: 30d, backups: 3 }
from: [{ repo: shop, branches: [main], pipelines: [nightly] }]
restore:
  into: server
  target: ../restored
  user: postgres
  bin: /usr/lib/postgresql/17/bin
  port: 5433
  then: ["./switch-traffic.sh"]
  checks: [{ sql: "select true" }, { sql: "select count(*) > 0 from orders", database: shop }]
"#;
    let source = read_in(folder.path(), text).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(source.postgres.hosts, [Host::Tcp("db.example.com".into(), 6432)]);
    assert_eq!((source.postgres.user.as_str(), source.postgres.database()), ("backup", "shop"));
    assert_eq!(source.postgres.password.as_ref().map(Secret::expose), Some("hush-hush"));
    assert_eq!(
        (source.postgres.tls, &source.postgres.roots),
        (Tls::VerifyCa, &Roots::File(folder.path().join("ca.pem")))
    );
    assert_eq!((source.rpo, source.rto), (Some(Span(Duration::ZERO)), Some("1h".parse().unwrap())));
    assert_eq!(source.schedule.as_ref().unwrap().as_str(), "0 2 * * * Europe/Paris");
    let incremental = source.incremental.as_ref().unwrap();
    assert_eq!((incremental.schedule.as_str(), incremental.chain), ("30 * * * *", 12));
    assert_eq!((source.synchronous, source.step_down), (true, Some("30s".parse().unwrap())));
    assert_eq!(source.slot, "shop_1");
    assert_eq!((source.keep.window, source.keep.backups), ("30d".parse().unwrap(), 3));
    let lag = WalLag {
        policy: LagPolicy::DropSlot { at: ByteSize(32 << 30) },
        warn: ByteSize(1 << 30),
        alarm: ByteSize(8 << 30),
    };
    assert_eq!(source.wal_lag, lag);
    let [from] = source.from.as_slice() else { panic!() };
    assert!(from.repo.as_str() == "shop" && from.branches.matches("main") && !from.branches.matches("x"));
    let restore = source.restore.as_ref().unwrap();
    assert_eq!(restore.target.as_deref(), folder.path().parent().map(|at| at.join("restored")).as_deref());
    assert_eq!(
        (restore.user.as_deref(), restore.then.as_slice()),
        (Some("postgres"), &["./switch-traffic.sh".into()][..])
    );
    let RestoreInto::Server(server) = &restore.into else { panic!() };
    assert_eq!((server.port, server.bin.as_deref()), (5433, Some(Path::new("/usr/lib/postgresql/17/bin"))));
    let databases: Vec<_> = server.checks.iter().map(|check| check.database.as_str()).collect();
    assert_eq!(databases, ["postgres", "shop"]);
    let masked: Vec<_> = source.secret_values().iter().map(Secret::expose).collect();
    assert_eq!(masked, ["hush-hush"]);
    assert!(!format!("{source:?}").contains("hush-hush"), "{source:?}");
    assert_eq!(source.written, text);
}

#[test]
fn incremental_backups_have_a_schedule_and_a_bound() {
    assert_eq!(source("incremental: { schedule: '0 * * * *' }").incremental.unwrap().chain, 24);
    for (text, says) in [
        ("incremental: true", "`incremental`"),
        ("incremental: { chain: 3 }", "needs `schedule`"),
        ("incremental: { schedule: ['0 * * * *'] }", "one schedule"),
        ("incremental: { schedule: 'hourly' }", "`schedule`"),
        ("incremental: { schedule: '0 * * * *', chain: 0 }", "`chain`"),
        ("incremental: { schedule: '0 * * * *', chain: 201 }", "`chain`"),
        ("incremental: { schedule: '0 * * * *', every: 3 }", "every"),
    ] {
        let error = read(&format!("postgres: 'postgres://b@[::1]'\n{text}\n")).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn a_restore_may_end_with_a_folder() {
    let restore = source("restore: { into: folder, target: /srv/x, then: echo }").restore.unwrap();
    assert_eq!((restore.into, restore.target.as_deref()), (RestoreInto::Folder, Some(Path::new("/srv/x"))));
    let RestoreInto::Server(server) = source("restore: { into: server }").restore.unwrap().into else { panic!() };
    assert_eq!((server.port, server.bin, server.checks.len()), (5432, None, 0));
    let text = "restore: { into: server, checks: { sql: select true } }";
    let RestoreInto::Server(server) = source(text).restore.unwrap().into else { panic!() };
    assert_eq!(server.checks[0].sql, "select true");
}

#[test]
fn a_restore_may_end_with_a_container_or_its_volume() {
    let restore = |text: &str| source(text).restore.unwrap();
    let RestoreInto::Container(least) = restore("restore: { into: container, image: 'postgres:17' }").into else {
        panic!()
    };
    let usual = RestoreContainer {
        image: "postgres:17".into(),
        volume: None,
        name: None,
        listen: [127, 0, 0, 1].into(),
        port: 5432,
        network: None,
        checks: Vec::new(),
    };
    assert_eq!(least, usual);
    let text = "restore: { into: container, image: x, volume: shop_db.2, name: shop-db, listen: 0.0.0.0, port: 5433, \
                network: shop, user: '999:999', checks: { sql: select true } }";
    let all = restore(text);
    assert_eq!(all.user.as_deref(), Some("999:999"));
    let RestoreInto::Container(all) = all.into else { panic!() };
    assert_eq!((all.volume.as_deref(), all.name.as_deref()), (Some("shop_db.2"), Some("shop-db")));
    assert_eq!((all.listen.to_string().as_str(), all.port, all.network.as_deref()), ("0.0.0.0", 5433, Some("shop")));
    assert_eq!(all.checks.len(), 1);
    let folder = restore("restore: { into: container, image: x, target: /srv/x }");
    assert_eq!(folder.target.as_deref(), Some(Path::new("/srv/x")));
    let volume = RestoreVolume { image: "x".into(), volume: Some("v1".into()) };
    assert_eq!(restore("restore: { into: volume, image: x, volume: v1 }").into, RestoreInto::Volume(volume));
}

#[test]
fn a_bare_machine_reads_how_to_restore_and_needs_nothing_else_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let read = |text: &str| with(folder.path(), |around| parse_restore("x.yml", text, around));
    let text = "postgres: '${NOPE}'\npassword: '${secret:NOPE}'\nnew-key: 1\nrestore: { into: folder, target: data }\n";
    let restore = read(text).unwrap().unwrap();
    assert_eq!(restore.target, Some(folder.path().join("data")));
    assert_eq!(read("postgres: x").unwrap(), None);
    assert!(read("restore: { into: nowhere }").unwrap_err().to_string().contains("x.yml:1:18"));
    assert!(read("restore: { into: folder, target: '${NOPE}' }").is_err());
    assert!(read("a: [").is_err());
}

#[test]
fn the_usual_slot_is_one_that_a_server_takes() {
    for (name, slot) in [("a", "mainstay_a"), ("Shop-DB.v2", "mainstay_shop_db_v2")] {
        assert_eq!(usual_slot(&SourceName::new(name).unwrap()), slot);
    }
    let long = usual_slot(&SourceName::new("x".repeat(63)).unwrap());
    assert_eq!(long.len(), SLOT_MAX_BYTES);
}

#[test]
fn thresholds_that_are_not_written_follow_those_that_are() {
    let lag = |text: &str| {
        let lag = source(&format!("wal-lag: {text}")).wal_lag;
        (lag.warn.to_string(), lag.alarm.to_string())
    };
    for (text, warn, alarm) in [
        ("{}", "1GiB", "4GiB"),
        ("{ warn: 8GiB }", "8GiB", "16GiB"),
        ("{ alarm: 1GiB }", "512MiB", "1GiB"),
        ("{ policy: drop-slot, drop: 5GiB }", "1GiB", "4GiB"),
    ] {
        assert_eq!(lag(text), (warn.to_owned(), alarm.to_owned()), "{text}");
    }
}

#[test]
fn each_mistake_has_its_sentence_and_its_place() {
    let table = [
        ("redsi: x", "unknown key `redsi` in the source", "redsi"),
        ("redis: x", "`redis` is part of the language, but not of this version", "redis"),
        ("drill: { schedule: x }", "`drill` is part of the language, but not of this version", "drill"),
        ("kind: logcal", "`logcal` is not known for `kind`", "logcal"),
        ("password: hush-hush", "a password stands in `password`", "hush-hush"),
        ("password: 'hush-$${X}'", "a password stands in `password`", "'hush"),
        ("password: '${EMPTY}'", "`password` is empty", "'${EMPTY"),
        ("password: '${NOPE}'", "`NOPE` is not set", "'${NOPE"),
        ("password: '${secret:NOPE}'", "there is no secret `NOPE`", "'${secret"),
        ("rpo: 15", "`15` is not a duration", "15"),
        ("rpo: 0s", "under `ship-every`, 1s", "0s"),
        ("rpo: 500ms", "under `ship-every`, 1s", "500ms"),
        ("rto: 0s", "`rto` is at least 1s", "0s"),
        ("schedule: '@daily'", "`schedule`: a schedule has five fields", "'@daily"),
        ("schedule: '0 2 * * * Europe/Pariss'", "is not a time zone", "'0 2"),
        ("schedule: ['0 2 * * *']", "a source has one schedule", "['0"),
        ("ship-every: 10ms", "`ship-every` is at least 100ms", "10ms"),
        ("ship-every: 2h", "`ship-every` is at most 1h", "2h"),
        ("synchronous: yes", "`synchronous` is `true` or `false`", "yes"),
        ("step-down: 30s", "this one is none", "step-down"),
        ("slot: Shop", "`Shop` cannot be the name of a replication slot", "Shop"),
        ("slot: ''", "cannot be the name of a replication slot", "''"),
        ("wal-lag: { policy: drop }", "`drop` is not known for `policy`", "drop }"),
        ("wal-lag: { policy: drop-slot }", "`drop-slot` needs `drop`", "{ policy"),
        ("wal-lag: { drop: 8GiB }", "with the policy `alert` it never is", "drop"),
        ("wal-lag: { policy: alert, drop: 8GiB }", "with the policy `alert` it never is", "drop"),
        ("wal-lag: { warn: 1MiB }", "`warn` is at least 16MiB", "1MiB"),
        ("wal-lag: { warn: 4GiB, alarm: 4GiB }", "`alarm` is above `warn`, 4GiB", "4GiB }"),
        ("wal-lag: { policy: drop-slot, drop: 4GiB }", "`drop` is above `alarm`, 4GiB", "4GiB"),
        ("wal-lag: { space: 4GiB }", "unknown key `space` in `wal-lag`", "space"),
        ("keep: { backups: 0 }", "`backups` is a whole number from 1 to 1000", "0 }"),
        ("keep: { window: 0s }", "`window` is at least 1s", "0s"),
        ("keep: 14d", "`keep` is a map", "14d"),
        ("from: []", "`from` is empty", "[]"),
        ("from: [{ repo: shopp, branches: main }]", "there is no repository `shopp`", "shopp"),
        ("from: [{ repo: shop }]", "an entry of `from` needs `branches`", "{ repo"),
        ("restore: {}", "`restore` needs `into`", "{}"),
        ("restore: { into: container }", "needs `image`", "{ into"),
        ("restore: { into: volume, image: x, target: /x }", "`target` means nothing with `into: volume`", "target"),
        ("restore: { into: volume, image: x, port: 1 }", "`port` means nothing with `into: volume`", "port"),
        ("restore: { into: server, image: x }", "`image` means nothing with `into: server`", "image"),
        ("restore: { into: container, image: x, bin: /x }", "`bin` means nothing with `into: container`", "bin"),
        ("restore: { into: container, image: 'a b' }", "is not the name of an image", "'a b'"),
        ("restore: { into: container, image: x, name: -x }", "is not a name for the container engine", "-x"),
        ("restore: { into: container, image: x, listen: here }", "is not an address", "here"),
        ("restore: { into: container, image: x, user: '1:x' }", "is not the name of a user", "'1:x'"),
        ("restore: { into: server, user: '999' }", "is not the name of a user", "'999'"),
        ("restore: { into: container, image: x, volume: v1, target: /x }", "a volume or into a folder", "volume"),
        ("restore: { into: sever }", "`sever` is not known for `into`", "sever"),
        ("restore: { into: folder, port: 1 }", "`port` means nothing with `into: folder`", "port"),
        ("restore: { into: folder, checks: [{ sql: x }] }", "`checks` means nothing with `into: folder`", "checks"),
        ("restore: { into: server, port: 0 }", "from 1 to 65535", "0 }"),
        ("restore: { into: server, target: / }", "a folder other than `/`", "/ }"),
        ("restore: { into: server, user: '0 x' }", "not the name of a user", "'0 x"),
        ("restore: { into: server, then: [] }", "`then` is empty", "[]"),
        ("restore: { into: server, checks: [{ database: x }] }", "needs `sql`", "{ database"),
        ("restore: { into: server, checks: [select] }", "an entry of `checks` is a map", "select"),
    ];
    for (text, words, place) in table {
        let findings = read(&format!("{text}\npostgres: 'postgres://b@[::1]'\n")).expect_err(text);
        let [finding] = findings.list.as_slice() else { panic!("{text}\n{findings}") };
        assert!(finding.message.contains(words), "{text}\n--- wanted: {words}\n--- said:\n{findings}");
        // The first one may be the key that says what the value may be.
        let column = if text.starts_with("wal-lag: { policy: drop-slot, drop") || words.contains("`drop` is not") {
            text.rfind(place)
        } else {
            text.find(place)
        };
        assert_eq!((finding.line, finding.column), (1, column.unwrap() + 1), "{findings}");
        let said = finding.hints.iter().fold(finding.message.clone(), |all, hint| all + hint).to_lowercase();
        assert!(!said.contains("hush"), "{findings}");
    }
}

#[test]
fn what_is_wrong_with_the_server_is_said_without_repeating_any_of_it() {
    let table = [
        ("{}", "there is no `postgres` in the file", 0),
        ("postgres: []", "`postgres` is a text", 1),
        ("postgres: db", "`postgres`: it does not begin with `postgres://`", 1),
        ("postgres: '${PASSWORD}'", "`postgres`: the value put in here is not the address of a server", 1),
        ("postgres: '${URL}'", "`postgres`: it leaves it to whoever is on the way", 1),
        ("postgres: 'postgres://who:hush-hush@localhost'", "a password stands in `postgres`", 1),
        ("postgres: 'postgres://who@db?sslmode=verify-full&sslrootcert=hush.pem'", "there is no file of the name", 1),
        (
            "password: '${PASSWORD}'\npostgres: 'postgres://who:${PASSWORD}@localhost'",
            "stands in `postgres` already",
            1,
        ),
        ("ship-every: 1s\nsynchronous: true\npostgres: postgres://who@localhost", "commits wait", 1),
    ];
    for (text, words, line) in table {
        let findings = read(text).expect_err(text);
        let [finding] = findings.list.as_slice() else { panic!("{text}\n{findings}") };
        assert!(finding.message.contains(words), "{text}\n--- wanted: {words}\n--- said:\n{findings}");
        assert_eq!(finding.line, line, "{findings}");
        let said = finding.hints.iter().fold(finding.message.clone(), |all, hint| all + hint);
        assert!(!said.contains("hush") && !said.contains("who:") && !said.contains("who@"), "{findings}");
    }
}

#[test]
fn one_reading_tells_everything_that_is_wrong() {
    let findings = read(
        "postgres: postgres://backup@db.example.com/?sslmode=prefer
schedule: 0 2 * *
ship_every: 1s
rto: 1 hour
wal-lag: { policy: drop-slot }
from: [{ repo: shoop, branches: [main] }]
restore: { into: folder, port: 5433 }
drill: { image: x }
",
    )
    .unwrap_err();
    insta::assert_snapshot!(findings.to_string());
}

#[test]
fn a_password_is_not_shown_with_its_line() {
    for (text, shown) in [
        ("password: hunter2\npostgres: x", "1 | password: *******\n"),
        ("postgres: 'postgres://üser:hunter2@[::1]' # x", "1 | postgres: 'postgres://************@[::1]' # x\n"),
        ("postgres: postgres://u@[::1]?password=hunter2", "1 | postgres: postgres://************************\n"),
        ("password: |\n  hunter2\n  hunter2\nrto: x", "4 | rto: x\n"),
        ("postgres: postgres://ü:ü@[::1]\npassword: hünter2", "2 | password: *******\n"),
    ] {
        let said = read(text).unwrap_err().to_string();
        assert!(said.contains(shown) && !said.contains("hunter2"), "{text}\n--- wanted: {shown}\n--- said:\n{said}");
    }
}

fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join(FOLDER)).unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[test]
fn all_files_of_the_folder_are_read_and_other_things_are_not() {
    let folder = folder_with(&[
        ("mainstay.yml", "state: data\nrepos: { shop: /x, tools: [] }\n"),
        ("backups/a.yml", "postgres: 'postgres://b@[::1]'\nfrom: [{ repo: tools, branches: main }]"),
        ("backups/b.yaml", "postgres: 'postgres://b@[::1]'\npassword: '${secret:DB}'"),
        ("backups/.hidden.yml", "["),
        ("backups/notes.txt", "["),
    ]);
    fs::create_dir(folder.path().join("backups/c")).unwrap();
    SecretStore::new(&folder.path().join("data")).set("DB", &Secret::new("hush-hush")).unwrap();
    // What is wrong with the settings themselves is told with the settings.
    let backups = load(&folder.path().join("mainstay.yml")).unwrap_or_else(|e| panic!("{e}"));
    let names: Vec<_> = backups.sources.keys().map(SourceName::as_str).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(backups.secret_values().map(Secret::expose).collect::<Vec<_>>(), ["hush-hush"]);
    let none = tempfile::tempdir().unwrap();
    assert_eq!(load(&none.path().join("mainstay.yml")).unwrap(), Backups::default());
}

#[test]
fn what_is_wrong_with_all_files_is_told_at_once() {
    let folder = folder_with(&[
        ("mainstay.yml", "repos: { shop: /x }\n"),
        ("backups/a b.yml", "postgres: postgres://b@10.0.0.1?sslmode=disable"),
        ("backups/a.yml", "postgres: postgres://b@localhost:2\nslot: one"),
        ("backups/a.yaml", "postgres: postgres://b@localhost:3"),
        ("backups/c.yml", "postgres: 'postgres://other@[::1]:9,localhost:2'\nslot: one"),
        ("backups/d.yml", "postgres: postgres://b@localhost:4\nfrom: [{ repo: x, branches: main }]\nrto: x"),
        ("backups/e.yml", "a: ["),
        ("backups/f.yml", "postgres: postgres://b@localhost:5"),
    ]);
    let bad = load(&folder.path().join("mainstay.yml")).unwrap_err();
    assert_eq!(bad.files.len(), 5, "{bad}");
    let said = bad.to_string().replace(folder.path().to_str().unwrap(), "DIR");
    for words in [
        "rename the file",
        "the source `a` has another file too: DIR/backups/a.yaml",
        "DIR/backups/a.yml takes the slot `one` of this server too",
        "DIR/backups/c.yml:2:7",
        "there is no repository `x`",
        "DIR/backups/d.yml:3:6",
        "DIR/backups/e.yml:1:4",
    ] {
        assert!(said.contains(words), "wanted: {words}\n--- said:\n{said}");
    }
}

#[test]
fn what_is_no_regular_file_is_refused_by_name_and_never_waited_for() {
    use std::os::unix::fs::symlink;
    let folder = folder_with(&[
        ("mainstay.yml", "repos: { shop: /x }\n"),
        ("backups/good.yml", "postgres: 'postgres://b@[::1]'"),
        ("kept.yml", "postgres: 'postgres://b@[::1]:2'"),
        ("backups/long.yml", &format!("postgres: 'postgres://b@[::1]:3' #{}", "x".repeat(1 << 20))),
    ]);
    let at = |name: &str| folder.path().join("backups").join(name);
    let load = || load(&folder.path().join("mainstay.yml"));
    symlink("../kept.yml", at("link.yml")).unwrap();
    nix::unistd::mkfifo(&at("pipe.yml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket.yml")).unwrap();
    symlink("/dev/zero", at("zero.yaml")).unwrap();
    fs::create_dir(at("folder.yml")).unwrap();
    let bad = load().unwrap_err();
    let said = bad.to_string();
    assert_eq!(bad.files.len(), 5, "{said}");
    for (name, what) in [
        ("pipe.yml", "it is a pipe (FIFO)"),
        ("socket.yml", "it is a socket"),
        ("zero.yaml", "it is a device"),
        ("folder.yml", "it is a folder"),
        ("long.yml", "it is longer than 1 MiB"),
    ] {
        let file = bad.files.iter().map(ToString::to_string).find(|file| file.contains(&format!("backups/{name}")));
        assert!(file.as_ref().is_some_and(|file| file.contains(what)), "{name}: {said}");
    }
    for name in ["pipe.yml", "socket.yml", "zero.yaml", "long.yml"] {
        fs::remove_file(at(name)).unwrap();
    }
    fs::remove_dir(at("folder.yml")).unwrap();
    assert_eq!(load().unwrap().sources.len(), 2);
    // The settings, and a secret.
    let secret = folder.path().join("mainstay-data/secrets/DB");
    fs::create_dir_all(secret.parent().unwrap()).unwrap();
    nix::unistd::mkfifo(&secret, nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(at("good.yml"), "postgres: 'postgres://b:${secret:DB}@[::1]'").unwrap();
    let said = load().unwrap_err().to_string();
    assert!(said.contains("a pipe (FIFO)"), "{said}");
    fs::remove_file(folder.path().join("mainstay.yml")).unwrap();
    nix::unistd::mkfifo(&folder.path().join("mainstay.yml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let said = crate::config::daemon::load(&folder.path().join("mainstay.yml")).unwrap_err().to_string();
    assert!(said.contains("a pipe (FIFO)"), "{said}");
}

#[test]
fn settings_that_do_not_read_are_told_in_place_of_guesses() {
    let folder = folder_with(&[("mainstay.yml", "repos: ["), ("backups/a.yml", "postgres: x")]);
    let bad = load(&folder.path().join("mainstay.yml")).unwrap_err().to_string();
    assert!(bad.contains("mainstay.yml does not read") && !bad.contains("`postgres`"), "{bad}");
    // Without any, names of repositories cannot be known, and secrets are where they would be.
    let folder =
        folder_with(&[("backups/a.yml", "postgres: 'postgres://b@[::1]'\nfrom: [{ repo: any, branches: main }]")]);
    SecretStore::new(&folder.path().join("mainstay-data")).set("DB", &Secret::new("x")).unwrap();
    fs::write(folder.path().join("backups/b.yml"), "postgres: 'postgres://b:${secret:DB}@[::1]'").unwrap();
    assert_eq!(load(&folder.path().join("mainstay.yml")).unwrap().sources.len(), 2);
}

#[test]
fn the_one_that_ships_is_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER);
    let state = tempfile::tempdir().unwrap();
    let store = SecretStore::new(state.path());
    store.set("POSTGRES_BACKUP", &Secret::new("x")).unwrap();
    let around = Around { env: &|_| None, folder: &folder, store: &store, repos: Some(&["shop"]) };
    let mut seen = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let source = parse(&name, &path.display().to_string(), &text, &around).unwrap_or_else(|e| panic!("{e}"));
        assert!(source.restore.is_some() && !source.from.is_empty());
        // What is said to be missing is there by now.
        assert!(text.contains("steps `backup` and `restore`") && !text.contains("once there are"), "{text}");
        seen += 1;
    }
    assert_eq!(seen, 1);
}

fn logical(more: &str) -> Result<Source, Findings> {
    read(&format!("kind: logical\n{more}\n"))
}

#[test]
fn logical_copies_are_of_the_database_in_the_address_of_several_or_of_all() {
    let copied = |text: &str| logical(text).unwrap_or_else(|e| panic!("{e}")).logical.unwrap().databases;
    let named = |names: &[&str]| Databases::Named(names.iter().map(|name| (*name).to_owned()).collect());
    assert_eq!(copied("postgres: 'postgres://b@[::1]/shop'"), named(&["shop"]));
    assert_eq!(
        copied("postgres: 'postgres://b@[::1]/shop'\ndatabases: [crm, 'or \"ders']"),
        named(&["crm", "or \"ders"])
    );
    assert_eq!(copied("postgres: 'postgres://b@[::1]'\ndatabases: crm"), named(&["crm"]));
    assert_eq!(copied("postgres: 'postgres://b@[::1]'\ndatabases: all"), Databases::All);
    assert!(source("kind: physical").logical.is_none());
    let source = logical(
        "postgres: 'postgres://b@[::1]/shop'\npassword: '${PASSWORD}'\nrpo: 25h\nschedule: '0 2 * * *'\n\
         bin: ../bin\nkeep: { window: 30d, backups: 3 }\nrestore: { into: 'postgres://o@[::1]:6432', password: \
         '${PASSWORD}', bin: /usr/bin, then: echo, checks: { sql: 'select true' } }",
    );
    let source = source.unwrap_or_else(|e| panic!("{e}"));
    assert!(!format!("{source:?}").contains("hush"), "{source:?}");
    let Logical { programs, restore, .. } = source.logical.unwrap();
    let restore = restore.unwrap();
    let machine = |bin: &str| ProgramsOf::Machine(Some(bin.into()));
    assert_eq!((programs, &restore.programs), (machine("/srv/ci/bin"), &machine("/usr/bin")));
    assert_eq!(restore.into.unwrap().password.unwrap().expose(), "hush-hush");
    assert_eq!((restore.then.len(), restore.checks[0].database.as_str()), (1, "postgres"));
}

#[test]
fn programs_of_logical_copies_may_be_those_of_an_image() {
    let image = |image: &str, network: &str| ProgramsOf::Image { image: image.into(), network: network.into() };
    let read = |text: &str| logical(text).unwrap_or_else(|e| panic!("{e}")).logical.unwrap();
    let copies = read("postgres: 'postgres://b@[::1]/a'\nimage: 'postgres:17'");
    assert_eq!((copies.programs, copies.restore), (image("postgres:17", "host"), None));
    let copies = read(
        "postgres: 'postgres://b@db/a?sslmode=disable'\nimage: '${IMAGE}'\nnetwork: shop\nrestore: { image: 'p@sha256:00', network: bridge }",
    );
    assert_eq!(copies.programs, image("hub.example.com/postgres:17", "shop"));
    // The address of the restore is said by the command.
    assert_eq!(copies.restore.unwrap().programs, image("p@sha256:00", "bridge"));
}

#[test]
fn what_has_no_meaning_for_the_kind_is_refused() {
    let wrong = |text: &str| logical(text).unwrap_err().to_string();
    for key in ["ship-every: 1s", "synchronous: true", "slot: a", "wal-lag: { warn: 1GiB }", "rto: 1h"] {
        let said = wrong(&format!("postgres: 'postgres://b@[::1]/shop'\n{key}"));
        assert!(said.contains("is about base backups and their log"), "{said}");
    }
    for (text, words) in [
        ("postgres: 'postgres://b@[::1]'", "nothing says which databases are copied"),
        ("postgres: 'postgres://b@[::1]'\ndatabases: []", "is empty"),
        ("postgres: 'postgres://b@[::1]'\ndatabases: [a, a]", "stands there twice"),
        ("postgres: 'postgres://b@[::1]/a'\nimage: 'post gres'", "is not the name of an image"),
        ("postgres: 'postgres://b@[::1]/a'\nimage: 'postgres:17'\nbin: /usr/bin", "`bin` is a folder of the machine"),
        ("postgres: 'postgres://b@[::1]/a'\nnetwork: shop", "is about programs of an `image`"),
        ("postgres: 'postgres://b@db/a'\nimage: 'postgres:17'\nnetwork: none", "no server is reached"),
        ("postgres: 'postgres://b@[::1]/a'\nimage: 'postgres:17'\nnetwork: shop", "is that of the container"),
        ("postgres: 'postgres://b@localhost/a'\nimage: 'postgres:17'\nnetwork: shop", "is that of the container"),
        ("postgres: 'postgres://b@/a?host=/run'\nimage: 'postgres:17'", "which a container does not see"),
        (
            "postgres: 'postgres://b@[::1]/a'\nrestore: { into: 'postgres://o@/?host=/run', image: 'postgres:17' }",
            "which a container does not see",
        ),
        ("postgres: 'postgres://b@[::1]/a'\nrestore: { into: server }", "does not begin with `postgres://`"),
        ("postgres: 'postgres://b@[::1]/a'\nrestore: { target: /x }", "is about a data folder"),
        ("postgres: 'postgres://b@[::1]/a'\nrestore: { password: '${PASSWORD}' }", "no server that it is for"),
        (
            "postgres: 'postgres://b@[::1]/a'\nrestore: { into: 'postgres://o:plain@[::1]' }",
            "a password stands in `into`",
        ),
        (
            "postgres: 'postgres://b@[::1]/a'\nrestore: { into: 'postgres://o@[::1]', password: plain }",
            "a password stands",
        ),
    ] {
        let said = wrong(text);
        assert!(said.contains(words), "{said}");
        assert!(!said.contains("plain@") && !said.contains("hush"), "{said}");
    }
    for key in ["databases: all", "bin: /usr/bin", "image: x", "network: ab"] {
        let said = read(&format!("postgres: 'postgres://b@[::1]'\n{key}\n")).unwrap_err().to_string();
        assert!(said.contains("is about logical copies"), "{said}");
    }
    let said =
        read("postgres: 'postgres://b@[::1]'\nrestore: { into: folder, password: '${PASSWORD}' }\n").unwrap_err();
    assert!(said.to_string().contains("goes with the address of a server"), "{said}");
}

#[test]
fn the_restore_of_logical_copies_is_read_out_of_a_file_of_another_machine() {
    let text = "kind: logical\npostgres: '${secret:GONE}'\nrestore: { into: '${secret:GONE}', password: '${GONE}', then: [one] }\n";
    assert!(is_logical("x.yml", text) && !is_logical("x.yml", "postgres: x") && !is_logical("x.yml", ": :"));
    let read = |without| with(Path::new("/srv"), |around| parse_logical_restore("x.yml", text, without, around));
    let restore = read(true).unwrap().unwrap();
    assert_eq!((restore.into, restore.then), (None, vec!["one".to_owned()]));
    assert!(read(false).is_err());
}
