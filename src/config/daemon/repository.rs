//! `repository`: where backups are kept, for whom they are encrypted, who signs them, and what keeps them from being deleted.

use super::{REPOSITORY_KEYS, REPOSITORY_LATER, Reader, plain_path};
use crate::config::check::{Fields, is_interpolated, shown_text};
use crate::config::recipient;
use crate::config::secret::Secret;
use crate::config::yaml::{Node, Value};
use crate::model::{PublicKey, Span};
use reqwest::Url;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where backups go, and how they are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// Where it is.
    pub place: RepositoryPlace,
    /// The age recipients that everything is encrypted to; whoever has the identity of one of them can restore. Empty when
    /// the settings name nobody: then nothing can be backed up.
    pub encrypt_to: Vec<String>,
    /// The file with the key that signs what is written, where one is named.
    pub sign_with: Option<PathBuf>,
    /// The file with the identity that opens what is kept, on a machine that restores by itself. Without it, this machine
    /// can write backups and read none.
    pub identity: Option<PathBuf>,
    /// Further keys whose signature is believed when something is read.
    pub trust: Vec<PublicKey>,
}

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepositoryPlace {
    /// A folder of this machine; absolute.
    Folder(PathBuf),
    /// A bucket of an S3 store.
    Bucket(Box<Bucket>),
}

/// A bucket of an S3 store, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// What stands before the name of every object, without a slash at either end; may be empty.
    pub prefix: String,
    /// Where the store answers, `https://HOST[:PORT]` without a slash at the end; Amazon's own when `None`.
    pub endpoint: Option<String>,
    /// The region; from the usual environment when `None`.
    pub region: Option<String>,
    /// The bucket is named in the path and not in the host: what most stores but Amazon's want.
    pub path_style: bool,
    /// A PEM file with the authority that signed the store's certificate, when it is one of your own.
    pub ca: Option<PathBuf>,
    /// Who reads and writes; the usual environment says it when `None`.
    pub keys: Option<AccessKeys>,
    /// Who deletes; whoever writes when `None`.
    pub delete_keys: Option<AccessKeys>,
    /// How long whole segments, backups and their manifests cannot be deleted by anybody.
    pub object_lock: Option<Span>,
    /// The same for pieces of segments, which are replaced soon; set whenever `object_lock` is.
    pub piece_lock: Option<Span>,
    /// When the store's own checksums go along.
    pub checksums: Checksums,
}

/// Who asks a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessKeys {
    /// The access key's name.
    pub id: Secret,
    /// The key itself.
    pub secret: Secret,
}

/// When the checksums of the S3 protocol go along with a request. Mainstay's own digests are checked in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// Only where the protocol demands one: for stores that refuse what they do not know.
    WhenRequired,
    /// Wherever the protocol knows one.
    WhenSupported,
}

/// A full segment replaces its pieces within minutes; a day lets people see and stop what goes wrong meanwhile.
const PIECE_LOCK: Span = Span(Duration::from_secs(86_400));
const LOCK_LEAST: Duration = Duration::from_secs(1);
/// A store takes names of 1,024 bytes, and Mainstay's own part of a name has under 200.
const PREFIX_MAX_BYTES: usize = 500;
/// Everything is encrypted once, and each recipient adds a header to every object.
const RECIPIENTS_MAX: usize = 20;
/// What says something about a bucket only.
const BUCKET_KEYS: [&str; 11] = [
    "endpoint",
    "region",
    "path-style",
    "ca",
    "access-key",
    "secret-key",
    "delete-access-key",
    "delete-secret-key",
    "object-lock",
    "piece-lock",
    "checksums",
];
const FORMS: &str = "`s3://BUCKET/PREFIX`, the path of a folder, or `file:///PATH`";

impl Repository {
    /// The one that there is when the settings say nothing: a folder in the state folder.
    pub(super) fn usual(state: &Path) -> Repository {
        Repository {
            place: RepositoryPlace::Folder(state.join("repository")),
            encrypt_to: Vec::new(),
            sign_with: None,
            identity: None,
            trust: Vec::new(),
        }
    }
}

/// What `url` says.
#[derive(Debug)]
enum Address {
    Folder(PathBuf),
    Bucket { name: String, prefix: String },
}

