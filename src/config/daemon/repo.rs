//! One entry under `repos`.

use super::{POLL, POLL_MIN, REPO_KEYS, Reader, Repo, RuntimeChoice, WEBHOOK_KEYS, Webhook, WebhookKind, plain_path};
use crate::config::check::{is_interpolated, shown_text, variable_name};
use crate::config::yaml::{Node, Value};
use crate::model::Span;
use crate::model::ids::RepoName;
use std::path::Path;

impl Reader<'_, '_> {
    pub(super) fn repo(&mut self, name: &RepoName, node: &Node, usual: &RuntimeChoice) -> Option<Repo> {
        let what = format!("the repository `{name}`");
        let mut repo = Repo {
            url: String::new(),
            branch: None,
            poll: POLL,
            webhook: None,
            secrets: Vec::new(),
            trusted: false,
            runtime: None,
            auth: None,
            forge: None,
        };
        if let Value::Scalar(_) = node.value {
            repo.url = self.url(node)?;
            if *usual == RuntimeChoice::Process {
                self.untrusted_process(node, &what);
            }
            return Some(repo);
        }
        let fields = self.check.fields(node, &what, REPO_KEYS, &[])?;
        match fields.get("url") {
            Some(node) => repo.url = self.url(node).unwrap_or_default(),
            None => {
                self.check.error(node.place, format!("{what} needs `url`"));
            }
        }
        if let Some(node) = fields.get("branch")
            && let Some(text) = self.check.text(node, "`branch`")
        {
            if is_branch(text) {
                repo.branch = Some(text.to_owned());
            } else {
                let message = format!("`{}` is not the name of a branch", shown_text(node, text));
                self.check.error(node.place, message);
            }
        }
        if let Some(node) = fields.get("poll")
            && let Some(span) = self.check.parsed::<Span>(node, "`poll`")
        {
            if span.0 < POLL_MIN {
                self.check.error(node.place, "`poll` is at least 1s");
            }
            repo.poll = span;
        }
        repo.webhook = fields.get("webhook").and_then(|node| self.webhook(node));
        if let Some(node) = fields.get("secrets") {
            self.repo_secrets(node, &mut repo);
        }
        repo.trusted = fields.get("trusted").and_then(|n| self.check.boolean(n, "`trusted`")).unwrap_or(false);
        repo.auth = fields.get("auth").and_then(|node| self.credentials(node, "`auth`"));
        repo.forge = fields.get("forge").and_then(|node| self.forge(node, &repo.url));
        if let Some(node) = fields.get("runtime") {
            repo.runtime = self.runtime(node);
        }
        if repo.runtime.as_ref().unwrap_or(usual) == &RuntimeChoice::Process && !repo.trusted {
            self.untrusted_process(fields.get("runtime").unwrap_or(node), &what);
        }
        Some(repo)
    }

    fn untrusted_process(&mut self, node: &Node, what: &str) {
        self.check.error_with_hint(
            node.place,
            format!("{what} would run as plain processes, but is not trusted"),
            "without a container, whoever can push can do all that the daemon's user can; write `trusted: true` if that is meant",
        );
    }

    fn webhook(&mut self, node: &Node) -> Option<Webhook> {
        let fields = self.check.fields(node, "`webhook`", WEBHOOK_KEYS, &[])?;
        let kinds = [
            ("github", WebhookKind::Github),
            ("gitlab", WebhookKind::Gitlab),
            ("gitea", WebhookKind::Gitea),
            ("forgejo", WebhookKind::Forgejo),
            ("generic", WebhookKind::Generic),
        ];
        let kind = fields.get("kind").and_then(|n| self.check.word(n, "`kind`", &kinds));
        let secret = fields.get("secret").and_then(|n| self.secret(n, "`secret`"));
        for key in WEBHOOK_KEYS {
            if fields.get(key).is_none() {
                self.check.error(node.place, format!("`webhook` needs `{key}`"));
            }
        }
        Some(Webhook { kind: kind?, secret: secret? })
    }

    fn repo_secrets(&mut self, node: &Node, repo: &mut Repo) {
        for item in self.check.items(node, "`secrets`") {
            let Some(name) = self.check.text(item, "the name of a secret") else { continue };
            if is_interpolated(item) {
                self.check.error_with_hint(
                    item.place,
                    "`secrets` names secrets; this is the value of one",
                    "write the bare name: `secrets: [NAME]`",
                );
                continue;
            }
            if let Err(why) = variable_name(name) {
                self.check.error(item.place, why);
                continue;
            }
            match self.store.get(name) {
                Ok(Some(_)) => repo.secrets.push(name.to_owned()),
                Ok(None) => self.check.error_with_hint(
                    item.place,
                    format!("there is no secret `{name}`"),
                    format!("keep one with `mainstay secrets set {name}`"),
                ),
                Err(error) => {
                    self.check.error(item.place, format!("failed to {error}"));
                }
            }
        }
    }

    fn url(&mut self, node: &Node) -> Option<String> {
        let text = self.check.text(node, "`url`")?;
        match repo_url(text, self.folder) {
            Ok(url) => Some(url),
            Err((why, hint)) => {
                self.check.error_with_hint(node.place, format!("`url` {why}"), hint);
                None
            }
        }
    }
}

/// Checks a repository's address; a path is made absolute. Nothing of the address is repeated in the error.
fn repo_url(text: &str, folder: &Path) -> Result<String, (&'static str, &'static str)> {
    let forms = "a path, `https://HOST/PATH`, `ssh://USER@HOST/PATH`, `USER@HOST:PATH` or `file:///PATH`";
    if text.is_empty() || text.len() > 2_000 {
        return Err(("has 1 to 2000 bytes", forms));
    }
    if text.starts_with('-') || text.chars().any(char::is_control) {
        return Err(("begins with `-` or holds control characters", forms));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let authority = rest.split('/').next().unwrap_or_default();
        let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        return match scheme {
            "file" if rest.starts_with('/') => Ok(text.to_owned()),
            "https" | "http" | "ssh" => {
                if user.is_some_and(|user| user.contains(':') || scheme != "ssh") {
                    return Err(("holds a name or password", "put them under `auth: { username, password }`"));
                }
                if host.is_empty() || host.starts_with('-') || user.is_some_and(|u| u.is_empty() || u.starts_with('-'))
                {
                    return Err(("has no usable host", forms));
                }
                Ok(text.to_owned())
            }
            _ => Err(("has a scheme that is not known", forms)),
        };
    }
    // As Git decides it: `host:path` is remote unless a slash comes before the colon.
    if let Some((host, path)) = text.split_once(':')
        && !host.contains('/')
    {
        let bare = host.rsplit_once('@').map_or(host, |(_, bare)| bare);
        if bare.is_empty()
            || bare.starts_with('-')
            || path.is_empty()
            || path.starts_with(['-', ':'])
            || host.contains(' ')
        {
            return Err(("has no usable host or path", forms));
        }
        return Ok(text.to_owned());
    }
    let path = plain_path(&folder.join(text));
    path.into_os_string().into_string().map_err(|_| ("is not UTF-8", forms))
}

/// The rules of Git for branch names, as far as they keep us from trouble.
fn is_branch(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with(['-', '/', '.'])
        && !name.ends_with(['/', '.'])
        && !name.contains("..")
        && !name.contains("//")
        && !name.starts_with("refs/")
        && !name.chars().any(|c| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c))
}
