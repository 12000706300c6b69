//! What is sealed opens again, for who may, and for nobody after a byte of it was changed.

use super::*;
use crate::backup::repository::{Cluster, Item, Key, Stored};
use crate::model::{SourceName, SystemId, Timeline};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeMap;

fn key(item: Item) -> Key {
    Key::Of(Cluster { source: SourceName::new("shop-db").unwrap(), system: SystemId(7) }, item)
}

fn stored(sealed: &Sealed) -> Stored {
    Stored::new(sealed.bytes.clone(), sealed.receipt.clone())
}

struct Lab {
    keys: KeySet,
    sealer: Sealer,
    opener: Opener,
}

fn lab() -> Lab {
    let keys = new_key_set().unwrap();
    let sealer = Sealer::new(std::slice::from_ref(&keys.recipient), keys.signing.clone()).unwrap();
    let checker = Checker::new(keys.identity.signers().to_vec());
    let opener = Opener::new(keys.identity.clone(), checker);
    Lab { keys, sealer, opener }
}

#[test]
fn what_is_sealed_opens_again() {
    let lab = lab();
    let name = key(Item::History(Timeline(2)));
    for plain in [Vec::new(), b"1\t0/3000148\tno recovery target\n".to_vec(), vec![7; 3 << 20]] {
        let note = BTreeMap::from([("acknowledged".to_owned(), "0/3000148".to_owned())]);
        let sealed = lab.sealer.seal(&name, &plain, note.clone()).unwrap();
        let (seal, opened) = lab.opener.open(&name, &stored(&sealed)).unwrap();
        assert_eq!(opened, plain);
        assert_eq!((seal.note, seal.plain.bytes), (note, plain.len() as u64));
        assert_eq!(seal.recipients, lab.keys.identity.fingerprints());
        let again = lab.sealer.seal(&name, &plain, BTreeMap::new()).unwrap();
        assert_ne!(again.bytes, sealed.bytes, "sealing is randomised");
        assert!(again.receipt.same_content(&sealed.receipt));
    }
}

#[test]
fn an_open_document_needs_no_identity_and_is_signed_all_the_same() {
    let lab = lab();
    let name = key(Item::Frontier(3));
    let sealed = lab.sealer.seal(&name, b"{\"to\": 5}", BTreeMap::new()).unwrap();
    assert_eq!(&sealed.bytes[..], b"{\"to\": 5}");
    let (_, read): (_, BTreeMap<String, u32>) = lab.opener.checker().document(&name, &stored(&sealed)).unwrap();
    assert_eq!(read["to"], 5);
    let changed = Stored::new(Bytes::from_static(b"{\"to\": 6}"), sealed.receipt.clone());
    let refused = lab.opener.checker().document::<BTreeMap<String, u32>>(&name, &changed).unwrap_err();
    assert!(matches!(refused, SealError::Mismatch(_)), "{refused}");
    // Who writes an open document under an encrypted object's name, or the other way round, is found out.
    let secret = key(Item::History(Timeline(2)));
    assert!(lab.opener.open(&secret, &stored(&sealed)).is_err());
}

#[test]
fn no_byte_can_be_changed_unseen() {
    let lab = lab();
    let name = key(Item::History(Timeline(2)));
    let sealed = lab.sealer.seal(&name, b"1\t0/3000148\tno recovery target\n", BTreeMap::new()).unwrap();
    for at in 0..sealed.bytes.len() {
        let mut bytes = sealed.bytes.to_vec();
        bytes[at] ^= 1;
        let changed = Stored::new(bytes.into(), sealed.receipt.clone());
        assert!(lab.opener.open(&name, &changed).is_err(), "byte {at}");
    }
    for at in 0..sealed.receipt.seal.len() {
        let mut seal = sealed.receipt.seal.clone().into_bytes();
        seal[at] = if seal[at] == b'0' { b'1' } else { b'0' };
        let receipt = Receipt { seal: String::from_utf8(seal).unwrap(), ..sealed.receipt.clone() };
        assert!(lab.opener.checker().receipt(&name, &receipt).is_err(), "byte {at} of the receipt");
    }
    let other = key(Item::History(Timeline(3)));
    let moved = lab.opener.open(&other, &stored(&sealed)).unwrap_err();
    assert!(moved.to_string().contains("somebody moved it"), "{moved}");
}

#[test]
fn r15_a_wrong_key_is_told_by_the_receipt_alone() {
    let (ours, theirs) = (lab(), lab());
    let name = key(Item::History(Timeline(2)));
    let sealed = theirs.sealer.seal(&name, b"x", BTreeMap::new()).unwrap();
    let untrusted = ours.opener.checker().receipt(&name, &sealed.receipt).unwrap_err();
    assert!(matches!(&untrusted, SealError::Untrusted(key) if *key == theirs.keys.signing.public()), "{untrusted}");
    let trusting = Checker::new(theirs.keys.identity.signers().to_vec());
    let opener = Opener::new(ours.keys.identity.clone(), trusting.clone());
    let seal = trusting.receipt(&name, &sealed.receipt).unwrap();
    let refused = opener.fits(&seal).unwrap_err().to_string();
    assert!(refused.contains(&theirs.keys.identity.fingerprints()[0]) && refused.contains("hint:"), "{refused}");
    // Two recipients: each opens alone.
    let both = [ours.keys.recipient.clone(), theirs.keys.recipient.clone()];
    let sealed = Sealer::new(&both, ours.keys.signing.clone()).unwrap().seal(&name, b"x", BTreeMap::new()).unwrap();
    let checker = ours.opener.checker().clone();
    for identity in [&ours.keys.identity, &theirs.keys.identity] {
        assert_eq!(Opener::new(identity.clone(), checker.clone()).open(&name, &stored(&sealed)).unwrap().1, b"x");
    }
}

