//! `mainstay init [DIR]`: a first `mainstay.yml` and a first pipeline, to be read and changed. Never overwrites.

use super::exit::{Exit, Failure};
use super::ui::{Tone, Ui};
use anyhow::Context as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Write a configuration and a first pipeline into a folder
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to write them.
    #[arg(value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
}

/// The settings that `init` writes.
pub(crate) const MAINSTAY_YML: &str = r#"# Settings of the Mainstay daemon. `mainstay serve` reads this file; `mainstay validate mainstay.yml` checks it.
# Only `repos` is needed. Relative paths start at the folder of this file.

repos:
  # A name of your choice, and where the repository is: a path, https://..., ssh://... or user@host:path
  here: .

  # With more to say about it:
  # shop:
  #   url: https://git.example.com/shop.git
  #   poll: 60s                                   # how often its refs are looked at
  #   secrets: [DEPLOY_TOKEN]                     # what its steps may ask for; `mainstay secrets set DEPLOY_TOKEN`
  #   webhook: { kind: gitea, secret: "${secret:SHOP_HOOK}" }

# Where releases are deployed to, for pipelines with `deploy` steps:
# environments:
#   staging:
#     from: [{ repo: here, branches: [main], pipelines: [deploy] }]    # who may deploy; everything else is refused
#     target: { swarm: { stack: deploy/stack.yml, repo: here } }
#     health: [{ http: "http://127.0.0.1:8080/healthz" }]
#     watch: 5m

# server: { listen: "127.0.0.1:8420" }
# state: ./mainstay-data                          # database, mirrors, logs, secrets
# limits: { steps: 8, timeout: 1h }
# keep: { for: 90d, runs: 50 }                    # runs that are over, with their logs; of each repository at least so many
"#;

/// The pipeline that `init` writes.
pub(crate) const BUILD_YML: &str = r#"# A pipeline: one file, named after the file. `mainstay validate` checks it, `mainstay graph` draws it,
# `mainstay run` runs it here.

on:
  push: { branches: ["**"] }                      # every branch; `[main, "!wip/**"]` would be some of them
  manual: {}                                      # and by `mainstay trigger`

steps:
  hello:
    image: alpine:3
    commands:
      - echo "building $CI_COMMIT_SHA"
      - ls

  # Any `needs` in the file makes a graph: what does not need each other runs at once.
  test:
    needs: [hello]
    image: alpine:3
    commands: [echo "put your tests here"]
    timeout: 15m
"#;

/// Runs the command.
///
/// # Errors
/// When a file or folder cannot be written.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit, Failure> {
    let mut written = Vec::new();
    let mut kept = Vec::new();
    for (name, text) in [("mainstay.yml", MAINSTAY_YML), (".mainstay/build.yml", BUILD_YML)] {
        let path = if args.dir == Path::new(".") { PathBuf::from(name) } else { args.dir.join(name) };
        if write_new(&path, text).with_context(|| format!("write {}", path.display()))? {
            written.push(path.display().to_string());
        } else {
            kept.push(path.display().to_string());
        }
    }
    if ui.json {
        ui.json(&serde_json::json!({ "written": written, "kept": kept }));
        return Ok(Exit::Good);
    }
    for path in &written {
        ui.out(format!("{} {path}", ui.paint(Tone::Good, "wrote")));
    }
    for path in &kept {
        ui.out(format!("{} {path} (it is there already)", ui.paint(Tone::Dim, "kept ")));
    }
    ui.say("");
    ui.say("next:");
    let here = args.dir == Path::new(".");
    let file = |name: &str| if here { name.to_owned() } else { args.dir.join(name).display().to_string() };
    let serve =
        if here { "mainstay serve".to_owned() } else { format!("mainstay --config {} serve", file("mainstay.yml")) };
    let run = format!("mainstay run {}", file(".mainstay/build.yml"));
    let width = run.chars().count().max(serve.chars().count());
    ui.say(format!("  {run:width$}   the pipeline, here, from the working tree"));
    ui.say(format!("  {serve:width$}   the daemon: watches the repository, runs what is committed"));
    Ok(Exit::Good)
}

/// Writes a file that is not there; false when it is.
fn write_new(path: &Path, text: &str) -> std::io::Result<bool> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(mut file) => file.write_all(text.as_bytes()).map(|()| true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{daemon, pipeline};

    #[test]
    fn what_it_writes_is_valid_and_what_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let ui = Ui { json: true, color: false, color_err: false, verbosity: 0 };
        let args = Args { dir: dir.path().join("new") };
        assert_eq!(run(&args, &ui).unwrap(), Exit::Good);
        daemon::load(&args.dir.join("mainstay.yml")).unwrap_or_else(|e| panic!("{e}"));
        let text = fs::read_to_string(args.dir.join(".mainstay/build.yml")).unwrap();
        let built = pipeline::parse("build".parse().unwrap(), "build.yml", &text).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(built.steps.len(), 2);
        // What is commented out is right too, once it is not.
        let line =
            |line: &str| line.strip_prefix("# ").filter(|l| l.starts_with([' ', 'e'])).unwrap_or(line).to_owned();
        let whole: Vec<String> = MAINSTAY_YML.lines().map(line).collect();
        let settings = daemon::parse("mainstay.yml", &whole.join("\n"), &|_| None, &args.dir);
        assert!(settings.unwrap_or_else(|e| panic!("{e}")).environments.contains_key("staging"));
        fs::write(args.dir.join("mainstay.yml"), "mine").unwrap();
        assert_eq!(run(&args, &ui).unwrap(), Exit::Good);
        assert_eq!(fs::read_to_string(args.dir.join("mainstay.yml")).unwrap(), "mine");
    }
}
