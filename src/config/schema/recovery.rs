//! The shape of `repository` in `mainstay.yml`, and of the files of `backups`.

use super::{OneOrMany, deploys};
use crate::model::{ByteSize, Span};
use schemars::JsonSchema;
use serde::Deserialize;

/// Where backups go.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Repository {
    /// `s3://BUCKET/PREFIX`, the path of a folder, or `file:///PATH`.
    url: Option<String>,
    /// Where the store answers: `https://HOST:PORT`; Amazon's own when it is not said.
    endpoint: Option<String>,
    /// The store's region; from the environment when it is not said.
    region: Option<String>,
    /// Whether the bucket is named in the path; when it is not said, true with an `endpoint`.
    path_style: Option<bool>,
    /// A PEM file with the authority that signed the store's certificate.
    ca: Option<String>,
    /// Who reads and writes, best written as `${secret:NAME}`; from the environment when it is not said.
    access_key: Option<String>,
    /// The key that belongs to it, best written as `${secret:NAME}`.
    secret_key: Option<String>,
    /// Who deletes, when it is not who writes.
    delete_access_key: Option<String>,
    /// The key that belongs to it.
    delete_secret_key: Option<String>,
    /// The age recipients that everything is encrypted to.
    encrypt_to: Option<OneOrMany<String>>,
    /// The file with the key that signs what is written.
    sign_with: Option<String>,
    /// The file with the identity that opens what is kept, on a machine that restores by itself.
    identity: Option<String>,
    /// Further keys whose signature is believed: `ssh-ed25519 AAAA...`.
    trust: Option<OneOrMany<String>>,
    /// How long whole segments and backups cannot be deleted by anybody.
    object_lock: Option<Span>,
    /// The same for pieces of segments; 1d when it is not said and there is an `object-lock`.
    piece_lock: Option<Span>,
    /// When the checksums of the S3 protocol go along; `when-supported` when it is not said.
    checksums: Option<Checksums>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Checksums {
    WhenRequired,
    WhenSupported,
}

/// One file, one source, named after the file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct SourceFile {
    /// Where the server answers: `postgres://USER@HOST:PORT/?sslmode=verify-full`.
    postgres: String,
    /// The user's password, as `${secret:NAME}`.
    password: Option<String>,
    /// What is kept of it; `physical` when it is not said.
    kind: Option<Kind>,
    /// With `logical`: the databases that are copied; the one in `postgres` when it is not said.
    databases: Option<Databases>,
    /// With `logical`: the folder with `pg_dump` and `pg_dumpall`; looked for when it is not said.
    bin: Option<String>,
    /// With `logical`: the image that they are taken from, such as `postgres:17`, in place of those of the machine.
    image: Option<String>,
    /// With `image`: the engine's network from which the server is reached; `host` when it is not said.
    network: Option<String>,
    /// How much may be lost at the most.
    rpo: Option<Span>,
    /// How long a restore may take at the most.
    rto: Option<Span>,
    /// When a base backup is taken: `0 2 * * * Europe/Paris`.
    schedule: Option<String>,
    /// Backups of what has changed since the one before, between the whole ones of `schedule`; PostgreSQL 17 and later.
    incremental: Option<Incremental>,
    /// How often what is new in the log is stored, 100ms to 1h; 1s when it is not said.
    ship_every: Option<Span>,
    /// Commits wait until they are in the repository.
    synchronous: Option<bool>,
    /// After so long without the repository commits go on without it.
    step_down: Option<Span>,
    /// The replication slot; `mainstay_` and the source's name when it is not said.
    slot: Option<String>,
    /// What is done about a slot that holds back too much of the log.
    wal_lag: Option<WalLag>,
    /// What an expiry leaves.
    keep: Option<KeepBackups>,
    /// The pipelines that may back it up or restore it.
    from: Option<Vec<deploys::Source>>,
    /// What a restore does when it is not told.
    restore: Option<Restore>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Physical,
    Logical,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Databases {
    /// `all`, or one by its name.
    One(String),
    /// By their names.
    Several(Vec<String>),
}

/// Backups of what has changed since the one before.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Incremental {
    /// When one is taken: `30 * * * *`.
    schedule: String,
    /// So many rest on one whole backup at the most, then a whole one is taken; 24 when it is not said.
    #[schemars(range(min = 1, max = 200))]
    chain: Option<u32>,
}

/// What is done about a slot that holds back too much of the log on the server's disk.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WalLag {
    /// `alert`: people are told, and nothing is dropped. `drop-slot`: at `drop` the log gets a gap.
    policy: Option<LagPolicy>,
    /// People are told; 1GiB when it is not said.
    warn: Option<ByteSize>,
    /// They are told again; 4GiB when it is not said.
    alarm: Option<ByteSize>,
    /// With `drop-slot`: the slot is dropped.
    drop: Option<ByteSize>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum LagPolicy {
    Alert,
    DropSlot,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct KeepBackups {
    /// Every moment of this much past can be restored; 14d when it is not said.
    window: Option<Span>,
    /// So many of the newest backups stay however old they are; 7 when it is not said.
    backups: Option<u32>,
}

/// What a restore does when it is not told.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Restore {
    /// `folder`: a data folder. `server`: a server of this machine that answers. `volume`: a volume of the container engine.
    /// `container`: a container that is left running. Of logical copies: the address of a running server, as in `postgres`.
    into: IntoOrServer,
    /// Of logical copies: the password for that server, as `${secret:NAME}`.
    password: Option<String>,
    /// The new data folder; the command says it when it is not said here.
    target: Option<String>,
    /// The user that the files belong to; with an image, one of the image.
    user: Option<String>,
    /// With `server`: the folder with `postgres` and `pg_ctl`. Of logical copies: the folder with `pg_restore`.
    bin: Option<String>,
    /// With `server` and `container`: the port of this machine; 5432 when it is not said.
    port: Option<u16>,
    /// With `volume` and `container`: the image of PostgreSQL, such as `postgres:17`. Of logical copies: the image that
    /// `pg_restore` is taken from.
    image: Option<String>,
    /// With `volume` and `container`: the volume of the data.
    volume: Option<String>,
    /// With `container`: its name; that of the source and `-restored` when it is not said.
    name: Option<String>,
    /// With `container`: the address of this machine that its port is published at; 127.0.0.1 when it is not said.
    listen: Option<String>,
    /// With `container`, and with the `image` of logical copies: the engine's network that it joins.
    network: Option<String>,
    /// Commands that follow a good restore.
    then: Option<OneOrMany<String>>,
    /// With `server` and `container`, and of logical copies: what it is asked.
    checks: Option<OneOrMany<SqlCheck>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum IntoOrServer {
    Word(Into),
    Server(String),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Into {
    Folder,
    Server,
    Volume,
    Container,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SqlCheck {
    /// A query with one row of one column, true when all is well.
    sql: String,
    /// The database it is asked in; `postgres` when it is not said.
    database: Option<String>,
}
