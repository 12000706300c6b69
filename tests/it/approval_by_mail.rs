//! From a push to a yes by mail to the deploy: a real daemon, a real mail server, a real browser's requests.

use crate::support::smtp::{Mail, MailServer};
use crate::support::stage::Stage;
use mainstay::config::daemon::notify::SmtpSecurity;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const APPROVAL: &str =
    "watch: 300ms\napproval: { from: [ana, ben], required: 1, by: [mail], allow-unknown-pusher: true }";

fn stage(server: &MailServer) -> Stage {
    let beside = format!(
        "people:\n  users:\n    ana: {{ mail: ana@example.com }}\n    ben: {{ mail: ben@example.com }}\n\
         notify: {{ smtp: {{ url: \"smtp+plain://127.0.0.1:{}\", from: \"Mainstay <ci@example.com>\" }} }}\n",
        server.port()
    );
    Stage::started(APPROVAL, &beside)
}

/// One request as a browser would send it; status and page.
fn browse(url: &str, form: Option<&str>) -> (u16, String) {
    let rest = url.strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let head = match form {
        None => format!("GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n"),
        Some(form) => format!(
            "POST /{path} HTTP/1.0\r\nHost: {host}\r\nOrigin: http://{host}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
            form.len()
        ),
    };
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap();
    (status, answer)
}

fn wait_mail(server: &MailServer, what: &str, wanted: impl Fn(&Mail) -> bool) -> Mail {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(mail) = server.mails().into_iter().rev().find(|mail| wanted(mail)) {
            return mail;
        }
        let there =
            || server.mails().iter().map(|m| format!("{:?}: {}", m.to, m.header("Subject"))).collect::<Vec<_>>();
        assert!(Instant::now() < until, "no {what}: {:#?}", there());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn link_in(mail: &Mail) -> String {
    let at = mail.text.find("http://").unwrap_or_else(|| panic!("no link: {}", mail.text));
    mail.text[at..].split_whitespace().next().unwrap().to_owned()
}

fn digits_in(mail: &Mail) -> String {
    // Alone on a line, in two groups of three.
    let digits = mail
        .text
        .lines()
        .map(|line| line.replace(' ', ""))
        .find(|line| line.len() == 6 && line.bytes().all(|b| b.is_ascii_digit()));
    digits.unwrap_or_else(|| panic!("no digits: {}", mail.text))
}

#[test]
fn a_yes_from_the_mail_lets_the_deploy_begin_and_everybody_is_told() {
    let server = MailServer::start(SmtpSecurity::Plain);
    let stage = stage(&server);
    let commit = stage.push("good-1");
    let to = |name: &str, mail: &Mail| mail.to.iter().any(|address| address == &format!("{name}@example.com"));
    let asked = wait_mail(&server, "question", |mail| to("ben", mail) && mail.text.contains("/a/"));
    // Ana wrote the commits (the harness's git is hers): she is not asked about her own.
    assert!(server.mails().iter().all(|mail| !to("ana", mail)));
    assert!(asked.text.contains("good-1"), "the image is named: {}", asked.text);
    let link = link_in(&asked);
    // Looking changes nothing, however often somebody's scanner looks.
    for _ in 0..5 {
        let (status, page) = browse(&link, None);
        assert_eq!(status, 200, "{page}");
        assert!(
            page.contains("Referrer-Policy: no-referrer") || page.contains("referrer-policy: no-referrer"),
            "{page}"
        );
    }
    assert_eq!(stage.app.serves(), None);
    let (status, page) = browse(&link, Some("verdict=approve"));
    assert_eq!(status, 200, "{page}");
    assert_eq!(stage.app.serves(), None, "a link alone decided");
    let code = wait_mail(&server, "code", |mail| to("ben", mail) && mail.header("Subject").starts_with("Your code"));
    let (status, page) = browse(&link, Some(&format!("verdict=approve&code={}", digits_in(&code))));
    assert_eq!(status, 200, "{page}");
    let run = stage.ended(&commit);
    assert_eq!(run["status"], "success", "{run:#}\n{}", stage.daemon.log_end());
    assert_eq!(stage.app.serves().as_deref(), Some("good-1"));
    // Everybody who may decide hears of the decision, and of how it went.
    wait_mail(&server, "word to ben about the decision", |mail| {
        to("ben", mail) && mail.header("Subject").contains("approved")
    });
    wait_mail(&server, "word to ben about the deploy", |mail| {
        to("ben", mail) && mail.header("Subject").contains("verified")
    });
    // The link has done what it was for.
    let (status, _) = browse(&link, Some("verdict=reject"));
    assert_eq!(status, 410);
    let waiting = &stage.api("status")["messages"];
    assert_eq!(waiting["given_up"], 0, "{waiting}");
    stage.daemon.end(0);
}

#[test]
fn a_question_survives_the_death_of_daemon_and_mail_server() {
    let mut server = MailServer::start(SmtpSecurity::Plain);
    let mut stage = stage(&server);
    server.stop();
    let commit = stage.push("good-1");
    stage.wait("the question", |stage| stage.environment()["deploys"][0]["approval"].as_u64());
    stage.daemon.kill9();
    server.resume();
    stage.daemon.start();
    let asked = wait_mail(&server, "question", |mail| mail.to[0] == "ben@example.com" && mail.text.contains("/a/"));
    let link = link_in(&asked);
    browse(&link, Some("verdict=reject"));
    let code = wait_mail(&server, "code", |mail| mail.header("Subject").starts_with("Your code"));
    let (status, page) = browse(&link, Some(&format!("verdict=reject&code={}", digits_in(&code))));
    assert_eq!(status, 200, "{page}");
    let run = stage.ended(&commit);
    let end = &run["steps"][0]["attempts"][0]["end"];
    assert_eq!(end["how"], "refused", "{run:#}");
    assert!(end["detail"].as_str().unwrap().contains("ben"), "{end}");
    assert_eq!(stage.app.serves(), None);
    stage.daemon.end(0);
}
