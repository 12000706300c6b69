//! `mainstay validate [PATH...]`: reads files without running anything, and tells everything that is wrong with them.

use super::exit::{Exit, Failure};
use super::ui::Tone;
use super::{Context, desk};
use crate::config::{self, Finding, Findings, backup, daemon, pipeline};
use crate::plan;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// Check pipeline files and the configuration
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files, or folders of them. Without any: `.mainstay/` or else `pipelines/`, and `mainstay.yml`. With
    /// `mainstay.yml`, or what --config names, goes `backups/` beside it.
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
}

/// What is said about one file with `--json`.
#[derive(Debug, Serialize)]
struct Report {
    file: String,
    kind: &'static str,
    ok: bool,
    findings: Vec<Finding>,
}

/// A folder with more files than this is not one of pipelines.
const FILES_MAX: usize = 1_000;

/// Runs the command.
///
/// # Errors
/// When there is nothing to check, or a folder cannot be read.
pub fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let (ui, named) = (&context.ui, Named(context.place.config.clone().filter(|_| context.place.named)));
    let mut files = if args.paths.is_empty() { usual_files(&named)? } else { named_files(&args.paths)? };
    let settings = named.the_settings(&files);
    let sources = Sources::of(&mut files, &named);
    let mut reports = Vec::new();
    for path in &files {
        let name = path.display().to_string();
        let known = settings.as_ref().map(|(path, settings)| (path.as_path(), settings));
        let (kind, result) = if named.is_settings(path) {
            ("settings", check_settings(path, &sources))
        } else if let Some(result) = sources.result(path) {
            ("source", result)
        } else {
            ("pipeline", check_pipeline(path, known, &sources))
        };
        let (ok, findings) = match result {
            Ok(warnings) => (true, Findings::new(&name, &config::read_file(path).unwrap_or_default(), warnings)),
            Err(findings) => (!findings.has_errors(), findings),
        };
        if !ui.json {
            let word = if ok { ui.paint(Tone::Good, "ok   ") } else { ui.paint(Tone::Bad, "error") };
            ui.out(format!("{word} {name}"));
            if !findings.list.is_empty() {
                ui.out(format!("\n{}\n", findings.render(ui.color)));
            }
        }
        reports.push(Report { file: name, kind, ok, findings: findings.list });
    }
    let wrong = reports.iter().filter(|report| !report.ok).count();
    if ui.json {
        ui.json(&serde_json::json!({ "ok": wrong == 0, "files": reports }));
    } else if wrong > 0 {
        ui.say(format!("{wrong} of {} files cannot be used", reports.len()));
    }
    Ok(if wrong == 0 { Exit::Good } else { Exit::Wrong })
}

/// The configuration that `--config` or the environment names: it is one whatever it is called.
#[derive(Default)]
struct Named(Option<PathBuf>);

impl Named {
    /// `mainstay.yml`, under whatever prefix: `prod.mainstay.yml` too; and the one that is named.
    fn is_settings(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.0.as_ref().is_some_and(|named| absolute(named) == absolute(path))
            || ["mainstay.yml", "mainstay.yaml"].iter().any(|end| name == *end || name.ends_with(&format!(".{end}")))
    }

    /// The settings among the files, when they can be used and there is one such file only.
    fn the_settings(&self, files: &[PathBuf]) -> Option<(PathBuf, daemon::Daemon)> {
        let mut settings = files.iter().filter(|path| self.is_settings(path));
        let (path, None) = (settings.next()?, settings.next()) else { return None };
        Some((path.clone(), daemon::load(path).ok()?))
    }
}

fn check_settings(path: &Path, sources: &Sources) -> Result<Vec<Finding>, Findings> {
    let settings = daemon::load(path)?;
    let mut findings: Vec<Finding> =
        backup::without_keys(&settings).filter(|_| sources.are_beside(path)).into_iter().collect();
    if let Some(trouble) = settings.repository.identity.as_deref().and_then(desk::about_identity) {
        // What is not there may be so on the machine that the settings are for.
        let finding = Finding::general(trouble.words).hint(trouble.hint);
        findings.push(if trouble.unusable { finding } else { finding.warning() });
    }
    match findings.iter().any(|one| one.severity == config::Severity::Error) {
        true => Err(Findings::new(&path.display().to_string(), "", findings)),
        false => Ok(findings),
    }
}

/// The sources among the files, and those that belong to settings among them, read once with what is beside them.
#[derive(Default)]
struct Sources {
    /// By absolute path.
    checked: BTreeMap<PathBuf, Result<(), Findings>>,
}

