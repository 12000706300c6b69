//! A real repository before which a test stands: it sees every call, before the place hears of it and after the place has
//! acted, and may delay it, fail it, or die there. For faults on the wire there is `store_proxy`.
//!
//! ```ignore
//! struct Hangs;
//! #[async_trait]
//! impl Faults for Hangs {
//!     async fn before(&self, call: &Call<'_>) -> Result<(), RepositoryError> {
//!         if call.what == What::Put { std::future::pending().await } else { Ok(()) }
//!     }
//! }
//! job.repository = Faulty::over(repository, Hangs);
//! ```

use async_trait::async_trait;
use mainstay::backup::repository::{
    Abilities, Deleted, Key, Leased, Listed, Put, Replaced, Repository, RepositoryError, Stored,
};
use mainstay::backup::seal::{Receipt, Sealed};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Put,
    Get,
    Receipt,
    List,
    Delete,
}

/// One call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) what: What,
    /// Of what; a listing has none.
    pub(crate) key: Option<&'a Key>,
    /// How many calls of this kind came before it.
    pub(crate) number: u64,
}

/// What goes wrong.
#[async_trait]
pub(crate) trait Faults: Send + Sync + 'static {
    /// The place has not heard of the call yet; of an error it never does.
    async fn before(&self, call: &Call<'_>) -> Result<(), RepositoryError> {
        let _ = call;
        Ok(())
    }

    /// The place has acted, well, and nobody has heard of it yet; of an error only that is heard.
    async fn after(&self, call: &Call<'_>) -> Result<(), RepositoryError> {
        let _ = call;
        Ok(())
    }
}

/// The repository with what goes wrong before it. Leases, and what a place is and can do, pass as they are.
pub(crate) struct Faulty<F> {
    inner: Arc<dyn Repository>,
    pub(crate) faults: F,
    /// Calls so far, of each kind.
    counts: [AtomicU64; 5],
}

impl<F: Faults> Faulty<F> {
    pub(crate) fn over(inner: Arc<dyn Repository>, faults: F) -> Arc<Faulty<F>> {
        Arc::new(Faulty { inner, faults, counts: Default::default() })
    }

    async fn call<T>(
        &self,
        what: What,
        key: Option<&Key>,
        act: impl Future<Output = Result<T, RepositoryError>>,
    ) -> Result<T, RepositoryError> {
        let call = Call { what, key, number: self.counts[what as usize].fetch_add(1, Ordering::SeqCst) };
        self.faults.before(&call).await?;
        let done = act.await?;
        self.faults.after(&call).await?;
        Ok(done)
    }
}

#[async_trait]
impl<F: Faults> Repository for Faulty<F> {
    fn place(&self) -> String {
        self.inner.place()
    }
    async fn abilities(&self) -> Result<Abilities, RepositoryError> {
        self.inner.abilities().await
    }
    async fn put_new(&self, key: &Key, object: &Sealed) -> Result<Put, RepositoryError> {
        self.call(What::Put, Some(key), self.inner.put_new(key, object)).await
    }
    async fn get(&self, key: &Key) -> Result<Stored, RepositoryError> {
        self.call(What::Get, Some(key), self.inner.get(key)).await
    }
    async fn receipt(&self, key: &Key) -> Result<Receipt, RepositoryError> {
        self.call(What::Receipt, Some(key), self.inner.receipt(key)).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, RepositoryError> {
        self.call(What::List, None, self.inner.list(prefix)).await
    }
    async fn delete(&self, key: &Key) -> Result<Deleted, RepositoryError> {
        self.call(What::Delete, Some(key), self.inner.delete(key)).await
    }
    async fn lease(&self, key: &Key) -> Result<Option<Leased>, RepositoryError> {
        self.inner.lease(key).await
    }
    async fn replace_lease(&self, key: &Key, object: &Sealed, seen: Option<&str>) -> Result<Replaced, RepositoryError> {
        self.inner.replace_lease(key, object, seen).await
    }
}

/// Kills this process at one side of one call: 1 is before the first one, 2 when it was done and nobody has heard of it, 3
/// before the second.
pub(crate) struct Deadly {
    sides: AtomicUsize,
    at: usize,
}

impl Deadly {
    /// The repository, which is the last thing that this process sees when `at` sides of calls were passed.
    pub(crate) fn before(inner: Arc<dyn Repository>, at: usize) -> Arc<Faulty<Deadly>> {
        Faulty::over(inner, Deadly { sides: AtomicUsize::new(0), at })
    }

    fn count(&self) {
        if self.sides.fetch_add(1, Ordering::SeqCst) + 1 == self.at {
            let _ = kill(Pid::this(), Signal::SIGKILL);
            std::thread::sleep(Duration::from_secs(10));
        }
    }
}

#[async_trait]
impl Faults for Deadly {
    async fn before(&self, _: &Call<'_>) -> Result<(), RepositoryError> {
        self.count();
        Ok(())
    }
    async fn after(&self, _: &Call<'_>) -> Result<(), RepositoryError> {
        self.count();
        Ok(())
    }
}
