//! Whether a text is the public key of an age identity: `age1` and 58 signs, of which the last six catch slips of the hand.
//!
//! Only the form is looked at; `backup::seal` encrypts. Source of the form: the age format (C2SP `age.md`, "The X25519
//! recipient type") and BIP 173 for the encoding.

/// What is in front of the separator `1`.
const PREFIX: &str = "age";
/// A public key has 32 bytes: 52 signs of five bits, the last with four bits to spare.
const DATA_SIGNS: usize = 52;
/// What the encoding adds to find errors.
const CHECK_SIGNS: usize = 6;
/// What each sign stands for, by its position.
const SIGNS: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";

/// Says what keeps a text from being a recipient; never repeats it, for it may be an identity.
pub(super) fn check(text: &str) -> Result<(), &'static str> {
    if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
        return Err("is an identity, the secret half: whoever has it reads every backup");
    }
    let Some(data) = text.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('1')) else {
        return Err("does not begin with `age1`");
    };
    if data.len() != DATA_SIGNS + CHECK_SIGNS {
        return Err("has another length than a recipient: `age1` and 58 signs");
    }
    let value = |sign: u8| SIGNS.iter().position(|known| *known == sign).map(|at| at as u8);
    let Some(values) = data.bytes().map(value).collect::<Option<Vec<u8>>>() else {
        return Err("holds a sign that no recipient has");
    };
    if checksum(&values) != 1 || values[DATA_SIGNS - 1] & 0b1111 != 0 {
        return Err("is mistyped: its last six signs do not fit the others");
    }
    Ok(())
}

/// The checksum of BIP 173 over the prefix and all signs; 1 when nothing was changed.
fn checksum(values: &[u8]) -> u32 {
    const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
    let prefix = PREFIX.bytes().map(|b| b >> 5).chain([0]).chain(PREFIX.bytes().map(|b| b & 31));
    prefix.chain(values.iter().copied()).fold(1, |sum, value| {
        let shifted = (sum & 0x1ff_ffff) << 5 ^ u32::from(value);
        let bits = (0..5).filter(|bit| sum >> (25 + bit) & 1 == 1);
        bits.fold(shifted, |sum, bit| sum ^ GENERATOR[bit])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both stand in the README of age.
    const KNOWN: [&str; 2] = [
        "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p",
        "age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg",
    ];

    #[test]
    fn recipients_are_told_from_everything_else() {
        for text in KNOWN {
            assert_eq!(check(text), Ok(()), "{text}");
        }
        let long = "q".repeat(100_000);
        for (text, why) in [
            ("", "begin with `age1`"),
            ("ssh-ed25519 AAAA", "begin with `age1`"),
            ("AGE1QL3Z7HJY54PW3HYWW5AYYFG7ZQGVC7W3J2ELW8ZMRJ2KG5SFN9AQMCAC8P", "begin with `age1`"),
            ("age1ql3z7", "another length"),
            ("age1yubikey1q2w7u3vpya839jxxuq8g0sedh3d740d4xvn639sqhr95ejj8vu3hyfumptt", "another length"),
            (&format!("age1{long}"), "another length"),
            ("age1bl3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p", "a sign that no"),
            ("AGE-SECRET-KEY-1QQQQ", "the secret half"),
            ("age-secret-key-1qqqq", "the secret half"),
        ] {
            let said = check(text).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn any_one_sign_that_is_changed_is_found() {
        for at in 4..KNOWN[0].len() {
            let mut bytes = KNOWN[0].as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'q' { b'p' } else { b'q' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(check(&changed).unwrap_err().contains("mistyped"), "{changed}");
        }
    }
}
