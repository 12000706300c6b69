//! Promise: whoever cannot show the token gets nothing over TCP, on any route there is or will be; what comes in is bounded.

use crate::api_daemon::{ANAS_TOKEN, Daemon, asked, sample};
use crate::support::http;
use mainstay::model::Way;
use mainstay::web::{ROUTES, Route};
use reqwest::{Method, StatusCode};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

fn concrete(route: &Route) -> String {
    let path = route.path.replace("{repo}", "shop").replace("{name}", "board").replace("{token}", "none");
    if path.contains("approvals/{id}") {
        return path.replace("{id}", "1");
    }
    if path.contains("inbox/{id}") { path.replace("{id}", "41") } else { path.replace("{id}", "12") }
}

async fn ask(daemon: &Daemon, route: &Route, token: Option<&str>) -> StatusCode {
    let method: Method = route.method.parse().unwrap();
    let mut request = reqwest::Client::new().request(method, daemon.url(&concrete(route)));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if route.method == "POST" {
        let kind = if route.path.starts_with("/a/") { "application/x-www-form-urlencoded" } else { "application/json" };
        request = request.header("content-type", kind).body(match route.path {
            "/a/{token}" => "verdict=approve",
            "/api/v1/trigger" => r#"{"repo":"shop"}"#,
            "/api/v1/tokens" => r#"{"person":"ana"}"#,
            _ => "{}",
        });
    }
    request.send().await.unwrap().status()
}

#[tokio::test]
async fn every_route_over_tcp_needs_the_token_unless_the_table_says_open() {
    let daemon = Daemon::start().await;
    daemon.memory.put(sample(12, "running"));
    daemon.memory.log(12, "build", 1, "hello", true);
    daemon.approvals.ensure(asked("run/12/go-live", &["managers"], 1)).await.unwrap();
    let open: Vec<&str> = ROUTES.iter().filter(|route| route.open).map(|route| route.path).collect();
    let meant = ["/healthz", "/readyz", "/hooks/{repo}", "/webhooks/approvals/{name}", "/a/{token}", "/a/{token}"];
    assert_eq!(open, meant, "another route was opened to everybody: is that meant?");
    let almost = format!("{}0", &daemon.token[..63]);
    for route in ROUTES {
        let name = format!("{} {}", route.method, route.path);
        for wrong in [None, Some(""), Some("wrong"), Some(almost.as_str()), Some(&daemon.token[..63])] {
            // One token in sixteen ends in 0 anyway.
            if wrong == Some(daemon.token.as_str()) {
                continue;
            }
            let status = ask(&daemon, route, wrong).await;
            if route.open {
                let fits = [StatusCode::OK, StatusCode::UNAUTHORIZED, StatusCode::NOT_FOUND];
                // The webhook's own signature is what is missing there; no system and no link has such a name.
                assert!(fits.contains(&status), "{name} answered {status}");
            } else {
                assert_eq!(status, StatusCode::UNAUTHORIZED, "{name} with token {wrong:?}");
            }
        }
        for right in [daemon.token.as_str(), ANAS_TOKEN] {
            let status = ask(&daemon, route, Some(right)).await;
            if route.local {
                assert_eq!(status, StatusCode::FORBIDDEN, "{name} is not for TCP, whatever token is shown");
            } else if route.person && right != ANAS_TOKEN {
                assert_eq!(status, StatusCode::FORBIDDEN, "{name} is for people, not for whoever has the token file");
            } else if !route.open {
                // This daemon has no environments, no deploys and no sources.
                let none = ["/environments/{", "/deploys/{", "/sources/{"].iter().any(|part| route.path.contains(part));
                let fits = if none { status == StatusCode::NOT_FOUND } else { status.is_success() };
                assert!(fits, "{name} with a right token answered {status}");
            }
        }
    }
    let wishes = daemon.memory.wishes();
    let other = |route: &Route| ["/environments/", "/backup"].iter().any(|part| route.path.contains(part));
    let theirs =
        |route: &&Route| route.method == "POST" && !route.open && !route.local && !route.person && !other(route);
    let posts = ROUTES.iter().filter(theirs).count();
    assert_eq!(wishes.len(), 2 * posts, "a refused request had an effect: {wishes:?}");
    // Approved, taken back and rejected by Ana; by nobody else.
    let view = daemon.approvals.view(mainstay::model::ApprovalId(1)).await.unwrap().unwrap();
    let said: Vec<_> = view.decisions.iter().map(|d| (d.person.as_str(), d.verdict.as_str())).collect();
    assert_eq!(said, [("ana", "approve"), ("ana", "reject")]);
}

