//! Recovery beside pgBackRest: the same server, the same stores, the same cores, zstd at level 3 on both sides, and turns
//! that alternate.
//!
//! `MAINSTAY_BENCH_RECOVERY="folder bucket latest lag"` measures those parts alone. A full measurement wants 20 GiB of disk.

mod cluster;
mod cost;
mod lag;
mod line;
mod ours;
mod peer;
#[path = "../../tests/it/support/store.rs"]
#[allow(dead_code, reason = "a harness for several rooms; the bench uses the server alone")]
mod store;

use crate::Effort;
use crate::numbers::{Budget, Report, Samples, print};
use crate::ports;
use cluster::Cluster;
use cost::Cost;
use line::slowed;
use ours::Ours;
use peer::Peer;
use std::path::Path;
use std::time::Duration;
use store::S3Server;

const MIB: f64 = (1 << 20) as f64;
/// Added to every exchange with the store: half on the way there, half on the way back.
const SLOW: Duration = Duration::from_millis(50);

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Size {
    data_mib: u64,
    log_mib: u64,
    pairs: usize,
}

/// Where backups go.
#[derive(Debug, Clone)]
pub(super) enum Store {
    Folder,
    /// A bucket behind this port of this machine, with TLS.
    Bucket {
        port: u16,
        ca: std::path::PathBuf,
    },
}

/// What both sides did in turn.
#[derive(Default)]
struct Pairs {
    ours: Vec<Cost>,
    peer: Vec<Cost>,
}

impl Pairs {
    fn of(costs: &[Cost], value: impl Fn(&Cost) -> f64) -> Samples {
        let mut samples = Samples::default();
        costs.iter().for_each(|cost| samples.push(value(cost)));
        samples
    }

    /// How many times quicker ours is: the median of the pairs.
    fn quicker(&self) -> f64 {
        let mut ratios = Samples::default();
        self.ours.iter().zip(&self.peer).for_each(|(ours, peer)| ratios.push(peer.seconds / ours.seconds));
        ratios.median()
    }

    fn show(&self, what: &str, mib: Option<f64>) {
        for (who, costs) in [("ours", &self.ours), ("peer", &self.peer)] {
            let seconds = Pairs::of(costs, |cost| cost.seconds);
            let rate = mib.map_or_else(String::new, |mib| format!(", {:.0} MiB/s", mib / seconds.median()));
            print(format_args!(
                "  {what} {who}: {}{rate}; CPU {:.1} s, the server's {:.1} s; at most {:.0} MiB",
                seconds.shown("s"),
                Pairs::of(costs, |cost| cost.cpu).median(),
                Pairs::of(costs, |cost| cost.server_cpu).median(),
                Pairs::of(costs, |cost| cost.peak_mib).quantile(1.0),
            ));
        }
    }

    fn peak(&self) -> f64 {
        Pairs::of(&self.ours, |cost| cost.peak_mib).quantile(1.0)
    }
}

pub(crate) fn measure(effort: Effort, report: &mut Report) {
    let size = Size {
        data_mib: effort.of(3 << 10, 512) as u64,
        log_mib: effort.of(2 << 10, 256) as u64,
        pairs: effort.of(7, 3),
    };
    let parts = std::env::var("MAINSTAY_BENCH_RECOVERY").unwrap_or_else(|_| "folder bucket latest lag".to_owned());
    let wanted = |part: &str| parts.split_whitespace().any(|one| one == part);
    let folder = cluster::folder();
    let cluster = Cluster::start(folder.path(), size.data_mib);
    print(format_args!(
        "  {:.0} MiB of data that zstd -3 makes {:.1} times smaller; {} pairs; PostgreSQL {}, {}",
        cluster.data_mib(),
        cluster.compresses(),
        size.pairs,
        cluster::version(),
        peer::version()
    ));
    let mut peak = 0.0_f64;
    if wanted("folder") {
        peak = peak.max(copies(&cluster, "folder", &Store::Folder, size, report));
    }
    if wanted("bucket") || wanted("latest") {
        let server = S3Server::own();
        let (_, port) = server
            .tls_endpoint()
            .rsplit_once(':')
            .map(|(host, port)| (host.to_owned(), port.to_owned()))
            .expect("it has a port");
        let port = port.parse().expect("a port is a number");
        let bucket = Store::Bucket { port, ca: server.ca().to_owned() };
        if wanted("bucket") {
            peak = peak.max(copies(&cluster, "bucket", &bucket, size, report));
        }
        if wanted("latest") {
            let slow = Store::Bucket { port: slowed(port, SLOW), ca: server.ca().to_owned() };
            peak = peak.max(latest(&cluster, &bucket, &slow, size, report));
        }
    }
    if peak > 0.0 {
        report.figure("recovery: peak memory of backup and restore", peak, "MiB", Budget::AtMost(256.0));
    }
    if wanted("lag") {
        lag::measure(&cluster, effort, report);
    }
}

