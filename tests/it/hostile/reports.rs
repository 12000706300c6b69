//! Reports that want to do harm: pushes of many refs, webhooks, the hook's socket.

use super::lab::{Lab, text};
use crate::git_transports::{git, git_with_input};
use hmac::{Hmac, KeyInit, Mac};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const QUICK: &[u8] = b"steps:\n  one: { image: busybox, commands: [\"true\"] }\n";

#[test]
fn a_push_of_a_thousand_branches_is_taken_at_once_and_starts_as_many_runs_as_allowed() {
    let mut lab = Lab::start("limits: { runs-per-push: 5 }", "");
    lab.push("seed", &[(".mainstay/ci.yml", QUICK)]);
    lab.wait("the first run", || (lab.runs().len() == 1).then_some(()));
    let head = git(&lab.work, &["rev-parse", "HEAD"]);
    let head = head.trim();
    // All at one commit; the default branch is named last.
    let mut update: String = (0..1_000).map(|n| format!("create refs/heads/team/it's-{n} {head}\n")).collect();
    update += &format!("update refs/heads/main {head}\n");
    git_with_input(
        &lab.work,
        &["update-ref", "--stdin"],
        &update.replace(&format!("update refs/heads/main {head}\n"), ""),
    );
    let before = Instant::now();
    git(
        &lab.work,
        &["push", "-q", "origin", "refs/heads/team/*:refs/heads/team/*", &format!("{head}:refs/heads/main")],
    );
    let took = before.elapsed();
    lab.wait("all rows", || (lab.json(&["inbox", "--limit", "500"]).as_array()?.len() == 500).then_some(()));
    // Git's own part of a push of a thousand refs takes most of it.
    assert!(took < Duration::from_secs(4), "{took:?}");
    lab.wait("the runs", || lab.runs().iter().all(|run| run["status"] == "success").then_some(()));
    std::thread::sleep(Duration::from_millis(500));
    let mut refs: Vec<String> = lab.runs().iter().map(|run| run["git_ref"].as_str().unwrap().to_owned()).collect();
    assert_eq!(refs.len(), 6, "{refs:?}");
    assert!(refs.contains(&"refs/heads/main".to_owned()), "{refs:?}");
    refs.dedup();
    assert_eq!(refs.len(), 6, "{refs:?}");
    let inbox = lab.json(&["inbox", "--limit", "500"]);
    let dropped: Vec<_> = inbox.as_array().unwrap().iter().filter(|row| row["state"] == "dropped").collect();
    assert!(dropped.len() > 490, "{}", dropped.len());
    let reason = dropped[0]["reason"].as_str().unwrap();
    assert!(
        reason.contains("limits.runs-per-push") && reason.contains("mainstay trigger shop --ref 'team/it'\\''s-"),
        "{reason}"
    );
    // The command that it names works.
    let replayed = lab.cli(&["inbox", "replay", &dropped[0]["id"].to_string()]);
    assert!(replayed.status.success(), "{}", text(&replayed));
    lab.wait("the run by hand", || (lab.runs().len() == 7).then_some(()));
    lab.alive();
}

#[test]
fn only_the_watched_branch_starts_runs() {
    let lab = Lab::start("", "    branch: main\n");
    let other = lab.push("other", &[(".mainstay/ci.yml", QUICK)]);
    let main = lab.push_head("main");
    assert_eq!(other, main);
    lab.ended(&main);
    let runs = lab.runs();
    assert_eq!(runs.len(), 1, "{runs:?}");
    assert_eq!(runs[0]["git_ref"], "refs/heads/main");
}

fn post(lab: &Lab, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", lab.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nConnection: close\r\n{headers}\r\n",
        lab.port
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The daemon may close before it has all of it.
    let _ = stream.write_all(body);
    answer(&mut stream)
}

fn answer(stream: &mut TcpStream) -> (u16, String) {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let all = String::from_utf8_lossy(&all).into_owned();
    let status = all.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    (status, all)
}

fn signed(body: &[u8], delivery: &str) -> String {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(b"hook-secret").unwrap();
    mac.update(body);
    let hex = hex::encode(mac.finalize().into_bytes());
    format!(
        "Content-Length: {}\r\nX-Hub-Signature-256: sha256={hex}\r\nX-GitHub-Event: push\r\nX-GitHub-Delivery: {delivery}\r\n",
        body.len()
    )
}