#[tokio::test]
async fn only_the_socket_makes_and_revokes_tokens() {
    let daemon = Daemon::start().await;
    let local: Vec<String> =
        ROUTES.iter().filter(|route| route.local).map(|route| format!("{} {}", route.method, route.path)).collect();
    assert_eq!(local, ["POST /api/v1/tokens", "POST /api/v1/tokens/{id}/revoke"]);
    let over_socket = |path: &'static str, body: &'static str| {
        let socket = daemon.state().join("mainstay.sock");
        let headers = [("Content-Type", "application/json")];
        async move {
            tokio::task::spawn_blocking(move || http::ask(&socket, "POST", path, &headers, body.as_bytes()).unwrap())
                .await
                .unwrap()
                .0
        }
    };
    assert_eq!(over_socket("/api/v1/tokens", r#"{"person":"ana"}"#).await, 201);
    assert_eq!(over_socket("/api/v1/tokens", r#"{"person":"a b"}"#).await, 400);
    assert_eq!(over_socket("/api/v1/tokens/12/revoke", "").await, 200);
    assert_eq!(over_socket("/api/v1/tokens/x/revoke", "").await, 400);
    assert_eq!(daemon.memory.wishes(), ["token for ana", "revoke 12"]);
}

#[tokio::test]
async fn every_wish_says_who_asks_and_how_that_is_known() {
    let daemon = Daemon::start().await;
    let reload = ROUTES.iter().find(|route| route.path == "/api/v1/reload").unwrap();
    assert!(ask(&daemon, reload, Some(&daemon.token)).await.is_success());
    assert!(ask(&daemon, reload, Some(ANAS_TOKEN)).await.is_success());
    let almost = format!("{}b", &ANAS_TOKEN[..ANAS_TOKEN.len() - 1]);
    assert_eq!(ask(&daemon, reload, Some(&almost)).await, StatusCode::UNAUTHORIZED);
    let socket = daemon.state().join("mainstay.sock");
    // A token changes nothing on the socket, where the kernel says who it is.
    let shown = format!("Bearer {}", daemon.token);
    let status = tokio::task::spawn_blocking(move || {
        http::ask(&socket, "POST", "/api/v1/reload", &[("Authorization", &shown)], b"").unwrap().0
    });
    assert_eq!(status.await.unwrap(), 200);
    let askers = daemon.memory.askers();
    let told: Vec<_> = askers.iter().map(|by| (by.who(), by.as_person().is_some(), by.way())).collect();
    assert_eq!(
        told,
        [("the token file", false, Way::SharedToken), ("ana", true, Way::Token), ("ana", true, Way::Socket)]
    );
}

#[tokio::test]
async fn paths_that_do_not_exist_are_not_told_apart_without_a_token() {
    let daemon = Daemon::start().await;
    for path in
        ["/", "/api/v1/", "/api/v1/secrets", "/api/v2/runs", "/healthz/", "/healthz/../metrics", "/hooks", "/hooks/"]
    {
        let status = reqwest::get(daemon.url(path)).await.unwrap().status();
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let known = reqwest::Client::new().get(daemon.url("/api/v2/runs")).bearer_auth(&daemon.token).send().await.unwrap();
    assert_eq!(known.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_wrong_method_on_an_open_path_is_not_open() {
    let daemon = Daemon::start().await;
    for (method, path) in
        [("POST", "/healthz"), ("GET", "/hooks/shop"), ("OPTIONS", "/hooks/shop"), ("TRACE", "/readyz")]
    {
        let answer = reqwest::Client::new().request(method.parse().unwrap(), daemon.url(path)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
    }
}

#[tokio::test]
async fn a_foreign_host_name_is_refused_even_with_the_token() {
    let daemon = Daemon::start().await;
    let ask = |host: &'static str| {
        let request =
            reqwest::Client::new().get(daemon.url("/api/v1/status")).bearer_auth(&daemon.token).header("host", host);
        async { request.send().await.unwrap().status() }
    };
    for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8420", "169.254.169.254"] {
        assert_eq!(ask(host).await, StatusCode::MISDIRECTED_REQUEST, "{host}");
    }
    for host in ["localhost:8420", "127.0.0.1", "[::1]:1", "ci.example.com"] {
        assert_eq!(ask(host).await, StatusCode::OK, "{host}");
    }
    let answer =
        raw(&daemon, b"GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
    let answer = raw(&daemon, b"GET /healthz HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 421"), "{answer}");
}

async fn raw(daemon: &Daemon, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(daemon.tcp).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // The other side may close while we could still send; what it said before that counts.
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("no answer");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn no_page_of_another_site_may_read_answers() {
    let daemon = Daemon::start().await;
    let request = reqwest::Client::new().get(daemon.url("/healthz")).header("origin", "https://evil.example");
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.headers().keys().all(|name| !name.as_str().starts_with("access-control")), "{:?}", answer.headers());
    assert_eq!(answer.headers()["cache-control"], "no-store");
}

#[tokio::test]
async fn the_socket_is_the_owners_alone_and_needs_no_token() {
    use std::os::unix::fs::PermissionsExt;
    let daemon = Daemon::start().await;
    let path = daemon.state().join("mainstay.sock");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("docker 20.10"), "{answer}");
}

#[tokio::test]
async fn another_user_on_the_socket_is_refused_by_what_the_kernel_says() {
    assert!(nix::unistd::geteuid().is_root(), "this test must run as root: it opens the socket to another user");
    use std::os::unix::fs::PermissionsExt;
    let daemon = Daemon::start().await;
    let everybody = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(daemon.state(), everybody.clone()).unwrap();
    std::fs::set_permissions(daemon.state().join("mainstay.sock"), everybody).unwrap();
    let script = format!(
        r#"import socket; s = socket.socket(socket.AF_UNIX); s.connect("{}/mainstay.sock"); s.send(b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); print(s.recv(65536).decode())"#,
        daemon.state().display()
    );
    let mut command = tokio::process::Command::new("python3");
    let output = command.arg("-c").arg(script).uid(65_534).output().await.expect("python3 is needed for this test");
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn webhooks_are_answered_by_what_became_of_them() {
    let daemon = Daemon::start().await;
    let send = |repo: &'static str, signature: &'static str, body: &'static str| {
        let request = reqwest::Client::new()
            .post(daemon.url(&format!("/hooks/{repo}")))
            .header("x-signature", signature)
            .body(body);
        async { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!(send("shop", "good", "{}").await, 202);
    assert_eq!(send("shop", "good", "mumble").await, 400);
    assert_eq!(send("shop", "forged", "{}").await, 401);
    assert_eq!(send("till", "good", "{}").await, 404);
    assert_eq!(send("..%2f..%2fetc", "good", "{}").await, 404);
    assert_eq!(daemon.memory.wishes(), ["webhook 2 bytes"]);
}

#[tokio::test]
async fn a_webhook_that_is_too_large_is_refused_before_it_is_read() {
    let daemon = Daemon::start().await;
    let head = "POST /hooks/shop HTTP/1.1\r\nHost: localhost\r\nX-Signature: good\r\n";
    let began = Instant::now();
    // Not one byte of the body is sent.
    let answer = raw(&daemon, format!("{head}Content-Length: 8388609\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(5), "it waited for the body");
    // Without a length it is cut at the bound.
    let mut stream = TcpStream::connect(daemon.tcp).await.unwrap();
    stream.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).await.unwrap();
    let chunk = [b"10000\r\n".to_vec(), vec![b'{'; 0x10000], b"\r\n".to_vec()].concat();
    let mut sent = 0_usize;
    while sent < 64 << 20 && stream.write_all(&chunk).await.is_ok() {
        sent += 0x10000;
    }
    assert!(sent < 32 << 20, "it took {sent} bytes");
    assert!(daemon.memory.wishes().is_empty());
    // The largest that fits is taken.
    let fits = [b"{".to_vec(), vec![b' '; (8 << 20) - 1]].concat();
    let answer =
        reqwest::Client::new().post(daemon.url("/hooks/shop")).header("x-signature", "good").body(fits).send().await;
    assert_eq!(answer.unwrap().status(), StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_head_that_never_ends_or_is_too_large_is_cut() {
    let daemon = Daemon::start().await;
    let answer = raw(&daemon, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await;
    assert!(!answer.contains("200 OK"), "{answer}");
    let large = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Large: {}\r\n\r\n", "x".repeat(200_000));
    let answer = raw(&daemon, large.as_bytes()).await;
    assert!(!answer.contains("200 OK"), "{answer}");
}

#[tokio::test]
async fn a_request_is_a_small_json_document_without_unknown_keys() {
    let daemon = Daemon::start().await;
    let send = |kind: &'static str, body: String| {
        let request = reqwest::Client::new().post(daemon.url("/api/v1/trigger")).bearer_auth(&daemon.token);
        async move { request.header("content-type", kind).body(body).send().await.unwrap().status().as_u16() }
    };
    assert_eq!(send("application/json", r#"{"repo":"shop"}"#.into()).await, 202);
    assert_eq!(send("text/plain", r#"{"repo":"shop"}"#.into()).await, 415);
    assert_eq!(send("application/json", r#"{"repo":"shop","reff":"main"}"#.into()).await, 400);
    assert_eq!(send("application/json", r#"{"repo":"../shop"}"#.into()).await, 400);
    assert_eq!(send("application/json", format!(r#"{{"repo":"{}"}}"#, "x".repeat(2 << 20))).await, 413);
}

#[tokio::test]
async fn log_streams_are_counted_and_given_back() {
    let daemon = Daemon::start().await;
    daemon.memory.put(sample(12, "running"));
    let url = daemon.url("/api/v1/runs/12/logs?follow=true");
    let client = reqwest::Client::new();
    let mut open = Vec::new();
    let refused = loop {
        let answer = client.get(&url).bearer_auth(&daemon.token).send().await.unwrap();
        if answer.status() != StatusCode::OK {
            break answer.status();
        }
        open.push(answer);
        assert!(open.len() <= 64, "no bound");
    };
    assert_eq!((refused, open.len()), (StatusCode::TOO_MANY_REQUESTS, 64));
    drop(open);
    let deadline = Instant::now() + Duration::from_secs(10);
    while client.get(&url).bearer_auth(&daemon.token).send().await.unwrap().status() != StatusCode::OK {
        assert!(Instant::now() < deadline, "places of clients that went away were not given back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn stopping_ends_followers_at_once_and_removes_the_socket() {
    let daemon = Daemon::start().await;
    daemon.memory.put(sample(12, "running"));
    let socket = daemon.state().join("mainstay.sock");
    let follower =
        reqwest::Client::new().get(daemon.url("/api/v1/runs/12/logs?follow=true")).bearer_auth(&daemon.token);
    let follower = follower.send().await.unwrap();
    let _idle = TcpStream::connect(daemon.tcp).await.unwrap();
    let _stopped = daemon.stop(Duration::from_secs(3)).await.expect("a follower or an idle connection held up the end");
    assert_eq!(follower.text().await.unwrap(), "");
    assert!(!socket.exists());
}

#[tokio::test]
async fn readiness_tells_reasons_and_metrics_tell_figures() {
    let daemon = Daemon::start().await;
    daemon.memory.put(sample(11, "success"));
    daemon.memory.put(sample(12, "running"));
    assert_eq!(reqwest::get(daemon.url("/readyz")).await.unwrap().status(), StatusCode::OK);
    daemon.memory.not_ready("the state folder is full");
    let answer = reqwest::get(daemon.url("/readyz")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.text().await.unwrap(), "the state folder is full\n");
    let answer = reqwest::Client::new().get(daemon.url("/metrics")).bearer_auth(&daemon.token).send().await.unwrap();
    let text = answer.text().await.unwrap();
    for line in [
        "mainstay_runs{status=\"success\"} 1",
        "mainstay_runs{status=\"running\"} 1",
        "mainstay_inbox_pending 3",
        "mainstay_messages_waiting 2",
        "mainstay_messages_given_up 1",
        "mainstay_engine_up 1",
        "mainstay_ready 0",
        "mainstay_build_info{version=\"1.2.3\"} 1",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
