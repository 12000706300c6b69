//! Logical copies, read and judged.

use super::reader::{Folder, Of, Reader, extra, in_order, known, missing};
use super::{BadKind, Catalogue, CatalogueError, Read, bad};
use crate::backup::catalog::dumps::{Dump, DumpManifest};
use crate::backup::catalog::holdings::Holdings;
use crate::backup::repository::BackupId;
use crate::backup::seal::Seal;
use std::collections::BTreeMap;

impl Reader<'_> {
    /// The logical copies, with their newest checks.
    pub(super) async fn dumps(
        &self,
        catalogue: &mut Catalogue,
        holdings: &mut Holdings,
        folders: BTreeMap<BackupId, Folder>,
    ) -> Result<(), CatalogueError> {
        let folders = self.finished_meanwhile(holdings, Of::Dump, folders).await?;
        let manifests = folders.iter().map(|(id, folder)| {
            let key = folder.manifest.as_ref().map(|_| holdings.key(Of::Dump.manifest(id)));
            async move {
                match key {
                    Some(key) => Ok(Some(self.document::<DumpManifest>(key).await?)),
                    None => Ok(None),
                }
            }
        });
        let manifests: Vec<Option<Read<(Seal, DumpManifest)>>> = in_order(manifests).await?;
        let mut checked = self.proofs(catalogue, holdings, Of::Dump, &folders).await?;
        for ((id, folder), read) in folders.into_iter().zip(manifests) {
            let Some((read, object)) = read.zip(folder.manifest) else {
                let left = folder.objects.into_iter().chain(folder.proofs.into_values());
                holdings.dumps.unfinished.insert(id, left.collect());
                continue;
            };
            let sound = read.and_then(|(_, manifest)| known(&object.key, manifest.version, manifest));
            let sound = sound.and_then(|manifest| match manifest.sound(&holdings.cluster, &id) {
                Ok(()) => Ok(manifest),
                Err(why) => Err(bad(&object.key, BadKind::Contents, why)),
            });
            match sound {
                Ok(manifest) => {
                    let dump = Dump {
                        stored_bytes: object.bytes + manifest.objects.iter().map(|one| one.stored.bytes).sum::<u64>(),
                        missing: missing(&manifest.objects, &folder.objects),
                        extra: extra(&manifest.objects, folder.objects),
                        manifest,
                        object,
                        proofs: checked.remove(&id).unwrap_or_default().into_iter().collect(),
                        proof_objects: folder.proofs.into_values().collect(),
                    };
                    holdings.dumps.good.insert(id, dump);
                }
                Err(bad) => {
                    let objects = folder.objects.into_iter().chain(folder.proofs.into_values()).chain([object]);
                    holdings.dumps.doubtful.insert(id, objects.collect());
                    catalogue.bad.push(bad);
                }
            }
        }
        Ok(())
    }
}
