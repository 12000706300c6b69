//! Each message arrives at least once, and twice only where nobody can know better.

use super::*;
use mainstay::config::daemon::notify::SmtpSecurity;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_while_the_server_was_away_arrives_once_and_in_order() {
    let mut server = MailServer::start(SmtpSecurity::Plain);
    server.stop();
    let post = Post::start(by_mail(&server));
    for n in 1..=4 {
        post.mail(&format!("a{n}"), "ana", &rolled_back(n)).await;
        post.mail(&format!("b{n}"), "ben", &rolled_back(n)).await;
    }
    post.row_once("a1", |row| row.tries >= 2).await;
    assert!(post.store.message_figures().await.unwrap().stuck.unwrap().error.contains("onnection"));
    server.resume();
    server.wait_for(8);
    for key in ["a4", "b4"] {
        post.row_in(key, OutboxState::Sent).await;
    }
    // Told again of the same cause, nothing is sent again.
    post.mail("a1", "ana", &rolled_back(1)).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mails = server.mails();
    for who in ["ana@example.com", "ben@example.com"] {
        let of_one = mails.iter().filter(|mail| mail.to == [who]).map(|mail| mail.header("Subject").to_owned());
        let wanted = (1..=4).map(|n| format!("[production] shop release {n} was rolled back"));
        assert_eq!(of_one.collect::<Vec<_>>(), wanted.collect::<Vec<_>>(), "{who}");
    }
    let figures = post.store.message_figures().await.unwrap();
    assert_eq!((figures.waiting, figures.given_up, figures.stuck), (0, 0, None));
}

