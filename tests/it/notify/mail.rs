//! What a mail holds, and how it gets to the server.

use super::*;
use crate::support::smtp::{Mail, USER};
use mainstay::config::daemon::notify::SmtpSecurity;

/// Every address in a text that a mail program would make into a link.
fn addresses(text: &str) -> Vec<&str> {
    text.match_indices("://").map(|(at, _)| text[at..].split(['"', '<', ' ', '\r', '\n']).next().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_mail_has_all_that_is_needed_and_one_link() {
    let server = MailServer::start(SmtpSecurity::StartTls);
    let post = Post::start(by_mail(&server));
    let before = Timestamp::now();
    post.mail("approval/3/asked/ana", "ana", &asked("ana")).await;
    let [mail] = server.wait_for(1).try_into().unwrap();
    assert!(mail.encrypted);
    assert_eq!(mail.login.as_deref(), Some(USER));
    assert_eq!((mail.from.as_str(), mail.to.as_slice()), ("ci@example.com", &["ana@example.com".to_owned()][..]));

    assert_eq!(mail.header("Subject"), "[production] approve shop 1a2b3c4d?");
    assert_eq!(mail.header("From"), "Mainstay <ci@example.com>");
    assert_eq!(mail.header("To"), "ana@example.com");
    assert_eq!(mail.header("Auto-Submitted"), "auto-generated");
    assert!(mail.header("Content-Type").starts_with("multipart/alternative"), "{}", mail.header("Content-Type"));
    let date = jiff::fmt::rfc2822::parse(mail.header("Date")).unwrap().timestamp();
    assert!(date.duration_since(before).as_secs().abs() <= 5, "{date}");
    let id = mail.header("Message-ID");
    assert!(id.starts_with('<') && id.ends_with("@example.com>"), "{id}");

    // As a screen shows it: the HTML without its tags, and both without where lines break.
    let html = unescaped(&mail.html);
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    for (name, body) in [("text", words(&mail.text)), ("html", words(&html))] {
        for wanted in [
            "Deploy shop 1a2b3c4d to production?",
            "It still contains 9f8e7d6c, which was rolled back on Friday",
            "2 people have to say yes, one no ends it.",
            "1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d",
            "1a2b3c4d Ana: Cart: count what is in it",
            "0a0b0c0d Ben: Prices in cents",
            "+ replicas: 3",
            "registry.example.com/shop/api@sha256:4c1f",
            "p95 84 ms, 0 errors",
            "staging/12 has been healthy for 2 h",
            "release production/6 is put back, about 4 s",
            "Please have a look at the new prices.",
            "mainstay approve 3",
        ] {
            assert!(body.contains(wanted), "{name} lacks `{wanted}`:\n{body}");
        }
    }
    assert_eq!(addresses(&mail.text), [&LINK["https".len()..]]);
    assert_eq!(addresses(&mail.html), [&LINK["https".len()..]]);
    assert_eq!(mail.html.matches("<a ").count(), 1);
    for forbidden in ["<img", "<script", "<link", "<style", "@import", "url("] {
        assert!(!mail.html.contains(forbidden), "{forbidden}");
    }
    // The wire is plain ASCII in short lines, whatever stands in it.
    assert!(mail.raw.is_ascii() && mail.raw.lines().all(|line| line.len() <= 998));
}

/// The text of an HTML document, tags out, entities in.
fn unescaped(html: &str) -> String {
    let mut text = String::new();
    for piece in html.split('<') {
        text.push_str(piece.split_once('>').map_or(piece, |(_, rest)| rest));
        text.push(' ');
    }
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    entities.into_iter().fold(text, |text, (entity, c)| text.replace(entity, c))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_run_make_one_thread() {
    let server = MailServer::start(SmtpSecurity::Plain);
    let post = Post::start(by_mail(&server));
    post.mail("1", "ana", &asked("ana")).await;
    post.mail("2", "ana", &decided(12, "ben")).await;
    post.mail("3", "ana", &decided(13, "ben")).await;
    post.mail("4", "ana", &rolled_back(7)).await;
    let mails = server.wait_for(4);
    let thread = |mail: &Mail| mail.header("References").to_owned();
    for mail in &mails {
        assert_eq!(mail.header("In-Reply-To"), thread(mail));
        assert!(thread(mail).starts_with('<') && thread(mail).ends_with("@example.com>"));
    }
    assert_eq!(thread(&mails[0]), thread(&mails[1]));
    assert_eq!(thread(&mails[0]), thread(&mails[3]));
    assert_ne!(thread(&mails[0]), thread(&mails[2]));
    let mut ids: Vec<&str> = mails.iter().map(|m| m.header("Message-ID")).collect();
    ids.extend([thread(&mails[0])].iter().map(String::as_str).map(|_| ""));
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 5, "{ids:?}");
    assert_eq!(mails[1].header("Subject"), "[production] ben approved deploy shop 1a2b3c4d to production (1 of 2)");
    assert_eq!(mails[3].header("Subject"), "[production] shop release 7 was rolled back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_wrote_cannot_become_a_header_a_tag_or_a_link() {
    let evil = "x\r\nBcc: eve@example.net\r\nX-Evil: 1\r\n\r\n<script>alert('1')</script> \" onload=\"evil() \
                https://evil.example/approve www.evil.example \u{202e}desrever\u{7}\u{0}";
    let mut message = asked("ana");
    if let Message::ApprovalAsked { subject, how_by_cli, .. } = &mut message {
        let text = || evil.to_owned();
        for field in [
            &mut subject.title,
            &mut subject.repo,
            &mut subject.git_ref,
            &mut subject.commit,
            &mut subject.way_back,
            &mut subject.config_diff,
            how_by_cli,
        ] {
            *field = text();
        }
        subject.warning = Some(text());
        subject.staging = Some(text());
        subject.message = Some(text());
        subject.commits = vec![text()];
        subject.images = [(text(), text())].into();
        subject.results = vec![(text(), text())];
    }
    let server = MailServer::start(SmtpSecurity::Plain);
    let post = Post::start(by_mail(&server));
    post.mail("1", "ana", &message).await;
    let mut rolled_back = rolled_back(7);
    if let Message::Deploy { title, why, way_back, .. } = &mut rolled_back {
        (*title, *why, *way_back) = (evil.into(), Some(evil.into()), Some(evil.into()));
    }
    post.mail("2", "ana", &rolled_back).await;
    for (mail, link) in server.wait_for(2).iter().zip([LINK, RUN_URL]) {
        assert_eq!(mail.to, ["ana@example.com"]);
        let mut names: Vec<&str> = mail.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let known = [
            "Auto-Submitted",
            "Content-Type",
            "Date",
            "From",
            "In-Reply-To",
            "MIME-Version",
            "Message-ID",
            "References",
            "Subject",
            "To",
            "X-Auto-Response-Suppress",
        ];
        assert_eq!(names, known);
        assert!(!mail.header("Subject").contains(['\r', '\n', '\u{202e}']), "{:?}", mail.header("Subject"));
        assert_eq!(addresses(&mail.text), [&link["https".len()..]]);
        assert_eq!(addresses(&mail.html), [&link["https".len()..]]);
        assert!(!mail.html.contains("<script") && !mail.html.contains("onload=\"evil"), "{}", mail.html);
        assert!(!mail.text.lines().any(|line| line.starts_with("Bcc:") || line.starts_with("<script")));
        for body in [&mail.text, &mail.html] {
            assert!(!body.contains(['\u{202e}', '\u{7}', '\u{0}']));
            assert!(!body.contains("www.evil"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_to_a_server_that_cannot_show_who_it_is() {
    // TLS from the start, with the right authority.
    let server = MailServer::start(SmtpSecurity::Tls);
    let post = Post::start(by_mail(&server));
    post.mail("1", "ana", &rolled_back(7)).await;
    assert!(server.wait_for(1)[0].encrypted);
    assert_eq!(
        by_mail(&server).mail().unwrap().check().await.unwrap(),
        format!("127.0.0.1:{} answers, TLS, logged in", server.port())
    );

    // The authority of another server, and none of our own at all.
    let other = MailServer::start(SmtpSecurity::StartTls);
    for authority in [Some(other.authority()), None] {
        let mut settings = server.settings();
        settings.authority = authority;
        let notify = Notify { smtp: Some(settings), ..Notify::default() };
        let why = refused(Channels::new(&notify, &people(), &instance()).unwrap()).await;
        assert!(why.contains("certificate"), "{why}");
    }
    // A password that is wrong is a setting to be mended: the message waits.
    let mut settings = other.settings();
    settings.password = Some(Secret::new("close sesame"));
    let notify = Notify { smtp: Some(settings), ..Notify::default() };
    let why = refused(Channels::new(&notify, &people(), &instance()).unwrap()).await;
    assert!(why.contains("refused the login: 535") && !why.contains("sesame"), "{why}");
    // A server that offers no STARTTLS.
    let plain = MailServer::start(SmtpSecurity::Plain);
    let mut settings = plain.settings();
    settings.security = SmtpSecurity::StartTls;
    let notify = Notify { smtp: Some(settings), ..Notify::default() };
    let why = refused(Channels::new(&notify, &people(), &instance()).unwrap()).await;
    assert!(why.contains("offers no STARTTLS"), "{why}");
    assert_eq!((server.mails().len(), other.mails().len(), plain.mails().len()), (1, 0, 0));
}

/// Why a message waits.
async fn refused(channels: Channels) -> String {
    let post = Post::start(channels);
    post.mail("1", "ana", &rolled_back(7)).await;
    let row = post.row_once("1", |row| row.error.is_some()).await;
    assert_ne!(row.state, OutboxState::GivenUp, "{row:?}");
    row.error.unwrap()
}
