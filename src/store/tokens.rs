//! Personal tokens: whose they are, and until when.
//!
//! A token is shown once, when it is made; stored is its SHA-256 digest alone. Whether its person still is one is for
//! the daemon to say, which knows `mainstay.yml`.

use super::audit::{self, Act, ActKind};
use super::{Store, StoreError, inbox, stored_time};
use crate::model::{Asker, PersonName};
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fmt;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

/// What every personal token begins with, so that people and scanners know one when they see it.
pub const TOKEN_PREFIX: &str = "mainstay_";
/// 256 bits.
const TOKEN_BYTES: usize = 32;
/// The length of every token's text, in hex after the prefix.
const TEXT_BYTES: usize = TOKEN_PREFIX.len() + 2 * TOKEN_BYTES;
/// Tokens in force at a time: each is compared with every token that is shown, and no team has near as many.
const IN_FORCE_MAX: i64 = 1_000;
/// So long it can be told of a token that is over why it is; then it is forgotten.
const TOLD_FOR: SignedDuration = SignedDuration::from_hours(365 * 24);

/// A stored token, without what would let anybody in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Its number.
    pub id: u64,
    /// Whose it is.
    pub person: PersonName,
    /// What it is for, in its maker's words.
    pub name: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// From then on it is not taken.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// The text of a new token: to be shown once. It does not print.
#[derive(Clone)]
pub struct NewToken(String);

impl NewToken {
    fn random() -> Result<NewToken, StoreError> {
        let mut random = [0_u8; TOKEN_BYTES];
        getrandom::fill(&mut random).map_err(|error| StoreError::Conflict(format!("get random bytes: {error}")))?;
        Ok(NewToken(format!("{TOKEN_PREFIX}{}", hex::encode(random))))
    }
    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for NewToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewToken(…)")
    }
}

/// What came of revoking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revoked {
    /// It is revoked from now on.
    Now(TokenRow),
    /// It was before.
    Before(TokenRow),
    /// There is none of that number.
    Unknown,
}

impl Store {
    /// Makes a token and records that, in one transaction.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when too many are in force.
    pub async fn create_token(
        &self,
        person: PersonName,
        name: Option<String>,
        expires_at: Option<Timestamp>,
        by: &Asker,
    ) -> Result<(TokenRow, NewToken), StoreError> {
        let token = NewToken::random()?;
        let digest: [u8; 32] = Sha256::digest(token.expose()).into();
        let by = by.clone();
        let row = self
            .write(move |tx| {
                let now = Timestamp::now();
                let told = (now - TOLD_FOR).as_millisecond();
                tx.execute("DELETE FROM tokens WHERE revoked_at < ?1 OR expires_at < ?1", [told])?;
                let in_force: i64 = tx.query_row(
                    "SELECT count(*) FROM tokens WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?1)",
                    [now.as_millisecond()],
                    |row| row.get(0),
                )?;
                if in_force >= IN_FORCE_MAX {
                    return Err(StoreError::Conflict(format!(
                        "make a token: {IN_FORCE_MAX} are in force\nhint: `mainstay token revoke ID` ends one that is not needed"
                    )));
                }
                tx.execute(
                    "INSERT INTO tokens (person, name, digest, created_at, created_by, expires_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![
                        person.as_str(),
                        name,
                        digest,
                        now.as_millisecond(),
                        by.who(),
                        expires_at.map(Timestamp::as_millisecond),
                    ],
                )?;
                let id = tx.last_insert_rowid();
                let row = find(tx, id)?.ok_or_else(|| StoreError::Conflict("make a token: it is gone".into()))?;
                let details = json!({ "token": id, "name": row.name, "expires_at": row.expires_at });
                let act = Act { by, kind: ActKind::TokenCreate, subject: person.to_string(), details };
                audit::record(tx, &act, now)?;
                Ok(row)
            })
            .await?;
        Ok((row, token))
    }

    /// All tokens, the newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM tokens ORDER BY id DESC"))?;
            let mut rows = query.query([])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(token_row(row)?);
            }
            Ok(found)
        })
        .await
    }

    /// Revokes a token and records that, in one transaction.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn revoke_token(&self, id: u64, by: &Asker) -> Result<Revoked, StoreError> {
        let by = by.clone();
        self.write(move |tx| {
            // A number beyond what the database counts to is of no token.
            let Ok(id) = i64::try_from(id) else { return Ok(Revoked::Unknown) };
            let Some(row) = find(tx, id)? else { return Ok(Revoked::Unknown) };
            if row.revoked_at.is_some() {
                return Ok(Revoked::Before(row));
            }
            let now = Timestamp::now();
            tx.execute("UPDATE tokens SET revoked_at = ?2 WHERE id = ?1", params![id, now.as_millisecond()])?;
            let act = Act {
                by,
                kind: ActKind::TokenRevoke,
                subject: row.person.to_string(),
                details: json!({ "token": id, "name": row.name }),
            };
            audit::record(tx, &act, now)?;
            Ok(Revoked::Now(TokenRow { revoked_at: Some(now), ..row }))
        })
        .await
    }

    /// The token of that text, in force or not. Every stored digest is compared in full, so that the time this takes
    /// tells nothing about any of them.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find_token(&self, shown: &str) -> Result<Option<TokenRow>, StoreError> {
        if shown.len() != TEXT_BYTES {
            return Ok(None);
        }
        let shown: [u8; 32] = Sha256::digest(shown.as_bytes()).into();
        self.read(move |db| {
            let mut query = db.prepare_cached("SELECT id, digest FROM tokens")?;
            let mut rows = query.query([])?;
            let mut found = 0_i64;
            while let Some(row) = rows.next()? {
                let (id, digest): (i64, [u8; 32]) = (row.get(0)?, row.get(1)?);
                let same: Choice = digest.ct_eq(&shown);
                found.conditional_assign(&id, same);
            }
            drop(rows);
            // Numbers begin at 1.
            if found == 0 { Ok(None) } else { find(db, found) }
        })
        .await
    }
}