impl Reader<'_, '_> {
    pub(super) fn repository(&mut self, node: &Node, state: &Path) -> Option<Repository> {
        let fields = self.check.fields(node, "`repository`", REPOSITORY_KEYS, REPOSITORY_LATER)?;
        let usual = Repository::usual(state);
        let address = match fields.get("url") {
            Some(node) => self.repository_address(node, state),
            None => None,
        };
        let bucket = self.bucket(&fields, &address);
        let encrypt_to = fields.get("encrypt-to").map(|n| self.recipients(n)).unwrap_or_default();
        // Who restores on another machine has the settings and not this key, so it need not be there.
        let sign_with = fields.get("sign-with").and_then(|n| self.check.line(n, "`sign-with`"));
        let sign_with = sign_with.map(|path| plain_path(&self.folder.join(path)));
        let identity = fields.get("identity").and_then(|n| self.check.line(n, "`identity`"));
        let identity = identity.map(|path| plain_path(&self.folder.join(path)));
        let trust = fields.get("trust").map(|n| self.public_keys(n, "`trust`", SIGNER)).unwrap_or_default();
        // Without `url`, and with one that is a folder, there is no bucket that these could be about.
        if fields.get("url").is_none() || matches!(address, Some(Address::Folder(_))) {
            for (key, _) in BUCKET_KEYS.iter().filter_map(|key| fields.entry(key)) {
                self.check.error_with_hint(
                    key.place,
                    format!("`{}` is about a bucket, and this repository is a folder", key.name),
                    "name the bucket: `url: \"s3://BUCKET/PREFIX\"`",
                );
            }
        }
        let place = match (fields.get("url"), address) {
            (None, _) => usual.place,
            (Some(_), Some(Address::Folder(folder))) => RepositoryPlace::Folder(folder),
            (Some(_), Some(Address::Bucket { name, prefix })) => {
                RepositoryPlace::Bucket(Box::new(Bucket { name, prefix, ..bucket }))
            }
            (Some(_), None) => return None,
        };
        Some(Repository { place, encrypt_to, sign_with, identity, trust })
    }

    fn repository_address(&mut self, node: &Node, state: &Path) -> Option<Address> {
        let text = self.check.text(node, "`url`")?;
        let found = match address(text, self.folder) {
            Ok(found) => found,
            Err((why, hint)) => {
                // Nothing of the address is repeated: there may be a key in it.
                self.check.error_with_hint(node.place, format!("`url` {why}"), hint);
                return None;
            }
        };
        if let Address::Folder(folder) = &found
            && state.starts_with(folder)
        {
            self.check.error_with_hint(
                node.place,
                "the folder of the repository would hold the state folder",
                "a folder for the repository alone, best on another disk",
            );
            return None;
        }
        Some(found)
    }

    /// Everything about a bucket but its name, which `url` says.
    fn bucket(&mut self, fields: &Fields<'_>, address: &Option<Address>) -> Bucket {
        let endpoint = fields.get("endpoint").and_then(|n| self.endpoint(n));
        let region = fields.get("region").and_then(|n| self.region(n));
        let path_style = fields.get("path-style").and_then(|n| self.check.boolean(n, "`path-style`"));
        let path_style = path_style.unwrap_or(fields.get("endpoint").is_some());
        let ca = fields.get("ca").and_then(|n| self.file(n, "`ca`"));
        let in_clear = endpoint.as_deref().is_some_and(|url| url.starts_with("http://"));
        if let Some((key, _)) = fields.entry("ca").filter(|_| in_clear) {
            self.check.error_with_hint(
                key.place,
                "`ca` is for a store that is asked over TLS, and `endpoint` begins with `http://`",
                "`endpoint: \"https://HOST\"`, or no `ca`",
            );
        }
        if let (Some(Address::Bucket { name, .. }), Some(node)) = (address, fields.get("url"))
            && name.contains('.')
            && !path_style
            && !in_clear
        {
            self.check.error_with_hint(
                node.place,
                "a bucket with a `.` in its name fits no certificate when it is named in the host",
                "write `path-style: true`",
            );
        }
        let keys = self.access_keys(fields, "access-key", "secret-key");
        let delete_keys = self.access_keys(fields, "delete-access-key", "delete-secret-key");
        if let (Some(one), Some(other), Some((key, _))) = (&keys, &delete_keys, fields.entry("delete-access-key"))
            && one.id == other.id
        {
            self.check.error_with_hint(
                key.place,
                "`delete-access-key` is the key that everything is written with",
                "a second key guards what is stored only when the first may not delete; leave it out where one does both",
            );
        }
        let object_lock = self.lock(fields, "object-lock");
        let piece_lock = self.lock(fields, "piece-lock");
        match (fields.entry("piece-lock"), piece_lock, object_lock) {
            (Some((key, _)), _, None) if fields.get("object-lock").is_none() => {
                self.check.error_with_hint(
                    key.place,
                    "`piece-lock` shortens the lock for pieces, and there is no `object-lock`",
                    "`object-lock: 14d` locks everything else",
                );
            }
            (Some((key, _)), Some(pieces), Some(objects)) if pieces > objects => {
                self.check.error_with_hint(
                    key.place,
                    format!("`piece-lock` is longer than `object-lock`, {objects}"),
                    "a piece is needed only until its segment is full",
                );
            }
            _ => {}
        }
        let words = [("when-required", Checksums::WhenRequired), ("when-supported", Checksums::WhenSupported)];
        let checksums = fields.get("checksums").and_then(|n| self.check.word(n, "`checksums`", &words));
        Bucket {
            name: String::new(),
            prefix: String::new(),
            endpoint,
            region,
            path_style,
            ca,
            keys,
            delete_keys,
            object_lock,
            piece_lock: object_lock.map(|objects| piece_lock.unwrap_or(PIECE_LOCK.min(objects))),
            checksums: checksums.unwrap_or(Checksums::WhenSupported),
        }
    }

