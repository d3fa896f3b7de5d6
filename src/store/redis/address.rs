//! Where a Redis is: one server, a master that sentinels name, or a cluster.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use redis::cluster::ClusterClient;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, TlsCertificates,
    TlsMode,
};

use super::OpenError;
use crate::key::Secret;

/// The schemes that name a Redis rather than a file.
const SCHEMES: [&str; 7] = [
    "redis",
    "rediss",
    "redis+unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
];

/// Whether a store is named by a URL of this module.
pub fn is_redis(store: &str) -> bool {
    store.split_once("://").is_some_and(|(scheme, _)| SCHEMES.contains(&scheme))
}

/// A URL without its user and password.
pub fn without_secrets(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.into() };
    // A password may hold an @, and may also be asked for behind a question mark.
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let rest = rest.split('?').next().unwrap_or_default();
    format!("{scheme}://{rest}")
}

/// An address, taken apart.
#[derive(Clone)]
pub(super) struct Address {
    /// How it is shown.
    shown: String,
    kind: Kind,
    nodes: Vec<ConnectionInfo>,
    is_tls: bool,
    authority: Option<Vec<u8>>,
}

#[derive(Clone)]
enum Kind {
    Single,
    /// The name of the master.
    Sentinel(String),
    Cluster,
}

/// What makes connections to an address.
pub(super) enum Connector {
    Single(Box<Client>),
    Sentinel(Box<SentinelClient>),
    Cluster(Box<ClusterClient>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Address {
    /// Reads a URL; `password` stands in for one that it lacks.
    ///
    /// # Errors
    ///
    /// [`OpenError`], when it names nothing that can be connected to, or the file of the
    /// certificate authority cannot be read.
    pub(super) fn read(
        url: &str,
        password: Option<&Secret>,
        ca_file: Option<&Path>,
    ) -> Result<Self, OpenError> {
        let shown = without_secrets(url);
        let bad = |why: &str| {
            OpenError(format!(
                "the store \"{shown}\" cannot be used: {why}; give it as redis://host:6379, \
                 rediss://, redis+unix:///path, redis+sentinel://host:26379/master or \
                 redis+cluster://host:6379,host:6379"
            ))
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("it is no URL"))?;
        let (base, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        let (base, rest, kind) = match kind {
            "sentinel" => {
                let (hosts, path) = rest.split_once('/').ok_or_else(|| bad("no master's name"))?;
                let (master, db) = path.split_once('/').unwrap_or((path, ""));
                if master.is_empty() {
                    return Err(bad("no master's name"));
                }
                (base, format!("{hosts}/{db}"), Kind::Sentinel(master.into()))
            }
            "cluster" => (base, rest.to_owned(), Kind::Cluster),
            _ => (scheme, rest.to_owned(), Kind::Single),
        };
        let nodes = Self::nodes(base, &rest, &kind)
            .into_iter()
            .map(|node| node.as_str().into_connection_info())
            .collect::<Result<Vec<_>, _>>()
            // The library's words may hold the URL.
            .map_err(|_| bad("a part of it cannot be read"))?;
        let nodes = nodes
            .into_iter()
            .map(|node| {
                let mut settings = node.redis_settings().clone();
                settings = settings.set_protocol(ProtocolVersion::RESP3);
                if let (None, Some(password)) = (settings.password(), password) {
                    settings = settings.set_password(password.expose());
                }
                node.set_redis_settings(settings)
            })
            .collect();
        let authority = ca_file
            .map(|path| {
                std::fs::read(path).map_err(|error| {
                    OpenError(format!(
                        "the file of redis_ca_file, {}, cannot be read ({error}): give the \
                         certificate authority's certificate as PEM",
                        path.display()
                    ))
                })
            })
            .transpose()?;
        Ok(Self { shown, kind, nodes, is_tls: base == "rediss", authority })
    }

    /// The URL of each node. Nodes are separated by commas and share all else.
    fn nodes(base: &str, rest: &str, kind: &Kind) -> Vec<String> {
        if matches!(kind, Kind::Single) {
            return vec![format!("{base}://{rest}")];
        }
        // Sentinels are asked without TLS and without the password of the server they name.
        let base = if matches!(kind, Kind::Sentinel(_)) { "redis" } else { base };
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => (format!("{user}@"), rest),
            None => (String::new(), rest),
        };
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        hosts.split(',').map(|host| format!("{base}://{user}{host}/{path}")).collect()
    }

    /// Whether the way to it leaves this machine.
    pub(super) fn is_remote(&self) -> bool {
        let is_local = |node: &ConnectionInfo| match node.addr() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => {
                let host = host.trim_matches(['[', ']']);
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
            ConnectionAddr::Unix(_) => true,
            _ => false,
        };
        !self.nodes.iter().all(is_local)
    }

    /// Whether it is used with a password.
    pub(super) fn has_password(&self) -> bool {
        self.nodes.iter().any(|node| node.redis_settings().password().is_some())
    }

    /// What makes connections.
    ///
    /// # Errors
    ///
    /// [`OpenError`], when the address or the certificate is not usable.
    pub(super) fn connector(
        &self,
        timeouts: (std::time::Duration, std::time::Duration),
    ) -> Result<Connector, OpenError> {
        self.build(timeouts).map_err(|error| {
            OpenError(format!("the store \"{}\" cannot be used: {error}; check it", self.shown))
        })
    }

    fn build(
        &self,
        (connect, answer): (std::time::Duration, std::time::Duration),
    ) -> redis::RedisResult<Connector> {
        let certificates = self.authority.as_ref().map(|authority| TlsCertificates {
            client_tls: None,
            root_cert: Some(authority.clone()),
        });
        let settings = self.nodes[0].redis_settings().clone();
        Ok(match &self.kind {
            Kind::Single => {
                let node = self.nodes[0].clone();
                Connector::Single(Box::new(match certificates {
                    Some(certificates) => Client::build_with_tls(node, certificates)?,
                    None => Client::open(node)?,
                }))
            }
            Kind::Sentinel(master) => {
                let addresses = self.nodes.iter().map(|node| node.addr().clone());
                let mut builder = SentinelClientBuilder::new(
                    addresses.collect::<Vec<_>>(),
                    master,
                    SentinelServerType::Master,
                )?
                .set_client_to_redis_protocol(ProtocolVersion::RESP3)
                .set_client_to_redis_db(settings.db());
                if let Some(user) = settings.username() {
                    builder = builder.set_client_to_redis_username(user);
                }
                if let Some(password) = settings.password() {
                    builder = builder.set_client_to_redis_password(password);
                }
                if self.is_tls {
                    builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
                    if let Some(certificates) = certificates {
                        builder = builder.set_client_to_redis_certificates(certificates);
                    }
                }
                Connector::Sentinel(Box::new(builder.build()?))
            }
            Kind::Cluster => {
                let mut builder = ClusterClient::builder(self.nodes.clone())
                    // Only we know what may be repeated.
                    .retries(0)
                    .use_protocol(ProtocolVersion::RESP3)
                    .connection_timeout(connect)
                    .response_timeout(answer);
                if self.is_tls {
                    builder = builder.tls(TlsMode::Secure);
                    if let Some(certificates) = certificates {
                        builder = builder.certs(certificates);
                    }
                }
                Connector::Cluster(Box::new(builder.build()?))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Address, OpenError> {
        Address::read(url, None, None)
    }

    #[test]
    fn a_shown_address_has_no_secrets() {
        for (url, shown) in [
            ("redis://user:p@ss@db.example:6379/2", "redis://db.example:6379/2"),
            ("rediss://:secret@10.0.0.1", "rediss://10.0.0.1"),
            ("redis+unix:///run/redis.sock?pass=secret", "redis+unix:///run/redis.sock"),
            ("redis+cluster://u:secret@a:1,b:2", "redis+cluster://a:1,b:2"),
            ("farebox-data/farebox.db", "farebox-data/farebox.db"),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
        let Err(error) = read("redis://user:secret@host:notaport") else { panic!("it was read") };
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn every_kind_of_address_is_read() {
        let one = read("redis://user:secret@127.0.0.1:6380/3").unwrap();
        assert!(!one.is_remote() && one.has_password());
        assert_eq!(one.nodes[0].redis_settings().db(), 3);
        assert!(!read("redis+unix:///run/redis.sock").unwrap().is_remote());
        assert!(read("rediss://db.example").unwrap().is_remote());

        let sentinel = read("redis+sentinel://:secret@127.0.0.1:26379,[::1]:26380/main/1").unwrap();
        assert!(matches!(&sentinel.kind, Kind::Sentinel(master) if master == "main"));
        assert_eq!(sentinel.nodes.len(), 2);
        assert!(sentinel.has_password() && !sentinel.is_remote());

        let cluster = read("rediss+cluster://127.0.0.1:7001,db.example:7002").unwrap();
        assert!(matches!(cluster.kind, Kind::Cluster) && cluster.is_tls && cluster.is_remote());
        for url in ["redis+sentinel://127.0.0.1", "redis+sentinel://127.0.0.1/", "redis+other://a"]
        {
            assert!(read(url).is_err(), "{url}");
        }
        let (given, password) = ("redis://127.0.0.1", Secret::new("secret"));
        assert!(Address::read(given, Some(&password), None).unwrap().has_password());
    }
}
