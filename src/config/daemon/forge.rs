//! `repos.NAME.forge`: where pull requests for a repository are opened, and with which token.

use super::{FORGE_KEYS, Reader};
use crate::config::check::is_interpolated;
use crate::config::finding::shown;
use crate::config::secret::Secret;
use crate::config::yaml::Node;
use reqwest::Url;

/// The forge of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forge {
    /// Whose API it speaks.
    pub kind: ForgeKind,
    /// Where the API begins, without a slash at the end: `https://git.example.com/api/v1`.
    pub url: String,
    /// The repository there: `owner/name`.
    pub project: String,
    /// Who Mainstay is there.
    pub token: Secret,
}

/// Whose API a forge speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForgeKind {
    /// GitHub, also on a server of one's own.
    Github,
    /// GitLab.
    Gitlab,
    /// Gitea.
    Gitea,
    /// Forgejo.
    Forgejo,
}

const KINDS: [(&str, ForgeKind); 4] = [
    ("github", ForgeKind::Github),
    ("gitlab", ForgeKind::Gitlab),
    ("gitea", ForgeKind::Gitea),
    ("forgejo", ForgeKind::Forgejo),
];

impl Reader<'_, '_> {
    /// `repo_url` is the repository's own address, from which most of it is known.
    pub(super) fn forge(&mut self, node: &Node, repo_url: &str) -> Option<Forge> {
        let fields = self.check.fields(node, "`forge`", FORGE_KEYS, &[])?;
        self.needs(&fields, node, "`forge`", &["kind", "token"]);
        let kind = fields.get("kind").and_then(|n| self.check.word(n, "`kind`", &KINDS));
        let token = fields.get("token").and_then(|n| self.token(n));
        let seen = Seen::of(repo_url);
        let url = match fields.get("url") {
            Some(node) => self.api_address(node),
            None => {
                let known = seen.as_ref().zip(kind).map(|(seen, kind)| seen.api(kind));
                if known.is_none() && kind.is_some() && !repo_url.is_empty() {
                    self.check.error_with_hint(
                        node.place,
                        "`forge` needs `url`: the repository's own address names no server",
                        "where its API begins, such as `https://git.example.com/api/v1`",
                    );
                }
                known
            }
        };
        let project = match fields.get("project") {
            Some(node) => {
                let text = self.check.text(node, "`project`")?;
                let usable = kind.is_none_or(|kind| is_project(text, kind));
                if !usable && is_interpolated(node) {
                    self.check.error(node.place, "`project`: the value put in here is not `OWNER/NAME`");
                } else if !usable {
                    self.check.error(node.place, format!("`project` is `OWNER/NAME`, not `{}`", shown(text)));
                }
                usable.then(|| text.to_owned())
            }
            None => {
                let known = seen.map(|seen| seen.project).filter(|path| kind.is_none_or(|kind| is_project(path, kind)));
                if known.is_none() && kind.is_some() && !repo_url.is_empty() {
                    self.check.error_with_hint(
                        node.place,
                        "`forge` needs `project`: the repository's own address does not show it",
                        "the repository's name at the forge: `project: OWNER/NAME`",
                    );
                }
                known
            }
        };
        Some(Forge { kind: kind?, url: url?, project: project?, token: token? })
    }

    /// It goes into a header, where nothing but visible ASCII may stand.
    fn token(&mut self, node: &Node) -> Option<Secret> {
        let token = self.secret(node, "`token`")?;
        if !token.expose().bytes().all(|b| b.is_ascii_graphic()) {
            self.check
                .error(node.place, "`token` holds what no token holds: spaces, control characters or other letters");
            return None;
        }
        Some(token)
    }

    fn api_address(&mut self, node: &Node) -> Option<String> {
        let text = self.web_address(node, "`url`")?;
        let plain = Url::parse(&text).is_ok_and(|url| {
            url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none()
        });
        if !plain {
            self.check.error_with_hint(
                node.place,
                "`url` holds a name, a password or a query",
                "where the API begins and nothing else; who Mainstay is there stands in `token`",
            );
            return None;
        }
        Some(text.trim_end_matches('/').to_owned())
    }
}