    fn endpoint(&mut self, node: &Node) -> Option<String> {
        let text = self.web_address(node, "`endpoint`")?;
        if !is_endpoint(&text) {
            self.check.error_with_hint(
                node.place,
                "`endpoint` holds more than a host and a port",
                "`https://HOST` or `https://HOST:PORT`; the bucket stands in `url`, keys in `access-key` and `secret-key`",
            );
            return None;
        }
        Some(text.trim_end_matches('/').to_owned())
    }

    fn region(&mut self, node: &Node) -> Option<String> {
        let text = self.check.line(node, "`region`")?;
        if text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Some(text.to_owned());
        }
        let message = format!("`{}` is no region; one is such as `eu-central-1`", shown_text(node, text));
        self.check.error(node.place, message);
        None
    }

    fn access_keys(&mut self, fields: &Fields<'_>, id_key: &str, secret_key: &str) -> Option<AccessKeys> {
        let mut part = |key: &str| {
            let node = fields.get(key)?;
            let what = format!("`{key}`");
            let secret = self.secret(node, &what)?;
            // Both go into what is signed, and the first into a header.
            if !secret.expose().bytes().all(|b| b.is_ascii_graphic()) {
                let message = format!("{what} holds what no key holds: spaces, control characters or other letters");
                self.check.error(node.place, message);
                return None;
            }
            Some(secret)
        };
        let (id, secret) = (part(id_key), part(secret_key));
        for (one, other) in [(id_key, secret_key), (secret_key, id_key)] {
            if let (Some((key, _)), None) = (fields.entry(one), fields.entry(other)) {
                let message = format!("`{one}` has no `{other}` beside it");
                self.check.error_with_hint(key.place, message, format!("`{other}: \"${{secret:NAME}}\"`"));
            }
        }
        Some(AccessKeys { id: id?, secret: secret? })
    }

    fn lock(&mut self, fields: &Fields<'_>, key: &str) -> Option<Span> {
        let node = fields.get(key)?;
        let span = self.check.parsed::<Span>(node, &format!("`{key}`"))?;
        if span.0 < LOCK_LEAST {
            self.check.error(node.place, format!("`{key}` is at least {}", Span(LOCK_LEAST)));
            return None;
        }
        Some(span)
    }

    fn recipients(&mut self, node: &Node) -> Vec<String> {
        let mut list: Vec<String> = Vec::new();
        let items = self.check.items(node, "`encrypt-to`");
        if matches!(&node.value, Value::List(items) if items.is_empty()) {
            self.check.error(node.place, "`encrypt-to` is empty: nobody could ever open a backup");
        }
        if items.len() > RECIPIENTS_MAX {
            let message = format!("there are {} recipients; at most {RECIPIENTS_MAX}", items.len());
            self.check.error(node.place, message);
            return list;
        }
        for item in items {
            let Some(text) = self.check.text(item, "`encrypt-to`") else { continue };
            match recipient::check(text) {
                Ok(()) if list.iter().any(|known| known == text) => {
                    self.check.error(item.place, "this recipient stands here twice");
                }
                Ok(()) => list.push(text.to_owned()),
                Err(why) if is_interpolated(item) => {
                    self.check.error(item.place, format!("`encrypt-to`: the value put in here {why}"));
                }
                Err(why) => self.check.error_with_hint(
                    item.place,
                    format!("`encrypt-to`: this {why}"),
                    "a recipient is the public half, `age1…`, which `mainstay key new` and `age-keygen -y` print",
                ),
            }
        }
        list
    }
}

