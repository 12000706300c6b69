//! Images: found, pulled when the engine lacks them, pinned by content id; and the one we make ourselves, which holds
//! nothing but the helper.

use super::engine::{Engine, is_gone, shared_labels};
use crate::runtime::helper;
use crate::runtime::{ResolvedImage, RuntimeError};
use bollard::auth::DockerCredentials;
use bollard::models::{ContainerCreateBody, HostConfig, ImageConfig, Mount, MountType, VolumeCreateRequest};
use bollard::query_parameters::{
    CreateContainerOptions, CreateImageOptions, DownloadFromContainerOptions, RemoveContainerOptions,
    UploadToContainerOptions,
};
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Progress is told at most this often: it is for people, and a pull says thousands of things.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// The folder that holds the helper, in its own image and, from the volume, in every step's container.
pub(super) const HELPER_FOLDER: &str = "/.mainstay";
pub(super) const HELPER_PATH: &str = "/.mainstay/init";
/// `/etc/passwd` and the helper are read back through the archive API; what is larger than this is neither.
const ARCHIVE_MAX_BYTES: usize = 16 << 20;

/// What we need to know of an image.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) user: String,
    pub(super) entrypoint: Vec<String>,
    pub(super) cmd: Vec<String>,
}

impl Facts {
    /// What the image runs by itself; arguments take the place of its own.
    pub(super) fn command(&self, args: &[String]) -> Vec<String> {
        let rest = if args.is_empty() { &self.cmd } else { args };
        self.entrypoint.iter().chain(rest).cloned().collect()
    }
}

/// Name and password per registry host; `docker.io` for images without one.
pub type Registries = BTreeMap<String, (String, String)>;

/// The registry an image name points to, by Docker's rule: the first part, if it looks like a host.
fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// Finds and pulls images; several runs that want one at the same time pull it once.
pub(super) struct Images {
    registries: Registries,
    pulling: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    facts: Mutex<HashMap<String, Arc<Facts>>>,
}

impl Images {
    pub(super) fn new(registries: Registries) -> Self {
        Images { registries, pulling: Mutex::default(), facts: Mutex::default() }
    }

    async fn look(&self, engine: &Engine, image: &str) -> Result<Option<(String, ImageConfig)>, RuntimeError> {
        match engine.api.inspect_image(image).await {
            Ok(found) => Ok(Some((found.id.unwrap_or_default(), found.config.unwrap_or_default()))),
            Err(e) if is_gone(&e) => Ok(None),
            Err(e) => match engine.error("look at it", &e) {
                // Not an image name at all, says the engine: its words are the best there are.
                RuntimeError::Refused { detail, .. } => Err(RuntimeError::Image { image: image.to_owned(), detail }),
                other => Err(other),
            },
        }
    }

