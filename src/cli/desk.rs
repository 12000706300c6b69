//! What every command on backups begins with: which repository, who is believed, what opens it. Needs no daemon; a bare
//! machine gives `--repository` and `--identity` in place of a configuration.

use super::exit::{Exit, Failure};
use super::{Context, words};
use crate::backup::catalog::index::{Catalogue, CatalogueError};
use crate::backup::repository::open::{self, Making};
use crate::backup::repository::{Repository, RepositoryError};
use crate::backup::seal::{Checker, Identities, Opener, SealError, Sealer, SigningKey};
use crate::config::backup::Backups;
use crate::config::daemon::{self, Daemon};
use crate::model::{PublicKey, SourceName};
use crate::small_file;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where backups are, and how they are opened.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Where {
    /// The repository: `s3://BUCKET/PREFIX` or a folder [default: what mainstay.yml says]; for a bucket AWS_ENDPOINT_URL,
    /// AWS_REGION and the usual credentials of the environment count
    #[arg(long, value_name = "URL")]
    pub repository: Option<String>,
    /// The identity file that opens it, as `mainstay key new` makes it
    #[arg(long, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    /// Believe what this key signed, too: a line such as `ssh-ed25519 AAAA…`, or a file with one
    #[arg(long, value_name = "KEY")]
    pub trust: Vec<String>,
}

/// A repository, and whom and what we have for it.
pub struct Desk {
    /// The repository.
    pub repository: Arc<dyn Repository>,
    /// Believes the writers that are known here.
    pub checker: Checker,
    /// Opens objects, where an identity was given.
    pub opener: Option<Opener>,
    /// The configuration, where there is one and no other repository was named.
    pub config: Option<Daemon>,
    /// The sources of the configuration.
    pub sources: Backups,
    /// What was said of it on the command line.
    place: Where,
}

impl Where {
    /// As it was given, for a command that is to mean the same place.
    pub(super) fn given(&self) -> String {
        let of = |option: &str, value: &str| format!(" {option} {}", words::shell_word(value));
        let repository = self.repository.iter().map(|url| of("--repository", url));
        let identity = self.identity.iter().map(|file| of("--identity", &file.to_string_lossy()));
        repository.chain(identity).chain(self.trust.iter().map(|key| of("--trust", key))).collect()
    }
}

impl Desk {
    /// Opens the repository that is meant.
    ///
    /// # Errors
    /// When it is not said which, a file is wrong, or the place cannot be reached.
    pub async fn open(place: &Where, context: &Context) -> Result<Desk, Failure> {
        let mut trusted = place.trust.iter().map(|text| trust(text)).collect::<Result<Vec<_>, _>>()?;
        let mut identities = place.identity.iter().map(|file| given(file)).collect::<Result<Vec<_>, _>>()?;
        let (config, sources, at) = match &place.repository {
            Some(url) => {
                let folder = std::env::current_dir().unwrap_or_default();
                let env = |name: &str| std::env::var(name).ok();
                let named = daemon::repository::named(url, &folder, &env);
                (None, Backups::default(), named.map_err(Failure::wrong)?)
            }
            None => {
                let (config, sources) = configured(context)?;
                trusted.extend(config.repository.trust.iter().cloned());
                // The writer's own key. Where it is not to be had, identities and `trust` say whom to believe.
                let own = config.repository.sign_with.as_deref().map(SigningKey::read);
                trusted.extend(own.and_then(Result::ok).map(|key| key.public()));
                if let (true, Some(file)) = (identities.is_empty(), &config.repository.identity) {
                    identities.push(identity(file, small_file::read_text(file, small_file::KEY_MAX_BYTES))?);
                }
                let at = config.repository.place.clone();
                (Some(config), sources, at)
            }
        };
        let identities = Identities::all(identities);
        trusted.extend(identities.iter().flat_map(|all| all.signers().to_vec()));
        let checker = Checker::new(trusted);
        let opener = identities.map(|all| Opener::new(all, checker.clone()));
        let repository = open::open(&at, Making::Never).await.map_err(unreachable)?;
        Ok(Desk { repository, checker, opener, config, sources, place: place.clone() })
    }