const SIGNER: &str = "a key is the line of a `.pub` file: `ssh-ed25519 AAAA...`; `mainstay key new` prints it";

/// Reads `s3://BUCKET/PREFIX`, a path or `file:///PATH`. Nothing of it is repeated in the error.
fn address(text: &str, folder: &Path) -> Result<Address, (&'static str, &'static str)> {
    if text.is_empty() || text.len() > 2_000 {
        return Err(("has 1 to 2000 bytes", FORMS));
    }
    if text.chars().any(char::is_control) {
        return Err(("holds control characters", FORMS));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Ok(Address::Folder(plain_path(&folder.join(text))));
    };
    match scheme {
        "file" if rest.starts_with('/') => Ok(Address::Folder(plain_path(Path::new(rest)))),
        "file" => Err(("names no absolute path", FORMS)),
        "s3" => {
            let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if name.contains(['@', ':', '?']) {
                return Err((
                    "holds more than a bucket and a prefix",
                    "the host stands in `endpoint`, keys in `access-key` and `secret-key`",
                ));
            }
            if !is_bucket(name) {
                let rule = "3 to 63 small letters, digits, `-` and `.`, with a letter or digit at both ends";
                return Err(("has no name of a bucket after `s3://`", rule));
            }
            let prefix = prefix.trim_end_matches('/');
            if !is_prefix(prefix) {
                return Err((
                    "has a prefix that stores or tools trip over",
                    "at most 500 letters, digits, `-`, `_`, `.` and `/`; no `..`, and no two slashes in a row",
                ));
            }
            Ok(Address::Bucket { name: name.to_owned(), prefix: prefix.to_owned() })
        }
        "http" | "https" => Err((
            "names a store, and no bucket in it",
            "`url: \"s3://BUCKET/PREFIX\"`, and the store in `endpoint: \"https://HOST\"`",
        )),
        _ => Err(("has a scheme that is not known", FORMS)),
    }
}

/// `http://HOST:PORT` or `https://HOST:PORT`, and nothing else.
fn is_endpoint(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| {
        let bare = url.username().is_empty() && url.password().is_none();
        let only = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        matches!(url.scheme(), "http" | "https") && url.has_host() && bare && only
    })
}

/// The repository that a command names in place of one in the settings. Relative paths start at `folder`. What else must be
/// known of a bucket comes from the environment, by the names that every S3 tool knows: `AWS_ENDPOINT_URL_S3` or
/// `AWS_ENDPOINT_URL`, `AWS_REGION` or `AWS_DEFAULT_REGION`, `AWS_CA_BUNDLE`, and the credentials.
///
/// # Errors
/// Words that fit after "failed to ...", with a hint.
pub fn named(url: &str, folder: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<RepositoryPlace, String> {
    let (name, prefix) = match address(url, folder) {
        Ok(Address::Folder(folder)) => return Ok(RepositoryPlace::Folder(folder)),
        Ok(Address::Bucket { name, prefix }) => (name, prefix),
        Err((why, hint)) => return Err(format!("use the repository: its address {why}\nhint: {hint}")),
    };
    let first = |names: &[&str]| names.iter().find_map(|name| env(name).filter(|value| !value.is_empty()));
    let endpoint = first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
    if endpoint.as_deref().is_some_and(|endpoint| !is_endpoint(endpoint)) {
        let hint = "`https://HOST` or `https://HOST:PORT`";
        return Err(format!(
            "use the repository: the endpoint of the environment is not the address of a store\nhint: {hint}"
        ));
    }
    Ok(RepositoryPlace::Bucket(Box::new(Bucket {
        path_style: endpoint.is_some() || name.contains('.'),
        endpoint: endpoint.map(|url| url.trim_end_matches('/').to_owned()),
        region: first(&["AWS_REGION", "AWS_DEFAULT_REGION"]),
        ca: first(&["AWS_CA_BUNDLE"]).map(PathBuf::from),
        name,
        prefix,
        keys: None,
        delete_keys: None,
        object_lock: None,
        piece_lock: None,
        checksums: Checksums::WhenSupported,
    })))
}

/// The rule of S3 for new buckets.
fn is_bucket(name: &str) -> bool {
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (3..=63).contains(&name.len())
        && name.starts_with(ends)
        && name.ends_with(ends)
        && !name.contains("..")
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
}

fn is_prefix(prefix: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.bytes().any(|b| b != b'.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    prefix.is_empty() || prefix.len() <= PREFIX_MAX_BYTES && prefix.split('/').all(part)
}

#[cfg(test)]
mod tests;
