//! Which broker, and how to speak to it: the parsed address, without ever printing its password.

use std::path::{Path, PathBuf};

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};

use crate::error::{Error, Result};
use crate::transport::Settings;

/// Bytes of a frame. Fixed: with 0 lapin takes whatever the broker likes.
const FRAME_BYTES_MAX: u32 = 131_072;

/// A broker by its address, with the settings to speak to it.
pub(super) struct Broker {
    pub(super) uri: AMQPUri,
    pub(super) tls: OwnedTLSConfig,
    pub(super) settings: Settings,
    /// `amqp://host:port/vhost`, for logs and errors.
    pub(super) place: String,
}

impl Broker {
    /// Takes the address apart and reads the certificate files.
    ///
    /// # Errors
    /// [`Kind::Config`](crate::error::Kind::Config) for an address or a file that is not one.
    pub(super) fn new(url: &str, settings: &Settings) -> Result<Self> {
        // The parser's own errors quote the address, password included.
        let mut uri: AMQPUri = url.parse().map_err(|_| {
            Error::config(
                "the broker's address is not of the form `amqp://user:password@host:port/vhost`; \
                 special characters in its parts are percent-encoded (`/` is `%2f`)",
            )
        })?;
        // lapin takes an IPv6 address for no host at all, and would go to localhost.
        if let Some(address) = ipv6_host(url) {
            uri.authority.host = address;
        }
        if uri.vhost.is_empty() {
            uri.vhost = "/".to_owned(); // `amqp://host/`: nobody means the vhost named ""
        }
        uri.query.heartbeat.get_or_insert(settings.heartbeat_seconds);
        uri.query.frame_max.get_or_insert(FRAME_BYTES_MAX);
        let place = place(&uri);
        Ok(Self { tls: tls(settings)?, uri, settings: settings.clone(), place })
    }
}

/// The address between the brackets of `amqp://user@[::1]:5672/`.
fn ipv6_host(url: &str) -> Option<String> {
    let authority = url.split_once("://")?.1.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    Some(host.strip_prefix('[')?.split_once(']')?.0.to_owned())
}

fn place(uri: &AMQPUri) -> String {
    let scheme = match uri.scheme {
        AMQPScheme::AMQP => "amqp",
        AMQPScheme::AMQPS => "amqps",
    };
    let vhost = uri.vhost.replace('/', "%2f");
    let host = &uri.authority.host;
    let port = uri.authority.port;
    if host.contains(':') {
        format!("{scheme}://[{host}]:{port}/{vhost}")
    } else {
        format!("{scheme}://{host}:{port}/{vhost}")
    }
}

fn tls(settings: &Settings) -> Result<OwnedTLSConfig> {
    let cert_chain = match &settings.tls_ca_file {
        Some(file) => Some(String::from_utf8(read(file)?).map_err(|error| {
            Error::config(format!("`{}` is not PEM", file.display())).with_source(error)
        })?),
        None => None,
    };
    let identity = match (&settings.tls_certificate_file, &settings.tls_key_file) {
        (Some(pem), Some(key)) => Some(OwnedIdentity::PKCS8 { pem: read(pem)?, key: read(key)? }),
        (None, None) => None,
        _ => {
            return Err(Error::config(
                "`tls_certificate_file` and `tls_key_file` go together: give both or none",
            ));
        }
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}

fn read(file: &PathBuf) -> Result<Vec<u8>> {
    std::fs::read(Path::new(file)).map_err(|error| {
        Error::config(format!("could not read `{}`", file.display())).with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn broker(url: &str) -> Broker {
        Broker::new(url, &Settings::default()).unwrap()
    }

    #[test]
    fn a_place_names_host_port_and_vhost_and_no_user() {
        let place = broker("amqp://clinic:s3cret@broker.example:5673/tree").place;
        assert_eq!(place, "amqp://broker.example:5673/tree");
        assert_eq!(broker("amqp://localhost").place, "amqp://localhost:5672/%2f");
        assert_eq!(broker("amqps://h/a%2fb").place, "amqps://h:5671/a%2fb");
    }

    #[test]
    fn an_ipv6_address_is_the_host() {
        let broker = broker("amqp://u:p@[fe80::1]:5672/%2f");
        assert_eq!(broker.uri.authority.host, "fe80::1");
        assert_eq!(broker.place, "amqp://[fe80::1]:5672/%2f");
    }

    #[test]
    fn an_empty_vhost_is_the_default_one() {
        assert_eq!(broker("amqp://h/").uri.vhost, "/");
        assert_eq!(broker("amqp://h").uri.vhost, "/");
    }

    #[test]
    fn heartbeat_and_frame_size_are_fixed_unless_the_address_says_otherwise() {
        assert_eq!(broker("amqp://h").uri.query.heartbeat, Some(10));
        assert_eq!(broker("amqp://h?heartbeat=3").uri.query.heartbeat, Some(3));
        assert_eq!(broker("amqp://h").uri.query.frame_max, Some(FRAME_BYTES_MAX));
    }

    #[test]
    fn a_malformed_address_is_refused_without_its_password() {
        for url in [
            "amqp://u:s3cret@h:port/",
            "amqp:s3cret",
            "amqp://u:s3cret@[::1",
            "amqp://h?heartbeat=s3cret",
        ] {
            let error = Broker::new(url, &Settings::default()).err().unwrap();
            assert_eq!(error.kind(), Kind::Config, "{url}");
            assert!(!error.chain().contains("s3cret"), "{}", error.chain());
        }
    }

    #[test]
    fn a_certificate_without_its_key_is_refused() {
        let settings =
            Settings { tls_certificate_file: Some("cert.pem".into()), ..Settings::default() };
        let error = Broker::new("amqps://h", &settings).err().unwrap();
        assert_eq!(error.kind(), Kind::Config);
    }
}
