//! A real browser: Debian's Chromium, driven through chromedriver.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use fantoccini::key::Key;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{until, within};

/// A browser window with a profile of its own. It ends with its test.
pub struct Browser {
    pub client: Client,
    driver: Child,
    _profile: TempDir,
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
        ] });
        capabilities.insert("goog:chromeOptions".into(), options);
        let url = format!("http://127.0.0.1:{port}");
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let client =
            within("a browser", builder.capabilities(capabilities).connect(&url)).await.unwrap();
        Self { client, driver, _profile: profile }
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
        self.client.active_element().await.unwrap().send_keys(keys).await.unwrap();
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

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends the browser too: it is the driver's own child, and told to go.
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
