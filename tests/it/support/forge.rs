//! A forge on loopback: the parts of the APIs of GitHub, GitLab and Gitea that open pull requests, as their documentation
//! describes them. It keeps what it is asked, looks at a real repository for the branches, and fails as it is told.

use crate::git_transports::git;
use mainstay::config::daemon::ForgeKind;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Who may open pull requests there.
pub(crate) const TOKEN: &str = "t0ken-0f-the-f0rge";

#[derive(Clone)]
pub(crate) struct Forge {
    kind: ForgeKind,
    bare: PathBuf,
    port: u16,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    asked: Vec<Asked>,
    /// How the next requests are answered instead: method, status line and further headers, body.
    told: VecDeque<(&'static str, String, String)>,
    /// Pull requests, the oldest first.
    open: Vec<Value>,
    /// What hangs is let go.
    back: bool,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Forge {
    pub(crate) fn start(kind: ForgeKind, bare: &Path) -> Forge {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let forge = Forge { kind, bare: bare.to_owned(), port, kept: Arc::default() };
        let serving = forge.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let forge = serving.clone();
                std::thread::spawn(move || forge.serve(stream));
            }
        });
        forge
    }

    /// Where its API begins.
    pub(crate) fn url(&self) -> String {
        let version = match self.kind {
            ForgeKind::Github => 3,
            ForgeKind::Gitlab => 4,
            ForgeKind::Gitea | ForgeKind::Forgejo => 1,
        };
        format!("http://127.0.0.1:{}/api/v{version}", self.port)
    }

    pub(crate) fn word(&self) -> &'static str {
        match self.kind {
            ForgeKind::Github => "github",
            ForgeKind::Gitlab => "gitlab",
            ForgeKind::Gitea => "gitea",
            ForgeKind::Forgejo => "forgejo",
        }
    }

    /// How the next request of that method is answered instead; `hang` is no answer at all.
    pub(crate) fn answer(&self, method: &'static str, status: &str, body: &str) {
        self.kept.lock().unwrap().told.push_back((method, status.to_owned(), body.to_owned()));
    }

    /// It answers as usual again.
    pub(crate) fn back(&self) {
        let mut kept = self.kept.lock().unwrap();
        kept.told.clear();
        kept.back = true;
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.kept.lock().unwrap().asked.clone()
    }

    /// The pull requests it holds, as it tells of them.
    pub(crate) fn pulls(&self) -> Vec<Value> {
        self.kept.lock().unwrap().open.clone()
    }

    /// Takes one in that somebody else opened.
    pub(crate) fn open(&self, branch: &str, base: &str, title: &str) -> Value {
        let made = self.make(branch, base, title, "").expect("the branches are there");
        self.kept.lock().unwrap().open.push(made.clone());
        made
    }

    /// Takes many in that have nothing to do with what is tested.
    pub(crate) fn fill(&self, count: usize) {
        for n in 0..count {
            let made = self.document((&format!("work-{n}"), &"1".repeat(40)), ("main", &"2".repeat(40)), "work", "");
            self.kept.lock().unwrap().open.push(made);
        }
    }

    /// Ends one without or with a merge.
    pub(crate) fn close(&self, index: usize) {
        self.kept.lock().unwrap().open[index]["state"] = json!("closed");
    }

    /// Waits for so many requests of that method.
    #[track_caller]
    pub(crate) fn wait_for(&self, method: &str, count: usize) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let found = self.asked().iter().filter(|asked| asked.line.starts_with(method)).count();
            if found >= count {
                return;
            }
            assert!(Instant::now() < until, "{found} of {count} {method} came");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn head(&self, branch: &str) -> Option<String> {
        let name = format!("refs/heads/{branch}");
        let there = Command::new("git").current_dir(&self.bare).args(["show-ref", "--verify", "-q", &name]).status();
        there.unwrap().success().then(|| git(&self.bare, &["rev-parse", &name]))
    }

    /// What it tells of a pull request; nothing when a branch is not there.
    fn make(&self, branch: &str, base: &str, title: &str, body: &str) -> Option<Value> {
        let (head, onto) = (self.head(branch)?, self.head(base)?);
        Some(self.document((branch, &head), (base, &onto), title, body))
    }

    /// As it is told of; each branch with what it holds.
    fn document(&self, (branch, head): (&str, &str), (base, onto): (&str, &str), title: &str, body: &str) -> Value {
        let number = self.kept.lock().unwrap().open.len() + 1;
        let page = format!("http://127.0.0.1:{}/shop/api", self.port);
        match self.kind {
            ForgeKind::Gitlab => json!({
                "id": 100 + number, "iid": number, "state": "opened", "title": title, "description": body,
                "source_branch": branch, "target_branch": base, "source_project_id": 7, "target_project_id": 7,
                "sha": head, "web_url": format!("{page}/-/merge_requests/{number}"),
            }),
            _ => json!({
                "id": 100 + number, "number": number, "state": "open", "title": title, "body": body,
                "head": { "label": format!("shop:{branch}"), "ref": branch, "sha": head },
                "base": { "label": format!("shop:{base}"), "ref": base, "sha": onto },
                "html_url": format!("{page}/pulls/{number}"),
            }),
        }
    }

    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut from = BufReader::new(stream.try_clone().ok()?);
        let mut line = String::new();
        from.read_line(&mut line).ok()?;
        let mut headers = Vec::new();
        loop {
            let mut header = String::new();
            from.read_line(&mut header).ok()?;
            let Some((name, value)) = header.trim_end().split_once(": ") else { break };
            headers.push((name.to_lowercase(), value.to_owned()));
        }
        let header = |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
        let mut body = vec![0; header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0)];
        from.read_exact(&mut body).ok()?;
        let line = line.trim_end().to_owned();
        let asked = Asked { line: line.clone(), headers: headers.clone(), body: String::from_utf8(body).ok()? };
        let told = {
            let mut kept = self.kept.lock().unwrap();
            kept.asked.push(asked.clone());
            let at = kept.told.iter().position(|(method, ..)| line.starts_with(method));
            at.and_then(|at| kept.told.remove(at))
        };
        let (status, text) = match told {
            Some((_, status, _)) if status == "hang" => {
                let until = Instant::now() + Duration::from_secs(60);
                while Instant::now() < until && !self.kept.lock().unwrap().back {
                    std::thread::sleep(Duration::from_millis(20));
                }
                return None;
            }
            Some((_, status, body)) => (status, body),
            None => {
                let (status, body) = self.usual(&line, &header, &asked.body);
                (status.to_owned(), body.to_string())
            }
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            text.len()
        );
        (&stream).write_all(answer.as_bytes()).ok()
    }

    fn usual(&self, line: &str, header: &dyn Fn(&str) -> Option<String>, body: &str) -> (&'static str, Value) {
        let said = |text: &str| json!({ "message": text });
        let knows = match self.kind {
            ForgeKind::Github => header("authorization") == Some(format!("Bearer {TOKEN}")),
            ForgeKind::Gitlab => header("private-token").as_deref() == Some(TOKEN),
            _ => header("authorization") == Some(format!("token {TOKEN}")),
        };
        if !knows {
            return ("401 Unauthorized", said("401 Unauthorized"));
        }
        let (method, target) = line.split_once(' ').unwrap_or_default();
        let target = target.split(' ').next().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let wanted = match self.kind {
            ForgeKind::Github => "/api/v3/repos/shop/api/pulls",
            ForgeKind::Gitlab => "/api/v4/projects/shop%2Fapi/merge_requests",
            _ => "/api/v1/repos/shop/api/pulls",
        };
        if path != wanted {
            return ("404 Not Found", said("404 Project Not Found"));
        }
        let query = query.replace("%2F", "/").replace("%3A", ":");
        let field =
            |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}="))).map(str::to_owned);
        let (head, base, page) = match self.kind {
            ForgeKind::Gitlab => ("source_branch", "target_branch", "description"),
            _ => ("head", "base", "body"),
        };
        let of = |one: &Value| match self.kind {
            ForgeKind::Gitlab => (one["source_branch"].clone(), one["target_branch"].clone()),
            _ => (one["head"]["ref"].clone(), one["base"]["ref"].clone()),
        };
        if method == "GET" {
            assert_eq!(field("state").as_deref(), Some("all"), "{line}");
            let mut found: Vec<Value> = self.pulls().into_iter().rev().collect();
            match self.kind {
                ForgeKind::Github | ForgeKind::Gitlab => {
                    let wanted = field(head).expect(head);
                    let branch = wanted.strip_prefix("shop:").unwrap_or(&wanted).to_owned();
                    let onto = field(base).expect(base);
                    found.retain(|one| of(one) == (json!(branch), json!(onto)));
                }
                // No filter by branch; pages.
                _ => {
                    let number = |name| field(name).unwrap().parse::<usize>().unwrap();
                    let (limit, page) = (number("limit"), number("page"));
                    found = found.into_iter().skip(limit * (page - 1)).take(limit).collect();
                }
            }
            return ("200 OK", json!(found));
        }
        let Ok(document) = serde_json::from_str::<Value>(body) else { return ("400 Bad Request", said("no JSON")) };
        let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
        let (branch, onto) = (text(head), text(base));
        let is_open = |one: &Value| one["state"] == "open" || one["state"] == "opened";
        if self.pulls().iter().any(|one| is_open(one) && of(one) == (json!(branch), json!(onto))) {
            return match self.kind {
                ForgeKind::Github => {
                    let why = format!("A pull request already exists for shop:{branch}.");
                    let errors = json!([{ "resource": "PullRequest", "code": "custom", "message": why }]);
                    ("422 Unprocessable Entity", json!({ "message": "Validation Failed", "errors": errors }))
                }
                ForgeKind::Gitlab => {
                    let why = "Another open merge request already exists for this source branch: !1";
                    ("409 Conflict", json!({ "message": [why] }))
                }
                _ => ("409 Conflict", said("pull request already exists for these targets")),
            };
        }
        match self.make(&branch, &onto, &text("title"), &text(page)) {
            Some(made) => {
                self.kept.lock().unwrap().open.push(made.clone());
                ("201 Created", made)
            }
            None => ("422 Unprocessable Entity", said("Validation Failed: head")),
        }
    }
}