const COLUMNS: &str = "id, person, name, created_at, created_by, expires_at, revoked_at";

fn find(db: &Connection, id: i64) -> Result<Option<TokenRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM tokens WHERE id = ?1"))?;
    query.query_row([id], |row| Ok(token_row(row))).optional()?.transpose()
}

fn token_row(row: &Row<'_>) -> Result<TokenRow, StoreError> {
    Ok(TokenRow {
        id: row.get::<_, i64>(0)? as u64,
        person: inbox::parsed(row, 1)?,
        name: row.get(2)?,
        created_at: stored_time(row.get(3)?),
        created_by: row.get(4)?,
        expires_at: row.get::<_, Option<i64>>(5)?.map(stored_time),
        revoked_at: row.get::<_, Option<i64>>(6)?.map(stored_time),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_digest_is_stored_and_the_text_is_found_by_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let by = Asker::user("root");
        let person = |name: &str| PersonName::new(name).unwrap();
        let (first, text) = store.create_token(person("ana"), None, None, &by).await.unwrap();
        let (second, other) = store.create_token(person("ben"), Some("laptop".into()), None, &by).await.unwrap();
        let digits = text.expose().strip_prefix(TOKEN_PREFIX).unwrap();
        assert!(digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) && text.expose() != other.expose());
        assert_eq!(store.find_token(text.expose()).await.unwrap(), Some(first.clone()));
        assert_eq!(store.find_token(other.expose()).await.unwrap(), Some(second.clone()));
        for wrong in ["", TOKEN_PREFIX, &text.expose()[..72], &text.expose().to_uppercase(), digits] {
            assert_eq!(store.find_token(wrong).await.unwrap(), None, "{wrong}");
        }
        assert!(!format!("{text:?}").contains(digits));
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(memchr::memmem::find(&bytes, digits.as_bytes()).is_none(), "the text of a token is on disk");
        }
        assert_eq!(store.list_tokens().await.unwrap(), [second, first]);
    }

    #[tokio::test]
    async fn revoking_counts_once_and_is_recorded_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let by = Asker::user("root");
        let (row, text) = store.create_token(PersonName::new("ana").unwrap(), None, None, &by).await.unwrap();
        assert!(matches!(store.revoke_token(row.id, &by).await.unwrap(), Revoked::Now(_)));
        assert!(matches!(store.revoke_token(row.id, &by).await.unwrap(), Revoked::Before(_)));
        for none in [0, 2, u64::MAX] {
            assert_eq!(store.revoke_token(none, &by).await.unwrap(), Revoked::Unknown);
        }
        assert!(store.find_token(text.expose()).await.unwrap().unwrap().revoked_at.is_some());
        let acts: Vec<_> = store.list_audit(None, 10).await.unwrap().into_iter().map(|entry| entry.act).collect();
        assert_eq!(acts, ["token-revoke", "token-create"]);
    }

    #[tokio::test]
    async fn tokens_that_are_long_over_are_forgotten_and_those_in_force_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let by = Asker::user("root");
        let ana = PersonName::new("ana").unwrap();
        let (row, _) = store.create_token(ana.clone(), None, None, &by).await.unwrap();
        store.revoke_token(row.id, &by).await.unwrap();
        store.write(|tx| Ok(tx.execute("UPDATE tokens SET revoked_at = 1", [])?)).await.unwrap();
        store.create_token(ana.clone(), None, None, &by).await.unwrap();
        assert_eq!(store.list_tokens().await.unwrap().len(), 1);
        let many = "WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
                    INSERT INTO tokens (person, digest, created_at, created_by) SELECT 'ana', CAST(printf('%032d', i) AS BLOB), 1, 'x' FROM n";
        store.write(move |tx| Ok(tx.execute(many, [])?)).await.unwrap();
        let error = store.create_token(ana, None, None, &by).await.unwrap_err().to_string();
        assert!(error.contains("1000 are in force"), "{error}");
    }
}
