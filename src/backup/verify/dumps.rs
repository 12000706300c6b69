//! Logical copies: every object of one is read, judged, and what was found is stored as a proof.

use super::object::Asked;
use super::{Check, OfBackup, OfCluster, Report, VerifyError, detail};
use crate::backup::catalog::dumps::Dump;
use crate::backup::catalog::holdings::Missing;
use crate::backup::catalog::manifest::{Proof, VERSION};
use crate::backup::catalog::retention::Sum;
use crate::backup::repository::{DumpItem, Item, Key};
use crate::backup::seal::Sealer;

impl Check<'_> {
    /// One logical copy.
    pub(super) async fn dump(&self, dump: &Dump, report: &mut Report) -> Result<OfBackup, VerifyError> {
        let (read, known) = (Sum::default(), Sum::default());
        let (backup, whole) = (dump.id().clone(), report.ended_early.is_none());
        let mut of = OfBackup { backup, read, known, findings: Vec::new(), whole };
        of.findings.extend(dump.missing.iter().map(|Missing { name, kind, why }| super::Finding {
            name: name.clone(),
            kind: *kind,
            why: why.clone(),
        }));
        let proven = dump.proven().is_some_and(|proof| proof.kind >= self.kind);
        let mut asked = Vec::new();
        let there = dump.manifest.objects.iter().filter(|one| dump.missing.iter().all(|gone| gone.name != one.key));
        for facts in there {
            let Ok(key) = facts.key.parse::<Key>() else { continue };
            if proven && !self.sampled(&key) {
                of.known.objects += 1;
                of.known.bytes += facts.stored.bytes;
                continue;
            }
            asked.push(Asked { key, facts: Some(facts.clone()), log: None });
        }
        if of.whole {
            self.read(asked, &mut of, report).await?;
        }
        Ok(of)
    }

    /// Stores what was found of each copy that is newly good or newly bad.
    pub(super) async fn prove_dumps(
        &self,
        sealer: &Sealer,
        of: &OfCluster,
        took_secs: u64,
    ) -> Result<u64, VerifyError> {
        let mut stored = 0;
        for one in of.dumps.iter().filter(|one| one.whole) {
            let Some(dump) = self.holdings.dumps.good.get(&one.backup) else { continue };
            let (good, detail) = (one.findings.is_empty(), detail(one));
            let last = dump.proofs.last().map(|(_, last)| last);
            let news = match good {
                true => dump.proven().is_none_or(|proof| proof.kind < self.kind),
                false => last.is_none_or(|last| last.good || last.detail != detail),
            };
            if !news {
                continue;
            }
            let (version, at, kind) = (VERSION, self.settings.now, self.kind);
            let proof = Proof { version, at, kind, good, detail, reached: None, took_secs, log: Vec::new() };
            let item = |number| Item::Dump(one.backup.clone(), DumpItem::Proof(number));
            self.put_proof(sealer, item, &dump.proof_objects, &proof).await?;
            stored += 1;
        }
        Ok(stored)
    }
}
