//! The folder `backups`: every file of it, and what they must not say together.

use super::{Around, Source, read};
use crate::config::daemon::{Daemon, surroundings};
use crate::config::finding::{Finding, Findings};
use crate::config::secret::{Secret, SecretStore};
use crate::config::yaml::Place;
use crate::model::SourceName;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The folder's name, beside `mainstay.yml`.
pub const FOLDER: &str = "backups";
/// A daemon with more sources than this would not keep up with any of them.
const FILES_MAX: usize = 1_000;

/// All sources.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Backups {
    /// By name.
    pub sources: BTreeMap<SourceName, Source>,
}

impl Backups {
    /// Every secret and password of their files, for masking logs.
    pub fn secret_values(&self) -> impl Iterator<Item = &Secret> {
        self.sources.values().flat_map(Source::secret_values)
    }
}

/// What became of reading one file.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The file.
    pub path: PathBuf,
    /// The source, or all that is wrong with the file.
    pub result: Result<Source, Findings>,
}

/// All that is wrong with the files of `backups`, file by file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadBackups {
    /// One for each file that cannot be used.
    pub files: Vec<Findings>,
}

impl fmt::Display for BadBackups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, file) in self.files.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            fmt::Display::fmt(file, f)?;
        }
        Ok(())
    }
}

impl std::error::Error for BadBackups {}

/// Reads the sources that belong to the settings in `config`, with this process's environment. No folder, no sources.
///
/// # Errors
/// All that is wrong with all files.
pub fn load(config: &Path) -> Result<Backups, BadBackups> {
    let mut backups = Backups::default();
    let mut bad = BadBackups { files: Vec::new() };
    for Checked { result, .. } in check(config, &|name| std::env::var(name).ok()) {
        match result {
            Ok(source) => {
                backups.sources.insert(source.name.clone(), source);
            }
            Err(findings) => bad.files.push(findings),
        }
    }
    if bad.files.is_empty() { Ok(backups) } else { Err(bad) }
}

/// Reads the same files one by one, good and bad, in the order of their names.
pub fn check(config: &Path, env: &dyn Fn(&str) -> Option<String>) -> Vec<Checked> {
    let folder = config.with_file_name(FOLDER);
    let paths = match files_in(&folder) {
        Ok(paths) => paths,
        Err(why) => {
            let findings = Findings::new(&folder.display().to_string(), "", vec![Finding::general(why)]);
            return vec![Checked { path: folder, result: Err(findings) }];
        }
    };
    if paths.is_empty() {
        return Vec::new();
    }
    let around = surroundings(config, env);
    let absolute = std::path::absolute(&folder).unwrap_or_else(|_| folder.clone());
    let mut first_of = FirstOf::default();
    let mut list = Vec::new();
    for path in paths {
        let file = path.display().to_string();
        let result = match &around {
            Some(around) => {
                let store = SecretStore::new(&around.state);
                let repos: Option<Vec<&str>> =
                    around.repos.as_ref().map(|repos| repos.iter().map(String::as_str).collect());
                let around = Around { env, folder: &absolute, store: &store, repos: repos.as_deref() };
                one(&path, &file, &around).and_then(|(source, place)| first_of.check(&file, source, place))
            }
            None => {
                let message =
                    format!("{} does not read, and says which secrets and repositories there are", config.display());
                let hint = format!("mend it first: `mainstay validate {}`", config.display());
                Err(Findings::new(&file, "", vec![Finding::general(message).hint(hint)]))
            }
        };
        list.push(Checked { path, result });
    }
    list
}

fn one(path: &Path, file: &str, around: &Around<'_>) -> Result<(Source, Place), Findings> {
    let refuse = |finding| Findings::new(file, "", vec![finding]);
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let name = SourceName::new(stem).map_err(|why| {
        refuse(Finding::general(why.to_string()).hint("a source is named after its file; rename the file"))
    })?;
    let text = crate::config::read_file(path).map_err(refuse)?;
    read(&name, file, &text, around)
}

/// What the settings lack when there are sources: who opens what is stored, and who signs it.
pub fn without_keys(settings: &Daemon) -> Option<Finding> {
    let repository = &settings.repository;
    let missing = match (repository.encrypt_to.is_empty(), repository.sign_with.is_none()) {
        (true, true) => "`encrypt-to` and no `sign-with`",
        (true, false) => "`encrypt-to`",
        (false, true) => "`sign-with`",
        (false, false) => return None,
    };
    let finding = Finding::general(format!("there are sources in `{FOLDER}`, and `repository` has no {missing}"));
    Some(finding.hint("`mainstay key new DIR` makes both keys, and prints the lines for `repository`"))
}

/// What only one file may say.
#[derive(Default)]
struct FirstOf {
    names: BTreeMap<SourceName, String>,
    /// Each server as people name it, and the slot.
    slots: BTreeMap<(String, String), String>,
}

impl FirstOf {
    fn check(&mut self, file: &str, source: Source, place: Place) -> Result<Source, Findings> {
        let mut wrong = Vec::new();
        if let Some(other) = self.names.insert(source.name.clone(), file.to_owned()) {
            let finding = Finding::general(format!("the source `{}` has another file too: {other}", source.name));
            wrong.push(finding.hint("a source is named after its file; keep one of the two"));
        }
        // Logical copies take no slot.
        let hosts = source.postgres.hosts.iter().filter(|_| source.logical.is_none());
        let others: Vec<String> = hosts
            .filter_map(|host| self.slots.insert((host.to_string(), source.slot.clone()), file.to_owned()))
            .collect();
        // A server may stand twice in one address.
        if let Some(other) = others.iter().find(|other| *other != file) {
            let slot = &source.slot;
            let message = format!(
                "{other} takes the slot `{slot}` of this server too: each would move it on from under the other"
            );
            wrong.push(Finding::at(&source.written, place, message).hint("give one of them another `slot`"));
        }
        if wrong.is_empty() { Ok(source) } else { Err(Findings::new(file, &source.written, wrong)) }
    }
}

/// The files in order. A folder that is not there has none.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: std::io::Error| format!("failed to read the folder: {error}");
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_yaml = path.extension().is_some_and(|end| end == "yml" || end == "yaml");
        // What is no file is refused when it is read: a source that is not there must not go unnoticed.
        if is_yaml && !hidden {
            files.push(path);
        }
        if files.len() > FILES_MAX {
            return Err(format!("there are more than {FILES_MAX} files in the folder"));
        }
    }
    files.sort();
    Ok(files)
}
