//! What is true of every page, whatever it shows: it fits its window, breaks no rule of
//! accessibility, and the browser has nothing to complain about.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::browser::Browser;

/// Widths of phones, tablets and desks. 640 is a desk's window of 1280 at a zoom of 200 %, 900 the
/// narrowest that has the menu at its side.
pub const WIDTHS: [u32; 6] = [320, 360, 640, 768, 900, 1280];

/// What sticks out of the window sideways, and text that is cut off.
const MISFITS: &str = "
    const root = document.documentElement, wide = root.clientWidth, found = [];
    if (root.scrollWidth > wide) found.push(`the page is ${root.scrollWidth} wide`);
    for (const one of document.body.querySelectorAll('*')) {
        // These scroll by themselves, or are for readers alone.
        if (one.closest('.away, .scroll, .skip, pre, svg, input, select, thead, dialog:not([open]), details:not([open]) > :not(summary)')) continue;
        const box = one.getBoundingClientRect(), style = getComputedStyle(one);
        if (!box.width || !box.height) continue;
        const name = `${one.tagName}.${one.className} ${one.textContent.slice(0, 60)}`;
        if (box.right > wide + 1 || box.left < -1) found.push(`sticks out: ${name}`);
        const cuts = style.overflowX !== 'visible' && style.textOverflow !== 'ellipsis';
        if (cuts && one.scrollWidth > one.clientWidth + 1) found.push(`is cut: ${name}`);
    }
    return found.slice(0, 5);";

/// Keeps pictures of the whole page, on a phone and on a desk, in the folder that
/// `FAREBOX_SCREENSHOTS` names, if somebody wants to look at it.
pub async fn keep_pictures(browser: &Browser, what: &str) {
    let Some(folder) = std::env::var_os("FAREBOX_SCREENSHOTS").map(PathBuf::from) else { return };
    std::fs::create_dir_all(&folder).unwrap();
    let words: Vec<_> =
        what.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    for width in [390, 1280] {
        browser.resize(width, 900).await;
        // As a phone opens it: a page that is made narrow keeps its menu.
        let menu = "const menu = document.querySelector('.menu');
            if (menu) menu.open = arguments[0]";
        browser.eval(menu, width > 820).await;
        let height =
            browser.eval("return document.documentElement.scrollHeight", json!(null)).await;
        let height = u32::try_from(height.as_u64().unwrap()).unwrap();
        // The browser's own bar is a part of the window.
        browser.resize(width, (height + 150).clamp(700, 5000)).await;
        let picture = browser.client.screenshot().await.unwrap();
        std::fs::write(folder.join(format!("{}-{width}.png", words.join("-"))), picture).unwrap();
    }
    browser.resize(1280, 900).await;
}

/// Keeps a picture of what a window shows at first, for the README.
pub async fn keep_for_readme(browser: &Browser, name: &str) {
    let Some(folder) = std::env::var_os("FAREBOX_SCREENSHOTS").map(PathBuf::from) else { return };
    std::fs::create_dir_all(&folder).unwrap();
    browser.eval("document.documentElement.dataset.theme = 'light'", json!(null)).await;
    browser.resize(1280, 1000).await;
    let picture = browser.client.screenshot().await.unwrap();
    std::fs::write(folder.join(format!("readme-{name}.png")), picture).unwrap();
}

/// What was found wrong, each with the page on which it was.
#[derive(Default)]
pub struct Faults(Vec<String>);

impl Faults {
    fn expect(&mut self, what: &str, found: &Value, expected: &Value) {
        if found != expected {
            self.0.push(format!("{what}: {found}, not {expected}"));
        }
    }

    /// A script that is run on the page answers what it should.
    pub async fn seen(&mut self, browser: &Browser, what: &str, script: &str, expected: &Value) {
        let found = browser.eval(script, json!(null)).await;
        self.expect(what, &found, expected);
    }

    /// No sideways scroll and nothing clipped, in every width.
    pub async fn fits(&mut self, browser: &Browser, what: &str) {
        for width in WIDTHS {
            browser.resize(width, 900).await;
            self.seen(browser, &format!("{what} at {width}"), MISFITS, &json!([])).await;
        }
    }

    /// No rule of axe is broken, in both colours.
    pub async fn accessible(&mut self, browser: &Browser, what: &str) {
        let axe =
            concat!(env!("CARGO_MANIFEST_DIR"), "/target/browser/node_modules/axe-core/axe.min.js");
        let axe =
            std::fs::read_to_string(axe).expect("axe-core: tests/browser/install.sh installs it");
        browser
            .client
            .execute(&format!("window.axe ?? (() => {{ {axe} }})()"), vec![])
            .await
            .unwrap();
        for theme in ["light", "dark"] {
            browser.eval("document.documentElement.dataset.theme = arguments[0]", theme).await;
            let run = "const done = arguments[arguments.length - 1];
                window.axe.run().then((all) => done(all.violations.map((found) =>
                    found.id + ': ' + found.nodes.map((node) => node.html).slice(0, 3).join(' | '))));";
            keep_pictures(browser, &format!("{what} {theme}")).await;
            let found = browser.client.execute_async(run, vec![]).await.unwrap();
            self.expect(&format!("{what} in {theme}"), &found, &json!([]));
        }
    }

    /// Nothing that a stranger named has run, no script failed, the policy refused nothing.
    pub async fn quiet(&mut self, browser: &Browser, what: &str) {
        let ran = "return [window.ran ?? null, document.querySelectorAll('main img').length]";
        self.seen(browser, what, ran, &json!([null, 0])).await;
        self.expect(what, &json!(browser.console().await), &json!([]));
    }

    /// There are none.
    pub fn assert_none(&self) {
        assert!(self.0.is_empty(), "{} faults:\n{}", self.0.len(), self.0.join("\n"));
    }
}
