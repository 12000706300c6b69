//! Health rules on a real Prometheus, which watches itself.

use mainstay::config::daemon::environment::{Compare, Expect, HealthCheck, HealthRule};
use mainstay::deploy::health::{Surroundings, ask};
use mainstay::model::Span;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// It opens an empty database and asks itself once a second; busy machines were seen to take ten.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

struct Prometheus {
    child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    fn start() -> Prometheus {
        let folder = tempfile::tempdir().unwrap();
        let port = crate::support::ports::free();
        let config = format!(
            "global: {{ scrape_interval: 1s }}\nscrape_configs: [{{ job_name: self, static_configs: [{{ targets: ['127.0.0.1:{port}'] }}] }}]\n"
        );
        std::fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().expect("`prometheus` is needed by this test: tests/setup/prepare.sh test");
        Prometheus { child, url: format!("http://127.0.0.1:{port}"), _folder: folder }
    }

    fn rule(&self, query: &str, compare: Compare, than: f64) -> HealthRule {
        let second = Span(Duration::from_secs(5));
        let check = HealthCheck::Prometheus {
            url: self.url.clone(),
            query: query.to_owned(),
            expect: Expect { compare, than },
        };
        HealthRule { check, every: second, failures: 3, within: second, timeout: second }
    }
}

#[test]
fn queries_of_a_real_prometheus_are_judged_by_their_values() {
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    tokio.block_on(async {
        let server = Prometheus::start();
        let said = async |query: &str, compare, than| {
            let probe = ask(0, &server.rule(query, compare, than), &Surroundings::default()).await;
            (probe.good, probe.said)
        };
        let began = Instant::now();
        let up = loop {
            let found = said("up{job=\"self\"}", Compare::Equal, 1.0).await;
            if found.0 {
                break found.1;
            }
            assert!(began.elapsed() < STARTS_WITHIN, "it does not watch itself: {}", found.1);
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert_eq!(up, "1, == 1");
        let (good, why) = said("up", Compare::Less, 1.0).await;
        assert!(!good && why.starts_with("1 of up{"), "{why}");
        assert_eq!(said("scalar(up)", Compare::GreaterOrEqual, 1.0).await, (true, "1, >= 1".to_owned()));
        assert_eq!(
            said("up{job=\"nobody\"}", Compare::Equal, 1.0).await,
            (false, "the query found nothing".to_owned())
        );
        assert_eq!(said("vector(0) / 0", Compare::Less, 1.0).await, (false, "NaN".to_owned()));
        let (good, why) = said("{__name__=~\"scrape_.+\"}", Compare::GreaterOrEqual, 0.0).await;
        assert!(good && why.starts_with("all ") && why.ends_with(" values >= 0"), "{why}");
        let (good, why) = said("up{", Compare::Less, 1.0).await;
        assert!(!good && why.starts_with("400: ") && why.contains("parse error"), "{why}");
        let (good, why) = said("up[1m]", Compare::Less, 1.0).await;
        assert!(!good && why.contains("matrix"), "{why}");
        let gone = server.rule("up", Compare::Equal, 1.0);
        drop(server);
        assert_eq!(ask(0, &gone, &Surroundings::default()).await.said, "connection refused");
    });
}