impl Sources {
    /// Adds to the files what belongs to the settings among them.
    fn of(files: &mut Vec<PathBuf>, named: &Named) -> Sources {
        let settings: Vec<PathBuf> = files.iter().filter(|path| named.is_settings(path)).cloned().collect();
        // A source that is named by itself is read with the settings that its folder lies beside.
        let lonely = files.iter().filter(|path| is_source(path)).filter_map(|path| {
            let beside = absolute(path).parent()?.parent()?.to_owned();
            let named = settings.iter().any(|path| absolute(path).parent() == Some(&beside));
            (!named).then(|| settings_in(&beside).unwrap_or(beside.join("mainstay.yml")))
        });
        let lonely: BTreeSet<PathBuf> = lonely.collect();
        let env = |name: &str| std::env::var(name).ok();
        let mut checked = BTreeMap::new();
        for (path, wanted) in settings.iter().map(|path| (path, true)).chain(lonely.iter().map(|path| (path, false))) {
            for source in backup::check(path, &env) {
                let at = absolute(&source.path);
                if wanted && !files.iter().any(|file| absolute(file) == at) {
                    files.push(source.path);
                }
                checked.entry(at).or_insert(source.result.map(|_| ()));
            }
        }
        Sources { checked }
    }

    fn result(&self, path: &Path) -> Option<Result<Vec<Finding>, Findings>> {
        // Who names a file sees that name.
        let told = |findings: Findings| findings.of_file(&path.display().to_string());
        let result = self.checked.get(&absolute(path)).cloned();
        result.map(|result| result.map(|()| Vec::new()).map_err(told))
    }

    /// The names of those beside these settings.
    fn names(&self, settings: &Path) -> BTreeSet<String> {
        let folder = absolute(settings).with_file_name(backup::FOLDER);
        let beside = self.checked.keys().filter(|path| path.parent() == Some(&folder));
        beside.filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())).collect()
    }

    /// Whether there are any beside these settings.
    fn are_beside(&self, settings: &Path) -> bool {
        let folder = absolute(settings).with_file_name(backup::FOLDER);
        self.checked.keys().any(|path| path.starts_with(&folder))
    }
}

fn absolute(path: &Path) -> PathBuf {
    // `./backups/x.yml` and `backups/x.yml` are one file.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.components().filter(|part| !matches!(part, Component::CurDir)).collect()
}

/// A file of a folder `backups`.
fn is_source(path: &Path) -> bool {
    absolute(path).parent().and_then(Path::file_name).is_some_and(|folder| folder == backup::FOLDER)
}

fn check_pipeline(
    path: &Path,
    settings: Option<(&Path, &daemon::Daemon)>,
    sources: &Sources,
) -> Result<Vec<Finding>, Findings> {
    let (pipeline, _) = read_pipeline(path)?;
    plan::make(&pipeline, &path.display().to_string(), "", &plan::Defaults::default())?;
    let mut warnings = pipeline.warnings.clone();
    if let Some((path, settings)) = settings {
        warnings.extend(not_deployed(&pipeline, &path.display().to_string(), settings));
        let known = sources.names(path);
        for (step, source) in pipeline.sources().filter(|(_, source)| !known.contains(source.as_str())) {
            let message = format!("the step `{step}` names the source `{source}`, of which there is no file");
            let hint = format!("backups/{source}.yml beside {}", path.display());
            warnings.push(Finding::general(message).hint(hint).warning());
        }
    }
    Ok(warnings)
}

/// Deploys that these settings would refuse. They may be those of another daemon, so these are warnings.
fn not_deployed(pipeline: &pipeline::Pipeline, file: &str, settings: &daemon::Daemon) -> Vec<Finding> {
    let mut warnings = Vec::new();
    for (step, name, deploys) in pipeline.environments() {
        let Some(environment) = settings.environments.get(name) else {
            let known: Vec<&str> = settings.environments.keys().map(|name| name.as_str()).collect();
            let known =
                if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
            let message = format!("the step `{step}` names the environment `{name}`, which {file} does not have");
            warnings.push(Finding::general(message).hint(known).warning());
            continue;
        };
        let takes = |source: &daemon::environment::Source| {
            source.pipelines.is_empty() || source.pipelines.contains(&pipeline.name)
        };
        if deploys && !environment.from.iter().any(takes) {
            let message = format!("`{name}` in {file} takes no deploys of the pipeline `{}`", pipeline.name);
            let hint = format!("add `{}` to `pipelines` under the `from` of `{name}`", pipeline.name);
            warnings.push(Finding::general(message).hint(hint).warning());
        }
    }
    warnings
}

