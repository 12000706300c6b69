//! What tells libpq where the server is. Source: the manual's section "Environment Variables" of libpq. No I/O.

use crate::backup::source::postgres::{Address, ChannelBinding, Host, Target, Tls};

/// A file that can never be there: libpq says nothing of it, and does not look into the home folder instead.
pub(super) const NOWHERE: &str = "/dev/null/none";

/// The variables but for the password. Nothing is taken from files that lie around: where to sign in is said in one place.
pub(super) fn variables(address: &Address, passwords: &str, roots: Option<String>) -> Vec<(String, String)> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for host in &address.hosts {
        match host {
            Host::Tcp(name, port) => {
                hosts.push(name.clone());
                ports.push(port.to_string());
            }
            Host::Unix(folder, port) => {
                hosts.push(folder.display().to_string());
                ports.push(port.to_string());
            }
        }
    }
    let mode = match address.tls {
        Tls::Disable => "disable",
        Tls::Allow => "allow",
        Tls::Prefer => "prefer",
        Tls::Require => "require",
        Tls::VerifyCa => "verify-ca",
        Tls::VerifyFull => "verify-full",
    };
    let binding = match address.channel_binding {
        ChannelBinding::Disable => "disable",
        ChannelBinding::Prefer => "prefer",
        ChannelBinding::Require => "require",
    };
    let target = match address.target {
        Target::Any => "any",
        Target::Primary => "read-write",
        Target::Standby => "standby",
        Target::PreferStandby => "prefer-standby",
    };
    let variables = [
        ("PGHOST", hosts.join(",")),
        ("PGPORT", ports.join(",")),
        ("PGUSER", address.user.clone()),
        ("PGSSLMODE", mode.to_owned()),
        ("PGCHANNELBINDING", binding.to_owned()),
        ("PGTARGETSESSIONATTRS", target.to_owned()),
        ("PGCONNECT_TIMEOUT", address.connect_timeout.as_secs().max(2).to_string()),
        ("PGAPPNAME", address.application_name.clone()),
        ("PGPASSFILE", passwords.to_owned()),
        // A file in the home folder of whoever runs this must not change what `require` means.
        ("PGSSLROOTCERT", roots.unwrap_or_else(|| NOWHERE.to_owned())),
        ("LC_ALL", "C".to_owned()),
    ];
    variables.map(|(name, value)| (name.to_owned(), value)).into()
}

/// The name of a database as a connection string, so that no character of it means anything else.
pub(in crate::backup::logical) fn database(name: &str) -> String {
    format!("dbname='{}'", name.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A line of a password file for every server and role. `None` when none can hold the password. Source: the manual's section
/// "The Password File".
pub(super) fn password_line(password: &str) -> Option<String> {
    // A file ends a line at either, and C a text at the third.
    let fits = !password.contains(['\n', '\r', '\0']);
    fits.then(|| format!("*:*:*:*:{}\n", password.replace('\\', "\\\\").replace(':', "\\:")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_said_by_the_environment_alone() {
        let text =
            "postgres://u%20x:p%27w@a:1,[::1]/d?sslmode=verify-ca&target_session_attrs=primary&sslrootcert=/ca.pem";
        let address = Address::parse(text).unwrap();
        let variables = variables(&address, NOWHERE, Some("/ca.pem".into()));
        let of = |name| variables.iter().find(|(one, _)| one == name).map(|(_, value)| value.as_str());
        assert_eq!((of("PGHOST"), of("PGPORT"), of("PGUSER")), (Some("a,::1"), Some("1,5432"), Some("u x")));
        assert_eq!((of("PGSSLMODE"), of("PGSSLROOTCERT")), (Some("verify-ca"), Some("/ca.pem")));
        assert_eq!((of("PGPASSFILE"), of("PGTARGETSESSIONATTRS")), (Some(NOWHERE), Some("read-write")));
        assert!(variables.iter().all(|(_, value)| !value.contains("p'w")));
        assert_eq!(database(r"it's \ one"), r"dbname='it\'s \\ one'");
    }

    #[test]
    fn a_password_is_a_line_of_its_file() {
        assert_eq!(password_line(r" it's: a \ 'pass'  ").unwrap(), "*:*:*:*: it's\\: a \\\\ 'pass'  \n");
        assert_eq!(password_line("#ä").unwrap(), "*:*:*:*:#ä\n");
        assert!(["a\nb", "a\r", "a\0b"].into_iter().all(|password| password_line(password).is_none()));
    }
}
