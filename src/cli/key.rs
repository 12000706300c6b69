//! `mainstay key`: the two halves of a repository's keys.

use super::Context;
use super::exit::{Exit, Failure};
use crate::backup::seal::{KeySet, SigningKey, new_key_set_for};
use jiff::Timestamp;
use serde_json::json;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Make the keys of a repository of backups
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// Make an identity, which opens backups, and a signing key, which writes them
    #[command(after_help = "Examples:
  mainstay key new keys
  mainstay key new --sign-with /etc/mainstay/sign.key keys    another identity for the same writer

DIR gets identity.txt, sign.key and sign.pub; nothing that is there is written over. Who has identity.txt reads every
backup that is encrypted to it: keep it away from the daemon and from the bucket, twice, and try it. `age` reads it too.")]
    New {
        /// Where to write; made when it is not there
        dir: PathBuf,
        /// Take this signing key in place of a new one
        #[arg(long, value_name = "FILE")]
        sign_with: Option<PathBuf>,
    },
}

const IDENTITY: &str = "identity.txt";
const SIGN_KEY: &str = "sign.key";

/// Runs the command.
///
/// # Errors
/// When a file is there already or cannot be written.
pub fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let Act::New { dir, sign_with } = &args.act;
    // As a line for mainstay.yml it must mean the same from everywhere.
    let dir = &std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
    let identity = dir.join(IDENTITY);
    let sign_key = sign_with.clone().unwrap_or_else(|| dir.join(SIGN_KEY));
    for file in [&identity].into_iter().chain(sign_with.is_none().then_some(&sign_key)) {
        if file.symlink_metadata().is_ok() {
            return Err(Failure::wrong(format!("make keys: {} is there already", file.display()))
                .hint("a key that was used must not be lost: take another folder"));
        }
    }
    let unusable = |error: std::io::Error| Failure::wrong(format!("make keys in {}: {error}", dir.display()));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(unusable)?;
    let signing = match sign_with {
        Some(file) => SigningKey::read(file),
        None => SigningKey::open(&sign_key),
    };
    let keys = new_key_set_for(signing.map_err(|error| Failure::wrong(error.to_string()))?);
    write_secret(&identity, &keys.identity_file(Timestamp::now())).map_err(unusable)?;
    tell(context, &keys, &identity, &sign_key);
    Ok(Exit::Good)
}

fn tell(context: &Context, keys: &KeySet, identity: &Path, sign_key: &Path) {
    let ui = &context.ui;
    if ui.json {
        return ui.json(&json!({
            "recipient": keys.recipient,
            "signer": keys.signing.public().to_string(),
            "identity": identity,
            "sign-with": sign_key,
        }));
    }
    ui.out("repository:");
    ui.out(format!("  encrypt-to: [{}]", keys.recipient));
    ui.out(format!("  sign-with: {}", sign_key.display()));
    ui.say(format!("{} opens every backup: keep it off this machine, twice, and try it", identity.display()));
    ui.say(format!("{} signs them: it goes to the daemon's machine", sign_key.display()));
    ui.say("the lines above belong into mainstay.yml");
}

fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::seal::Identities;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn an_identity_is_a_secret_and_knows_its_writer() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(IDENTITY);
        let keys = new_key_set_for(SigningKey::open(&folder.path().join(SIGN_KEY)).unwrap());
        write_secret(&file, &keys.identity_file(Timestamp::now())).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let read = Identities::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(read.signers(), [keys.signing.public()]);
        assert!(write_secret(&file, "again").is_err());
    }
}
