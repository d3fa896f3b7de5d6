//! Mails alerts by the operator's mail server.

use std::path::PathBuf;
use std::time::Duration;

use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use serde::{Deserialize, Serialize};

use super::webhook::Undelivered;
use crate::config::Config;

/// Longest wait for one answer of the mail server.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest time for a whole mail.
const WHOLE: Duration = Duration::from_secs(20);

/// How a connection to the mail server is encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SmtpTls {
    /// It begins in the clear and must be encrypted before anything is said (port 587).
    #[default]
    Starttls,
    /// From its first byte (port 465).
    Implicit,
    /// Not at all: for a server on this machine.
    None,
}

/// A mail server that is ready to be called.
pub struct Mailer {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
}

impl Mailer {
    /// Prepares it by the settings; none if there is no mail server. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// What is wrong with the settings, and what to do.
    pub fn new(config: &Config) -> Result<Option<Self>, String> {
        if config.smtp_server.is_empty() {
            return Ok(None);
        }
        let (host, port) = config
            .smtp_server
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)))
            .filter(|(host, _)| !host.is_empty())
            .ok_or("smtp_server must be such as mail.example.com:587")?;
        let from: Mailbox = config
            .smtp_from
            .parse()
            .map_err(|_| "smtp_from must be a mail address such as farebox@example.com")?;
        let is_here = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
        let tls = match config.smtp_tls {
            SmtpTls::Starttls => Tls::Required(parameters(host, &config.smtp_ca_file)?),
            SmtpTls::Implicit => Tls::Wrapper(parameters(host, &config.smtp_ca_file)?),
            SmtpTls::None if is_here => Tls::None,
            SmtpTls::None => {
                return Err("smtp_tls is \"none\", which is only for a mail server on this \
                            machine: use \"starttls\" or \"implicit\""
                    .into());
            }
        };
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
            .port(port)
            .tls(tls)
            .timeout(Some(PATIENCE));
        match (config.smtp_user.as_str(), &config.smtp_password) {
            ("", _) => {}
            (user, Some(password)) => {
                let credentials = Credentials::new(user.into(), password.expose().into());
                builder = builder.credentials(credentials);
            }
            (_, None) => {
                return Err("smtp_user is set without a password: set FAREBOX_SMTP_PASSWORD or \
                            FAREBOX_SMTP_PASSWORD_FILE"
                    .into());
            }
        }
        Ok(Some(Self { transport: builder.build(), from }))
    }

    /// Sends a text. `id` becomes that of the mail, so that a copy is known as one.
    ///
    /// # Errors
    ///
    /// [`Undelivered::Mail`], unless the server took it.
    pub async fn send(
        &self,
        to: &str,
        id: &str,
        subject: &str,
        text: String,
    ) -> Result<(), Undelivered> {
        let refused = |why: &str| Undelivered::Mail(why.to_owned());
        let to: Mailbox = to.parse().map_err(|_| refused("this is not a mail address"))?;
        let domain = self.from.email.domain();
        let mail = Message::builder()
            .from(self.from.clone())
            .to(to)
            .subject(subject)
            .message_id(Some(format!("<{id}@{domain}>")))
            .header(ContentType::TEXT_PLAIN)
            .body(text)
            .map_err(|_| refused("the mail could not be written"))?;
        match tokio::time::timeout(WHOLE, self.transport.send(mail)).await {
            Ok(Ok(_)) => Ok(()),
            Err(_) => Err(refused("the mail server did not answer in time")),
            Ok(Err(error)) => {
                tracing::debug!("a mail was not taken: {error}");
                Err(match error.status() {
                    Some(code) => Undelivered::Mail(format!("the mail server answered {code}")),
                    None if error.is_timeout() => refused("the mail server did not answer in time"),
                    None => refused("the mail server could not be reached"),
                })
            }
        }
    }
}

/// Whether a text is one mail address.
pub fn is_address(text: &str) -> bool {
    text.len() <= 254 && text.parse::<Address>().is_ok()
}

fn parameters(host: &str, ca_file: &PathBuf) -> Result<TlsParameters, String> {
    let mut builder = TlsParameters::builder(host.to_owned());
    if !ca_file.as_os_str().is_empty() {
        let problem = |why: String| format!("smtp_ca_file {}: {why}", ca_file.display());
        let pem = std::fs::read(ca_file).map_err(|error| problem(error.to_string()))?;
        let authority = Certificate::from_pem(&pem)
            .map_err(|_| problem("holds no certificate in PEM".into()))?;
        builder = builder.add_root_certificate(authority);
    }
    builder.build().map_err(|error| format!("TLS for the mail server cannot be set up: {error}"))
}
