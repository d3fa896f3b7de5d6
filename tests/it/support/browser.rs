//! A real browser: Debian's Chromium, driven through chromedriver.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use fantoccini::key::Key;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::Call;
use super::{PATIENCE, until, within};

/// A browser window with a profile of its own. It ends with its test.
pub struct Browser {
    pub client: Client,
    driver: Child,
    driver_url: String,
    session: String,
    profile: TempDir,
}

impl Browser {
    /// Opens a window, 1280 wide.
    pub async fn open() -> Self {
        let profile = TempDir::new().unwrap();
        let mut driver = Command::new("chromedriver")
            .args(["--port=0", "--allowed-ips=127.0.0.1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver runs: install chromium and chromium-driver, as ./test does");
        let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines
            .map_while(Result::ok)
            .find_map(|line| {
                let (_, port) = line.split_once("successfully on port ")?;
                Some(port.trim_end_matches('.').to_owned())
            })
            .expect("chromedriver says its port");
        let mut capabilities = serde_json::Map::new();
        let profile_arg = format!("--user-data-dir={}", profile.path().display());
        let options = json!({ "args": [
            "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
            "--hide-scrollbars", "--force-color-profile=srgb", "--window-size=1280,900",
            "--disable-background-networking", "--no-first-run", profile_arg,
        ], "prefs": { "download.default_directory": profile.path().join("downloads") } });
        capabilities.insert("goog:chromeOptions".into(), options);
        capabilities.insert("goog:loggingPrefs".into(), json!({ "browser": "ALL" }));
        let url = format!("http://127.0.0.1:{port}");
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let client =
            within("a browser", builder.capabilities(capabilities).connect(&url)).await.unwrap();
        let session = client.session_id().await.unwrap().expect("the driver began a session");
        Self { client, driver, driver_url: url, session, profile }
    }

    /// What the browser noted since the last call: errors of scripts, what the policy refused,
    /// what could not be loaded. Its hints to developers aside.
    pub async fn console(&self) -> Vec<String> {
        let notes = self.tell("se/log", &json!({ "type": "browser" })).await;
        let notes = notes["value"].as_array().unwrap().clone();
        let grave = notes.into_iter().filter(|note| note["level"] != "DEBUG");
        grave.map(|note| note["message"].as_str().unwrap().to_owned()).collect()
    }

    /// Takes the network away, or gives it back.
    pub async fn set_offline(&self, offline: bool) {
        let conditions = json!({ "offline": offline, "latency": 0, "throughput": -1 });
        let body = json!({ "network_conditions": conditions });
        self.tell("chromium/network_conditions", &body).await;
    }

    /// Waits for a file that the browser was given to keep.
    pub async fn downloaded(&self) -> (String, Vec<u8>) {
        until("a file", || async {
            let files = std::fs::read_dir(self.profile.path().join("downloads")).ok()?;
            let whole = |path: &std::path::PathBuf| {
                path.extension().is_none_or(|end| end != "crdownload" && end != "tmp")
            };
            let file = files.map(|file| file.unwrap().path()).find(whole)?;
            let name = file.file_name()?.to_str()?.to_owned();
            // The name is there a moment before the whole of it.
            let bytes = std::fs::read(file).ok().filter(|bytes| !bytes.is_empty())?;
            (!name.starts_with('.')).then_some((name, bytes))
        })
        .await
    }

    /// Asks the driver for what is not in the common part of WebDriver.
    async fn tell(&self, what: &str, body: &Value) -> Value {
        let url = format!("{}/session/{}/{what}", self.driver_url, self.session);
        Call::post(url, body).reply().await.expect(200).json()
    }

    pub async fn goto(&self, url: &str) {
        within("a page", self.client.goto(url)).await.unwrap();
    }

    /// The path and query that the window shows.
    pub async fn path(&self) -> String {
        let url = self.client.current_url().await.unwrap().to_string();
        let host = url.find("://").unwrap() + 3;
        url[host + url[host..].find('/').unwrap()..].to_owned()
    }

    /// The first element that a selector finds, once it is there.
    pub async fn find(&self, css: &str) -> fantoccini::elements::Element {
        until(css, || async { self.client.find(Locator::Css(css)).await.ok() }).await
    }

    /// The text of an element, once it is there.
    pub async fn text(&self, css: &str) -> String {
        until(css, || async { self.client.find(Locator::Css(css)).await.ok()?.text().await.ok() })
            .await
    }

    /// Waits until an element's text satisfies a condition.
    pub async fn until_text(&self, css: &str, is: impl Fn(&str) -> bool) -> String {
        until(css, || async {
            let text = self.client.find(Locator::Css(css)).await.ok()?.text().await.ok()?;
            is(&text).then_some(text)
        })
        .await
    }

    /// Presses keys wherever the focus is.
    pub async fn press(&self, keys: &str) {
        // A page that is just being replaced takes none.
        until("an element that takes keys", || async {
            self.client.active_element().await.ok()?.send_keys(keys).await.ok()
        })
        .await;
    }

    /// Walks by Tab until a selector matches what has the focus.
    pub async fn tab_to(&self, css: &str) {
        for _ in 0..150 {
            self.press(&Key::Tab.to_string()).await;
            let found = self.eval("return document.activeElement.matches(arguments[0])", css).await;
            if found == json!(true) {
                return;
            }
        }
        panic!("Tab never reaches {css}");
    }

    /// The value of a script, which has one argument.
    pub async fn eval(&self, script: &str, argument: impl Into<Value>) -> Value {
        self.client.execute(script, vec![argument.into()]).await.unwrap()
    }

    pub async fn resize(&self, width: u32, height: u32) {
        self.client.set_window_size(width, height).await.unwrap();
    }
}

impl Browser {
    /// Tells the driver to end the browser, and waits for its answer.
    fn end(&self) -> std::io::Result<()> {
        let address = self.driver_url.trim_start_matches("http://");
        let mut driver = TcpStream::connect(address)?;
        driver.set_read_timeout(Some(PATIENCE))?;
        let session = &self.session;
        let close = "Connection: close\r\nContent-Length: 0";
        write!(driver, "DELETE /session/{session} HTTP/1.1\r\nHost: {address}\r\n{close}\r\n\r\n")?;
        // The answer may come on a connection that stays open: one piece of it is enough.
        driver.read(&mut [0; 512]).map(drop)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // A browser outlives a driver that is killed, so it is ended first; a driver that is
        // gone already has no browser.
        let _ = self.end();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