    /// The image, from the engine or else from its registry.
    pub(super) async fn resolve(
        &self,
        engine: &Engine,
        reference: &str,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<ResolvedImage, RuntimeError> {
        let resolved = |id: String| ResolvedImage { reference: reference.to_owned(), id };
        if let Some((id, _)) = self.look(engine, reference).await? {
            return Ok(resolved(id));
        }
        let turn = {
            let mut pulling = self.pulling.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            pulling.retain(|_, turn| Arc::strong_count(turn) > 1);
            pulling.entry(reference.to_owned()).or_default().clone()
        };
        let _turn = turn.lock().await;
        // Whoever had the turn before may have pulled it.
        if let Some((id, _)) = self.look(engine, reference).await? {
            return Ok(resolved(id));
        }
        self.pull(engine, reference, progress).await?;
        match self.look(engine, reference).await? {
            Some((id, _)) => Ok(resolved(id)),
            None => Err(RuntimeError::Image {
                image: reference.to_owned(),
                detail: "it was pulled, and is not there".to_owned(),
            }),
        }
    }

    async fn pull(
        &self,
        engine: &Engine,
        reference: &str,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(), RuntimeError> {
        let host = registry(reference);
        let credentials = self.registries.get(host).map(|(user, password)| DockerCredentials {
            username: Some(user.clone()),
            password: Some(password.clone()),
            serveraddress: Some(if host == "docker.io" {
                "https://index.docker.io/v1/".to_owned()
            } else {
                host.to_owned()
            }),
            ..Default::default()
        });
        // Without a tag the engine would pull all of them.
        let name = reference.rsplit('/').next().unwrap_or(reference);
        let tag = if name.contains([':', '@']) { None } else { Some("latest".to_owned()) };
        let options = CreateImageOptions { from_image: Some(reference.to_owned()), tag, ..Default::default() };
        let mut said = Instant::now();
        progress(format!("pulling {reference}"));
        let mut layers: HashMap<String, (i64, i64)> = HashMap::new();
        let mut pull = engine.api.create_image(Some(options), None, credentials).boxed();
        while let Some(news) = pull.next().await {
            let news = news.map_err(|e| match engine.error("pull it", &e) {
                RuntimeError::Refused { detail, .. } => RuntimeError::Image { image: reference.to_owned(), detail },
                other => other,
            })?;
            if let (Some(layer), Some(detail)) = (news.id, news.progress_detail)
                && let (Some(current), Some(total)) = (detail.current, detail.total)
            {
                layers.insert(layer, (current, total));
            }
            if said.elapsed() >= PROGRESS_EVERY && !layers.is_empty() {
                said = Instant::now();
                let (current, total) = layers.values().fold((0, 0), |sum, l| (sum.0 + l.0, sum.1 + l.1));
                progress(format!("pulling {reference}: {} of {} MiB", current >> 20, total >> 20));
            }
        }
        progress(format!("pulled {reference}"));
        Ok(())
    }

    /// User, entrypoint and command of an image, by its id, which never changes what it means.
    pub(super) async fn facts(&self, engine: &Engine, image: &ResolvedImage) -> Result<Arc<Facts>, RuntimeError> {
        if let Some(facts) = self.lock_facts().get(&image.id) {
            return Ok(facts.clone());
        }
        let Some((_, config)) = self.look(engine, &image.id).await? else {
            return Err(RuntimeError::Image {
                image: image.reference.clone(),
                detail: "it was removed from the engine".to_owned(),
            });
        };
        let facts = Arc::new(Facts {
            user: config.user.unwrap_or_default(),
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
        });
        let mut all = self.lock_facts();
        // One entry is some hundred bytes; a daemon that met this many images starts afresh.
        if all.len() >= 1_000 {
            all.clear();
        }
        all.insert(image.id.clone(), facts.clone());
        Ok(facts)
    }

    fn lock_facts(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Facts>>> {
        self.facts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The image that holds the helper alone.
pub(super) fn helper_image() -> String {
    format!("mainstay/holder:{}", *helper::VERSION)
}

/// The volume that gives the helper to every container.
pub(super) fn helper_volume() -> String {
    format!("mainstay-init-{}", *helper::VERSION)
}

/// The helper's volume as a container gets it.
pub(super) fn helper_mount() -> Mount {
    Mount {
        typ: Some(MountType::VOLUME),
        source: Some(helper_volume()),
        target: Some(HELPER_FOLDER.to_owned()),
        read_only: Some(true),
        ..Default::default()
    }
}

fn helper_archive(folder: &str) -> std::io::Result<Bytes> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(helper::PROGRAM.len() as u64);
    archive.append_data(&mut header, format!("{folder}init"), helper::PROGRAM)?;
    archive.into_inner().map(Bytes::from)
}

/// Makes sure that the engine has the helper's image and volume, whole and unharmed. Works the same with an engine on
/// another host: nothing is mounted from this one.
pub(super) async fn ensure_helper(engine: &Engine) -> Result<(), RuntimeError> {
    let doing = "give the helper to the engine";
    let io = |source| RuntimeError::Io { doing: doing.to_owned(), source };
    match engine.api.inspect_image(&helper_image()).await {
        Ok(_) => {}
        Err(e) if is_gone(&e) => {
            let (name, tag) = ("mainstay/holder", helper::VERSION.as_str());
            let options = CreateImageOptions {
                from_src: Some("-".to_owned()),
                repo: Some(name.to_owned()),
                tag: Some(tag.to_owned()),
                changes: vec!["LABEL mainstay.shared=true".to_owned()],
                ..Default::default()
            };
            let archive = bollard::body_full(helper_archive(".mainstay/").map_err(io)?);
            let mut import = engine.api.create_image(Some(options), Some(archive), None).boxed();
            while let Some(news) = import.next().await {
                news.map_err(|e| engine.error(doing, &e))?;
            }
        }
        Err(e) => return Err(engine.error(doing, &e)),
    }
    let volume =
        VolumeCreateRequest { name: Some(helper_volume()), labels: Some(shared_labels()), ..Default::default() };
    engine.api.create_volume(volume).await.map_err(|e| engine.error(doing, &e))?;
    // The archive API needs a container to speak of; this one never starts.
    let body = ContainerCreateBody {
        image: Some(helper_image()),
        cmd: Some(vec![HELPER_PATH.to_owned()]),
        labels: Some(HashMap::from([
            (super::engine::INSTANCE.to_owned(), engine.instance.to_string()),
            (super::engine::SHARED.to_owned(), "true".to_owned()),
        ])),
        host_config: Some(HostConfig {
            mounts: Some(vec![Mount { read_only: Some(false), ..helper_mount() }]),
            ..Default::default()
        }),
        ..Default::default()
    };
    let random = getrandom::u64().map_err(|error| io(std::io::Error::other(error.to_string())))?;
    let giving = Giving::begin(format!("mainstay-{}-helper-{random:016x}", engine.instance));
    let options = CreateContainerOptions { name: Some(giving.0.clone()), ..Default::default() };
    let made = engine.api.create_container(Some(options), body).await;
    let container = made.map_err(|e| engine.error(doing, &e))?.id;
    let filled = fill_helper(engine, &container).await;
    let options = RemoveContainerOptions { force: true, v: false, link: false };
    let removed = engine.api.remove_container(&container, Some(options)).await;
    filled?;
    removed.map_err(|e| engine.error(doing, &e))
}

/// The containers through which this process gives engines their helper at this moment. They belong to no run and no
/// space, so a sweep of ours would take them for an earlier daemon's.
static GIVING: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// One of them, as long as it lives.
struct Giving(String);

impl Giving {
    fn begin(name: String) -> Giving {
        GIVING.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        Giving(name)
    }
}

impl Drop for Giving {
    fn drop(&mut self) {
        GIVING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// True for a container through which this process gives the helper just now.
pub(super) fn is_giving(container: &str) -> bool {
    GIVING.lock().unwrap_or_else(PoisonError::into_inner).contains(container)
}

async fn fill_helper(engine: &Engine, container: &str) -> Result<(), RuntimeError> {
    let doing = "give the helper to the engine";
    for _ in 0..2 {
        // What is there is looked at, not believed: a crash may have left half of it.
        if read_file(engine, container, HELPER_PATH).await?.as_deref() == Some(helper::PROGRAM) {
            return Ok(());
        }
        let archive = helper_archive("").map_err(|source| RuntimeError::Io { doing: doing.to_owned(), source })?;
        let options = UploadToContainerOptions { path: HELPER_FOLDER.to_owned(), ..Default::default() };
        let put = engine.api.upload_to_container(container, Some(options), bollard::body_full(archive)).await;
        put.map_err(|e| engine.error(doing, &e))?;
    }
    Err(RuntimeError::Refused { doing: doing.to_owned(), detail: "what was stored reads back differently".to_owned() })
}

/// One file of a container, whether it runs or not; `None` when it is not there.
pub(super) async fn read_file(engine: &Engine, container: &str, path: &str) -> Result<Option<Vec<u8>>, RuntimeError> {
    let doing = || format!("read {path} of the container");
    let options = DownloadFromContainerOptions { path: path.to_owned() };
    let mut download = engine.api.download_from_container(container, Some(options)).boxed();
    let mut archive = Vec::new();
    while let Some(part) = download.next().await {
        match part {
            Ok(part) => archive.extend_from_slice(&part),
            Err(e) if is_gone(&e) => return Ok(None),
            Err(e) => return Err(engine.error(doing(), &e)),
        }
        if archive.len() > ARCHIVE_MAX_BYTES {
            return Err(RuntimeError::Refused { doing: doing(), detail: "it is too large".to_owned() });
        }
    }
    let read = || -> std::io::Result<Option<Vec<u8>>> {
        for entry in tar::Archive::new(archive.as_slice()).entries()? {
            let mut entry = entry?;
            if entry.header().entry_type().is_file() {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    };
    read().map_err(|source| RuntimeError::Io { doing: doing(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_go_only_to_the_registry_of_the_image() {
        for (reference, host) in [
            ("debian:12", "docker.io"),
            ("library/debian", "docker.io"),
            ("localhost/x", "localhost"),
            ("localhost:5000/x:1", "localhost:5000"),
            ("registry.example.com/shop/api@sha256:00", "registry.example.com"),
        ] {
            assert_eq!(registry(reference), host, "{reference}");
        }
    }

    #[test]
    fn arguments_take_the_place_of_the_images_own() {
        let list = |items: &[&str]| items.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let facts = Facts { user: String::new(), entrypoint: list(&["/e"]), cmd: list(&["c"]) };
        assert_eq!(facts.command(&[]), ["/e", "c"]);
        assert_eq!(facts.command(&list(&["a", "b"])), ["/e", "a", "b"]);
        let plain = Facts { entrypoint: Vec::new(), ..facts };
        assert_eq!(plain.command(&list(&["a"])), ["a"]);
    }
}
