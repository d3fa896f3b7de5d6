// What pages do while they are looked at: follow the account, keys, colours. Everything can be
// read without it. What the server renders is never put together here: a page that is out of
// date is read again and its live parts are taken over as they are.
"use strict";
(() => {
  const body = document.body;
  const base = body.dataset.base ?? "";
  const byId = (id) => document.getElementById(id);
  const say = (text) => { const region = byId("say"); if (region) region.textContent = text; };
  const setCookie = (name, value) => {
    const secure = location.protocol === "https:" ? "; Secure" : "";
    document.cookie = `${name}=${encodeURIComponent(value)}; Path=/; SameSite=Strict; Max-Age=31536000${secure}`;
  };
  const cookie = (name) => document.cookie.split("; ").find((pair) => pair.startsWith(`${name}=`));

  // The browser's time zone, told once; afterwards it is the viewer's choice.
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  if (zone && !cookie("farebox_zone")) {
    setCookie("farebox_zone", zone);
    const other = "zone" in body.dataset && body.dataset.zone !== zone;
    if (other && !("zoneFixed" in body.dataset) && cookie("farebox_zone")) location.reload();
  }

  // Colours: system, light, dark.
  const theme = byId("theme");
  if (theme) {
    const names = ["system", "light", "dark"];
    theme.hidden = false;
    theme.addEventListener("click", () => {
      const root = document.documentElement;
      const next = names[(names.indexOf(root.dataset.theme) + 1) % names.length];
      root.dataset.theme = next;
      byId("theme-name").textContent = next;
      setCookie("farebox_theme", next);
    });
  }

  // On a phone the menu begins closed.
  const menu = document.querySelector(".menu");
  if (menu && matchMedia("(max-width: 820px)").matches) menu.open = false;

  // Live: a word that changes with the account is asked for; then the page is read again.
  // A page that a form answered with is read again where it can be asked for.
  const again = body.dataset.again ?? location.href;
  const PERIOD_MS = 3000;
  const FETCH_LIMIT_MS = 10000;
  const age = byId("age");
  let fresh = Date.now();
  let failed = false;
  let failedSince = 0;
  let spoke = 0;
  const clock = (at) => new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false, timeZone: body.dataset.zone });
  const showAge = () => {
    // Figures that may be old step back, and say of when they are.
    body.classList.toggle("stale", failed);
    if (!age) return;
    const seconds = Math.round((Date.now() - fresh) / 1000);
    const text = age.lastElementChild;
    age.classList.toggle("live", !failed && seconds < 15);
    age.classList.toggle("off", failed);
    text.textContent = failed ? `no answer since ${clock(failedSince)}, figures of ${clock(fresh)}; trying again`
      : seconds < 15 ? "live" : `updated ${seconds} s ago`;
  };
  // A document that is parsed this way runs nothing.
  const read = (url) => new Promise((done, fail) => {
    const request = new XMLHttpRequest();
    request.open("GET", url);
    request.responseType = "document";
    request.timeout = FETCH_LIMIT_MS;
    request.onload = () => (request.status === 200 && request.responseXML ? done(request.responseXML) : fail());
    request.onerror = request.ontimeout = fail;
    request.send();
  });
  const takeOver = (page) => {
    for (const old of document.querySelectorAll("[data-live]")) {
      const next = page.getElementById(old.id);
      if (!next || old.contains(document.activeElement) && old !== document.activeElement) continue;
      old.replaceWith(document.importNode(next, true));
    }
    body.dataset.version = page.body.dataset.version ?? "";
    countNewer(page);
    const balance = document.querySelector(".glance-balance .amount");
    if (balance && Date.now() - spoke > 10000) { spoke = Date.now(); say(`Balance ${balance.textContent} credits`); }
    document.dispatchEvent(new CustomEvent("farebox:fresh"));
  };
  // Rows of a list never move by themselves: how many are newer is said, and shown on demand.
  let newer = null;
  const countNewer = (page) => {
    const list = document.querySelector("[data-newest]");
    const other = page.querySelector("[data-newest]");
    const button = byId("newer");
    if (!list || !other || !button) return;
    const known = list.dataset.newest;
    const rows = [...other.querySelectorAll("[data-row]")];
    const at = rows.findIndex((row) => row.dataset.row === known);
    const count = at < 0 ? rows.length : at;
    newer = page;
    button.hidden = count === 0;
    button.textContent = `${at < 0 ? "More than " : ""}${count} new — show`;
  };
  document.addEventListener("click", (event) => {
    if (event.target.id !== "newer" || !newer) return;
    const list = document.querySelector("[data-newest]");
    list.replaceWith(document.importNode(newer.querySelector("[data-newest]"), true));
    event.target.hidden = true;
    say("New rows are shown");
  });
  const look = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(body.dataset.liveUrl, { credentials: "same-origin", redirect: "manual", signal: AbortSignal.timeout(FETCH_LIMIT_MS) });
      if (answer.type === "opaqueredirect") { location.reload(); return; }
      if (!answer.ok) throw new Error(String(answer.status));
      const { version } = await answer.json();
      if (version !== body.dataset.version) takeOver(await read(again));
      if (failed) say("Connected again");
      fresh = Date.now();
      failed = false;
    } catch {
      if (!failed) { failedSince = Date.now(); say("No answer: the figures may be old"); }
      failed = true;
    }
    showAge();
  };
  if (body.dataset.liveUrl) {
    const loop = async () => { await look(); setTimeout(loop, failed ? 2 * PERIOD_MS : PERIOD_MS); };
    loop();
    setInterval(showAge, 1000);
    document.addEventListener("visibilitychange", look);
  }

  // How a cost comes about: beside the list instead of on a page of its own.
  document.addEventListener("click", async (event) => {
    const link = event.target.closest?.("a[data-drawer]");
    const drawer = byId("drawer");
    if (!link || !drawer || event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
    event.preventDefault();
    try {
      const page = await read(link.href);
      byId("drawer-body").replaceChildren(document.importNode(page.getElementById("explain"), true));
      drawer.showModal();
    } catch { location.href = link.href; }
  });

  // Copy what a button names.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copy]");
    if (!button) return;
    const from = byId(button.dataset.copy);
    const text = from ? from.textContent : button.dataset.copy;
    try {
      await navigator.clipboard.writeText(text);
      const label = button.textContent;
      button.textContent = "Copied";
      say("Copied");
      setTimeout(() => { button.textContent = label; }, 1500);
    } catch { say("Copying is not allowed here: select the text and copy it"); }
  });

  document.addEventListener("click", (event) => { if (event.target.closest?.("[data-print]")) print(); });

  // Filters that are chosen by a pointer need no button. By keys, each arrow is a choice already,
  // so those wait for the button.
  let byKey = false;
  document.addEventListener("keydown", () => { byKey = true; }, true);
  document.addEventListener("pointerdown", () => { byKey = false; }, true);
  document.addEventListener("change", (event) => {
    if (!byKey && event.target.matches?.("form[data-auto] select, form[data-auto] input[type=checkbox]")) event.target.form.requestSubmit();
  });

  // Keys.
  let afterG = false;
  document.addEventListener("keydown", (event) => {
    if ("noShortcuts" in body.dataset || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches?.("input, select, textarea, [contenteditable]") || document.querySelector("dialog[open]")) return;
    const key = event.key;
    if (afterG) {
      afterG = false;
      const link = document.querySelector(`.side nav a[data-key="${CSS.escape(key)}"]`);
      if (link) { event.preventDefault(); link.click(); }
      return;
    }
    if (key === "g") { afterG = true; setTimeout(() => { afterG = false; }, 1500); }
    if (key === "?") { event.preventDefault(); byId("keys")?.showModal(); }
    if (key === "/") {
      const first = document.querySelector("[data-filter] input, [data-filter] select");
      if (first) { event.preventDefault(); first.focus(); }
    }
    if (key === "t") { const twin = document.querySelector("details.twin"); if (twin) { twin.open = !twin.open; twin.querySelector("summary").focus(); } }
  });

  // Charts: one tab stop, arrows walk along the points, a note says what is under the pointer.
  const points = (chart) => [...chart.querySelectorAll("a.point")];
  const prepare = () => {
    for (const chart of document.querySelectorAll(".chart")) {
      points(chart).forEach((point, at, all) => point.setAttribute("tabindex", at === all.length - 1 ? "0" : "-1"));
    }
  };
  prepare();
  document.addEventListener("farebox:fresh", prepare);
  document.addEventListener("keydown", (event) => {
    const point = event.target.closest?.("a.point");
    if (!point) return;
    const all = points(point.closest(".chart"));
    const at = all.indexOf(point);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined || !all[to]) return;
    event.preventDefault();
    point.setAttribute("tabindex", "-1");
    all[to].setAttribute("tabindex", "0");
    all[to].focus();
  });
  const note = (event) => {
    const point = event.target.closest?.("a.point");
    if (!point) return;
    const out = point.closest(".chart").querySelector(".tip");
    if (out) out.textContent = point.getAttribute("aria-label");
  };
  document.addEventListener("focusin", note);
  document.addEventListener("pointerover", note);
})();