/// Reads a pipeline file, named after the file; the digest is of its bytes.
pub(super) fn read_pipeline(path: &Path) -> Result<(pipeline::Pipeline, String), Findings> {
    use sha2::Digest as _;
    let file = path.display().to_string();
    let refuse = |finding| Findings::new(&file, "", vec![finding]);
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let name = stem.parse().map_err(|why: crate::model::ids::BadName| {
        refuse(Finding::general(why.to_string()).hint("a pipeline is named after its file; rename the file"))
    })?;
    let text = config::read_file(path).map_err(refuse)?;
    let digest = hex::encode(sha2::Sha256::digest(text.as_bytes()));
    Ok((pipeline::parse(name, &file, &text)?, digest))
}

fn settings_in(folder: &Path) -> Option<PathBuf> {
    ["mainstay.yml", "mainstay.yaml"].iter().map(|name| folder.join(name)).find(|path| path.exists())
}

fn usual_files(named: &Named) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    if let Some(folder) = [".mainstay", "pipelines"].iter().map(Path::new).find(|folder| folder.is_dir()) {
        files.extend(files_in(folder)?);
    }
    files.extend(named.0.clone().or_else(|| settings_in(Path::new(""))));
    if files.is_empty() {
        return Err(Failure::wrong(
            "find anything to check here: there is no .mainstay/, no pipelines/, no mainstay.yml",
        )
        .hint("name files or folders: `mainstay validate PATH`")
        .hint("or begin with `mainstay init`"));
    }
    Ok(files)
}

