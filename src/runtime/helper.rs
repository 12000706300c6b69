//! The helper as the daemon has it: the embedded program, its name by content, and the words it understands.

#[path = "../init/wire.rs"]
#[allow(dead_code, reason = "the helper uses the other half")]
pub(crate) mod wire;

use super::Word;
use sha2::{Digest, Sha256};
use std::sync::LazyLock;
use wire::Order;

/// The static program, compiled by `build.rs` from `src/init`.
pub(crate) static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// The first 16 hex digits of the program's SHA-256: names what holds this version of it in an engine.
pub(crate) static VERSION: LazyLock<String> = LazyLock::new(|| hex::encode(&Sha256::digest(PROGRAM)[..8]));

/// Where every step finds its workspace.
pub(crate) const WORKSPACE: &str = "/workspace";

/// The order that carries out a word. `image_command` is what the image would run by itself, for words without commands.
pub(crate) fn order(word: &Word, image_command: &[String], cwd: &str, output: &str) -> Order {
    let argv: Vec<String> = if word.commands.is_empty() {
        image_command.to_vec()
    } else {
        vec!["/bin/sh".to_owned(), "-e".to_owned(), "-c".to_owned(), script(&word.commands)]
    };
    // Git refuses a working tree that belongs to somebody else, which it does whenever steps run as different users.
    let own = [
        ("GIT_CONFIG_COUNT", "1"),
        ("GIT_CONFIG_KEY_0", "safe.directory"),
        ("GIT_CONFIG_VALUE_0", cwd),
        ("MAINSTAY_OUTPUT", output),
    ];
    let bytes = |text: &str| text.as_bytes().to_vec();
    Order {
        argv: argv.iter().map(|a| bytes(a)).collect(),
        env: own
            .into_iter()
            .map(|(name, value)| (bytes(name), bytes(value)))
            .chain(word.environment.iter().map(|(name, value)| (bytes(name), bytes(value))))
            .collect(),
        cwd: bytes(cwd),
        output: bytes(output),
    }
}

/// One script of all commands, each shown before it runs. `printf`, since `echo` of some shells reads backslashes.
pub(crate) fn script(commands: &[String]) -> String {
    let mut script = String::new();
    for command in commands {
        let command = command.trim_end_matches('\n');
        script.push_str(&format!("printf '%s\\n' '+ {}'\n{command}\n", command.replace('\'', "'\\''")));
    }
    script
}

#[cfg(test)]
mod tests {
    use super::wire::{self, Frames, Kind};
    use super::*;

    fn sample() -> Order {
        Order {
            argv: vec![b"/bin/sh".to_vec(), b"-c".to_vec(), vec![0xff, b'\n', b' ']],
            env: vec![(b"A".to_vec(), b"multi\nline".to_vec()), (b"EMPTY".to_vec(), Vec::new())],
            cwd: b"/workspace".to_vec(),
            output: b"/out".to_vec(),
        }
    }

    #[test]
    fn a_word_is_read_back_as_it_was_and_only_whole() {
        let line = wire::word_line(&sample());
        assert_eq!(line[0], b'\n');
        let line = line.trim_ascii();
        assert_eq!(wire::parse_word(line), Some(sample()));
        for cut in 0..line.len() {
            assert_eq!(wire::parse_word(&line[..cut]), None, "a word cut at {cut} was taken");
            let mut harmed = line.to_vec();
            harmed[cut] ^= 1;
            assert_eq!(wire::parse_word(&harmed), None, "a word harmed at {cut} was taken");
        }
    }

    #[test]
    fn frames_of_a_new_sender_are_found_after_a_cut_one() {
        let mut whole = Vec::new();
        wire::frame(&mut whole, 1, Kind::Data, &[&[b'M'; 1000]]);
        for cut in [1, 3, 19, 20, 21, 500, 1019] {
            let mut frames = Frames::default();
            let mut stream = whole[..cut].to_vec();
            stream.extend(wire::opening(2));
            wire::frame(&mut stream, 2, Kind::Dir, &[b"x"]);
            for piece in stream.chunks(777) {
                frames.push(piece);
            }
            let mut seen = Vec::new();
            while let Some((header, _)) = frames.next() {
                if header.session == 2 {
                    seen.push(header.kind);
                }
            }
            assert_eq!(seen, [Kind::Open, Kind::Dir], "cut at {cut}");
        }
    }

    #[test]
    fn own_checksum_and_base64_agree_with_the_usual_ones() {
        use base64::Engine as _;
        for length in 0..70u8 {
            let bytes: Vec<u8> = (0..length).map(|n| n.wrapping_mul(37)).collect();
            assert_eq!(wire::base64(&bytes), base64::engine::general_purpose::STANDARD.encode(&bytes));
            assert_eq!(wire::crc32(&bytes), crc32fast::hash(&bytes));
        }
    }

    #[test]
    fn the_program_is_static_and_has_no_interpreter() {
        assert_eq!(&PROGRAM[..4], b"\x7fELF");
        let word =
            |at: usize, len: usize| PROGRAM[at..at + len].iter().rev().fold(0usize, |n, b| n << 8 | usize::from(*b));
        let (table, size, count) = (word(32, 8), word(54, 2), word(56, 2));
        for n in 0..count {
            let kind = word(table + n * size, 4);
            assert_ne!(kind, 3, "the helper asks for an interpreter");
            assert_ne!(kind, 2, "the helper is linked dynamically");
        }
    }
}
