//! What a source's file may say about its server, beyond what `backup::source::postgres` can do: nothing that leaves it to
//! chance whether the connection is encrypted, and no password as plain text.

use crate::backup::source::postgres::{Address, Host, Tls};
use std::net::IpAddr;

/// What is wrong with an address, and what to write. Neither holds a password.
pub(super) type Wrong = (String, String);

/// Reads an address.
pub(super) fn parse(text: &str) -> Result<Address, Wrong> {
    let address = Address::parse(text).map_err(|error| {
        let said = error.to_string();
        let (why, hint) = said.split_once("\nhint: ").unwrap_or((&said, ""));
        let why = why.strip_prefix("read the address of the server: ").unwrap_or(why);
        (why.to_owned(), hint.to_owned())
    })?;
    if matches!(address.tls, Tls::Allow | Tls::Prefer) && !address.hosts.iter().all(is_here) {
        return Err((
            "it leaves it to whoever is on the way whether the connection is encrypted".to_owned(),
            "write `?sslmode=verify-full`; where the network itself is trusted, `?sslmode=disable`".to_owned(),
        ));
    }
    Ok(address)
}

/// On this machine: nobody on the way can listen.
fn is_here(host: &Host) -> bool {
    match host {
        Host::Unix(..) => true,
        Host::Tcp(name, _) => name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
    }
}

/// Whether a password stands in the text of an address before anything is put in. `$${` is a plain `${`.
pub(super) fn has_plain_password(text: &str) -> bool {
    let plain = |password: &str| !password.is_empty() && !password.replace("$${", "").contains("${");
    let Some((_, rest)) = text.split_once("://") else { return false };
    let named = rest.split_once('?').into_iter().flat_map(|(_, query)| query.split('&'));
    if named.filter_map(|pair| pair.strip_prefix("password=")).any(plain) {
        return true;
    }
    let Some((who, _)) = rest.rsplit_once('@') else { return false };
    // A `:` inside `${...}` is none of the address.
    let mut depth = 0_u32;
    let colon = who.char_indices().find(|(_, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        *c == ':' && depth == 0
    });
    colon.is_some_and(|(at, _)| plain(&who[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_elsewhere_is_asked_over_tls_or_plainly_without() {
        for text in [
            "postgres://b@db?sslmode=verify-full",
            "postgres://b@db?sslmode=require",
            "postgres://b@db?sslmode=disable",
            "postgres://b@127.0.0.1:5433",
            "postgres://b@localhost,[::1]",
            "postgres://b@/?host=/run/postgresql",
        ] {
            assert!(parse(text).is_ok(), "{text}");
        }
        for text in ["postgres://b@db", "postgres://b@localhost,db", "postgres://b@10.0.0.1?sslmode=prefer"] {
            assert!(parse(text).unwrap_err().0.contains("on the way"), "{text}");
        }
        let (why, hint) = parse("postgres://b@db?sslmod=disable").unwrap_err();
        assert_eq!((why.starts_with("it has the parameter"), hint.as_str()), (true, "did you mean `sslmode`?"));
    }

    #[test]
    fn a_password_that_stands_in_the_text_is_found() {
        for (text, found) in [
            ("postgres://u:p@h", true),
            ("postgres://u:a${b@h", false),
            ("postgres://u:a$${b@h", true),
            ("postgres://u:${secret:X}@h", false),
            ("postgres://${secret:WHO}@h", false),
            ("postgres://${A}:p@h", true),
            ("postgres://u@h?password=p", true),
            ("postgres://u@h?password=${P}", false),
            ("postgres://u@h:1/x", false),
            ("postgres://u:@h", false),
            ("${secret:URL}", false),
        ] {
            assert_eq!(has_plain_password(text), found, "{text}");
        }
    }
}