/// Each part goes into a path of the API.
fn is_project(text: &str, kind: ForgeKind) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    let part = |part: &&str| {
        !part.is_empty()
            && !part.chars().all(|c| c == '.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let depth = if kind == ForgeKind::Gitlab { parts.len() >= 2 } else { parts.len() == 2 };
    text.len() <= 500 && depth && parts.iter().all(part)
}

/// What the address of a repository says about its forge.
struct Seen {
    /// `https://HOST`, with the port of an address that is the web's own.
    origin: String,
    host: String,
    project: String,
}

impl Seen {
    fn of(repo_url: &str) -> Option<Seen> {
        let project = |path: &str| {
            let path = path.trim_matches('/');
            path.strip_suffix(".git").unwrap_or(path).to_owned()
        };
        if let Some((scheme, _)) = repo_url.split_once("://") {
            let url = Url::parse(repo_url).ok()?;
            let host = url.host_str().filter(|host| !host.is_empty())?.to_owned();
            let origin = match (scheme, url.port()) {
                ("http" | "https", Some(port)) => format!("{scheme}://{host}:{port}"),
                ("http" | "https", None) => format!("{scheme}://{host}"),
                // The port of ssh says nothing about the port of the web.
                ("ssh", _) => format!("https://{host}"),
                _ => return None,
            };
            return Some(Seen { origin, host, project: project(url.path()) });
        }
        let (host, path) = repo_url.split_once(':').filter(|(host, _)| !host.contains('/'))?;
        let host = host.rsplit_once('@').map_or(host, |(_, bare)| bare).to_owned();
        Some(Seen { origin: format!("https://{host}"), host, project: project(path) })
    }

    fn api(&self, kind: ForgeKind) -> String {
        match kind {
            ForgeKind::Github if self.host == "github.com" => "https://api.github.com".to_owned(),
            ForgeKind::Github => format!("{}/api/v3", self.origin),
            ForgeKind::Gitlab => format!("{}/api/v4", self.origin),
            ForgeKind::Gitea | ForgeKind::Forgejo => format!("{}/api/v1", self.origin),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_repository_tells_where_its_api_is() {
        use ForgeKind::{Forgejo, Gitea, Github, Gitlab};
        for (repo, kind, api, project) in [
            ("https://github.com/shop/api.git", Github, "https://api.github.com", "shop/api"),
            ("git@github.com:shop/api.git", Github, "https://api.github.com", "shop/api"),
            ("https://ghe.example.com/shop/api", Github, "https://ghe.example.com/api/v3", "shop/api"),
            ("ssh://git@gitlab.com:2222/a/b/c.git", Gitlab, "https://gitlab.com/api/v4", "a/b/c"),
            ("http://127.0.0.1:3000/shop/api.git/", Gitea, "http://127.0.0.1:3000/api/v1", "shop/api"),
            ("git@codeberg.org:shop/api", Forgejo, "https://codeberg.org/api/v1", "shop/api"),
        ] {
            let seen = Seen::of(repo).unwrap();
            assert_eq!((seen.api(kind).as_str(), seen.project.as_str()), (api, project), "{repo}");
            assert!(is_project(&seen.project, kind), "{repo}");
        }
        for path in ["/srv/git/shop.git", "file:///srv/git/shop.git"] {
            assert!(Seen::of(path).is_none(), "{path}");
        }
    }

    #[test]
    fn a_project_is_a_path_of_plain_names() {
        for (text, kind, fits) in [
            ("a/b", ForgeKind::Github, true),
            ("a/b/c", ForgeKind::Gitea, false),
            ("a/b/c", ForgeKind::Gitlab, true),
            ("a", ForgeKind::Gitlab, false),
            ("a/..", ForgeKind::Github, false),
            ("a/b?x", ForgeKind::Github, false),
            ("a//b", ForgeKind::Gitlab, false),
        ] {
            assert_eq!(is_project(text, kind), fits, "{text}");
        }
    }
}