fn named_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let found = files_in(path)?;
        if found.is_empty() {
            return Err(Failure::wrong(format!("there are no .yml files in {}", path.display())));
        }
        files.extend(found);
    }
    Ok(files)
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |e: std::io::Error| Failure::wrong(format!("read the folder {}: {e}", folder.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|end| end == "yml" || end == "yaml") && !path.is_dir() {
            files.push(path);
        }
        if files.len() > FILES_MAX {
            return Err(Failure::wrong(format!("there are more than {FILES_MAX} files in {}", folder.display())));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::place::Place;
    use crate::cli::ui::Ui;

    /// Where no configuration is named.
    fn nowhere() -> Context {
        let place = Place { config: None, named: false, state: PathBuf::new(), why: String::new() };
        Context { ui: Ui::new(true, "never", 0), place }
    }

    #[test]
    fn the_configuration_that_is_named_is_checked_as_one_whatever_it_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("prod.yml");
        let mut context = nowhere();
        (context.place.config, context.place.named) = (Some(file.clone()), true);
        std::fs::write(&file, "repos: { shop: /x }").unwrap();
        let named = Named(Some(file.clone()));
        assert_eq!(usual_files(&named).unwrap().last(), Some(&file));
        assert!(named.is_settings(&file) && !Named::default().is_settings(&file));
        assert_eq!(run(&Args { paths: vec![file.clone()] }, &context).unwrap(), Exit::Good);
        std::fs::write(&file, "repos: [").unwrap();
        assert_eq!(run(&Args { paths: Vec::new() }, &context).unwrap(), Exit::Wrong);
    }

    #[test]
    fn files_and_folders_are_checked_and_one_bad_file_makes_it_two() {
        let context = nowhere();
        let dir = tempfile::tempdir().unwrap();
        let good = dir.path().join("good.yml");
        std::fs::write(&good, "steps: {a: {image: x}}").unwrap();
        std::fs::write(dir.path().join("notes.txt"), "not yaml: [").unwrap();
        let check = |paths: &[&Path]| run(&Args { paths: paths.iter().map(|p| p.to_path_buf()).collect() }, &context);
        assert_eq!(check(&[dir.path()]).unwrap(), Exit::Good);
        std::fs::write(dir.path().join("bad.yaml"), [0xff, 0xfe, 0x00]).unwrap();
        assert_eq!(check(&[dir.path()]).unwrap(), Exit::Wrong);
        assert_eq!(check(&[&good]).unwrap(), Exit::Good);
        assert_eq!(check(&[&dir.path().join("absent.yml")]).unwrap(), Exit::Wrong);
        std::fs::write(dir.path().join("mainstay.yml"), "repos: {a: /x}").unwrap();
        assert_eq!(check(&[&dir.path().join("mainstay.yml")]).unwrap(), Exit::Good);
        let deploys = dir.path().join("ship.yml");
        let text = "steps: { a: { deploy: { environment: live } }, b: { deploy: { environment: lvie } } }";
        std::fs::write(&deploys, text).unwrap();
        let settings = dir.path().join("mainstay.yml");
        let write = |pipelines: &str| {
            let from = format!("from: [{{ repo: a, branches: main{pipelines} }}]");
            let target = "target: { swarm: { stack: s, repo: a } }";
            let text = format!("repos: {{ a: /x }}\nenvironments: {{ live: {{ {from}, {target} }} }}\n");
            std::fs::write(&settings, text).unwrap();
            let (path, known) = Named::default().the_settings(&[deploys.clone(), settings.clone()]).unwrap();
            let warnings = check_pipeline(&deploys, Some((&path, &known)), &Sources::default()).unwrap();
            assert!(warnings.iter().all(|w| w.severity == config::Severity::Warning));
            warnings.into_iter().map(|w| w.message).collect::<Vec<_>>().join("\n")
        };
        let said = write("");
        assert!(said.contains("the step `b` names the environment `lvie`") && said.lines().count() == 1, "{said}");
        assert!(write(", pipelines: [other]").contains("takes no deploys of the pipeline `ship`"));
        assert_eq!(check(&[&deploys, &settings]).unwrap(), Exit::Good);
        assert!(check_pipeline(&deploys, None, &Sources::default()).unwrap().is_empty());
        assert!(Named::default().the_settings(&[settings.clone(), settings]).is_none());
        let odd = dir.path().join("a b.yml");
        std::fs::write(&odd, "steps: {a: {image: x}}").unwrap();
        assert!(read_pipeline(&odd).unwrap_err().to_string().contains("rename the file"));
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(check(&[empty.path()]).unwrap_err().exit, Exit::Wrong);
    }

    #[test]
    fn sources_go_with_the_settings_that_they_lie_beside() {
        let context = nowhere();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("backups")).unwrap();
        let settings = at("mainstay.yml");
        std::fs::write(&settings, "repos: { shop: /x }").unwrap();
        let check =
            |paths: &[&Path]| run(&Args { paths: paths.iter().map(|p| p.to_path_buf()).collect() }, &context).unwrap();
        assert_eq!(check(&[&settings]), Exit::Good);
        let (one, other) = (at("backups/one.yml"), at("backups/other.yml"));
        let source =
            |from: &str| format!("postgres: postgres://b@localhost\nfrom: [{{ repo: {from}, branches: main }}]\n");
        std::fs::write(&one, source("shop")).unwrap();
        // It needs keys, which the settings say.
        assert_eq!((check(&[&settings]), check(&[&one])), (Exit::Wrong, Exit::Good));
        let keys = "encrypt-to: age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p, sign-with: sign.key";
        std::fs::write(&settings, format!("repository: {{ {keys} }}\nrepos: {{ shop: /x }}")).unwrap();
        assert_eq!((check(&[&settings]), check(&[dir.path()])), (Exit::Good, Exit::Good));
        // So is the identity that restores are made with, where one is named.
        let identity = at("identity.txt");
        let named = format!("repository: {{ {keys}, identity: identity.txt }}\nrepos: {{ shop: /x }}");
        std::fs::write(&settings, &named).unwrap();
        let said = |ok: bool| {
            let found = check_settings(&settings, &Sources::default());
            assert_eq!(found.is_ok(), ok, "{found:?}");
            let list = found.unwrap_or_else(|findings| findings.list);
            list.into_iter().map(|one| format!("{} {}", one.message, one.hints.join(" "))).collect::<String>()
        };
        assert!(said(true).contains("`mainstay key new`"));
        std::os::unix::fs::symlink("/dev/zero", &identity).unwrap();
        assert!(said(false).contains("it is a device"));
        std::fs::remove_file(&identity).unwrap();
        std::fs::write(&identity, "no key").unwrap();
        assert!(said(false).contains("is no age identity"));
        let new = crate::backup::seal::new_key_set().unwrap();
        std::fs::write(&identity, new.identity_file(jiff::Timestamp::now())).unwrap();
        let mode =
            |mode| std::fs::set_permissions(&identity, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        mode(0o644);
        assert!(said(true).contains("chmod 600"));
        mode(0o600);
        assert_eq!(said(true), "");
        // The other one is wrong, and told with the settings, with its folder and by itself.
        std::fs::write(&other, source("shp")).unwrap();
        let mut files = vec![settings.clone()];
        Sources::of(&mut files, &Named::default());
        assert_eq!(files, [settings.clone(), one.clone(), other.clone()]);
        assert_eq!(check(&[&settings]), Exit::Wrong);
        assert_eq!(check(&[&at("backups")]), Exit::Wrong);
        assert_eq!((check(&[&one]), check(&[&other])), (Exit::Good, Exit::Wrong));
        // Without settings nobody knows the names of repositories.
        std::fs::remove_file(&settings).unwrap();
        std::fs::write(&other, "postgres: postgres://b@localhost:2\nfrom: [{ repo: any, branches: main }]").unwrap();
        assert_eq!(check(&[&other]), Exit::Good);
    }
}