#[test]
fn webhooks_of_strangers_are_refused_before_they_cost_anything() {
    let mut lab =
        Lab::start("", "    webhook: { kind: github, secret: hook-secret }\n  silent: /nonexistent/repository.git\n");
    let body = br#"{"ref":"refs/heads/main","before":"0","after":"0"}"#;
    let wrong = signed(b"other", "d1").replace("Content-Length: 5", &format!("Content-Length: {}", body.len()));
    assert_eq!(post(&lab, "/hooks/shop", &wrong, body).0, 401);
    assert_eq!(post(&lab, "/hooks/silent", &signed(body, "d1"), body).0, 404);
    assert_eq!(post(&lab, "/hooks/nobody", &signed(body, "d1"), body).0, 404);
    for path in ["/hooks/..%2f..%2fetc", "/hooks/", "/hooks/%00", "/hooks/a/b"] {
        let (status, answer) = post(&lab, path, &signed(body, "d1"), body);
        assert_eq!(status, 404, "{path}: {answer}");
    }
    // A body of a GiB: told by its length, and told by nothing.
    let before = Instant::now();
    let (status, _) = post(&lab, "/hooks/shop", "Content-Length: 1073741824\r\n", b"x");
    assert_eq!(status, 413);
    let mut stream = TcpStream::connect(("127.0.0.1", lab.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head =
        format!("POST /hooks/shop HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nTransfer-Encoding: chunked\r\n\r\n", lab.port);
    stream.write_all(head.as_bytes()).unwrap();
    let piece = [b"100000\r\n".as_slice(), &vec![b'x'; 1 << 20], b"\r\n"].concat();
    let mut sent = 0;
    // Until the daemon has had enough, or a GiB.
    while sent < 1_024 && stream.write_all(&piece).is_ok() {
        sent += 1;
    }
    assert!(sent < 64, "it took {sent} MiB");
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    // Signed and deep, signed and nonsense.
    let deep = [b"{\"ref\":".as_slice(), "[".repeat(1_000_000).as_bytes()].concat();
    for body in [deep.as_slice(), b"\xff\xfe", b"", b"[]", b"{\"ref\":7}"] {
        let (status, answer) = post(&lab, "/hooks/shop", &signed(body, "d2"), body);
        assert_eq!(status, 400, "{answer}");
        assert!(answer.len() < 2_048, "{}", answer.len());
    }
    // One that is good, and the same again.
    lab.push("seed", &[(".mainstay/ci.yml", QUICK)]);
    let before = git(&lab.bare, &["rev-parse", "main"]);
    let commit = git(&lab.work, &["rev-parse", "HEAD"]);
    git(&lab.bare, &["update-ref", "refs/heads/main", commit.trim()]);
    let good = serde_json::json!({"ref": "refs/heads/main", "before": before.trim(), "after": commit.trim(), "pusher": {"name": "a\u{1b}[31m"}});
    let good = good.to_string();
    for _ in 0..2 {
        let (status, answer) = post(&lab, "/hooks/shop", &signed(good.as_bytes(), "d3"), good.as_bytes());
        assert_eq!(status, 202, "{answer}");
    }
    assert_eq!(
        lab.json(&["inbox"]).as_array().unwrap().iter().filter(|row| row["git_ref"] == "refs/heads/main").count(),
        1
    );
    lab.alive();
    assert!(lab.peak_mib() < 128, "{} MiB", lab.peak_mib());
}

#[test]
fn garbage_and_silence_on_the_hook_socket_stop_nobody() {
    let mut lab = Lab::start("", "");
    let path = lab.state().join("hook.sock");
    let garbage: [&[u8]; 6] = [
        b"",
        b"\0\xff\xfe",
        b"GET / HTTP/1.1\r\n\r\n",
        b"mainstay-push 1\nrepo ../../etc\ndelivery a\nactor b\nend\n",
        b"mainstay-push 1\nrepo shop\ndelivery a\nactor b\n0 0 refs/heads/main\nend\n",
        &[b'x'; 200_000],
    ];
    for bytes in garbage {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.starts_with("error ") && answer.len() < 1_024, "{answer:?}");
    }
    // Ten thousand who connect and say nothing; as many as the kernel lets wait are kept open.
    let mut silent = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(4);
    for _ in 0..10_000 {
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_NONBLOCK,
            None,
        );
        let Ok(socket) = socket else { break };
        let address = nix::sys::socket::UnixAddr::new(&path).unwrap();
        let _ = nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address);
        silent.push(socket);
        if Instant::now() > deadline {
            break;
        }
        if silent.len() > 500 {
            silent.drain(..250);
        }
    }
    lab.alive();
    // A push meanwhile is not held up for long, and runs: by the socket or by the spool.
    let before = Instant::now();
    let commit = lab.push("main", &[(".mainstay/ci.yml", QUICK)]);
    assert!(before.elapsed() < Duration::from_secs(15), "{:?}", before.elapsed());
    drop(silent);
    assert_eq!(lab.ended(&commit)["status"], "success");
    lab.alive();
    assert!(lab.peak_mib() < 128, "{} MiB", lab.peak_mib());
}
