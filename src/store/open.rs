//! Opening the database, its one writer and its readers.

use super::migrations;
use crate::model::InstanceId;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, oneshot};

/// Why the store could not do what was asked. `Display` fits after "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite said no.
    #[error("use the state database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A stored document does not read back.
    #[error("read a stored document: {0}")]
    Document(#[from] serde_json::Error),
    /// The database was made by a newer Mainstay.
    #[error(
        "open the state database: it has schema {found}, this Mainstay knows up to {known}\nhint: run the newer Mainstay, or restore the state folder from before the upgrade"
    )]
    Newer {
        /// What the file says.
        found: i64,
        /// What this binary knows.
        known: i64,
    },
    /// The writer thread has ended: the daemon is stopping.
    #[error("reach the state database: it is closed")]
    Closed,
    /// What was stored contradicts itself or the request; the text says how.
    #[error("{0}")]
    Conflict(String),
    /// The folder or file could not be made.
    #[error("open the state folder {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle on the state database; cheap to clone.
#[derive(Clone)]
pub struct Store {
    writer: mpsc::Sender<Job>,
    readers: Arc<Readers>,
    instance: InstanceId,
}

struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

/// Waiting writes: far above what runs produce at once, and small enough to push back on a runaway loop.
const WRITE_QUEUE: usize = 256;
/// Reader connections kept open between requests; each costs about 100 KiB.
const READERS_KEPT: usize = 4;

impl Store {
    /// Opens or makes `mainstay.db` in the state folder, brings its schema up to date, and starts the writer.
    ///
    /// # Errors
    /// When the folder is not writable, the file is no database, or a newer Mainstay made it.
    pub fn open(state: &Path) -> Result<Store, StoreError> {
        std::fs::create_dir_all(state).map_err(|source| StoreError::Io { path: state.to_owned(), source })?;
        let path = state.join("mainstay.db");
        let mut connection = Connection::open(&path)?;
        tune(&connection)?;
        connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")?;
        migrations::migrate(&mut connection)?;
        let instance = instance_id(&connection)?;
        let (writer, mut jobs) = mpsc::channel::<Job>(WRITE_QUEUE);
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || {
                while let Some(job) = jobs.blocking_recv() {
                    job(&mut connection);
                }
            })
            .map_err(|source| StoreError::Io { path: path.clone(), source })?;
        Ok(Store { writer, readers: Arc::new(Readers { path, idle: Mutex::default() }), instance })
    }

    /// What tells this daemon's things in a shared engine from another's.
    pub fn instance(&self) -> &InstanceId {
        &self.instance
    }

    /// Runs `change` in one transaction on the writer thread and answers after it is durable. An error rolls back.
    pub(super) async fn write<T, F>(&self, change: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            crate::failpoint!("store.write.before");
            let result = (|| {
                let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let value = change(&tx)?;
                tx.commit()?;
                Ok(value)
            })();
            crate::failpoint!("store.write.after");
            // A caller that stopped waiting loses only the answer; the change stands.
            let _ = answer.send(result);
        });
        self.writer.send(job).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Runs `query` on a reading connection, off the async threads.
    pub(super) async fn read<T, F>(&self, query: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let readers = Arc::clone(&self.readers);
        tokio::task::spawn_blocking(move || {
            let connection = readers.take()?;
            let result = query(&connection);
            readers.give_back(connection);
            result
        })
        .await
        .map_err(|_| StoreError::Closed)?
    }
}

impl Readers {
    fn take(&self) -> Result<Connection, StoreError> {
        let kept = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
        if let Some(connection) = kept {
            return Ok(connection);
        }
        let connection = Connection::open_with_flags(
            &self.path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI,
        )?;
        tune(&connection)?;
        Ok(connection)
    }

    fn give_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if idle.len() < READERS_KEPT {
            idle.push(connection);
        }
    }
}

fn tune(connection: &Connection) -> Result<(), rusqlite::Error> {
    // Ten seconds: a backup of the file by another program may hold it for a moment.
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.execute_batch("PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -2048;")
}

fn instance_id(connection: &Connection) -> Result<InstanceId, StoreError> {
    let mut random = [0_u8; 4];
    getrandom::fill(&mut random).map_err(|e| StoreError::Conflict(format!("get random bytes: {e}")))?;
    connection.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('instance', ?1)", [hex::encode(random)])?;
    let id = connection.query_row("SELECT value FROM meta WHERE key = 'instance'", [], |row| row.get(0))?;
    Ok(InstanceId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_database_of_a_newer_mainstay_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mainstay.db");
        // Not by way of a store: its writer closes the file, and moves the log into it, some time after the drop.
        let mut newer = Connection::open(&path).unwrap();
        newer.execute_batch("PRAGMA journal_mode = WAL").unwrap();
        migrations::migrate(&mut newer).unwrap();
        newer.pragma_update(None, "user_version", 1_000).unwrap();
        newer.close().unwrap();
        let before = std::fs::read(&path).unwrap();
        let error = Store::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("schema 1000") && error.contains("hint:"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before, "a newer database was written to");
    }

    #[tokio::test]
    async fn opening_again_keeps_what_is_stored_and_who_we_are() {
        let folder = tempfile::tempdir().unwrap();
        let first = Store::open(folder.path()).unwrap();
        let instance = first.instance().clone();
        first.write(|tx| Ok(tx.execute("INSERT INTO meta VALUES ('sample', 'kept')", [])?)).await.unwrap();
        drop(first);
        let second = Store::open(folder.path()).unwrap();
        assert_eq!(*second.instance(), instance);
        let sql = "SELECT value FROM meta WHERE key = 'sample'";
        let kept: String = second.read(|db| Ok(db.query_row(sql, [], |row| row.get(0))?)).await.unwrap();
        assert_eq!(kept, "kept");
    }

    #[tokio::test]
    async fn a_change_that_fails_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let failed: Result<(), _> = store
            .write(|tx| {
                tx.execute("INSERT INTO meta VALUES ('half', 'done')", [])?;
                Err(StoreError::Conflict("changed our mind".into()))
            })
            .await;
        assert!(failed.is_err());
        let count =
            |db: &Connection| Ok(db.query_row("SELECT count(*) FROM meta WHERE key = 'half'", [], |r| r.get(0))?);
        let left: i64 = store.read(count).await.unwrap();
        assert_eq!(left, 0);
    }

    #[test]
    fn a_file_that_is_no_database_is_an_error_and_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mainstay.db");
        std::fs::write(
            &path,
            "not a database, and longer than a header of one hundred bytes would have to be".repeat(4),
        )
        .unwrap();
        let before = std::fs::read(&path).unwrap();
        assert!(Store::open(folder.path()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
