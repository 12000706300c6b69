//! Webhooks out: signed, told apart, in forms that others read, and without anything that only one person may see.

use super::*;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// No post holds a way to decide.
fn harmless(body: &str) {
    for secret in ["feedface", "/approve/", "://", "482913", "T0KEN"] {
        let run_url = body.replace(RUN_URL, "");
        assert!(!run_url.contains(secret), "{secret} in {body}");
    }
    assert!(body.contains("mainstay approve 3"), "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_is_signed_and_the_same_delivery_in_every_try() {
    let receiver = Receiver::start();
    receiver.answer(&["503 Service Unavailable", "429 Too Many Requests\r\nRetry-After: 3"]);
    let post = Post::start(by_webhook(&receiver, WebhookFormat::Generic));
    post.put("1", "board", "", &asked("ana")).await;
    post.put("2", "board", "", &rolled_back(7)).await;
    let began = Instant::now();
    let posts = receiver.wait_for(4);
    assert!(began.elapsed() >= Duration::from_secs(3), "`Retry-After` was not kept: {:?}", began.elapsed());
    for post in &posts {
        assert_eq!(post.line, "POST /hook/T0KEN HTTP/1.1");
        let time = post.header("X-Mainstay-Timestamp");
        assert!((Timestamp::now().as_second() - time.parse::<i64>().unwrap()).abs() < 30, "{time}");
        let mut mac = Hmac::<Sha256>::new_from_slice(b"between us").unwrap();
        mac.update(format!("{time}.{}", post.body).as_bytes());
        let wanted = format!("sha256={}", hex::encode(mac.finalize().into_bytes()));
        assert_eq!(post.header("X-Mainstay-Signature"), wanted);
        assert_eq!(post.json()["delivery"], post.header("X-Mainstay-Delivery"));
        assert!(post.header("Content-Type").starts_with("application/json"));
    }
    let ids: Vec<_> = posts.iter().map(|post| post.header("X-Mainstay-Delivery")).collect();
    assert_eq!((ids[0], ids[1]), (ids[2], ids[2]));
    assert_ne!(ids[2], ids[3]);
    assert!(posts[..3].windows(2).all(|two| two[0].body == two[1].body), "another document in another try");

    harmless(&posts[0].body);
    let asked = posts[2].json();
    assert_eq!((asked["version"].as_u64(), asked["instance"].as_str()), (Some(1), Some("7e57ab1e")));
    assert_eq!(asked["title"], "[production] approve shop 1a2b3c4d?");
    let message = &asked["message"];
    assert_eq!(message["kind"], "approval-asked");
    assert_eq!((message["approval"].as_u64(), message["required"].as_u64()), (Some(3), Some(2)));
    assert_eq!(message["link"], serde_json::Value::Null);
    assert_eq!(message["subject"]["commit"], "1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d");
    assert_eq!(posts[3].json()["message"]["status"], "rolled-back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_says_no_is_not_asked_again() {
    let receiver = Receiver::start();
    receiver.answer(&["404 Not Found", "302 Found\r\nLocation: http://127.0.0.1:1/", "408 Request Timeout"]);
    let post = Post::start(by_webhook(&receiver, WebhookFormat::Generic));
    for key in ["1", "2", "3"] {
        post.put(key, "board", "", &rolled_back(7)).await;
    }
    let row = post.row_in("1", OutboxState::GivenUp).await;
    assert_eq!((row.tries, row.error.as_deref()), (1, Some("it answered 404 Not Found it's said")));
    let row = post.row_in("2", OutboxState::GivenUp).await;
    assert!(row.error.unwrap().contains("302"), "no reason");
    let row = post.row_in("3", OutboxState::Sent).await;
    assert_eq!(row.tries, 2);
    assert_eq!(receiver.posts().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_a_reason_without_the_address() {
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = Secret::new(format!("http://{nowhere}/hook/T0KEN"));
    let webhook = Webhook { url, format: WebhookFormat::Slack, secret: None, inbound: None };
    let notify = Notify { smtp: None, webhooks: [("board".to_owned(), webhook)].into(), alerts: None };
    let post = Post::start(Channels::new(&notify, &people(), &instance()).unwrap());
    post.put("1", "board", "", &rolled_back(7)).await;
    let row = post.row_once("1", |row| row.error.is_some()).await;
    let why = row.error.unwrap();
    assert!(why.contains("onnect") && !why.contains("T0KEN") && !why.contains("hook"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slack_gets_blocks_within_its_limits() {
    let document = posted(WebhookFormat::Slack, &hostile()).await;
    harmless(&document.to_string());
    let document = posted(WebhookFormat::Slack, &asked("ana")).await;
    harmless(&document.to_string());
    assert_eq!(document["text"], "[production] approve shop 1a2b3c4d?");
    for document in [document, posted(WebhookFormat::Slack, &hostile()).await] {
        let blocks = document["blocks"].as_array().unwrap();
        assert!((2..=50).contains(&blocks.len()), "{} blocks", blocks.len());
        assert_eq!(blocks[0]["type"], "header");
        for block in blocks {
            match block["type"].as_str().unwrap() {
                "header" => {
                    assert_eq!(block["text"]["type"], "plain_text");
                    assert!(block["text"]["text"].as_str().unwrap().chars().count() <= 150);
                }
                "section" => {
                    let fields = block["fields"].as_array().map(Vec::as_slice).unwrap_or_default();
                    assert!(fields.len() <= 10 && block["text"].is_object() != block["fields"].is_array());
                    for text in fields.iter().chain(block.get("text")) {
                        let max = if fields.is_empty() { 3000 } else { 2000 };
                        let said = text["text"].as_str().unwrap();
                        assert!((1..=max).contains(&said.chars().count()), "{} characters", said.chars().count());
                        match text["type"].as_str().unwrap() {
                            "plain_text" => {}
                            "mrkdwn" => {
                                assert_eq!(text["verbatim"], true);
                                assert!(!said.contains(['<', '>']), "{said}");
                                assert!(matches!(said.matches("```").count(), 0 | 2), "{said}");
                            }
                            other => panic!("{other} is no text of Slack's"),
                        }
                    }
                }
                other => panic!("{other} is no block we make"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn teams_gets_an_adaptive_card_in_a_message() {
    for message in [asked("ana"), hostile()] {
        let document = posted(WebhookFormat::Teams, &message).await;
        let size = document.to_string().len();
        assert!(size < 28_000, "{size} bytes");
        assert_eq!(document["type"], "message");
        let attachments = document["attachments"].as_array().unwrap();
        assert_eq!(attachments.len(), 1);
        assert_eq!(attachments[0]["contentType"], "application/vnd.microsoft.card.adaptive");
        let card = &attachments[0]["content"];
        assert_eq!((card["type"].as_str(), card["version"].as_str()), (Some("AdaptiveCard"), Some("1.4")));
        let body = card["body"].as_array().unwrap();
        assert!(body.len() > 5);
        for block in body {
            // Anything else would read Markdown in what others wrote.
            assert_eq!(block["type"], "RichTextBlock");
            for run in block["inlines"].as_array().unwrap() {
                assert_eq!(run["type"], "TextRun");
                assert!(!run["text"].as_str().unwrap().is_empty());
            }
        }
        let mut text = document.to_string();
        text = text.replace("http://adaptivecards.io/schemas/adaptive-card.json", "");
        harmless(&text);
    }
}

/// All that others write, as bad and as long as it can be.
fn hostile() -> Message {
    let mut message = asked("ana");
    if let Message::ApprovalAsked { subject, .. } = &mut message {
        let evil = "``` <!channel> *bold* [yes](https://evil.example) <https://evil.example|yes> \u{202e}";
        let long = evil.repeat(60);
        (subject.title, subject.warning) = (long.clone(), Some(long.clone()));
        (subject.commit, subject.git_ref, subject.way_back) = (long.clone(), long.clone(), long.clone());
        subject.commits = vec![long.clone(); 60];
        subject.config_diff = format!("{long}\n").repeat(100);
        subject.images = (0..60).map(|n| (format!("service-{n}"), long.clone())).collect();
        subject.results = vec![(long.clone(), long.clone()); 60];
        (subject.staging, subject.message) = (Some(long.clone()), Some(long));
    }
    message
}

async fn posted(format: WebhookFormat, message: &Message) -> serde_json::Value {
    let receiver = Receiver::start();
    let post = Post::start(by_webhook(&receiver, format));
    post.put("1", "board", "", message).await;
    receiver.wait_for(1)[0].json()
}
