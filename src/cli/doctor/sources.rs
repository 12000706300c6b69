//! What `doctor` asks the repository of backups and the servers of sources. Nothing is made on a server; in a bucket the
//! probe is written, as every start does.

use super::{Check, State};
use crate::backup::logical::{self, Way, Whose};
use crate::backup::repository::Repository;
use crate::backup::repository::open::{self, Making};
use crate::backup::source::postgres::advise::{self, Needs, Verdict};
use crate::backup::source::postgres::{Connection, Purpose};
use crate::cli::desk;
use crate::cli::exit::Failure;
use crate::config::backup::{Backups, Logical, ProgramsOf, Source};
use crate::config::daemon::{Daemon, RepositoryPlace};
use crate::daemon::wire;
use jiff::{SignedDuration, Timestamp};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A server or a store that takes longer to say all this is not one to rely on.
const PATIENCE: Duration = Duration::from_secs(60);
/// Expiry allows for a day, and signed requests for fifteen minutes; a clock that is wrong by this is wrong.
const SKEW_POOR: SignedDuration = SignedDuration::from_secs(60);
/// Where a bucket's probe is.
const PROBE: &str = ".mainstay/";

/// Looks at everything that backups need; nothing when there are no sources.
pub(super) async fn look(config: &Daemon, backups: &Backups, checks: &mut Vec<Check>) {
    if let Some(identity) = &config.repository.identity {
        checks.push(restoring(identity));
    }
    if backups.sources.is_empty() {
        return;
    }
    checks.push(keys(config));
    checks.extend(config.repository.sign_with.as_deref().and_then(signing));
    repository(config, checks).await;
    for source in backups.sources.values() {
        match &source.logical {
            Some(what) => checks.extend(copied(config, source, what).await),
            None => checks.extend(server(source).await),
        }
    }
}

/// Whether this machine can encrypt and sign.
fn keys(config: &Daemon) -> Check {
    const NAME: &str = "backup keys";
    match desk::sealer(config) {
        Ok(sealer) => {
            let recipients = config.repository.encrypt_to.len();
            let found = format!(
                "signs as {}, encrypts to {recipients} recipient{}",
                sealer.public().fingerprint(),
                if recipients == 1 { "" } else { "s" }
            );
            Check::good(NAME, found)
        }
        Err(failure) => failed(NAME, &failure),
    }
}

/// Whether this machine can restore by itself, as the settings say.
fn restoring(identity: &Path) -> Check {
    const NAME: &str = "identity";
    match desk::about_identity(identity) {
        None => Check::good(NAME, format!("{} opens backups", identity.display())),
        // It opens them, for others too.
        Some(trouble) if desk::open_to_others(identity).is_some() && !trouble.unusable => {
            Check::poor(NAME, trouble.words, trouble.hint)
        }
        Some(trouble) => Check::missing(NAME, trouble.words, trouble.hint),
    }
}

/// Whether others can sign in our name.
fn signing(key: &Path) -> Option<Check> {
    let mode = desk::open_to_others(key)?;
    Some(Check::poor(
        "signing key",
        format!("{}: others may read it (mode {mode:o}), and sign backups that a restore believes", key.display()),
        format!("`chmod 600 {}`, as the daemon's user; make a new one if it was read", key.display()),
    ))
}

fn failed(name: &'static str, failure: &Failure) -> Check {
    let mut check = missing(name, &failure.error.to_string());
    check.mend.extend(failure.hints.iter().cloned());
    check
}

/// What an error says, with its hints as ways to mend it.
fn missing(name: &'static str, error: &str) -> Check {
    let mut lines = error.lines();
    let found = lines.next().unwrap_or_default().to_owned();
    let mend = lines.map(|line| line.trim_start_matches("hint: ").to_owned()).collect();
    Check { name, state: State::Missing, found, mend }
}

/// Whether the repository answers, what it can do, and whether its clock agrees with ours.
async fn repository(config: &Daemon, checks: &mut Vec<Check>) {
    const NAME: &str = "repository";
    let place = &config.repository.place;
    if let RepositoryPlace::Folder(path) = place
        && !path.exists()
    {
        return checks.push(Check::good(NAME, format!("{} is made by the first start", path.display())));
    }
    let asked = async {
        let opened = open::open(place, Making::Never).await?;
        let abilities = opened.abilities().await?;
        Ok((opened, abilities))
    };
    let (opened, abilities) = match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(answered)) => answered,
        Ok(Err(error)) => return checks.push(failed(NAME, &desk::unreachable(error))),
        Err(_) => {
            let found = format!("no answer within {} s", PATIENCE.as_secs());
            return checks.push(Check::missing(NAME, found, "see `repository` in mainstay.yml"));
        }
    };
    let shown = opened.place();
    checks.push(match (abilities.write_once, abilities.replace_if) {
        (true, true) => Check::good(NAME, format!("{shown}; conditional writes work")),
        _ => Check::poor(
            NAME,
            format!("{shown} has no conditional writes: the replication slot alone keeps a second writer away"),
            "let one daemon only have the sources, or use a store with If-None-Match and If-Match",
        ),
    });
    let wants_lock = matches!(place, RepositoryPlace::Bucket(bucket) if bucket.object_lock.is_some());
    if wants_lock && !abilities.object_lock {
        checks.push(Check::poor(
            NAME,
            "`object-lock` is set, and the bucket does not say that it locks objects",
            "make the bucket with object lock; it cannot be switched on everywhere later",
        ));
    }
    if let (RepositoryPlace::Bucket(_), true) = (place, abilities.replace_if) {
        checks.extend(clock(opened.as_ref()).await);
    }
}