    /// The sources that are known here or have something in the repository.
    ///
    /// # Errors
    /// When the repository cannot be listed.
    pub async fn names(&self) -> Result<Vec<SourceName>, Failure> {
        let mut names: Vec<SourceName> = self.repository.sources().await.map_err(unreachable)?;
        names.extend(self.sources.sources.keys().cloned());
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// The source that is meant: the one that was named, or the only one.
    ///
    /// # Errors
    /// When there is none of that name, none at all, or several to choose from; `command` is shown with each of them.
    pub async fn source(&self, named: Option<&SourceName>, command: &str) -> Result<SourceName, Failure> {
        let names = self.names().await?;
        match (named, names.as_slice()) {
            (Some(named), names) if names.contains(named) => Ok(named.clone()),
            (Some(named), []) => {
                Err(Failure::wrong(format!("find the source {named}: {} holds none", self.repository.place())))
            }
            (Some(named), names) => Err(Failure::wrong(format!("find the source {named}: there is none of this name"))
                .hint(format!("there is {}", names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")))),
            (None, [only]) => Ok(only.clone()),
            (None, []) => Err(Failure::wrong(format!("find a source: {} holds none", self.repository.place()))
                .hint("a source is a file in `backups/` beside mainstay.yml; `mainstay backup SOURCE` begins it")),
            (None, several) => {
                let failure = Failure::wrong("find the source: there are several");
                Err(several.iter().fold(failure, |failure, name| {
                    let given = self.place.given();
                    failure.hint(format!("mainstay {}{given}", command.replacen("SOURCE", name.as_str(), 1)))
                }))
            }
        }
    }

    /// What the repository holds of a source; with an identity the histories of its timelines are opened.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn catalogue(&self, source: &SourceName) -> Result<Catalogue, Failure> {
        let read = Catalogue::read(self.repository.as_ref(), &self.checker, source).await;
        let mut catalogue = read.map_err(|error| unread(&error))?;
        if let Some(opener) = &self.opener {
            let opened = catalogue.open_histories(self.repository.as_ref(), opener).await;
            opened.map_err(|error| unread(&error))?;
        }
        Ok(catalogue)
    }

    /// What opens objects.
    ///
    /// # Errors
    /// When no identity was given.
    pub fn opener(&self) -> Result<&Opener, Failure> {
        self.opener.as_ref().ok_or_else(|| {
            Failure::wrong("open the backups: no identity was given")
                .hint("give the file that `mainstay key new` made with `--identity FILE`")
        })
    }

    /// What seals objects.
    ///
    /// # Errors
    /// When the configuration names no recipient or no key to sign with.
    pub fn sealer(&self) -> Result<Sealer, Failure> {
        let config = self.config.as_ref().filter(|_| self.place.repository.is_none());
        let config = config.ok_or_else(|| Failure::wrong("write to a repository without its configuration"))?;
        sealer(config)
    }
}

/// What seals objects for the repository of a configuration.
///
/// # Errors
/// When it names no recipient, or no key to sign with that reads.
pub fn sealer(config: &Daemon) -> Result<Sealer, Failure> {
    let hint = "`mainstay key new DIR` makes both halves and prints the lines for mainstay.yml";
    let repository = &config.repository;
    let file = repository.sign_with.as_deref();
    let file = file.ok_or_else(|| Failure::wrong("sign backups: `repository.sign-with` names no key").hint(hint))?;
    let key = SigningKey::read(file).map_err(|error| Failure::wrong(error.to_string()))?;
    Sealer::new(&repository.encrypt_to, key).map_err(|error| Failure::wrong(format!("encrypt backups: {error}")))
}

/// The configuration and its sources.
///
/// # Errors
/// When there is none, or a file of it is wrong.
pub fn configured(context: &Context) -> Result<(Daemon, Backups), Failure> {
    let config = context.place.config.as_deref().ok_or_else(|| {
        Failure::wrong("find the repository: there is no configuration here")
            .hint("name both: `--repository URL --identity FILE`, or the configuration with `--config FILE`")
    })?;
    let daemon = daemon::load(config).map_err(Failure::of_files)?;
    let sources = crate::config::backup::load(config).map_err(Failure::of_files)?;
    Ok((daemon, sources))
}

fn trust(text: &str) -> Result<PublicKey, Failure> {
    let line = match small_file::read_named(Path::new(text), small_file::KEY_MAX_BYTES) {
        Ok(file) => file,
        Err(_) => text.to_owned(),
    };
    line.parse().map_err(|why| {
        Failure::wrong(format!("trust `{text}`: {why}"))
            .hint("a key is a line such as `ssh-ed25519 AAAA…`, or a file with one: `sign.pub` beside `sign.key`")
    })
}

fn identity(file: &Path, read: std::io::Result<String>) -> Result<Identities, Failure> {
    let text = read.map_err(|error| {
        Failure::wrong(format!("read the identity {}: {error}", file.display()))
            .hint("it is the file that `mainstay key new` made; who has it can read every backup")
    })?;
    Identities::parse(&text).map_err(|error: SealError| Failure::wrong(format!("use {}: {error}", file.display())))
}

/// What is wrong with a key's file, and what mends it.
pub(super) struct Trouble {
    /// It is there, and no key that could be used.
    pub(super) unusable: bool,
    /// What is wrong, with the file's name.
    pub(super) words: String,
    /// What mends it.
    pub(super) hint: String,
}

/// What is wrong with the identity that the settings name, before somebody restores with it.
pub(super) fn about_identity(file: &Path) -> Option<Trouble> {
    let named = |what: String| format!("`repository.identity` {}: {what}", file.display());
    let read = small_file::read_text(file, small_file::KEY_MAX_BYTES);
    let parsed = match read {
        Ok(text) => Identities::parse(&text).map_err(|error| error.to_string()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
            let hint = "restores on this machine need it, those in steps of pipelines too: name the file that `mainstay key \
                        new` made, readable by the daemon's user; or leave `identity` out";
            return Some(Trouble { unusable: false, words: named(error.to_string()), hint: hint.to_owned() });
        }
        Err(error) => Err(error.to_string()),
    };
    if let Err(why) = parsed {
        let hint = "name the file `identity.txt` that `mainstay key new` made, or leave `identity` out".to_owned();
        return Some(Trouble { unusable: true, words: named(why), hint });
    }
    open_to_others(file).map(|mode| Trouble {
        unusable: false,
        words: named(format!("others may read it (mode {mode:o}), and with it every backup")),
        hint: format!("`chmod 600 {}`; make new keys if it was read", file.display()),
    })
}

/// The mode of a file that others than its owner may do something with.
pub(super) fn open_to_others(file: &Path) -> Option<u32> {
    let mode = small_file::open(file).ok()?.1.mode() & 0o777;
    (mode & 0o077 != 0).then_some(mode)
}

/// An identity that was named in the command.
fn given(file: &Path) -> Result<Identities, Failure> {
    identity(file, small_file::read_named(file, small_file::KEY_MAX_BYTES))
}

/// The exit code of a repository's failure.
pub(super) fn unreachable(error: RepositoryError) -> Failure {
    let exit = match &error {
        RepositoryError::Unreachable { .. } | RepositoryError::Refused { .. } => Exit::Unreachable,
        RepositoryError::Absent { .. } | RepositoryError::Damaged { .. } => Exit::Bad,
    };
    Failure::new(exit, error)
}

pub(super) fn unread(error: &CatalogueError) -> Failure {
    let exit = match error {
        CatalogueError::Repository(RepositoryError::Damaged { .. }) | CatalogueError::Doubtful { .. } => Exit::Bad,
        CatalogueError::Repository(_) => Exit::Unreachable,
    };
    Failure::new(exit, anyhow::anyhow!(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_several_sources_each_has_a_command_that_finds_the_same_place() {
        use crate::backup::repository::folder::Folder;
        use crate::config::backup::{Around, parse};
        let dir = tempfile::tempdir().unwrap();
        let store = crate::config::secret::SecretStore::new(dir.path());
        let around = Around { env: &|_| None, folder: dir.path(), store: &store, repos: None };
        let one = |name: &str| {
            let name: SourceName = name.parse().unwrap();
            let source = parse(&name, "x.yml", "postgres: 'postgres://b@127.0.0.1/?sslmode=disable'", &around).unwrap();
            (name, source)
        };
        let place = Where {
            repository: Some("/srv/backups".to_owned()),
            identity: vec!["identity.txt".into()],
            trust: Vec::new(),
        };
        let desk = Desk {
            repository: Arc::new(Folder::create(dir.path().join("repository")).unwrap()),
            checker: Checker::new(Vec::new()),
            opener: None,
            config: None,
            sources: Backups { sources: ["crm", "shop"].map(one).into() },
            place,
        };
        let failure = desk.source(None, "restore SOURCE --latest").await.unwrap_err();
        let end = "--latest --repository /srv/backups --identity identity.txt";
        assert_eq!(failure.hints, [format!("mainstay restore crm {end}"), format!("mainstay restore shop {end}")]);
    }

    #[test]
    fn what_was_said_of_the_place_is_kept_word_for_word() {
        let place = Where {
            repository: Some("s3://shop/it's".to_owned()),
            identity: vec!["identity.txt".into(), "other file".into()],
            trust: vec!["ssh-ed25519 AAAA".to_owned()],
        };
        let given = place.given();
        assert_eq!(
            given,
            r" --repository 's3://shop/it'\''s' --identity identity.txt --identity 'other file' --trust 'ssh-ed25519 AAAA'"
        );
        assert_eq!(Where::default().given(), "");
    }
}
