//! Keeping a mirror small in files: every push leaves some loose objects or a little pack, and nothing takes them away.
//!
//! Loose objects and little packs are written into one pack; what went into it is removed after it is on the disk. A
//! reader that works meanwhile finds each object in the old place or the new one: a loose object that is gone makes
//! libgit2 look for packs again, and an old pack is removed only by the next tidying, long after whoever had just
//! opened its index is done. A kill at any point leaves an object in two places, or files that the next tidying removes.

use super::GitError;
use git2::{Odb, Oid, Repository};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Loose objects that are left alone: about eighty pushes. Looking one up costs the same however many there are; a
/// folder with tens of thousands makes backups and start slow.
const LOOSE_MAX: usize = 2_000;
/// Packs that are left alone: every look-up asks each of them.
const PACKS_MAX: usize = 40;
/// Packs up to this size are put together; rewriting larger ones costs more than it saves.
const LITTLE_BYTES: u64 = 4 << 20;
/// Names of packs whose objects are in another one too.
const OLD_PACKS: &str = "mainstay-old-packs";

/// What a tidying did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Loose objects that are in a pack now.
    pub loose: usize,
    /// Packs that were put together.
    pub packs: usize,
}

/// Tidies the bare repository in `dir` when it needs it. The caller holds the mirror's lock.
pub(super) fn tidy(repo: &Repository, dir: &Path) -> Result<Tidied, GitError> {
    let failed = GitError::io(format!("tidy the mirror {}", dir.display()));
    let files = Files::find(dir).map_err(failed)?;
    files.remove_leftovers(dir).map_err(GitError::io(format!("tidy the mirror {}", dir.display())))?;
    let loose = if files.loose.len() > LOOSE_MAX { files.loose.as_slice() } else { &[] };
    let packs = if files.packs > PACKS_MAX { files.little.as_slice() } else { &[] };
    // One little pack alone would only be written again.
    let packs = if packs.len() > 1 { packs } else { &[] };
    if loose.is_empty() && packs.is_empty() {
        return Ok(Tidied::default());
    }
    put_together(repo, dir, loose, packs)?;
    Ok(Tidied { loose: loose.len(), packs: packs.len() })
}

fn put_together(repo: &Repository, dir: &Path, loose: &[(Oid, PathBuf)], packs: &[PathBuf]) -> Result<(), GitError> {
    let doing = || format!("tidy the mirror {}", dir.display());
    let mut ids: BTreeSet<Oid> = loose.iter().map(|(id, _)| *id).collect();
    if !packs.is_empty() {
        ids.extend(ids_in(dir, packs)?);
    }
    let mut builder = repo.packbuilder().map_err(GitError::git(doing()))?;
    for id in &ids {
        builder.insert_object(*id, None).map_err(GitError::git(doing()))?;
    }
    let folder = dir.join("objects/pack");
    fs::create_dir_all(&folder).map_err(GitError::io(doing()))?;
    builder.write(&folder, 0o444).map_err(GitError::git(doing()))?;
    let name = builder.name().ok().flatten().map(|name| format!("pack-{name}"));
    let name = name.ok_or_else(|| GitError::Git { doing: doing(), detail: "the pack has no name".into() })?;
    let remove = || -> io::Result<()> {
        for extension in ["pack", "idx"] {
            File::open(folder.join(format!("{name}.{extension}")))?.sync_all()?;
        }
        File::open(&folder)?.sync_all()?;
        for (_, path) in loose {
            fs::remove_file(path)?;
        }
        // The same objects in the same packs again would be the same pack.
        let old: Vec<&str> =
            packs.iter().filter_map(|pack| pack.file_stem()?.to_str()).filter(|stem| *stem != name).collect();
        fs::write(dir.join(OLD_PACKS), old.join("\n"))
    };
    remove().map_err(GitError::io(doing()))
}

/// The ids of all objects in these packs, read through a scratch folder that holds links to them and nothing else.
fn ids_in(dir: &Path, packs: &[PathBuf]) -> Result<Vec<Oid>, GitError> {
    let doing = || format!("list the packs of the mirror {}", dir.display());
    let scratch = dir.join("tidy.new");
    let _ = fs::remove_dir_all(&scratch);
    let link = || -> io::Result<()> {
        fs::create_dir_all(scratch.join("pack"))?;
        for file in packs.iter().flat_map(|pack| [pack.clone(), pack.with_extension("idx")]) {
            fs::hard_link(&file, scratch.join("pack").join(file.file_name().unwrap_or_default()))?;
        }
        Ok(())
    };
    link().map_err(GitError::io(doing()))?;
    let list = || -> Result<Vec<Oid>, git2::Error> {
        let odb = Odb::new()?;
        odb.add_disk_alternate(&scratch.to_string_lossy())?;
        let mut ids = Vec::new();
        odb.foreach(|id| {
            ids.push(*id);
            true
        })?;
        Ok(ids)
    };
    let ids = list().map_err(GitError::git(doing()));
    let _ = fs::remove_dir_all(&scratch);
    ids
}

/// What lies in `objects`.
struct Files {
    loose: Vec<(Oid, PathBuf)>,
    /// All packs.
    packs: usize,
    /// Those that may be put together; the `.pack` files.
    little: Vec<PathBuf>,
    /// Half-written files of somebody who was killed.
    half: Vec<PathBuf>,
}

impl Files {
    fn find(dir: &Path) -> io::Result<Files> {
        let mut files = Files { loose: Vec::new(), packs: 0, little: Vec::new(), half: Vec::new() };
        for folder in entries(&dir.join("objects"))? {
            let Some(start) = name(&folder).filter(|n| n.len() == 2) else { continue };
            for file in entries(&folder)? {
                let rest = name(&file).unwrap_or_default();
                match Oid::from_str(&format!("{start}{rest}")) {
                    Ok(id) if rest.len() == 38 => files.loose.push((id, file)),
                    _ if rest.starts_with("tmp_") => files.half.push(file),
                    _ => {}
                }
            }
        }
        let old = fs::read_to_string(dir.join(OLD_PACKS)).unwrap_or_default();
        for file in entries(&dir.join("objects/pack"))? {
            let Some(name) = name(&file) else { continue };
            if !name.starts_with("pack-") || name.ends_with(".lock") {
                files.half.push(file);
            } else if name.ends_with(".pack") {
                if !file.with_extension("idx").exists() {
                    files.half.push(file);
                } else if !old.lines().any(|old| name.strip_suffix(".pack") == Some(old)) {
                    files.packs += 1;
                    if fs::metadata(&file)?.len() <= LITTLE_BYTES {
                        files.little.push(file);
                    }
                }
            }
        }
        Ok(files)
    }

    /// Old packs of the tidying before, and what a kill left half written: the lock says that nobody writes now.
    fn remove_leftovers(&self, dir: &Path) -> io::Result<()> {
        let list = dir.join(OLD_PACKS);
        if let Ok(old) = fs::read_to_string(&list) {
            for stem in old.lines().filter(|stem| stem.starts_with("pack-") && !stem.contains('/')) {
                // The index first: without it nobody looks for the pack.
                for extension in ["idx", "pack"] {
                    absent(fs::remove_file(dir.join("objects/pack").join(format!("{stem}.{extension}"))))?;
                }
            }
            fs::remove_file(&list)?;
        }
        self.half.iter().try_for_each(|file| absent(fs::remove_file(file)))
    }
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        // A folder that is a file (`info/..` aside) holds nothing.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(Vec::new()),
        other => other?.map(|entry| Ok(entry?.path())).collect(),
    }
}
