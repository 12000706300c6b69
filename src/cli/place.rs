//! Where the configuration, the state folder and so the daemon's socket and token are.
//!
//! Reads only the `state` key of `mainstay.yml`: a command that asks a running daemon must not fail because another
//! part of the file is being edited.

use super::exit::Failure;
use crate::small_file;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Looked for in this order when neither `--config` nor `$MAINSTAY_CONFIG` names a file.
const USUAL_FILES: [&str; 2] = ["mainstay.yml", "/etc/mainstay/mainstay.yml"];
/// The state folder when the configuration does not name one; beside the configuration.
pub const USUAL_STATE: &str = "mainstay-data";
/// The daemon's socket in the state folder.
pub const SOCKET: &str = "mainstay.sock";
/// The token for the TCP listener in the state folder.
pub const TOKEN: &str = "token";

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The configuration, if there is one.
    pub config: Option<PathBuf>,
    /// Whether somebody named it; it was found otherwise.
    pub named: bool,
    /// The state folder; need not exist.
    pub state: PathBuf,
    /// Why that folder, in words for a hint.
    pub why: String,
}

impl Place {
    /// Finds both, given what the command line or the environment named.
    ///
    /// # Errors
    /// When a configuration was named that cannot be read.
    pub fn find(config: Option<PathBuf>, state: Option<PathBuf>) -> Result<Place, Failure> {
        if let Some(named) = &config
            && let Err(error) = std::fs::metadata(named)
        {
            return Err(Failure::wrong(format!("open the configuration {}: {error}", named.display()))
                .hint("`mainstay init` writes one"));
        }
        let named = config.is_some();
        let config = config.or_else(|| USUAL_FILES.iter().map(PathBuf::from).find(|file| file.is_file()));
        if let Some(state) = state {
            return Ok(Place { config, named, state, why: "--state or MAINSTAY_STATE says so".into() });
        }
        let Some(file) = &config else {
            return Ok(Place {
                config: None,
                named,
                state: USUAL_STATE.into(),
                why: "no configuration was found, so the usual folder here was taken".into(),
            });
        };
        let folder = file.parent().map(Path::to_owned).unwrap_or_default();
        let place = match state_in(file) {
            Some(state) => (folder.join(state), format!("`state` in {} says so", file.display())),
            None => (folder.join(USUAL_STATE), format!("it is the usual folder beside {}", file.display())),
        };
        Ok(Place { config, named, state: place.0, why: place.1 })
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.state.join(SOCKET)
    }
    /// The file with the TCP listener's token.
    pub fn token(&self) -> PathBuf {
        self.state.join(TOKEN)
    }
}

#[derive(Deserialize)]
struct OnlyState {
    #[serde(default)]
    state: Option<String>,
}

/// The `state` key, with `${NAME}` filled in. `None` when it is absent, or when the file cannot be read as it is now:
/// then the usual folder is tried, and the message of a failed connection says where it looked.
fn state_in(file: &Path) -> Option<PathBuf> {
    let text = small_file::read_text(file, small_file::TEXT_MAX_BYTES).ok()?;
    let found: OnlyState = serde_saphyr::from_str(&text).ok()?;
    let mut rest = found.state?;
    let mut whole = String::new();
    while let Some(start) = rest.find("${") {
        let end = start + rest[start..].find('}')?;
        whole.push_str(&rest[..start]);
        whole.push_str(&std::env::var(&rest[start + 2..end]).ok()?);
        rest = rest.split_off(end + 1);
    }
    whole.push_str(&rest);
    Some(whole.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mainstay.yml");
        std::fs::write(&file, text).unwrap();
        (folder, file)
    }

    #[test]
    fn a_relative_state_is_beside_the_configuration() {
        let (folder, file) = configured("state: data\nrepos: { shop: { url: x } }\n");
        assert_eq!(Place::find(Some(file), None).unwrap().socket(), folder.path().join("data/mainstay.sock"));
    }

    #[test]
    fn an_absolute_state_stays_and_without_one_the_usual_folder_is_taken() {
        let (_folder, file) = configured("state: /var/lib/mainstay\n");
        assert_eq!(Place::find(Some(file), None).unwrap().state, Path::new("/var/lib/mainstay"));
        let (folder, file) = configured("repos: {}\n");
        assert_eq!(Place::find(Some(file), None).unwrap().state, folder.path().join(USUAL_STATE));
    }

    #[test]
    fn variables_in_state_are_filled_in() {
        let (_folder, file) = configured("state: \"${CARGO_PKG_NAME}/x\"\n");
        assert!(Place::find(Some(file), None).unwrap().state.ends_with("mainstay/x"));
    }

    #[test]
    fn the_command_line_wins() {
        let (_folder, file) = configured("state: /var/lib/mainstay\n");
        assert_eq!(Place::find(Some(file), Some("/tmp/s".into())).unwrap().state, Path::new("/tmp/s"));
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error() {
        assert!(Place::find(Some("/nowhere/mainstay.yml".into()), None).is_err());
    }
}
