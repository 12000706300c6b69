//! The daemon and the server, killed for good and killed at random: what was promised is in the repository.

use super::Lab;
use crate::support::ports;
use crate::support::postgres::{Options, Server, Stop};
use crate::support::store::{BUCKET, S3Server};
use mainstay::backup::source::postgres::{Address, Connection, Purpose};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Clients that commit at once.
const CLIENTS: u64 = 4;

/// Rows that a server on this port has.
async fn numbers(port: u16) -> BTreeSet<u64> {
    let address: Address = format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable").parse().unwrap();
    let mut connection = Connection::open(&address, None, Purpose::Sql).await.unwrap();
    let rows = connection.query("select id from orders").await.unwrap();
    let number = |row: &Vec<Option<bytes::Bytes>>| {
        std::str::from_utf8(row[0].as_ref().unwrap()).ok().and_then(|text| text.parse().ok())
    };
    rows.rows.iter().map(|row| number(row).unwrap()).collect()
}

/// The newest state, from the repository and the key alone, in a server that is stopped and removed afterwards.
async fn restored(lab: &mut Lab, repository: &str) -> BTreeSet<u64> {
    let (data, port) = (lab.at("restored"), ports::free());
    lab.restored.push(data.clone());
    let (place, listens) = (data.display().to_string(), port.to_string());
    let from = ["restore", "--latest", "--repository", repository, "--identity", "identity.txt"];
    let report = lab.json(&[&from[..], &["--target", &place, "--port", &listens]].concat());
    assert_eq!(report["good"], true, "{report:#}");
    let found = numbers(port).await;
    let mut stop = Server::command(lab.version, "pg_ctl");
    let stopped = stop.arg("-D").arg(&data).args(["-m", "immediate", "-w", "stop"]).output().unwrap();
    assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    lab.restored.pop();
    std::fs::remove_dir_all(&data).unwrap();
    found
}

#[tokio::test]
async fn r27_a_row_on_an_idle_server_is_there_when_the_host_is_lost_three_seconds_later() {
    for version in Server::versions() {
        let mut server = Server::start(version, Options::default()).await;
        let mut lab = Lab::new(&server, "  url: repository\n");
        let file = lab.at("backups/shop-db.yml");
        let text = std::fs::read_to_string(&file).unwrap();
        // As often as it is stored when nobody says anything.
        std::fs::write(&file, text.replace("ship-every: 250ms\n", "")).unwrap();
        server.sql("create table orders (id bigint primary key, what text)").await;
        lab.serve();
        lab.mainstay(&["backup", "shop-db"]);
        tokio::time::sleep(Duration::from_secs(2)).await;
        server.sql("insert into orders values (1, 'the only one')").await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        server.signal_stop(Stop::Kill);
        lab.kill_daemon();
        server.ended().await;
        std::fs::remove_dir_all(server.data()).unwrap();
        for gone in ["state", "backups", "keys"] {
            std::fs::remove_dir_all(lab.at(gone)).unwrap();
        }
        std::fs::remove_file(lab.at("mainstay.yml")).unwrap();
        assert_eq!(restored(&mut lab, "repository").await, BTreeSet::from([1]), "PostgreSQL {version}");
    }
}

/// Commits until nobody wants to hear of it, and says which were answered; goes on when the server does not.
async fn client(number: u64, address: Address, answered: Arc<Mutex<BTreeSet<u64>>>) {
    let mut id = number * 1_000_000_000;
    loop {
        let Ok(mut connection) = Connection::open(&address, None, Purpose::Sql).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        loop {
            id += 1;
            if connection.query(&format!("insert into orders values ({id}, 'x')")).await.is_err() {
                // Nobody knows what became of it.
                break;
            }
            answered.lock().unwrap().insert(id);
        }
    }
}

/// So many commits that were answered, while daemon and server are killed at random. At each fourth kill both are, and what
/// can be had without them is compared with what was answered until then; so it is in the end.
async fn commits_under_kills(wanted: usize, repository: &str, url: &str) {
    let mut server = Server::start(17, Options::with(&["synchronous_standby_names = '*'"])).await;
    let mut lab = Lab::new(&server, repository);
    let file = lab.at("backups/shop-db.yml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("ship-every: 250ms\n", "synchronous: true\n")).unwrap();
    lab.serve();
    server.until("select sync_state from pg_stat_replication", "sync").await;
    server.sql("create table orders (id bigint primary key, what text)").await;
    lab.mainstay(&["backup", "shop-db"]);

    let answered = Arc::new(Mutex::new(BTreeSet::new()));
    let clients: Vec<_> = (0..CLIENTS).map(|n| tokio::spawn(client(n, server.address(), answered.clone()))).collect();
    let pause = async |most: u64| tokio::time::sleep(Duration::from_millis(getrandom::u64().unwrap() % most)).await;
    let (mut of_daemon, mut of_server, mut restores) = (0, 0, 0);
    for round in 0.. {
        pause(1_500).await;
        // They go on: what is answered in the last moment counts.
        // A quick machine has done all of them before anything is killed: each kind of kill comes all the same.
        let done = answered.lock().unwrap().len() >= wanted && round > 3;
        let kind = if done { 3 } else { round % 4 };
        // The daemon alone twice, the server alone, both.
        if kind != 2 {
            lab.kill_daemon();
            of_daemon += 1;
        }
        if kind >= 2 {
            server.stop(Stop::Kill).await;
            let _ = std::fs::remove_file(server.data().join("postmaster.pid"));
            of_server += 1;
        }
        if kind == 3 {
            let promised = answered.lock().unwrap().clone();
            let there = restored(&mut lab, url).await;
            let missing: Vec<_> = promised.difference(&there).collect();
            assert!(missing.is_empty(), "{missing:?} of {} were answered and are lost", promised.len());
            restores += 1;
        }
        if done {
            break;
        }
        pause(300).await;
        if kind >= 2 {
            server.start_again().await;
        }
        if kind != 2 {
            lab.serve();
        }
    }
    clients.iter().for_each(tokio::task::JoinHandle::abort);
    let answered = answered.lock().unwrap().len();
    assert!(answered >= wanted && of_daemon > 3 && of_server > 2, "{answered} {of_daemon} {of_server}");
    println!(
        "recovery: {answered} commits answered by a synchronous source, {of_daemon} kills of the daemon, {of_server} of \
         the server, {restores} restores compared; 0 missing"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answered_commit_is_lost_when_daemon_and_server_are_killed() {
    let store = S3Server::shared();
    let settings = store.settings();
    let keys = settings.credentials.clone().unwrap();
    let endpoint = settings.endpoint.clone().unwrap();
    // SAFETY: nextest runs each test in a process of its own, and nothing else here reads the environment meanwhile.
    unsafe {
        std::env::set_var("AWS_ACCESS_KEY_ID", &keys.access_key);
        std::env::set_var("AWS_SECRET_ACCESS_KEY", keys.secret_key.expose());
        std::env::set_var("AWS_ENDPOINT_URL", &endpoint);
        std::env::set_var("AWS_REGION", "us-east-1");
    }
    let url = format!("s3://{BUCKET}/{}", settings.prefix.trim_matches('/'));
    let repository = format!(
        "  url: \"{url}\"\n  endpoint: \"{endpoint}\"\n  path-style: true\n  access-key: \"{}\"\n  secret-key: \
         \"${{AWS_SECRET_ACCESS_KEY}}\"\n",
        keys.access_key
    );
    commits_under_kills(300, &repository, &url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak_ten_thousand_answered_commits_under_kills_of_daemon_and_server() {
    commits_under_kills(10_000, "  url: repository\n", "repository").await;
}
