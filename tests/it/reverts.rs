//! Promise: a release that was rolled back is taken back in its repository by one pull request, whatever fails or is killed
//! in between; and no environment waits for it.

use crate::git_transports::git;
use crate::support::forge::{Forge, TOKEN};
use crate::support::receiver::Receiver;
use crate::support::stage::Stage;
use mainstay::config::daemon::{self, ForgeKind};
use mainstay::config::secret::Secret;
use mainstay::notify::channels::Failure;
use mainstay::notify::forge::{Forge as Client, Proposal};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

const KINDS: [ForgeKind; 4] = [ForgeKind::Github, ForgeKind::Gitlab, ForgeKind::Gitea, ForgeKind::Forgejo];

fn client(forge: &Forge, kind: ForgeKind, project: &str, token: &str) -> Client {
    let settings = daemon::Forge { kind, url: forge.url(), project: project.to_owned(), token: Secret::new(token) };
    let client = Client::new(&settings).unwrap();
    assert!(!format!("{client:?}").contains(token), "{client:?}");
    client
}

/// A bare repository with main, and a branch to propose.
fn repository() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &["init", "-q", "--bare", "-b", "main", "shop.git"]);
    git(dir.path(), &["init", "-q", "-b", "main", "work"]);
    let (work, bare) = (dir.path().join("work"), dir.path().join("shop.git"));
    git(&work, &["remote", "add", "origin", "../shop.git"]);
    git(&work, &["commit", "-q", "--allow-empty", "-m", "one"]);
    git(&work, &["push", "-q", "origin", "main"]);
    git(&work, &["commit", "-q", "--allow-empty", "-m", "two"]);
    git(&work, &["push", "-q", "origin", "HEAD:mainstay/revert-production-2"]);
    (dir, bare)
}

