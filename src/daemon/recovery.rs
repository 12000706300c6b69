//! From the sources of `backups/*.yml` to a keeper that tends them.

mod steps;

pub(super) use steps::DataSteps;

use super::alerts::{self, Told};
use super::wire::{self, host};
use crate::backup::keeper::{Opening, Setup, Wanted};
use crate::backup::logical::Way;
use crate::backup::repository::open::{self, Making};
use crate::backup::seal::{Checker, Sealer, SigningKey};
use crate::config::backup::{Backups, Source};
use crate::config::daemon::{Daemon, Repository};
use crate::store::Store;
use futures_util::FutureExt as _;
use std::path::Path;
use std::sync::Arc;

/// What the keeper is to tend; reaches out to nobody yet.
///
/// # Errors
/// When there are sources and the configuration says not for whom they are encrypted, or who signs.
pub(super) fn wanted(config: &Daemon, backups: &Backups, store: &Store, who: &Who) -> anyhow::Result<Vec<Wanted>> {
    if backups.sources.is_empty() {
        return Ok(Vec::new());
    }
    let keys = keys(&config.repository)?;
    let owner = format!("the daemon {} on {}", store.instance().0, host());
    let wanted = backups.sources.values().map(|source| {
        let name = source.name.clone();
        let programs = wire::programs(config, source, Arc::new(move |text| tracing::info!(source = %name, "{text}")))?;
        Ok(Wanted {
            source: source.clone(),
            place: config.repository.clone(),
            opening: opening(source, programs, &config.repository, &config.state, &keys, &owner),
            book: alerts::book(store, &source.name, Arc::clone(who)),
        })
    });
    wanted.collect()
}

type Keys = (Sealer, Checker);

/// Who is told about sources, by the configuration in force.
pub(super) type Who = Arc<dyn Fn() -> Told + Send + Sync>;

/// What seals and believes objects of a repository, as its settings say.
pub(super) fn keys(repository: &Repository) -> anyhow::Result<Keys> {
    let hint = "hint: `mainstay key new DIR` makes both halves and prints the lines for `repository` in mainstay.yml";
    let file = repository.sign_with.as_deref();
    let file = file.ok_or_else(|| anyhow::anyhow!("sign backups: `repository.sign-with` names no key\n{hint}"))?;
    let key = SigningKey::read(file)?;
    let mut trusted = repository.trust.clone();
    trusted.push(key.public());
    let sealer =
        Sealer::new(&repository.encrypt_to, key).map_err(|error| anyhow::anyhow!("encrypt backups: {error}"))?;
    Ok((sealer, Checker::new(trusted)))
}

fn opening(
    source: &Source,
    programs: Way,
    repository: &Repository,
    state: &Path,
    (sealer, checker): &Keys,
    owner: &str,
) -> Opening {
    let (source, place, state) = (source.clone(), repository.place.clone(), state.to_owned());
    let (sealer, checker, owner) = (sealer.clone(), checker.clone(), owner.to_owned());
    Arc::new(move || {
        let (source, place, state) = (source.clone(), place.clone(), state.clone());
        let (sealer, checker, owner, programs) = (sealer.clone(), checker.clone(), owner.clone(), programs.clone());
        async move {
            let opened = open::open(&place, Making::First(&state)).await;
            let repository = opened.map_err(|error| error.to_string())?;
            Ok(Setup { source, repository, sealer, checker, owner, state, programs })
        }
        .boxed()
    })
}
