//! What does not stay as it was written: objects that go, and the lease.

use super::super::{Deleted, Leased, Put, Replaced, Repository as _, RepositoryError};
use super::S3;
use super::answer::Failure;
use super::write::OnlyIf;
use crate::backup::seal::Sealed;

impl S3 {
    /// Removes all versions of an object. In a bucket that keeps versions a plain deletion would only hide the object behind
    /// a marker: the bytes would stay, locked ones too, and the name would look free.
    pub(super) async fn remove(&self, name: &str) -> Result<Deleted, RepositoryError> {
        let doing = format!("delete {name}");
        let failed = |failure: Failure| failure.error(&doing, self);
        let client = &self.inner.deleter;
        let Some(head) = self.head(client, name).await.map_err(failed)? else {
            return match self.proven_absent(name).await {
                Err(RepositoryError::Absent { .. }) => Ok(Deleted::Absent),
                Err(error) => Err(error),
                Ok(never) => never,
            };
        };
        let versions = match head.version.filter(|version| version != "null") {
            None => vec![None],
            Some(version) => match self.versions(name).await {
                Ok(all) => all.into_iter().map(Some).collect(),
                // These credentials may not ask for older ones, so there is this one to go.
                Err(failure) if failure.denied() || failure.unknown_request() => vec![Some(version)],
                Err(failure) => return Err(failed(failure)),
            },
        };
        for version in versions {
            let request = || {
                let request = client.delete_object().bucket(&self.inner.settings.bucket).key(self.full(name));
                request.set_version_id(version.clone()).send()
            };
            match self.tried(request).await {
                Ok(_) => {}
                Err(failure) if failure.denied() => return Ok(Deleted::Locked),
                // An earlier try whose answer was lost.
                Err(failure) if failure.absent() || failure.has_code(&["NoSuchVersion"]) => {}
                Err(failure) => return Err(failed(failure)),
            }
        }
        Ok(Deleted::Gone)
    }

    /// All versions of one object, delete markers among them, the oldest first: killed in between, the newest is still
    /// there, and with it the name.
    async fn versions(&self, name: &str) -> Result<Vec<String>, Failure> {
        let key = self.full(name);
        let (mut found, mut at): (Vec<String>, (Option<String>, Option<String>)) = (Vec::new(), (None, None));
        loop {
            let request = || {
                let request =
                    self.inner.deleter.list_object_versions().bucket(&self.inner.settings.bucket).prefix(&key);
                request.set_key_marker(at.0.clone()).set_version_id_marker(at.1.clone()).send()
            };
            let page = self.tried(request).await?;
            let versions = page.versions().iter().map(|version| (version.key(), version.version_id()));
            let markers = page.delete_markers().iter().map(|marker| (marker.key(), marker.version_id()));
            let ours = versions.chain(markers).filter(|(of, _)| *of == Some(key.as_str()));
            found.extend(ours.filter_map(|(_, version)| version.map(str::to_owned)));
            let next = (page.next_key_marker().map(str::to_owned), page.next_version_id_marker().map(str::to_owned));
            match page.is_truncated() == Some(true) {
                true if next.0.is_some() && next != at => at = next,
                true => {
                    return Err(Failure::passing(
                        "the list of versions is cut, and the store does not say where it goes on",
                    ));
                }
                false => break,
            }
        }
        found.reverse();
        Ok(found)
    }

    pub(super) async fn read_lease(&self, name: &str) -> Result<Option<Leased>, RepositoryError> {
        match self.read(name).await {
            Ok((stored, version)) => Ok(Some(Leased { stored, version })),
            Err(RepositoryError::Absent { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn write_lease(
        &self,
        name: &str,
        object: &Sealed,
        seen: Option<&str>,
    ) -> Result<Replaced, RepositoryError> {
        let doing = format!("replace {name}");
        if !self.abilities().await?.replace_if {
            let detail = "the store cannot replace an object only if it is the one that was seen".to_owned();
            return Err(RepositoryError::Refused { doing, detail });
        }
        let only_if = seen.map_or(OnlyIf::New, |version| OnlyIf::Version(version.to_owned()));
        // Never locked: it is replaced every few seconds.
        let terms = self.terms(&doing, object, None, only_if)?;
        let mut tries = self.tries();
        loop {
            let failure = match self.send(name, object, &terms).await {
                Ok(said) => match self.confirmed(name, object, said).await? {
                    Some(Put::Stored) => return Ok(Replaced::Done),
                    Some(Put::Exists(_)) => return Ok(Replaced::Changed),
                    None => Failure::passing("the store said that it is stored, and has nothing of that name"),
                },
                // Ours may be what changed it: the answer to an earlier try may have been lost.
                Err(failure) if failure.taken() || failure.is(404) && !failure.has_code(&["NoSuchBucket"]) => {
                    return match self.look(name, object).await? {
                        Some(Put::Stored) => Ok(Replaced::Done),
                        _ => Ok(Replaced::Changed),
                    };
                }
                Err(failure) => failure,
            };
            tries.again(failure).await.map_err(|failure| failure.error(&doing, self))?;
        }
    }
}
