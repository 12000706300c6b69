//! A repository with keys, and copies in it.

use crate::support::postgres::Server;
use mainstay::backup::catalog::dumps::DumpManifest;
use mainstay::backup::catalog::holdings::Holdings;
use mainstay::backup::catalog::index::Catalogue;
use mainstay::backup::logical::{self, DumpError, InImage, Job, Plan, Report, RestoreError, Wanted, Way, Whose};
use mainstay::backup::repository::Repository;
use mainstay::backup::repository::folder::Folder;
use mainstay::backup::seal::{Checker, Opener, Sealer, new_key_set};
use mainstay::backup::source::postgres::{Address, Connection, Purpose};
use mainstay::config::backup::Databases;
use mainstay::model::{InstanceId, SourceName};
use mainstay::runtime::docker::{Docker, DockerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) struct Bench {
    pub(super) root: PathBuf,
    /// The identity file of its keys.
    pub(super) identity: String,
    pub(super) sealer: Sealer,
    pub(super) checker: Checker,
    pub(super) opener: Opener,
    pub(super) source: SourceName,
    /// Where programs come from, for copies and restores.
    pub(super) way: Way,
    folder: Arc<Folder>,
    _dir: tempfile::TempDir,
}

/// Made by `tests/setup/prepare.sh test`.
pub(super) const IMAGE: &str = "mainstay-test/postgres:15";

/// Programs of an image; whose containers are, is said by a text.
fn image(image: &str, whose: &str) -> InImage {
    let config = DockerConfig::new(InstanceId("logical".into())).unwrap();
    InImage {
        docker: Docker::connect(config).unwrap(),
        image: image.to_owned(),
        network: "host".into(),
        source: "shop-db".parse().unwrap(),
        whose: Whose::Holder(whose.to_owned()),
        progress: Arc::new(|_| ()),
    }
}

impl Bench {
    /// With the programs of this machine.
    pub(super) fn here() -> Bench {
        Bench::new(|_| Way::Here(None))
    }

    /// With those of a folder.
    pub(super) fn at(bin: impl Into<PathBuf>) -> Bench {
        Bench::new(|_| Way::Here(Some(bin.into())))
    }

    /// With the programs of an image.
    pub(super) fn in_image() -> Bench {
        Bench::new(|root| Way::Image(image(IMAGE, &root.display().to_string())))
    }

    fn new(way: impl FnOnce(&Path) -> Way) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("repository");
        let way = way(&root);
        let keys = new_key_set().unwrap();
        let checker = Checker::new(vec![keys.signing.public()]);
        Bench {
            folder: Arc::new(Folder::create(&root).unwrap()),
            root,
            identity: keys.identity_file(jiff::Timestamp::now()),
            sealer: Sealer::new(std::slice::from_ref(&keys.recipient), keys.signing.clone()).unwrap(),
            opener: Opener::new(keys.identity.clone(), checker.clone()),
            checker,
            source: "shop-db".parse().unwrap(),
            way,
            _dir: dir,
        }
    }

    pub(super) fn repository(&self) -> Arc<dyn Repository> {
        Arc::clone(&self.folder) as _
    }

    pub(super) fn place(&self) -> &dyn Repository {
        self.folder.as_ref()
    }

    pub(super) fn job(&self, address: &Address, databases: Databases) -> Job {
        Job {
            source: self.source.clone(),
            address: address.clone(),
            databases,
            programs: self.way.clone(),
            repository: self.repository(),
            sealer: self.sealer.clone(),
            tell: Arc::new(|_| ()),
        }
    }

    pub(super) async fn dump(&self, server: &Server, databases: Databases) -> Result<DumpManifest, DumpError> {
        self.dump_from(&server.address(), databases).await
    }

    pub(super) async fn dump_from(&self, address: &Address, databases: Databases) -> Result<DumpManifest, DumpError> {
        // As the daemon runs it: on any of its threads.
        tokio::spawn(logical::dump(self.job(address, databases))).await.unwrap()
    }

    pub(super) async fn catalogue(&self) -> Catalogue {
        Catalogue::read(self.folder.as_ref(), &self.checker, &self.source).await.unwrap()
    }

    pub(super) async fn holdings(&self) -> Holdings {
        self.catalogue().await.newest_cluster().cloned().expect("nothing is there")
    }

    pub(super) async fn names(&self) -> Vec<String> {
        self.folder.list("").await.unwrap().into_iter().map(|object| object.name).collect()
    }

    pub(super) async fn plan(&self) -> Plan {
        logical::plan(&self.holdings().await, Wanted::Latest).unwrap()
    }

    pub(super) fn options(&self, server: &Server) -> logical::Options {
        logical::Options { into: server.address(), programs: self.way.clone(), force: false, checks: Vec::new() }
    }

    /// Restores the newest copy.
    pub(super) async fn restore(&self, options: &logical::Options) -> Result<Report, RestoreError> {
        let plan = self.plan().await;
        let (repository, opener, options) = (self.repository(), self.opener.clone(), options.clone());
        let done =
            tokio::spawn(async move { logical::restore(repository, opener, &plan, &options, Arc::new(|_| ())).await });
        done.await.unwrap()
    }
}

/// SQL in one database; the first value of its answer.
pub(super) async fn ask(server: &Server, database: &str, sql: &str) -> String {
    let address = Address { database: Some(database.to_owned()), ..server.address() };
    let mut connection = Connection::open(&address, None, Purpose::Sql).await.unwrap();
    let rows = connection.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    connection.close().await;
    let value = rows.rows.first().and_then(|row| row.first().cloned().flatten());
    String::from_utf8(value.unwrap_or_default().to_vec()).unwrap()
}

/// The names of all databases.
pub(super) async fn databases(server: &Server) -> Vec<String> {
    let names =
        ask(server, "postgres", "SELECT string_agg(datname, E'\\n' ORDER BY datname COLLATE \"C\") FROM pg_database")
            .await;
    names.lines().map(str::to_owned).collect()
}
