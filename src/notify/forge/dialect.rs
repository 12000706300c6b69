//! How each kind of forge is asked for pull requests, as its documentation says. No I/O.
//!
//! | | GitHub | GitLab | Gitea, Forgejo |
//! |---|---|---|---|
//! | token | `Authorization: Bearer …` | `PRIVATE-TOKEN: …` | `Authorization: token …` |
//! | list | `GET /repos/O/N/pulls?head=O:BRANCH` | `GET /projects/O%2FN/merge_requests?source_branch=` | `GET /repos/O/N/pulls` |
//! | make | `POST` there: 201 | `POST` there: 201 | `POST` there: 201 |
//! | one is there | 422, "already exists" | 409 | 409 |
//! | its page | `html_url` | `web_url` | `html_url` |

use super::Proposal;
use crate::config::daemon::{Forge, ForgeKind};
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, HeaderName};
use serde_json::{Value, json};

/// Gitea has no filter by branch. What is looked for is the newest or nearly so: these pages are its last 150.
const PAGES_MAX: u32 = 3;
const PAGE: u32 = 50;

/// The header that says who we are.
pub(super) fn token(kind: ForgeKind, token: &str) -> (HeaderName, String) {
    match kind {
        ForgeKind::Github => (AUTHORIZATION, format!("Bearer {token}")),
        ForgeKind::Gitlab => (HeaderName::from_static("private-token"), token.to_owned()),
        ForgeKind::Gitea | ForgeKind::Forgejo => (AUTHORIZATION, format!("token {token}")),
    }
}

/// Further headers.
pub(super) fn headers(kind: ForgeKind) -> &'static [(&'static str, &'static str)] {
    match kind {
        ForgeKind::Github => &[("accept", "application/vnd.github+json"), ("x-github-api-version", "2022-11-28")],
        _ => &[("accept", "application/json")],
    }
}

/// The parts of the path under which pull requests of the project are.
fn path(forge: &Forge) -> Vec<&str> {
    match forge.kind {
        // One part: its slashes are escaped.
        ForgeKind::Gitlab => vec!["projects", &forge.project, "merge_requests"],
        _ => {
            let (owner, name) = forge.project.split_once('/').unwrap_or((&forge.project, ""));
            vec!["repos", owner, name, "pulls"]
        }
    }
}

pub(super) fn pages(kind: ForgeKind) -> u32 {
    match kind {
        ForgeKind::Github | ForgeKind::Gitlab => 1,
        ForgeKind::Gitea | ForgeKind::Forgejo => PAGES_MAX,
    }
}

/// Path and query of the list in which it is, if it is there.
pub(super) fn list<'f>(
    forge: &'f Forge,
    proposal: &Proposal,
    page: u32,
) -> (Vec<&'f str>, Vec<(&'static str, String)>) {
    let mut query = vec![("state", "all".to_owned())];
    match forge.kind {
        ForgeKind::Github => {
            let owner = forge.project.split('/').next().unwrap_or_default();
            query.push(("head", format!("{owner}:{}", proposal.branch)));
            query.push(("base", proposal.base.clone()));
            query.push(("per_page", PAGE.to_string()));
        }
        ForgeKind::Gitlab => {
            query.push(("source_branch", proposal.branch.clone()));
            query.push(("target_branch", proposal.base.clone()));
            query.push(("per_page", PAGE.to_string()));
        }
        ForgeKind::Gitea | ForgeKind::Forgejo => {
            query.push(("sort", "recentupdate".to_owned()));
            query.push(("limit", PAGE.to_string()));
            query.push(("page", page.to_string()));
        }
    }
    (path(forge), query)
}

/// Path and document that make it.
pub(super) fn create<'f>(forge: &'f Forge, proposal: &Proposal) -> (Vec<&'f str>, Value) {
    let Proposal { branch, base, title, body, .. } = proposal;
    let document = match forge.kind {
        ForgeKind::Gitlab => json!({
            "source_branch": branch, "target_branch": base, "title": title, "description": body,
            "remove_source_branch": true,
        }),
        _ => json!({ "head": branch, "base": base, "title": title, "body": body }),
    };
    (path(forge), document)
}

/// Whether that is said because there is one for the branch already.
pub(super) fn is_there_already(status: StatusCode, said: &str) -> bool {
    status == StatusCode::CONFLICT
        || status == StatusCode::UNPROCESSABLE_ENTITY && said.to_ascii_lowercase().contains("already exists")
}

/// Whether an entry of the list is for the branch: an open one, or one of any state with the very commit. A closed one
/// with another commit is of an earlier branch of that name.
pub(super) fn is_it(kind: ForgeKind, one: &Value, proposal: &Proposal) -> bool {
    let (branch, base, commit, open, from, to) = match kind {
        ForgeKind::Gitlab => (
            &one["source_branch"],
            &one["target_branch"],
            &one["sha"],
            one["state"] == "opened",
            &one["source_project_id"],
            &one["target_project_id"],
        ),
        _ => (
            &one["head"]["ref"],
            &one["base"]["ref"],
            &one["head"]["sha"],
            one["state"] == "open",
            &one["head"]["repo_id"],
            &one["base"]["repo_id"],
        ),
    };
    *branch == proposal.branch && *base == proposal.base && from == to && (open || *commit == proposal.commit)
}

/// Where people find it.
pub(super) fn address(kind: ForgeKind, one: &Value) -> Option<&str> {
    one[if kind == ForgeKind::Gitlab { "web_url" } else { "html_url" }].as_str()
}
