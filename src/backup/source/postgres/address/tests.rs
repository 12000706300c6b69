//! Addresses as people write them.

use super::*;

#[test]
fn addresses_are_read_as_libpq_reads_them() {
    let full = "postgresql://ba%40ck:p%3Aw%25d@db1:5433,[2001:db8::1],%2Fvar%2Frun/shop%20db?sslmode=verify-full\
                &sslrootcert=/etc/ca.pem&connect_timeout=3&target_session_attrs=read-write&application_name=m&channel_binding=require";
    let address = Address::parse(full).unwrap();
    assert_eq!(
        address.hosts,
        [Host::Tcp("db1".into(), 5433), Host::Tcp("2001:db8::1".into(), 5432), Host::Unix("/var/run".into(), 5432)]
    );
    assert_eq!((address.user.as_str(), address.password.as_ref().unwrap().expose()), ("ba@ck", "p:w%d"));
    assert_eq!((address.database(), address.tls), ("shop db", Tls::VerifyFull));
    assert_eq!(address.roots, Roots::File("/etc/ca.pem".into()));
    assert_eq!((address.connect_timeout, address.target), (Duration::from_secs(3), Target::Primary));
    assert_eq!((address.application_name.as_str(), address.channel_binding), ("m", ChannelBinding::Require));
    assert!(!format!("{address} {address:?}").contains("p:w%d"));

    let socket = Address::parse("postgres://b@/?host=/tmp/pg,/tmp/pg2&port=1,2").unwrap();
    assert_eq!(socket.hosts, [Host::Unix("/tmp/pg".into(), 1), Host::Unix("/tmp/pg2".into(), 2)]);
    assert_eq!((socket.tls, socket.database()), (Tls::Prefer, "postgres"));
    assert_eq!(Address::parse("postgres://b@").unwrap().hosts, [Host::Unix("/var/run/postgresql".into(), 5432)]);
    assert_eq!(Address::parse("postgres://b@h?sslrootcert=system").unwrap().tls, Tls::VerifyFull);
    assert_eq!(Address::parse("postgres://b@h?sslmode=require").unwrap().tls, Tls::Require);
}

#[test]
fn what_is_no_address_is_refused_without_the_password() {
    for (text, part) in [
        ("mysql://b@h", "does not begin"),
        ("b@h", "does not begin"),
        ("postgres://h/db", "names no role"),
        ("postgres://b:s3cret@h:0", "a port"),
        ("postgres://b:s3cret@h:70000", "a port"),
        ("postgres://b:s3c@s3cret:x@h", ""),
        ("postgres://b:s3cret@h:5432x", "a port"),
        ("postgres://b:s3cret%zz@h", "password has a `%`"),
        ("postgres://b:s3cret%00@h", "NUL"),
        ("postgres://b:s3cret@[::1", "no `]`"),
        ("postgres://b:s3cret@[nope]:1", "no IPv6"),
        ("postgres://b:s3cret@::1:5432", "more than one `:`"),
        ("postgres://b:s3cret#@h", "#"),
        ("postgres://b:s3cret@h?sslmod=require", "did you mean `sslmode`"),
        ("postgres://b:s3cret@h?sslcert=x", "means nothing here"),
        ("postgres://b:s3cret@h?keepalives=1", "known are"),
        ("postgres://b:s3cret@h?sslmode=full", "sslmode is one of"),
        ("postgres://b:s3cret@h?sslmode=verify-ca", "proves nothing"),
        ("postgres://b:s3cret@h?sslmode=require&sslrootcert=system", "proves nothing"),
        ("postgres://b:s3cret@h?connect_timeout=0", "connect_timeout"),
        ("postgres://b:s3cret@h,i?port=1,2,3", "more or fewer ports"),
        ("postgres://b:s3cret@h?sslmode", "no `=`"),
        ("postgres://b:s3cret@a b", "characters"),
    ] {
        let Err(error) = Address::parse(text) else {
            // An `@` that was not escaped may be a part of the password: the last one counts.
            assert_eq!(part, "", "{text} was taken");
            continue;
        };
        let said = error.to_string();
        assert!(said.contains(part), "{text}: {said}");
        assert!(!said.contains("s3cret") && said.contains("\nhint: "), "{said}");
    }
    assert!(Address::parse(&format!("postgres://{}@h", "b".repeat(64))).is_err());
}

proptest::proptest! {
    #[test]
    fn no_text_breaks_it(text in "(postgres://)?[ -~é]{0,60}") {
        let _ = Address::parse(&text);
    }
}
