//! A mail server that keeps what it is given, over real sockets and real TLS.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::until;

/// How connections begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    Starttls,
    Implicit,
}

/// A mail as it was given.
#[derive(Clone, Debug, Default)]
pub struct Mail {
    pub from: String,
    pub to: String,
    /// Headers and text.
    pub data: String,
    /// What came with `AUTH`, if anything did.
    pub auth: Option<String>,
    pub encrypted: bool,
}

struct State {
    tls: Tls,
    acceptor: TlsAcceptor,
    refusals: Mutex<usize>,
    mails: Mutex<Vec<Mail>>,
    attempts: Mutex<usize>,
}

/// A running mail server. It ends with its test.
pub struct Mailbox {
    port: u16,
    dir: TempDir,
    state: Arc<State>,
}

impl Mailbox {
    pub async fn start(tls: Tls) -> Self {
        let dir = TempDir::new().unwrap();
        let (cert, key) = certificate(dir.path());
        let config = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(cert).unwrap()],
                PrivateKeyDer::from_pem_file(key).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            tls,
            acceptor: TlsAcceptor::from(Arc::new(config)),
            refusals: Mutex::new(0),
            mails: Mutex::default(),
            attempts: Mutex::new(0),
        });
        let serving = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(serving.clone(), stream));
            }
        });
        Self { port, dir, state }
    }

    /// `localhost:PORT`
    pub fn address(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// The certificate that it is known by.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    /// Refuses the next mails for now.
    pub fn refuse(&self, n: usize) {
        *self.state.refusals.lock().unwrap() = n;
    }

    /// Mails that were given, taken or not.
    pub fn attempts(&self) -> usize {
        *self.state.attempts.lock().unwrap()
    }

    pub fn mails(&self) -> Vec<Mail> {
        self.state.mails.lock().unwrap().clone()
    }

    /// Waits for so many mails.
    pub async fn received(&self, n: usize) -> Vec<Mail> {
        until("mail", || async { Some(self.mails()).filter(|mails| mails.len() >= n) }).await
    }
}

/// A certificate for `localhost`, made now.
fn certificate(dir: &Path) -> (PathBuf, PathBuf) {
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-out")
        .arg(&cert)
        .arg("-keyout")
        .arg(&key)
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (cert, key)
}

trait Line: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Line for T {}

async fn serve(state: Arc<State>, stream: TcpStream) -> Option<()> {
    let implicit = state.tls == Tls::Implicit;
    let mut line: BufStream<Box<dyn Line>> = if implicit {
        BufStream::new(Box::new(state.acceptor.accept(stream).await.ok()?))
    } else {
        BufStream::new(Box::new(stream))
    };
    let mut mail = Mail { encrypted: implicit, ..Mail::default() };
    say(&mut line, "220 here").await?;
    loop {
        let mut text = String::new();
        if line.read_line(&mut text).await.ok()? == 0 {
            return None;
        }
        let (verb, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        match verb.to_uppercase().as_str() {
            "EHLO" if state.tls == Tls::Starttls && !mail.encrypted => {
                say(&mut line, "250-here\r\n250 STARTTLS").await?;
            }
            "EHLO" => say(&mut line, "250-here\r\n250 AUTH PLAIN").await?,
            "STARTTLS" => {
                say(&mut line, "220 go on").await?;
                let plain = line.into_inner();
                line = BufStream::new(Box::new(state.acceptor.accept(plain).await.ok()?));
                mail.encrypted = true;
            }
            "AUTH" => {
                mail.auth = Some(rest.to_owned());
                say(&mut line, "235 welcome").await?;
            }
            "MAIL" => {
                mail.from = rest.to_owned();
                say(&mut line, "250 ok").await?;
            }
            "RCPT" => {
                mail.to = rest.to_owned();
                say(&mut line, "250 ok").await?;
            }
            "DATA" => {
                *state.attempts.lock().unwrap() += 1;
                let refused = {
                    let mut refusals = state.refusals.lock().unwrap();
                    let refused = *refusals > 0;
                    *refusals = refusals.saturating_sub(1);
                    refused
                };
                if refused {
                    say(&mut line, "451 not now").await?;
                    continue;
                }
                say(&mut line, "354 go on").await?;
                mail.data = String::new();
                loop {
                    let mut text = String::new();
                    line.read_line(&mut text).await.ok()?;
                    if text.trim_end() == "." {
                        break;
                    }
                    mail.data.push_str(&text);
                }
                state.mails.lock().unwrap().push(mail.clone());
                say(&mut line, "250 taken").await?;
            }
            "QUIT" => return say(&mut line, "221 bye").await,
            _ => say(&mut line, "250 ok").await?,
        }
    }
}

async fn say(line: &mut BufStream<Box<dyn Line>>, text: &str) -> Option<()> {
    line.write_all(format!("{text}\r\n").as_bytes()).await.ok()?;
    line.flush().await.ok()
}