#[test]
fn an_identity_file_says_whose_signatures_go_with_it_and_shows_nothing_when_it_is_wrong() {
    let keys = new_key_set().unwrap();
    let text = keys.identity_file("2026-11-23T10:15:00Z".parse().unwrap());
    let read = Identities::parse(&text).unwrap();
    assert_eq!(read.signers(), [keys.signing.public()]);
    assert_eq!(read.fingerprints(), [fingerprint(&keys.recipient)]);
    assert!(!format!("{read:?}").contains("SECRET"));
    for (wrong, says) in [
        ("", "no identity"),
        ("# only a comment\n", "no identity"),
        ("AGE-SECRET-KEY-1NOTONE", "line 1"),
        ("# signed by: nobody\n", "line 1"),
        ("\n\nhunter2\n", "line 3"),
    ] {
        let refused = Identities::parse(wrong).unwrap_err().to_string();
        assert!(refused.contains(says) && !refused.contains("hunter2") && !refused.contains("NOTONE"), "{refused}");
    }
    for (wrong, says) in [(vec![], "hint:"), (vec!["age1qqqq".to_owned()], "no age recipient")] {
        let refused = Sealer::new(&wrong, keys.signing.clone()).err().unwrap().to_string();
        assert!(refused.contains(says), "{refused}");
    }
}

/// An object of this frame that is signed as it stands.
fn signed(lab: &Lab, name: &Key, frame: &[u8], plain: Extent) -> Stored {
    let recipient: age::x25519::Recipient = lab.keys.recipient.parse().unwrap();
    let to = age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient)).unwrap();
    let mut encrypted = to.wrap_output(Vec::new()).unwrap();
    std::io::Write::write_all(&mut encrypted, frame).unwrap();
    resigned(lab, name, encrypted.finish().unwrap().into(), plain)
}

/// Stored bytes with a signed receipt that says that they are of this plain content.
fn resigned(lab: &Lab, name: &Key, bytes: Bytes, plain: Extent) -> Stored {
    let model = lab.sealer.seal(name, b"", BTreeMap::new()).unwrap().receipt.unchecked().unwrap();
    let seal = serde_json::to_string(&Seal { plain, stored: Extent::of(&bytes), ..model }).unwrap();
    let signature = STANDARD.encode(lab.keys.signing.sign(seal.as_bytes()));
    Stored::new(bytes, Receipt { seal, signature })
}

#[test]
fn what_is_opened_in_pieces_is_checked_by_its_frame_or_else_by_its_digest() {
    let lab = lab();
    let name = key(Item::History(Timeline(2)));
    let plain: Vec<u8> = (0..3_u32 << 20).map(|i| (i % 251) as u8).collect();
    let frame = |checksum| {
        let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
        compressor.include_checksum(checksum).unwrap();
        compressor.compress(&plain).unwrap()
    };
    let opens = |stored: &Stored| -> Result<usize, SealError> {
        let mut pieces = lab.opener.pieces(&name, stored)?;
        let mut bytes = 0;
        while let Some(piece) = pieces.next()? {
            assert_eq!(piece, &plain[bytes..][..piece.len()]);
            bytes += piece.len();
        }
        Ok(bytes)
    };
    let right = Extent::of(&plain);
    let wrong = Extent { sha256: "0".repeat(64), ..right.clone() };
    let shorter = Extent { bytes: right.bytes - 1, ..right.clone() };
    let longer = Extent { bytes: right.bytes + 1, ..right.clone() };
    for checksum in [true, false] {
        assert_eq!(opens(&signed(&lab, &name, &frame(checksum), right.clone())).unwrap(), plain.len());
        for length in [&shorter, &longer] {
            assert!(opens(&signed(&lab, &name, &frame(checksum), length.clone())).is_err());
        }
        // Whole objects always by their digest.
        let refused = lab.opener.open(&name, &signed(&lab, &name, &frame(checksum), wrong.clone())).unwrap_err();
        assert!(matches!(refused, SealError::Damaged(_)), "{refused}");
    }
    assert!(opens(&signed(&lab, &name, &frame(false), wrong.clone())).is_err(), "without a checksum the digest counts");
    let mut off = frame(true);
    *off.last_mut().unwrap() ^= 1;
    let refused = opens(&signed(&lab, &name, &off, right)).unwrap_err();
    assert!(refused.to_string().to_lowercase().contains("checksum"), "{refused}");
    // What the writer makes has one, so that the digest in the receipt is not asked.
    let sealed = lab.sealer.seal(&name, &plain, BTreeMap::new()).unwrap();
    assert_eq!(opens(&resigned(&lab, &name, sealed.bytes, wrong)).unwrap(), plain.len());
}
