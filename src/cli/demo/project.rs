//! What is pushed: a project with its pipeline, in a working tree with a bare repository beside it.
//!
//! Enters the folder of `--project`, or the small project in the binary. Leaves the first commit, the patch that makes
//! the second, and the configuration of a daemon that watches the repository.

use super::{Args, Demo};
use crate::cli::exit::Failure;
use anyhow::Context;
use std::fs;
use std::path::{Path, PathBuf};

/// What the built-in pipeline is written for; in reach of most engines.
pub(super) const BUILT_IN_IMAGE: &str = "alpine:3";
/// The built-in project: path, text.
const BUILT_IN: &[(&str, &str)] = &[
    (".mainstay/build.yml", include_str!("../../../pipelines/demo/tally/build.yml")),
    ("tally.sh", include_str!("../../../pipelines/demo/tally/source/tally.sh")),
    ("tests/words.sh", include_str!("../../../pipelines/demo/tally/source/tests/words.sh")),
    ("tests/nothing.sh", include_str!("../../../pipelines/demo/tally/source/tests/nothing.sh")),
    ("tests/large.sh", include_str!("../../../pipelines/demo/tally/source/tests/large.sh")),
];
const BUILT_IN_BREAK: &str = include_str!("../../../pipelines/demo/tally/break.patch");

impl Demo<'_> {
    /// Puts the first commit's files into the working tree; returns the patch for the second.
    pub(super) fn make_project(&self, args: &Args) -> Result<PathBuf, Failure> {
        let work = self.folder.work();
        if let Some(project) = &args.project {
            let (source, patch) = (project.join("source"), project.join("break.patch"));
            if !source.is_dir() || !patch.is_file() {
                return Err(Failure::wrong(format!("read the project {}", project.display()))
                    .hint("it is a folder with `source/` (the first commit) and `break.patch` (the second)"));
            }
            copy_folder(&source, &work)?;
            return Ok(fs::canonicalize(patch)?);
        }
        for (name, text) in BUILT_IN {
            let file = work.join(name);
            fs::create_dir_all(file.parent().unwrap_or(&work))?;
            // Only pipelines name an image.
            let text = text.replace(&format!("image: {BUILT_IN_IMAGE}\n"), &format!("image: {}\n", args.image));
            fs::write(file, text)?;
        }
        let patch = self.folder.path.join("break.patch");
        fs::write(&patch, BUILT_IN_BREAK)?;
        Ok(patch)
    }

    /// A bare repository, as a team has on its server, and a clone's worth of remote in the working tree.
    pub(super) fn make_repository(&self) -> Result<(), Failure> {
        let bare = self.folder.bare();
        self.quiet_git(&["init", "--quiet", "--bare", "--initial-branch=main", &bare.to_string_lossy()])?;
        self.quiet_git(&["init", "--quiet", "--initial-branch=main", "."])?;
        self.quiet_git(&["remote", "add", "origin", &bare.to_string_lossy()])?;
        self.quiet_git(&["add", "--all"])?;
        self.quiet_git(&["commit", "--quiet", "--message=The project, and its pipeline"])?;
        self.say(format!("bare repository: {}", bare.display()));
        self.say(format!("working tree:    {}", self.folder.work().display()));
        Ok(())
    }

    pub(super) fn write_config(&self) -> Result<(), Failure> {
        // A port of its own, so that a daemon already on this machine is not in the way.
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let text = format!(
            "# Written by `mainstay demo`.\nserver: {{ listen: \"127.0.0.1:{port}\" }}\nstate: {}\nrepos:\n  demo: {{ url: {} }}\n",
            quoted(&self.folder.state()),
            quoted(&self.folder.bare()),
        );
        fs::write(self.folder.config(), &text)?;
        self.say(format!("configuration:   {}", self.folder.config().display()));
        for line in text.lines().skip(1) {
            self.say(format!("    {line}"));
        }
        Ok(())
    }

    pub(super) fn pipelines(&self) -> Result<Vec<String>, Failure> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.folder.work().join(".mainstay"))? {
            files.push(format!(".mainstay/{}", entry?.file_name().to_string_lossy()));
        }
        files.sort();
        Ok(files)
    }
}

/// A path as a YAML string, whatever characters it holds.
fn quoted(path: &Path) -> serde_json::Value {
    path.to_string_lossy().into_owned().into()
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_folder(&source, &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else {
            fs::copy(&source, &target).with_context(|| format!("copy {}", source.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::folder::Folder;
    use crate::cli::demo::folder::tests::scratch;
    use crate::cli::ui::Ui;
    use crate::config::pipeline::{self, Pipeline};
    use crate::model::ids::PipelineName;
    use std::process::Command;

    fn parse(text: &str) -> Pipeline {
        pipeline::parse(PipelineName::new("build").unwrap(), "build.yml", text)
            .unwrap_or_else(|findings| panic!("{}", findings.render(false)))
    }

    fn built_in(folder: &Folder) -> PathBuf {
        let ui = Ui::new(false, "never", -1);
        let demo = Demo {
            ui: &ui,
            folder: Folder::claim(&folder.path.join("inner")).unwrap().unwrap(),
            program: "/bin/false".into(),
        };
        let args = Args { project: None, image: "some/image:7".into(), dir: None };
        let patch = demo.make_project(&args).unwrap();
        demo.make_repository().unwrap();
        demo.folder.git(&["push", "--quiet", "origin", "main"]).status().map(|s| assert!(s.success())).unwrap();
        patch
    }

    #[test]
    fn both_pipelines_are_graphs_that_fan_out() {
        for text in [BUILT_IN[0].1, include_str!("../../../pipelines/demo/zlib/build.yml")] {
            let pipeline = parse(text);
            assert!(pipeline.warnings.is_empty(), "{:?}", pipeline.warnings);
            assert!(pipeline.steps.len() >= 6, "a demo of a graph has steps");
            let waiting = |one: &pipeline::Step| pipeline.steps.iter().filter(|s| s.needs.contains(&one.name)).count();
            assert!(pipeline.steps.iter().map(waiting).max() >= Some(3), "three steps wait for the same one");
        }
    }

    #[test]
    fn the_built_in_test_passes_until_the_patch_breaks_it() {
        let (_dir, folder) = scratch();
        let patch = built_in(&folder);
        let inner = patch.parent().unwrap().join("work");
        let words = || {
            fs::create_dir_all(inner.join("dist")).unwrap();
            fs::copy(inner.join("tally.sh"), inner.join("dist/tally")).unwrap();
            // The test's scratch files have fixed names: fine in a container, here they go to a folder of their own.
            let script = fs::read_to_string(inner.join("tests/words.sh")).unwrap();
            let script = script.replace("/tmp/", &format!("{}/", folder.path.display()));
            Command::new("sh").current_dir(&inner).args(["-c", &script]).output().unwrap()
        };
        let before = words();
        assert!(before.status.success(), "{before:?}");
        let git = Command::new("git")
            .current_dir(&inner)
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com", "am", "--quiet"])
            .arg(&patch)
            .output()
            .unwrap();
        assert!(git.status.success(), "{git:?}");
        let after = words();
        assert_eq!(after.status.code(), Some(1), "{after:?}");
    }

    #[test]
    fn the_image_is_put_into_every_step() {
        let (_dir, folder) = scratch();
        let work = built_in(&folder).parent().unwrap().join("work");
        let pipeline = parse(&fs::read_to_string(work.join(".mainstay/build.yml")).unwrap());
        assert!(pipeline.steps.iter().all(|step| step.image == "some/image:7"));
    }
}
