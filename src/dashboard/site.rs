//! Where people reach the pages.

/// The address of the pages, as a browser sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Scheme, host and port.
    pub origin: String,
    /// The path before every page, without a slash at its end; empty at the root.
    pub base: String,
    /// The base URL that clients send requests to, with `/v1`.
    pub inference: String,
}

impl Site {
    /// Of the public address, such as `https://bill.example.com/farebox`.
    pub fn new(url: &str, inference: &str) -> Self {
        let url = url.trim_end_matches('/');
        let host = url.find("://").map_or(0, |at| at + 3);
        let path = url[host..].find('/').map_or(url.len(), |at| host + at);
        Self {
            origin: url[..path].to_owned(),
            base: url[path..].to_owned(),
            inference: inference.to_owned(),
        }
    }

    /// Whether browsers come over TLS.
    pub fn is_secure(&self) -> bool {
        self.origin.starts_with("https://")
    }

    /// The host that browsers name, without its port.
    pub fn host(&self) -> &str {
        let host = self.origin.split("://").nth(1).unwrap_or_default();
        match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        }
    }

    /// The whole address of a page.
    pub fn url(&self, path: &str) -> String {
        format!("{}{}{path}", self.origin, self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_cut_into_origin_and_path() {
        let site = Site::new("https://bill.example.com:8443/farebox/", "");
        assert_eq!(
            (site.origin.as_str(), site.base.as_str()),
            ("https://bill.example.com:8443", "/farebox")
        );
        assert_eq!((site.host(), site.is_secure()), ("bill.example.com", true));
        assert_eq!(site.url("/sign-in"), "https://bill.example.com:8443/farebox/sign-in");
        let plain = Site::new("http://127.0.0.1:8081", "");
        assert_eq!(
            (plain.base.as_str(), plain.host(), plain.is_secure()),
            ("", "127.0.0.1", false)
        );
    }
}
