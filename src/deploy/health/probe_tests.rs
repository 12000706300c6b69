use super::*;
use crate::config::daemon::environment::Compare;
use crate::model::Span;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn rule(check: HealthCheck) -> HealthRule {
    let second = Span(Duration::from_secs(1));
    HealthRule { check, every: second, failures: 3, within: second, timeout: Span(Duration::from_millis(700)) }
}

fn http_rule(url: String, status: &[u16], body: Option<&str>, latency: Option<u64>) -> HealthRule {
    let latency = latency.map(|millis| Span(Duration::from_millis(millis)));
    rule(HealthCheck::Http { url, status: status.to_vec(), body: body.map(str::to_owned), latency })
}

async fn asked(rule: &HealthRule) -> (bool, String) {
    let probe = ask(4, rule, &Surroundings::default()).await;
    assert_eq!(probe.rule, 4);
    (probe.good, probe.said)
}

/// A server that gives every connection the same bytes after a pause, and counts connections.
async fn server(answer: Vec<u8>, pause: Duration) -> (String, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                tokio::time::sleep(pause).await;
                let _ = stream.write_all(&answer).await;
                // Kept open as a server with keep-alive does.
                let _ = stream.read(&mut request).await;
            });
        }
    });
    (address, count)
}

fn answer(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn without_time(said: &str) -> &str {
    said.split(" in ").next().unwrap()
}

#[tokio::test]
async fn an_http_answer_is_held_against_status_body_and_latency() {
    let quick = Duration::ZERO;
    let (well, count) = server(answer("200 OK", "all ok here"), quick).await;
    let (ill, _) = server(answer("503 Service Unavailable", "ok"), quick).await;
    let (moved, _) =
        server(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".to_vec(), quick)
            .await;
    let url = |address: &str| format!("http://{address}/healthz");

    let (good, said) = asked(&http_rule(url(&well), &[], Some("ok"), Some(600))).await;
    assert!(good && said.starts_with("200 in ") && said.ends_with(" ms"), "{said}");
    let (good, said) = asked(&http_rule(url(&ill), &[], Some("ok"), None)).await;
    assert!(!good && without_time(&said) == "503", "{said}");
    assert!(asked(&http_rule(url(&ill), &[503, 200], Some("ok"), None)).await.0);
    assert!(!asked(&http_rule(url(&well), &[204], None, None)).await.0);
    let (good, said) = asked(&http_rule(url(&well), &[], Some("\"status\":1"), None)).await;
    assert_eq!((good, said.as_str()), (false, "200, but the body has no \"\\\"status\\\":1\""));
    // A redirect is the answer; where it leads is somebody else.
    let (good, said) = asked(&http_rule(url(&moved), &[], None, None)).await;
    assert!(!good && without_time(&said) == "302", "{said}");
    assert!(asked(&http_rule(url(&moved), &[302], None, None)).await.0);
    // Every question is a connection of its own.
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_slow_answer_is_bad_by_latency_and_a_missing_one_by_timeout() {
    let (slow, _) = server(answer("200 OK", "ok"), Duration::from_millis(150)).await;
    let (good, said) = asked(&http_rule(format!("http://{slow}/"), &[], None, Some(100))).await;
    assert!(!good && said.starts_with("200 in ") && said.ends_with("s, more than 100 ms"), "{said}");
    let (never, _) = server(answer("200 OK", "ok"), Duration::from_secs(60)).await;
    let (good, said) = asked(&http_rule(format!("http://{never}/"), &[], None, None)).await;
    assert_eq!((good, said.as_str()), (false, "no answer within 700ms"));
}

#[tokio::test]
async fn what_is_no_answer_is_told_in_words() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap().to_string();
    drop(listener);
    let refused = (false, "connection refused".to_owned());
    assert_eq!(asked(&http_rule(format!("http://{closed}/"), &[], None, None)).await, refused);
    assert_eq!(asked(&rule(HealthCheck::Tcp(closed.clone()))).await, refused);
    let (cut, _) =
        server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhal".to_vec(), Duration::ZERO).await;
    let (good, said) = asked(&http_rule(format!("http://{cut}/"), &[], None, None)).await;
    assert!(!good, "{said}");
    let (odd, _) = server(b"SSH-2.0-OpenSSH\r\n".to_vec(), Duration::ZERO).await;
    let (good, said) = asked(&http_rule(format!("http://{odd}/"), &[], None, None)).await;
    assert!(!good && !said.is_empty(), "{said}");
    let (open, _) = server(Vec::new(), Duration::from_secs(60)).await;
    let (good, said) = asked(&rule(HealthCheck::Tcp(open))).await;
    assert!(good && said.starts_with("connected in "), "{said}");
}

#[tokio::test]
async fn of_an_endless_body_one_mebibyte_is_read() {
    let mut endless = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    endless.resize(BODY_MAX_BYTES + (64 << 10), b'x');
    endless.extend_from_slice(b"ok");
    let (address, _) = server(endless, Duration::ZERO).await;
    let mut rule = http_rule(format!("http://{address}/"), &[], Some("ok"), None);
    rule.timeout = Span(Duration::from_secs(20));
    assert_eq!(asked(&rule).await, (false, "200, but the first MiB of the body has no \"ok\"".to_owned()));
}

#[tokio::test]
async fn a_command_says_its_last_line() {
    let said = async |line: &str| asked(&rule(HealthCheck::Command(line.to_owned()))).await;
    assert_eq!(said("echo one; echo two").await, (true, "exit 0: two".to_owned()));
    assert_eq!(said("true").await, (true, "exit 0".to_owned()));
    assert_eq!(
        said("echo out; echo the queue is stuck >&2; exit 3").await,
        (false, "exit 3: the queue is stuck".to_owned())
    );
    let (good, why) = said("echo waiting; sleep 60").await;
    assert!(!good && (why == "no end in time, killed: waiting" || why == "no answer within 700ms"), "{why}");
}

#[tokio::test]
async fn restarts_are_counted_by_the_target() {
    let said = async |restarts_since| {
        let probe = ask(0, &rule(HealthCheck::Restarts(2)), &Surroundings { restarts_since }).await;
        (probe.good, probe.said)
    };
    assert_eq!(said(Some(0)).await, (true, "0 restarts since it serves".to_owned()));
    assert_eq!(said(Some(2)).await, (true, "2 restarts since it serves".to_owned()));
    assert_eq!(said(Some(3)).await, (false, "3 restarts since it serves, more than 2".to_owned()));
    assert!(!said(None).await.0);
}

#[test]
fn answers_of_prometheus_by_table() {
    let less = |than| Expect { compare: Compare::Less, than };
    let vector = |values: &[(&str, &str)]| {
        let series: Vec<_> = values.iter().map(|(job, v)| json!({"metric": {"job": job}, "value": [1.5, v]})).collect();
        json!({"resultType": "vector", "result": series})
    };
    let table = [
        (vector(&[("a", "0.003")]), Ok("0.003, < 0.01")),
        (vector(&[("a", "0.003"), ("b", "0")]), Ok("all 2 values < 0.01")),
        (vector(&[("a", "0.003"), ("b", "0.02")]), Err("0.02 of {job=\\\"b\\\"}, not < 0.01")),
        (vector(&[("a", "NaN")]), Err("NaN of {job=\\\"a\\\"}")),
        (vector(&[("a", "+Inf")]), Err("inf of {job=\\\"a\\\"}, not < 0.01")),
        (vector(&[("a", "-Inf")]), Ok("-inf, < 0.01")),
        (vector(&[("a", "many")]), Err("the value of {job=\\\"a\\\"} is no number")),
        (vector(&[]), Err("the query found nothing")),
        (json!({"resultType": "scalar", "result": [1.5, "0.001"]}), Ok("0.001, < 0.01")),
        (json!({"resultType": "scalar", "result": [1.5, "1"]}), Err("1, not < 0.01")),
        (
            json!({"resultType": "matrix", "result": []}),
            Err("the query answers with matrix; it has to give numbers of one moment"),
        ),
    ];
    for (data, wanted) in table {
        let found = judge_answer(&data, less(0.01));
        assert_eq!(found.as_deref().map_err(String::as_str), wanted, "{data}");
    }
}

#[test]
fn comparisons_by_table() {
    use Compare::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual};
    let table = [
        (Less, [true, false, false]),
        (LessOrEqual, [true, true, false]),
        (Greater, [false, false, true]),
        (GreaterOrEqual, [false, true, true]),
        (Equal, [false, true, false]),
    ];
    for (compare, wanted) in table {
        let expect = Expect { compare, than: 2.0 };
        assert_eq!([1.0, 2.0, 3.0].map(|value| satisfies(expect, value)), wanted, "{compare:?}");
        assert!(!satisfies(expect, f64::NAN));
    }
}

#[test]
fn rules_are_named_without_credentials() {
    let words = |check| super::super::words(&rule(check));
    let http = HealthCheck::Http {
        url: "http://ana:hunter2@127.0.0.1/x".into(),
        status: Vec::new(),
        body: None,
        latency: None,
    };
    let named = words(http);
    assert!(!named.contains("hunter2") && named.starts_with("http http://"), "{named}");
    assert_eq!(words(HealthCheck::Tcp("db:5432".into())), "tcp db:5432");
    assert_eq!(words(HealthCheck::Command("./look\n".into())), "command `./look`");
}