/// The probe was written a moment ago, by the store's clock.
async fn clock(repository: &dyn Repository) -> Option<Check> {
    let listed = repository.list(PROBE).await.ok()?;
    let written = listed.iter().map(|object| object.written).max()?;
    Some(skew("repository clock", written, Timestamp::now()))
}

fn skew(name: &'static str, there: Timestamp, here: Timestamp) -> Check {
    let apart = there.duration_since(here);
    if apart.abs() < SKEW_POOR {
        return Check::good(name, "agrees with this machine's");
    }
    let which = if apart.is_negative() { "behind" } else { "ahead of" };
    Check::poor(
        name,
        format!("{} s {which} this machine's", apart.abs().as_secs()),
        "let both keep time with NTP: requests are refused when they are 15 minutes apart",
    )
}

/// What a source wants of its server.
fn needs(source: &Source) -> Needs {
    Needs {
        slot: Some(source.slot.clone()),
        synchronous: source.synchronous,
        step_down: source.step_down.is_some(),
        incremental: source.incremental.is_some(),
    }
}

/// One line for all that is good, and one for each thing that is not.
async fn server(source: &Source) -> Vec<Check> {
    const NAME: &str = "source";
    let name = &source.name;
    let needs = needs(source);
    let asked = advise::check(&source.postgres, None, &needs);
    let Ok(answers) = tokio::time::timeout(PATIENCE, asked).await else {
        let found = format!("{name}: its server did not answer within {} s", PATIENCE.as_secs());
        return vec![Check::missing(NAME, found, "is the server running, and is the address right?")];
    };
    let good: Vec<String> = answers
        .iter()
        .filter(|answer| answer.verdict == Verdict::Good)
        .map(|answer| format!("{} {}", answer.what, answer.found))
        .collect();
    let mut checks = Vec::new();
    if !good.is_empty() {
        checks.push(Check::good(NAME, format!("{name}: {}", good.join("; "))));
    }
    for answer in answers {
        let state = match answer.verdict {
            Verdict::Good => continue,
            Verdict::Careful => State::Poor,
            Verdict::Bad => State::Missing,
        };
        let mut lines = answer.found.lines();
        let found = format!("{name}: {}: {}", answer.what, lines.next().unwrap_or_default());
        let hints = lines.map(|line| line.trim_start_matches("hint: ").to_owned());
        checks.push(Check { name: NAME, state, found, mend: answer.mend.into_iter().chain(hints).collect() });
    }
    checks
}

/// What logical copies want: a connection, and programs that are not older than the server. No slot and no replication.
async fn copied(config: &Daemon, source: &Source, what: &Logical) -> Vec<Check> {
    const NAME: &str = "source";
    let name = &source.name;
    let asked = tokio::time::timeout(PATIENCE, Connection::open(&source.postgres, None, Purpose::Sql)).await;
    let connection = match asked {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return vec![missing(NAME, &format!("{name}: {error}"))],
        Err(_) => {
            let found = format!("{name}: its server did not answer within {} s", PATIENCE.as_secs());
            return vec![Check::missing(NAME, found, "is the server running, and is the address right?")];
        }
    };
    let major = connection.major();
    connection.close().await;
    let mut checks = vec![Check::good(NAME, format!("{name}: SQL connects to PostgreSQL {major}"))];
    let way = Way::of(&what.programs, name, Whose::Anybody, Arc::new(|_| ()), || wire::engine(Some(config)));
    let way = match way {
        Ok(way) => way,
        Err(error) => {
            checks.push(missing(NAME, &format!("{name}: {error}")));
            return checks;
        }
    };
    let asked = logical::reaches(&source.postgres, &what.databases, &way);
    let Ok(found) = tokio::time::timeout(PATIENCE, asked).await else {
        let found = format!("{name}: its programs did not reach the server within {} s", PATIENCE.as_secs());
        checks.push(Check::missing(NAME, found, "an image that is large can be pulled before: `docker pull IMAGE`"));
        return checks;
    };
    match found {
        Ok(version) => {
            let from = match &what.programs {
                ProgramsOf::Machine(_) => String::new(),
                ProgramsOf::Image { image, network } => format!(" of {image}, which reach it on the network {network}"),
            };
            checks.push(Check::good(NAME, format!("{name}: {version}{from}")));
        }
        Err(error) => checks.push(missing(NAME, &format!("{name}: {error}"))),
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_looked_at_before_they_are_needed() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("identity.txt");
        let look = || {
            let check = restoring(&file);
            (check.state, check.found, check.mend.join(" "))
        };
        assert_eq!(look().0, State::Missing);
        symlink("/dev/zero", &file).unwrap();
        let (state, found, mend) = look();
        assert!(state == State::Missing && found.contains("it is a device") && !mend.is_empty(), "{found}");
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, "age1no").unwrap();
        let (state, found, _) = look();
        assert!(state == State::Missing && found.contains("line 1 of the identity file"), "{found}");
        let keys = crate::backup::seal::new_key_set().unwrap();
        std::fs::write(&file, keys.identity_file(Timestamp::now())).unwrap();
        let mode = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o640);
        let (state, found, mend) = look();
        assert!(state == State::Poor && found.contains("mode 640") && mend.contains("chmod 600"), "{found} {mend}");
        assert_eq!(signing(&file).map(|check| check.state), Some(State::Poor));
        mode(0o600);
        assert_eq!((look().0, signing(&file)), (State::Good, None));
    }

    #[test]
    fn clocks_that_are_a_minute_apart_are_told() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let at = |seconds| skew("clock", now + SignedDuration::from_secs(seconds), now);
        assert_eq!(at(59).state, State::Good);
        assert_eq!((at(-90).state, at(-90).found), (State::Poor, "90 s behind this machine's".to_owned()));
        assert_eq!(at(3600).found, "3600 s ahead of this machine's");
    }
}