/// The one case in which a message comes twice: the server has it, and we died, or it did, before we had its word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_whose_taking_was_never_heard_of_comes_again_as_the_same_message() {
    // Our death: the server has kept the mail and is slow to say so.
    let mut server = MailServer::start(SmtpSecurity::Plain);
    server.behave("slow 30");
    let post = Post::start(by_mail(&server));
    post.mail("1", "ana", &asked("ana")).await;
    server.wait_for(1);
    assert_eq!(post.row("1").await.state, OutboxState::Sending);
    let folder = post.kill().await;
    server.behave("ok");
    let post = Post::start_in(folder, by_mail(&server));
    post.row_in("1", OutboxState::Sent).await;
    let mails = server.mails();
    assert_eq!(mails.len(), 2);
    assert_eq!(mails[0].header("Message-ID"), mails[1].header("Message-ID"));
    assert_eq!(mails[0].raw, mails[1].raw, "the second is another mail");

    // Its death.
    server.behave("die");
    post.mail("2", "ana", &rolled_back(7)).await;
    server.wait_until_dead();
    let row = post.row_once("2", |row| row.error.is_some()).await;
    assert_ne!(row.state, OutboxState::Sent);
    server.behave("ok");
    server.resume();
    post.row_in("2", OutboxState::Sent).await;
    let mails = server.mails();
    assert_eq!(mails.len(), 4);
    assert_eq!(mails[2].header("Message-ID"), mails[3].header("Message-ID"));
    assert_ne!(mails[0].header("Message-ID"), mails[2].header("Message-ID"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_told_to_stop_finishes_what_it_is_sending() {
    let server = MailServer::start(SmtpSecurity::Plain);
    server.behave("slow 1");
    let post = Post::start(by_mail(&server));
    post.mail("1", "ana", &rolled_back(1)).await;
    post.mail("2", "ana", &rolled_back(2)).await;
    server.wait_for(1);
    let folder = post.stop().await;
    server.behave("ok");
    let post = Post::start_in(folder, by_mail(&server));
    post.row_in("2", OutboxState::Sent).await;
    assert_eq!(post.row("1").await.tries, 1);
    assert_eq!(server.mails().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_for_good_ends_it_and_one_for_now_does_not() {
    let server = MailServer::start(SmtpSecurity::Plain);
    server.behave("rcpt 550 ana@example.com");
    let post = Post::start(by_mail(&server));
    post.mail("1", "ana", &asked("ana")).await;
    post.mail("2", "ben", &asked("ben")).await;
    let row = post.row_in("1", OutboxState::GivenUp).await;
    assert_eq!(row.tries, 1);
    let why = row.error.unwrap();
    assert!(why.contains("127.0.0.1 refused the recipient: 550 no such mailbox: ana@example.com"), "{why}");
    assert!(!row.message.to_string().contains("feedface"), "the link is kept: {}", row.message);
    post.row_in("2", OutboxState::Sent).await;
    assert_eq!(server.mails().len(), 1);
    let figures = post.store.message_figures().await.unwrap();
    let last = figures.last_given_up.unwrap();
    assert_eq!((figures.given_up, last.recipient.as_str(), last.error), (1, "ana", why));

    server.behave("data 554");
    post.mail("3", "ana", &rolled_back(3)).await;
    post.row_in("3", OutboxState::GivenUp).await;

    server.behave("rcpt 450");
    post.mail("4", "ana", &rolled_back(4)).await;
    let row = post.row_once("4", |row| row.tries == 2 && row.error.is_some()).await;
    assert!(row.error.unwrap().contains("450"), "the reason is lost");
    server.behave("ok");
    post.row_in("4", OutboxState::Sent).await;
    assert_eq!(server.mails().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_tried_when_the_ways_to_send_change_and_when_one_is_open_again() {
    let server = MailServer::start(SmtpSecurity::Plain);
    let post = Post::start(Channels::new(&Notify::default(), &people(), &instance()).unwrap());
    post.mail("1", "ana", &rolled_back(1)).await;
    post.mail("2", "dora", &rolled_back(2)).await;
    let row = post.row_once("1", |row| row.tries >= 3).await;
    assert!(row.error.unwrap().contains("names no mail server"));
    post.channels.send(Arc::new(by_mail(&server))).unwrap();
    let began = Instant::now();
    post.row_in("1", OutboxState::Sent).await;
    assert!(began.elapsed() < Duration::from_secs(2), "it waited for its usual time: {:?}", began.elapsed());
    // Dora has no mailbox yet.
    let row = post.row_once("2", |row| row.error.as_deref().is_some_and(|e| e.contains("`dora` has no `mail`"))).await;
    assert_ne!(row.state, OutboxState::GivenUp);
    let mut people = people();
    people.users.get_mut("dora").unwrap().mail = Some("dora@example.com".into());
    let notify = Notify { smtp: Some(server.settings()), ..Notify::default() };
    post.channels.send(Arc::new(Channels::new(&notify, &people, &instance()).unwrap())).unwrap();
    post.row_in("2", OutboxState::Sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_keeps_failing_does_not_hold_back_the_others_for_ever() {
    let receiver = Receiver::start();
    receiver.answer(&["503 Later"; 4]);
    let post = Post::start(by_webhook(&receiver, WebhookFormat::Generic));
    post.put("1", "board", "", &rolled_back(1)).await;
    post.put("2", "board", "", &rolled_back(2)).await;
    // Behind the first for as long as that failed fewer than four times; then each on its own.
    receiver.wait_for(6);
    let sent: Vec<_> = receiver.posts().iter().map(|p| p.json()["message"]["release"].as_u64().unwrap()).collect();
    assert_eq!(sent[..4], [1, 1, 1, 1]);
    let mut rest = sent[4..].to_vec();
    rest.sort_unstable();
    assert_eq!(rest, [1, 2]);
    for key in ["1", "2"] {
        post.row_in(key, OutboxState::Sent).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codes_and_links_are_for_one_mailbox_and_are_not_kept() {
    let (server, receiver) = (MailServer::start(SmtpSecurity::Plain), Receiver::start());
    let post = Post::start(by_mail(&server));
    post.mail("code", "ana", &code(10)).await;
    post.mail("asked", "ana", &asked("ana")).await;
    let mails = server.wait_for(2);
    assert!(mails[0].text.contains("482913") && mails[0].html.contains("482913"));
    assert!(!mails[0].header("Subject").contains("482913"), "a locked phone shows it");
    for (key, secret) in [("code", "482913"), ("asked", "feedface")] {
        let row = post.row_in(key, OutboxState::Sent).await;
        assert!(!row.message.to_string().contains(secret), "{key} is kept: {}", row.message);
    }
    // Its time is over.
    post.mail("late", "ana", &code(0)).await;
    let row = post.row_in("late", OutboxState::GivenUp).await;
    assert!(row.error.unwrap().contains("its time was over"), "no reason");
    // Nobody but its reader.
    let board = Post::start(by_webhook(&receiver, WebhookFormat::Generic));
    board.put("code", "board", "", &code(10)).await;
    let row = board.row_in("code", OutboxState::GivenUp).await;
    assert!(row.error.unwrap().contains("mailboxes only"), "no reason");
    assert_eq!((server.mails().len(), receiver.posts().len()), (2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_messages_are_forgotten_and_waiting_ones_are_not() {
    let server = MailServer::start(SmtpSecurity::Plain);
    server.behave("rcpt 450 ben@example.com");
    let post = Post::start(by_mail(&server));
    post.mail("1", "ana", &rolled_back(1)).await;
    post.mail("2", "ben", &rolled_back(2)).await;
    post.row_in("1", OutboxState::Sent).await;
    post.row_once("2", |row| row.error.is_some()).await;
    assert_eq!(post.store.forget_messages(Timestamp::now() - Duration::from_secs(3600)).await.unwrap(), 0);
    assert_eq!(post.store.forget_messages(Timestamp::now() + Duration::from_secs(1)).await.unwrap(), 1);
    let left: Vec<_> = post.store.list_messages(None, 10).await.unwrap().into_iter().map(|row| row.key).collect();
    assert_eq!(left, ["2"]);
}