fn proposal(bare: &Path) -> Proposal {
    Proposal {
        branch: "mainstay/revert-production-2".into(),
        base: "main".into(),
        commit: git(bare, &["rev-parse", "refs/heads/mainstay/revert-production-2"]),
        title: "Take 1a2b3c4 back".into(),
        body: "Because of \"503\".".into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_forge_is_asked_as_it_wants_and_one_pull_request_comes_of_it() {
    for kind in KINDS {
        let (_dir, bare) = repository();
        let forge = Forge::start(kind, &bare);
        // Others are there too, more than a page of them.
        forge.fill(60);
        let (client, wanted) = (client(&forge, kind, "shop/api", TOKEN), proposal(&bare));
        assert_eq!(client.find(&wanted).await, Ok(None), "{kind:?}");
        let url = client.propose(&wanted).await.unwrap();
        assert_eq!(client.propose(&wanted).await.as_deref(), Ok(url.as_str()), "{kind:?}: asked again");
        let pulls = forge.pulls();
        assert_eq!(pulls.len(), 61, "{kind:?}");
        let (made, body) = (&pulls[60], if kind == ForgeKind::Gitlab { "description" } else { "body" });
        assert_eq!((&made["title"], &made[body]), (&json!("Take 1a2b3c4 back"), &json!("Because of \"503\".")));
        assert_eq!(made[if kind == ForgeKind::Gitlab { "web_url" } else { "html_url" }], json!(url));

        // One that a person closed, with the very commit, is an answer; one of an earlier branch of that name is none.
        forge.close(60);
        assert_eq!(client.find(&wanted).await.unwrap().as_deref(), Some(url.as_str()), "{kind:?}");
        let other = Proposal { commit: "1".repeat(40), ..wanted.clone() };
        assert_eq!(client.find(&other).await, Ok(None), "{kind:?}");

        for asked in forge.asked() {
            let holds = |text: &str| text.contains(TOKEN);
            assert!(!holds(&asked.line) && !holds(&asked.body), "{kind:?}: {asked:?}");
            let bearing: Vec<_> =
                asked.headers.iter().filter(|(_, value)| holds(value)).map(|(name, _)| name).collect();
            let wanted = if kind == ForgeKind::Gitlab { "private-token" } else { "authorization" };
            assert_eq!(bearing, [wanted], "{kind:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_has_its_sentence_and_what_passes_is_tried_again() {
    for kind in KINDS {
        let (_dir, bare) = repository();
        let forge = Forge::start(kind, &bare);
        let (good, wanted) = (client(&forge, kind, "shop/api", TOKEN), proposal(&bare));
        let never = |failure: Failure| match failure {
            Failure::Never(why) => why,
            other => panic!("{kind:?}: {other:?}"),
        };
        let later = |failure: Failure| match failure {
            Failure::Later { why, after } => (why, after),
            other => panic!("{kind:?}: {other:?}"),
        };
        let why = never(client(&forge, kind, "shop/api", "wr0ng-t0ken").propose(&wanted).await.unwrap_err());
        assert!(why.contains("401") && why.contains("hint: `forge.token`") && !why.contains("wr0ng"), "{why}");
        let why = never(client(&forge, kind, "shop/other", TOKEN).propose(&wanted).await.unwrap_err());
        assert!(why.contains("404") && why.contains("`forge.project` is shop/other"), "{why}");
        forge.answer("POST", "403 Forbidden", "{\"message\":\"insufficient_scope\"}");
        let why = never(good.propose(&wanted).await.unwrap_err());
        assert!(why.contains("403") && why.contains("insufficient_scope") && why.contains("must be allowed"), "{why}");
        forge.answer("GET", "301 Moved Permanently\r\nLocation: http://127.0.0.1:9/", "");
        let why = never(good.propose(&wanted).await.unwrap_err());
        assert!(why.contains("301") && why.contains("has moved"), "{why}");
        forge.answer("GET", "200 OK", "<html>hello</html>");
        assert!(never(good.propose(&wanted).await.unwrap_err()).contains("no JSON"));
        forge.answer("GET", "200 OK", "{}");
        assert!(never(good.propose(&wanted).await.unwrap_err()).contains("no list of pull requests"));
        // One that repeats the token is not repeated.
        forge.answer(
            "POST",
            "422 Unprocessable Entity",
            &json!({ "message": format!("who is {TOKEN}?\u{1b}[2J") }).to_string(),
        );
        let why = never(good.propose(&wanted).await.unwrap_err());
        assert!(why.contains("who is (secret)?") && !why.contains('\u{1b}'), "{why}");
        forge.answer("POST", "201 Created", &json!({ "html_url": "javascript:alert(1)", "web_url": "" }).to_string());
        assert!(never(good.propose(&wanted).await.unwrap_err()).contains("did not say where it is"));

        forge.answer("GET", "503 Service Unavailable", "<html>upgrading</html>");
        let (why, after) = later(good.propose(&wanted).await.unwrap_err());
        assert!(why.contains("503") && after.is_none(), "{why}");
        for limited in ["429 Too Many Requests", "403 Forbidden"] {
            forge.answer("POST", &format!("{limited}\r\nRetry-After: 30"), "{\"message\":\"slow down\"}");
            let (why, after) = later(good.propose(&wanted).await.unwrap_err());
            assert_eq!(after, Some(Duration::from_secs(30)), "{why}");
        }
        forge.answer("POST", "502 Bad Gateway", "");
        later(good.propose(&wanted).await.unwrap_err());
        assert_eq!(forge.pulls(), Vec::<Value>::new(), "{kind:?}");

        // Somebody opens it between the look and ours.
        forge.answer("GET", "200 OK", "[]");
        let theirs = forge.open(&wanted.branch, "main", "theirs");
        let address = theirs[if kind == ForgeKind::Gitlab { "web_url" } else { "html_url" }].as_str().unwrap();
        assert_eq!(good.propose(&wanted).await.as_deref(), Ok(address), "{kind:?}");
        assert_eq!(forge.pulls().len(), 1, "{kind:?}");
    }
    // Nobody is there.
    let gone = Forge::start(ForgeKind::Gitea, Path::new("/nonexistent"));
    let nowhere = daemon::Forge {
        kind: ForgeKind::Gitea,
        url: "http://127.0.0.1:1/api/v1".into(),
        project: "shop/api".into(),
        token: Secret::new(TOKEN),
    };
    let (_dir, bare) = repository();
    let failure = Client::new(&nowhere).unwrap().propose(&proposal(&bare)).await.unwrap_err();
    assert!(matches!(&failure, Failure::Later { why, .. } if why.contains("127.0.0.1:1")), "{failure:?}");
    assert!(gone.asked().is_empty());
}

/// Runs on every branch of Mainstay's own: it must not run for what Mainstay pushed there.
const CHECK: &str = "on: { push: { branches: ['mainstay/**'] } }\nsteps:\n  production:\n    deploy: { environment: production, images: { api: good-9 } }\n";

/// A stage whose repository is watched closely and has a forge.
fn stage(forge: impl FnOnce(&Path) -> Forge, more: &str, beside: &str) -> (Stage, Forge) {
    let mut stage = Stage::new(None, &format!("watch: 300ms\nrollback: {{ git: revert-pr }}\n{more}"), beside);
    let forge = forge(&stage.daemon.bare);
    let path = stage.daemon.dir.path().join("mainstay.yml");
    let text = std::fs::read_to_string(&path).unwrap();
    let wanted = format!(
        "    poll: 1s\n    forge: {{ kind: {}, url: \"{}\", project: shop/api, token: \"${{secret:FORGE}}\" }}\n",
        forge.word(),
        forge.url()
    );
    assert!(text.contains("    poll: 1h\n"), "{text}");
    std::fs::write(&path, text.replace("    poll: 1h\n", &wanted)).unwrap();
    let token = stage.daemon.dir.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let set = stage.daemon.try_cli(&["secrets", "set", "FORGE", "--from-file", token.to_str().unwrap()]);
    assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    stage.daemon.start();
    (stage, forge)
}

/// Waits until polls report what is new: what was there at the first is taken as known, and reported by nobody.
fn polled(stage: &Stage) {
    let made = std::cell::Cell::new(0);
    stage.wait("a poll that reports", |stage| {
        made.set(made.get() + 1);
        git(&stage.daemon.bare, &["branch", &format!("seen-{}", made.get()), "main"]);
        std::thread::sleep(Duration::from_secs(1));
        let inbox = stage.daemon.cli(&["inbox"]);
        let seen = |row: &Value| row["git_ref"].as_str().is_some_and(|name| name.starts_with("refs/heads/seen-"));
        inbox.as_array().unwrap().iter().any(seen).then_some(())
    });
}

fn gitea(bare: &Path) -> Forge {
    Forge::start(ForgeKind::Gitea, bare)
}

/// The revert of the only hold, once it is over.
fn over(stage: &Stage) -> Value {
    stage.wait("the end of the revert", |stage| {
        let revert = stage.environment()["holds"][0]["revert"].clone();
        (revert["state"].is_string() && revert["state"] != "waiting").then_some(revert)
    })
}

fn rolled_back(stage: &Stage, image: &str) -> String {
    let commit = stage.push(image);
    let run = stage.ended(&commit);
    assert_eq!(run["steps"][0]["attempts"][0]["end"]["how"], "rolled-back", "{run:#}\n{}", stage.daemon.log_end());
    commit
}

/// Nothing that is kept or written holds the token but the secret store itself.
fn token_is_nowhere(stage: &Stage) {
    let mut folders = vec![stage.daemon.state()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                if path.file_name().is_none_or(|name| name != "secrets") {
                    folders.push(path);
                }
                continue;
            }
            let Ok(bytes) = std::fs::read(&path) else { continue };
            seen += 1;
            let holds = bytes.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes());
            assert!(!holds, "{} holds the token", path.display());
        }
    }
    assert!(seen > 5, "only {seen} files");
    assert!(!stage.daemon.log_whole().contains(TOKEN), "the log holds the token");
}

#[test]
fn a_rollback_opens_one_pull_request_and_its_merge_lifts_the_hold() {
    let receiver = Receiver::start();
    let beside = format!("notify: {{ webhooks: {{ desk: {{ url: \"{}\", format: generic }} }} }}\n", receiver.url());
    let (stage, forge) = stage(gitea, "", &beside);
    stage.push_files(&[(".mainstay/check.yml", CHECK), ("readme", "hello\n")], "a check [skip ci]");
    stage.good("good-1");
    polled(&stage);
    let bad = rolled_back(&stage, "bad-2");
    let revert = over(&stage);
    let pulls = forge.pulls();
    assert_eq!(pulls.len(), 1, "{pulls:#?}");
    let pull = &pulls[0];
    assert_eq!(revert["state"], "open", "{revert:#}");
    assert_eq!(revert["url"], pull["html_url"]);
    assert_eq!((&pull["head"]["ref"], &pull["base"]["ref"]), (&json!("mainstay/revert-production-2"), &json!("main")));
    let title = pull["title"].as_str().unwrap();
    assert_eq!(title, format!("Take {} back: production was rolled back from release 2 to 1", &bad[..7]));
    let body = pull["body"].as_str().unwrap();
    assert!(body.contains("503") && body.contains(&bad), "{body}");

    // What the branch holds is what served before, on top of what was pushed.
    let own = pull["head"]["sha"].as_str().unwrap();
    assert_eq!(git(&stage.daemon.bare, &["rev-parse", "mainstay/revert-production-2~1"]), bad);
    assert_eq!(
        git(&stage.daemon.bare, &["show", "mainstay/revert-production-2:.mainstay/release.yml"]),
        Stage::pipeline("good-1").trim_end()
    );

    // It is seen, recorded, and not run; what a person puts on top of it is.
    let noted = stage.wait("the branch in the inbox", |stage| {
        let inbox = stage.daemon.cli(&["inbox"]);
        let rows = inbox.as_array().unwrap().clone();
        rows.into_iter().find(|row| row["git_ref"] == "refs/heads/mainstay/revert-production-2")
    });
    assert_eq!(noted["state"], "dropped", "{noted:#}");
    assert!(noted["reason"].as_str().unwrap().contains("Mainstay's own"), "{noted:#}");
    let work = &stage.daemon.work;
    git(work, &["fetch", "-q", "origin"]);
    git(work, &["checkout", "-q", "-b", "theirs", "origin/mainstay/revert-production-2"]);
    git(work, &["commit", "-q", "--allow-empty", "-m", "and a word more"]);
    git(work, &["push", "-q", "origin", "HEAD:mainstay/revert-production-2"]);
    let theirs = git(work, &["rev-parse", "HEAD"]);
    stage.daemon.wait_begun(&theirs);
    assert_eq!(stage.daemon.runs_of(own), Vec::<u64>::new());

    // People are told, and it is shown and on record.
    let told = stage.wait("the message", |_| {
        receiver.posts().into_iter().map(|post| post.json()["message"].clone()).find(|told| told["kind"] == "revert")
    });
    assert_eq!((&told["url"], &told["release"]), (&pull["html_url"], &json!(2)));
    let shown = stage.daemon.command().args(["environments", "production"]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains(&format!("taken back by {}", pull["html_url"].as_str().unwrap())), "{shown}");
    let audit = stage.api("audit?limit=100");
    let acts: Vec<_> = audit.as_array().unwrap().iter().filter(|entry| entry["act"] == "revert").collect();
    assert_eq!(acts.len(), 1, "{audit:#}");
    assert_eq!(acts[0]["details"]["url"], pull["html_url"]);
    let deploys = stage.deploys();
    let deploy = deploys.iter().find(|deploy| deploy["status"] == "rolled-back").unwrap();
    assert_eq!(deploy["revert"]["url"], pull["html_url"]);

    // Merged, it goes the usual way.
    git(work, &["checkout", "-q", "main"]);
    git(work, &["merge", "-q", "--no-ff", "-m", "take it back", "origin/mainstay/revert-production-2"]);
    let merged = stage.push_head();
    let run = stage.ended(&merged);
    assert_eq!(run["status"], "success", "{run:#}\n{:#}", stage.environment());
    assert_eq!(stage.environment()["holds"], json!([]));
    assert_eq!(stage.app.serves().as_deref(), Some("good-1"));
    assert_eq!(forge.pulls().len(), 1);
    token_is_nowhere(&stage);
    stage.daemon.end(0);
}

#[test]
fn a_fast_forward_to_the_commit_that_mainstay_made_runs_on_its_branch() {
    let (stage, forge) = stage(|bare| Forge::start(ForgeKind::Gitlab, bare), "", "");
    stage.good("good-1");
    rolled_back(&stage, "bad-2");
    assert_eq!(over(&stage)["url"], forge.pulls()[0]["web_url"]);
    let work = &stage.daemon.work;
    git(work, &["fetch", "-q", "origin"]);
    git(work, &["merge", "-q", "--ff-only", "origin/mainstay/revert-production-2"]);
    let merged = stage.push_head();
    assert_eq!(forge.pulls()[0]["sha"], json!(merged));
    let run = stage.ended(&merged);
    assert_eq!(run["status"], "success", "{run:#}\n{:#}", stage.environment());
    assert_eq!(stage.environment()["holds"], json!([]));
    stage.daemon.end(0);
}

#[test]
fn killed_between_the_push_and_the_pull_request_there_is_one_of_each() {
    let (mut stage, forge) = stage(|bare| Forge::start(ForgeKind::Github, bare), "", "");
    stage.good("good-1");
    // No answer to the first; the second is made, and its answer does not arrive.
    forge.answer("POST", "hang", "");
    rolled_back(&stage, "bad-2");
    forge.wait_for("POST", 1);
    let pushed = git(&stage.daemon.bare, &["rev-parse", "mainstay/revert-production-2"]);
    stage.daemon.kill9();
    // Somebody pushes meanwhile: the branch that is there stays as it is.
    stage.push_files(&[("readme", "hello\n")], "more [skip ci]");
    forge.open("mainstay/revert-production-2", "main", "made, and nobody heard of it");
    stage.daemon.start();
    let revert = over(&stage);
    assert_eq!(revert["url"], forge.pulls()[0]["html_url"], "{revert:#}");
    assert_eq!(forge.pulls().len(), 1);
    assert_eq!(git(&stage.daemon.bare, &["rev-parse", "mainstay/revert-production-2"]), pushed);
    assert_eq!(git(&stage.daemon.bare, &["branch", "--list", "mainstay/*"]).lines().count(), 1);
    assert_eq!(stage.daemon.runs_of(&pushed), Vec::<u64>::new());
    stage.daemon.end(0);
}

#[test]
fn while_the_forge_is_away_deploys_go_on_and_it_is_done_when_it_is_back() {
    let (stage, forge) = stage(gitea, "", "");
    stage.good("good-1");
    forge.answer("GET", "hang", "");
    for _ in 0..50 {
        forge.answer("GET", "503 Service Unavailable", "");
    }
    let bad = rolled_back(&stage, "bad-2");
    forge.wait_for("GET", 1);
    let waits = stage.environment()["holds"][0]["revert"].clone();
    assert_eq!((&waits["state"], &waits["url"]), (&json!("waiting"), &Value::Null), "{waits:#}");
    // The pull request hangs, and the next deploy does not: a revert by hand goes out.
    git(&stage.daemon.work, &["revert", "--no-edit", &bad]);
    let reverted = stage.push_head();
    let run = stage.ended(&reverted);
    assert_eq!(run["status"], "success", "{run:#}\n{:#}", stage.environment());
    let deploy = stage.deploys().into_iter().find(|deploy| deploy["status"] == "rolled-back").unwrap();
    let path = format!("deploys/{}", deploy["id"]);
    assert_eq!(stage.api(&path)["revert"]["state"], "waiting", "the deploy waited for the forge");
    // The branch is there, so the pull request is made all the same.
    forge.back();
    let done = stage.wait("the pull request", |stage| {
        let revert = stage.api(&path)["revert"].clone();
        (revert["state"] == "open").then_some(revert)
    });
    assert_eq!(done["url"], forge.pulls()[0]["html_url"]);
    assert_eq!(forge.pulls().len(), 1);
    stage.daemon.end(0);
}

#[test]
fn what_cannot_be_done_is_told_with_its_reason() {
    let (stage, forge) = stage(gitea, "", "");
    stage.good("good-1");
    // The token is not taken: the branch is there for a pull request by hand.
    forge.answer("GET", "401 Unauthorized", "{\"message\":\"token is gone\"}");
    rolled_back(&stage, "bad-2");
    let revert = over(&stage);
    let why = revert["why"].as_str().unwrap();
    assert_eq!(revert["state"], "given-up", "{revert:#}");
    assert!(why.contains("token is gone") && why.contains("`forge.token`") && why.contains("by hand"), "{why}");
    assert!(!git(&stage.daemon.bare, &["branch", "--list", "mainstay/revert-production-2"]).is_empty());
    assert_eq!(stage.app.serves().as_deref(), Some("good-1"), "the rollback itself went well");
    stage.daemon.cli(&["release-hold", "production"]);

    // Somebody has changed the same line before the revert could be made.
    stage.good("good-3");
    let held = stage.push("bad-4");
    stage.daemon.wait_begun(&held);
    stage.push_files(&[(".mainstay/release.yml", &Stage::pipeline("good-5"))], "in the same place [skip ci]");
    assert_eq!(stage.ended(&held)["steps"][0]["attempts"][0]["end"]["how"], "rolled-back");
    let revert = over(&stage);
    let why = revert["why"].as_str().unwrap();
    assert!(why.contains("same places: .mainstay/release.yml") && why.contains("git revert"), "{why}");
    assert_eq!(stage.app.serves().as_deref(), Some("good-3"));
    let audit = stage.api("audit?limit=100");
    let acts = audit.as_array().unwrap().iter().filter(|entry| entry["act"] == "revert").count();
    assert_eq!(acts, 2, "{audit:#}");
    token_is_nowhere(&stage);
    stage.daemon.end(0);
}

#[test]
fn a_persons_rollback_is_proposed_too_and_a_foreign_branch_is_left_alone() {
    let (stage, forge) = stage(gitea, "", "");
    stage.good("good-1");
    stage.good("good-2");
    let answer = stage.daemon.try_cli(&["rollback", "production"]);
    assert_eq!(answer.status.code(), Some(0), "{}", String::from_utf8_lossy(&answer.stderr));
    let revert = over(&stage);
    assert_eq!(revert["state"], "open", "{revert:#}");
    assert!(forge.pulls()[0]["body"].as_str().unwrap().contains("root rolled it back"), "{:#?}", forge.pulls());
    stage.daemon.cli(&["release-hold", "production"]);

    git(&stage.daemon.work, &["push", "-q", "origin", "HEAD~1:refs/heads/mainstay/revert-production-3"]);
    let before = git(&stage.daemon.bare, &["rev-parse", "mainstay/revert-production-3"]);
    rolled_back(&stage, "bad-3");
    let revert = over(&stage);
    assert!(revert["why"].as_str().unwrap().contains("which is not ours"), "{revert:#}");
    assert_eq!(git(&stage.daemon.bare, &["rev-parse", "mainstay/revert-production-3"]), before);
    assert_eq!(forge.pulls().len(), 1);
    stage.daemon.end(0);
}
