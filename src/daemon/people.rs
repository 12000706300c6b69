//! Who is who for the web room, by the configuration in force and the stored tokens; and what a new configuration changes
//! about people.

use super::Core;
use super::control::{broken, with_hints};
use crate::config::daemon::People;
use crate::model::api::{TokenCreated, TokenRequest, TokenState, TokenView};
use crate::model::{Asker, PersonName};
use crate::store::{Revoked, StoreError, TokenRow};
use crate::web::{self, Problem, auth};
use async_trait::async_trait;
use axum::http::StatusCode;
use jiff::Timestamp;

/// What a token is for, in a few words.
const NAME_MAX_CHARS: usize = 100;

#[async_trait]
impl web::People for Core {
    fn of_unix(&self, user: &str) -> Option<PersonName> {
        self.config().people.of_unix(user).cloned()
    }

    async fn of_token(&self, shown: &str) -> Result<PersonName, Problem> {
        let row = self.engine.store().find_token(shown).await.map_err(broken)?.ok_or_else(auth::unknown_token)?;
        let refuse = |why: String| {
            let problem = format!("prove who asks: token {} of {} {why}", row.id, row.person);
            Err(Problem::new(StatusCode::UNAUTHORIZED, problem)
                .hint("`mainstay token create PERSON` on the daemon's machine makes another"))
        };
        match state(&row, &self.config().people, Timestamp::now()) {
            TokenState::InForce => Ok(row.person),
            TokenState::Revoked => refuse(format!("was revoked{}", at(row.revoked_at))),
            TokenState::Expired => refuse(format!("expired{}", at(row.expires_at))),
            TokenState::PersonGone => refuse("belongs to nobody: that person is not in mainstay.yml".to_owned()),
        }
    }

    async fn tokens(&self) -> Result<Vec<TokenView>, Problem> {
        let rows = self.engine.store().list_tokens().await.map_err(broken)?;
        let (config, now) = (self.config(), Timestamp::now());
        Ok(rows.into_iter().map(|row| view(row, &config.people, now)).collect())
    }

    async fn create_token(&self, request: TokenRequest, by: &Asker) -> Result<TokenCreated, Problem> {
        let TokenRequest { person, name, expires_at } = request;
        let config = self.config();
        if !config.people.users.contains_key(&person) {
            return Err(Problem::wrong(format!("make a token for `{person}`: there is no such person"))
                .hint("`people.users` in mainstay.yml names them; after a change of it `mainstay reload`"));
        }
        let name = name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        if name.as_ref().is_some_and(|n| n.chars().count() > NAME_MAX_CHARS || n.chars().any(char::is_control)) {
            return Err(Problem::wrong(format!(
                "name the token: a name has at most {NAME_MAX_CHARS} characters, and no control characters"
            )));
        }
        if expires_at.is_some_and(|end| end <= Timestamp::now()) {
            return Err(Problem::wrong("make a token: its time would be over already"));
        }
        let made = self.engine.store().create_token(person, name, expires_at, by).await;
        let (row, token) = made.map_err(|error| match error {
            StoreError::Conflict(why) => with_hints(Problem::conflict, &why),
            other => broken(other),
        })?;
        let stored = view(row, &config.people, Timestamp::now());
        Ok(TokenCreated { token: token.expose().to_owned(), stored })
    }

    async fn revoke_token(&self, id: u64, by: &Asker) -> Result<TokenView, Problem> {
        match self.engine.store().revoke_token(id, by).await.map_err(broken)? {
            Revoked::Now(row) => Ok(view(row, &self.config().people, Timestamp::now())),
            Revoked::Before(row) => {
                Err(Problem::conflict(format!("revoke token {id}: it was revoked{}", at(row.revoked_at))))
            }
            Revoked::Unknown => {
                Err(Problem::not_found(format!("find token {id}")).hint("`mainstay token list` lists them"))
            }
        }
    }
}

fn at(time: Option<Timestamp>) -> String {
    time.map(|time| format!(" at {}", time.strftime("%Y-%m-%d %H:%M:%SZ"))).unwrap_or_default()
}

/// Whether the token is taken, as things stand.
fn state(row: &TokenRow, people: &People, now: Timestamp) -> TokenState {
    if row.revoked_at.is_some() {
        TokenState::Revoked
    } else if row.expires_at.is_some_and(|end| end <= now) {
        TokenState::Expired
    } else if !people.users.contains_key(&row.person) {
        TokenState::PersonGone
    } else {
        TokenState::InForce
    }
}

fn view(row: TokenRow, people: &People, now: Timestamp) -> TokenView {
    TokenView {
        state: state(&row, people, now),
        id: row.id,
        person: row.person,
        name: row.name,
        created_at: row.created_at,
        created_by: row.created_by,
        expires_at: row.expires_at,
        revoked_at: row.revoked_at,
    }
}

/// What is different about people, a sentence each.
pub(super) fn changes(old: &People, new: &People) -> Vec<String> {
    let mut changes = Vec::new();
    for name in new.users.keys().filter(|name| !old.users.contains_key(*name)) {
        changes.push(format!("{name} is a person now"));
    }
    for name in old.users.keys().filter(|name| !new.users.contains_key(*name)) {
        changes.push(format!("{name} is no longer a person, and their tokens are not taken"));
    }
    for (name, person) in &new.users {
        if old.users.get(name).is_some_and(|before| before != person) {
            changes.push(format!("{name} has other names elsewhere"));
        }
    }
    if old.groups != new.groups {
        changes.push("other groups of people".into());
    }
    changes
}
