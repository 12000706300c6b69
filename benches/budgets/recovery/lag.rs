//! How far the repository is behind a server that does as much as it can, and what that costs the server.

use super::Store;
use super::cluster::{BIN, Cluster, as_user};
use super::ours::Ours;
use crate::Effort;
use crate::lab::run;
use crate::numbers::{Budget, Report, Samples, print};
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

/// Rows of the load's largest table, in units of 100,000: about 300 MB, which stays in memory.
const SCALE: u32 = 20;
/// How often the server is asked how far its log is, and how much of it is stored.
const LOOK_SECS: f64 = 0.05;

pub(super) fn measure(cluster: &Cluster, effort: Effort, report: &mut Report) {
    let place = cluster.room("lag");
    cluster.archive("/bin/true");
    let pgbench = |arguments: &[&str]| {
        let mut command = as_user(format!("{BIN}/pgbench"));
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &cluster.port.to_string()]);
        run(command.args(arguments).arg("postgres"))
    };
    pgbench(&["-i", "-q", "-s", &SCALE.to_string()]);
    let ours = Ours::new(&place, cluster, &Store::Folder);
    ours.backup(cluster);
    let seconds = effort.of(100, 20).to_string();
    let load = || {
        let said = pgbench(&["-n", "-c", "4", "-j", "2", "-T", &seconds]);
        let tps = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse::<f64>().ok());
        tps.unwrap_or_else(|| panic!("no rate in {said}"))
    };
    // The first one fills caches and the server's files.
    load();
    let (mut lags, mut slower, mut cpu) = (Samples::default(), Samples::default(), 0.0);
    let mut written = 0.0;
    for _ in 0..effort.of(6, 2) {
        cluster.ask("checkpoint");
        let alone = load();
        let daemon = ours.daemon();
        // What the load wrote while nobody read is caught up with first.
        ours.wait_until_stored(cluster);
        cluster.ask("checkpoint");
        let begun = cluster.ask("select pg_current_wal_lsn()");
        let before = super::cost::cpu_of_tree(daemon.child.id());
        let looking = Looking::start(cluster);
        let beside = load();
        std::thread::sleep(Duration::from_secs(3));
        looking.end().into_iter().for_each(|lag| lags.push(lag * 1e3));
        cpu += super::cost::cpu_of_tree(daemon.child.id()) - before;
        let bytes = cluster.ask(&format!("select pg_wal_lsn_diff(pg_current_wal_lsn(), '{begun}')"));
        written += bytes.parse::<f64>().expect("a number") / super::MIB;
        slower.push(100.0 * (1.0 - beside / alone));
        print(format_args!("  pgbench, 4 clients: alone {alone:.0} tps, beside shipping {beside:.0} tps"));
    }
    print(format_args!("  lag: durable on the server -> in the repository {}", lags.shown("ms")));
    print(format_args!("  {written:.0} MiB of log shipped, {cpu:.1} CPU s of the daemon"));
    report.figure("lag: p50", lags.median(), "ms", Budget::AtMost(2000.0));
    report.figure("lag: p99", lags.quantile(0.99), "ms", Budget::AtMost(2000.0));
    report.figure("lag: the load is slowed by", slower.median(), "%", Budget::AtMost(10.0));
}

/// A session that asks again and again how far the log is, and how much of it is stored.
struct Looking {
    psql: std::process::Child,
    reading: std::thread::JoinHandle<String>,
}

impl Looking {
    fn start(cluster: &Cluster) -> Looking {
        let mut psql = as_user(format!("{BIN}/psql"));
        psql.args(["-h", "127.0.0.1", "-U", "postgres", "-qAtX", "-p", &cluster.port.to_string(), "postgres"]);
        let mut psql = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("psql starts");
        let sql = format!(
            "select extract(epoch from clock_timestamp()), pg_current_wal_flush_lsn() - '0/0', \
             (select max(flush_lsn) - '0/0' from pg_stat_replication) \\watch {LOOK_SECS}\n"
        );
        psql.stdin.as_mut().expect("it is piped").write_all(sql.as_bytes()).expect("psql listens");
        let mut out = psql.stdout.take().expect("it is piped");
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = std::io::Read::read_to_string(&mut out, &mut text);
            text
        });
        Looking { psql, reading }
    }

    /// Of each look: after how many seconds all that was committed by then was stored.
    fn end(mut self) -> Vec<f64> {
        let _ = self.psql.kill();
        let _ = self.psql.wait();
        let text = self.reading.join().expect("psql was read");
        let looks: Vec<(f64, u64, u64)> = text
            .lines()
            .filter_map(|line| {
                let mut fields = line.split('|');
                let at = fields.next()?.parse().ok()?;
                Some((at, fields.next()?.parse().ok()?, fields.next()?.parse().unwrap_or(0)))
            })
            .collect();
        assert!(looks.len() > 20, "the server was looked at: {text}");
        let mut lags = Vec::new();
        let mut stored = 0;
        for (at, committed, _) in &looks {
            while looks.get(stored).is_some_and(|look| look.2 < *committed) {
                stored += 1;
            }
            // The looks at the end have no answer yet.
            let Some(found) = looks.get(stored) else { break };
            lags.push((found.0 - at).max(0.0));
        }
        lags
    }
}