/// Base backups and their way back. Gives our highest memory.
fn copies(cluster: &Cluster, name: &str, store: &Store, size: Size, report: &mut Report) -> f64 {
    let place = cluster.room(name);
    let (ours, peer) = (Ours::new(&place, cluster, store), Peer::new(&place, cluster, store));
    let mib = cluster.data_mib();
    let (mut backups, mut restores) = (Pairs::default(), Pairs::default());
    let mut stored = (0, 0);
    // Whatever is done for the first time only, on either side.
    let mut last = ours.backup(cluster).1;
    peer.backup(cluster);
    for _ in 0..size.pairs {
        let (cost, backup) = ours.backup(cluster);
        backups.ours.push(cost);
        last = backup;
        backups.peer.push(peer.backup(cluster));
        stored = (ours.stored(&last), peer.stored());
    }
    let target = place.join("restored");
    for _ in 0..size.pairs {
        restores.ours.push(ours.restore_files(&last, &target));
        empty(&target);
        restores.peer.push(peer.restore_files(&target));
        empty(&target);
    }
    backups.show(&format!("{name} backup "), Some(mib));
    restores.show(&format!("{name} restore"), Some(mib));
    let (ours_mib, peer_mib) = (stored.0 as f64 / MIB, stored.1 as f64 / MIB);
    print(format_args!("  {name} stored: ours {ours_mib:.0} MiB, peer {peer_mib:.0} MiB"));
    report.figure(&format!("{name}: backup, times the peer's rate"), backups.quicker(), "x", Budget::AtLeast(0.9));
    report.figure(&format!("{name}: restore, times the peer's rate"), restores.quicker(), "x", Budget::AtLeast(1.2));
    report.figure(&format!("{name}: bytes stored / the peer's"), ours_mib / peer_mib, "x", Budget::AtMost(1.05));
    backups.peak().max(restores.peak())
}

/// From a repository to a server that takes writes, with much log to replay: plain, and with every exchange slowed.
fn latest(cluster: &Cluster, bucket: &Store, slow: &Store, size: Size, report: &mut Report) -> f64 {
    let place = cluster.room("latest");
    let (ours, peer) = (Ours::new(&place, cluster, bucket), Peer::new(&place, cluster, bucket));
    ours.backup(cluster);
    peer.backup(cluster);
    let daemon = ours.daemon();
    let written = cluster.write_log(size.log_mib);
    cluster.wait_for_archive();
    ours.wait_until_stored(cluster);
    drop(daemon);
    print(format_args!("  {written:.0} MiB of log to replay"));
    let mut peak = 0.0_f64;
    let mut stage = |name: &str, store: &Store, budget: f64| {
        ours.look_at(store);
        peer.look_at(store);
        let mut pairs = Pairs::default();
        for _ in 0..size.pairs {
            pairs.ours.push(opened(cluster, &place, |target, port| ours.restore_latest(target, port)));
            pairs.peer.push(opened(cluster, &place, |target, port| peer.restore_latest(target, port)));
        }
        pairs.show(name, None);
        report.figure(
            &format!("{name}: restore --latest, times quicker"),
            pairs.quicker(),
            "x",
            Budget::AtLeast(budget),
        );
        peak = peak.max(pairs.peak());
    };
    stage("latest", bucket, 1.3);
    stage("latest, 50 ms", slow, 1.5);
    peak
}

/// Restores and opens, looks whether the last row is there, and clears away.
fn opened(cluster: &Cluster, place: &Path, restore: impl FnOnce(&Path, u16) -> Cost) -> Cost {
    let (target, port) = (place.join("restored"), ports::free());
    let cost = restore(&target, port);
    assert_eq!(cluster::ask(port, cluster::LAST_ROW), cluster.ask(cluster::LAST_ROW), "the last row is there");
    cluster::stop(&target);
    empty(&target);
    cost
}

fn empty(target: &Path) {
    std::fs::remove_dir_all(target).expect("what was restored is removed");
}
