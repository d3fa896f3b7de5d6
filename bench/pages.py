#!/usr/bin/env python3
"""How long the billing pages take over one account with a million requests in 90 days.

  python3 pages.py FAREBOX [--store FILE|redis://…] [--rows 1000000]

Fills the store first, by the program `fill` of this package, unless it was filled before; without
--store that is a file of its own. Prints a table: the first answer after a start (cold), then the
median and the 95th percentile of pages and of the API, and the CPU that one takes, Farebox's and
the Redis server's together, which does not care how busy the machine is; the first paint in
Chromium (chromedriver); and what the pages load, compressed.
"""
import argparse, gzip, json, os, pathlib, re, secrets, shutil, signal, socket, subprocess, sys
import tempfile, time
import urllib.error, urllib.parse, urllib.request

HERE = pathlib.Path(__file__).parent
PAGES = ["wallet", "costs?range=90d", "costs?by=key&range=90d", "costs?by=upstream&range=90d",
         "spending?range=90d", "spending?range=24h", "usage?range=90d",
         "usage?range=90d&outcome=upstream_cut", "usage?range=90d&model=m3&tag=rare",
         "usage?range=90d&rows=500", "transactions?range=90d", "transactions?view=hour&range=90d",
         "transactions?view=day&range=90d", "heartbeats", "keys", "settings", "report"]
API = ["", "/usage?limit=100", "/usage?limit=500&model=m3", "/usage/summary?by=model&{90d}",
       "/usage/summary?by=key&{90d}", "/usage/summary?by=upstream&{90d}",
       "/usage/summary?by=day&tz=Europe/Berlin&{90d}",
       "/usage/summary?by=day&model=m3&tz=Asia/Kathmandu&{90d}",
       "/usage/summary?by=model&outcome=upstream_cut&{90d}", "/usage/heartbeats", "/ledger?limit=500",
       "/lots"]
PAINT = """const done = arguments[0], paint = () => {
  const first = performance.getEntriesByName('first-contentful-paint')[0];
  if (!first) return setTimeout(paint, 20);
  const loaded = performance.getEntriesByType('resource').map((one) => one.name);
  done([first.startTime, loaded.filter((one) => new URL(one).origin !== location.origin).length]);
}; paint();"""


class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def fetch(url, headers=None, data=None):
    """The answer to one request, and how long it took in milliseconds."""
    request = urllib.request.Request(url, data, headers or {})
    began = time.perf_counter()
    try:
        answer = urllib.request.build_opener(Stay).open(request, timeout=120)
    except urllib.error.HTTPError as error:
        answer = error
    body = answer.read()
    return answer, body, (time.perf_counter() - began) * 1000


def quantile(values, part):
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


class Farebox:
    """The program on a store, and a session of the operator."""

    def __init__(self, program, store, folder):
        self.store = store
        self.key = "fbx_admin_" + secrets.token_hex(24)
        (folder / "farebox.toml").write_text('[[upstream]]\nname = "openai"\nkind = "openai"\n'
                                             'base_url = "http://127.0.0.1:9/v1"\n')
        env = {"PATH": os.environ["PATH"], "HOME": str(folder), "FAREBOX_STORE": store,
               "FAREBOX_CONFIG": str(folder / "farebox.toml"), "FAREBOX_LISTEN": "127.0.0.1:0",
               "FAREBOX_ADMIN_LISTEN": "127.0.0.1:0", "FAREBOX_ADMIN_KEY": self.key,
               "FAREBOX_PRICING": str(HERE / "../pricing.toml"), "OPENAI_API_KEY": "none",
               "FAREBOX_REDIS_ALLOW_UNSAFE": "true"}
        self.process = subprocess.Popen([program, "serve"], env=env, cwd=folder, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.url = ""
        for line in self.process.stdout:
            if found := re.search(r"control plane on (http://\S+)", line):
                self.url = found[1]
                break
        if not self.url:
            sys.exit("farebox did not start")
        form = urllib.parse.urlencode({"key": self.key}).encode()
        answer, _, _ = fetch(self.url + "/sign-in", {"Sec-Fetch-Site": "same-origin"}, form)
        self.cookie = answer.headers["Set-Cookie"].split(";")[0]

    def page(self, path):
        answer, body, took = fetch(self.url + path, {"Cookie": self.cookie + "; farebox_zone=Europe/Berlin"})
        assert answer.status == 200, (path, answer.status, body[:300])
        return body, took

    def api(self, path):
        answer, body, took = fetch(self.url + path, {"Authorization": f"Bearer {self.key}"})
        assert answer.status == 200, (path, answer.status, body[:300])
        return body, took

    def cpu(self):
        """What it and its Redis have used so far, in milliseconds."""
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        used = sum(map(int, stat[11:13])) * 1000 / os.sysconf("SC_CLK_TCK")
        if "://" in self.store:
            info = subprocess.check_output(["redis-cli", "-u", self.store, "INFO", "cpu"], text=True)
            used += 1000 * sum(map(float, re.findall(r"used_cpu_(?:sys|user):([\d.]+)", info)))
        return used

    def end(self):
        self.process.terminate()
        self.process.wait()


class Chromium:
    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # A group of its own: what it starts ends with it.
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}"],
                                       stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            self.begin(port)
        except BaseException:
            self.end()
            raise

    def begin(self, port):
        self.url = f"http://127.0.0.1:{port}/session"
        for _ in range(100):
            try:
                fetch(f"http://127.0.0.1:{port}/status")
                break
            except urllib.error.URLError:
                time.sleep(.1)
        args = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"]
        ask = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": args}}}}
        self.url += "/" + self.ask("", ask)["sessionId"]

    def ask(self, path, body):
        data = json.dumps(body).encode()
        _, answer, _ = fetch(self.url + path, {"Content-Type": "application/json"}, data)
        return json.loads(answer)["value"]

    def paint(self, url):
        self.ask("/url", {"url": url})
        return self.ask("/execute/async", {"script": PAINT, "args": []})

    def end(self):
        os.killpg(self.driver.pid, signal.SIGTERM)
        self.driver.wait()


def times(farebox, name, ask, often):
    _, cold = ask(name)
    used = farebox.cpu()
    warm = [ask(name)[1] for _ in range(often)]
    return cold, quantile(warm, .5), quantile(warm, .95), (farebox.cpu() - used) / often


def assets(farebox):
    body, _ = farebox.page("/billing/a0/wallet")
    names = set(re.findall(rb'(?:href|src)="([^"]*/assets/[^"]+)"', body))
    files = [farebox.page(name.decode())[0] for name in names]
    return len(files), sum(map(len, files)), sum(len(gzip.compress(file)) for file in files)


def fill(store, rows):
    """A million requests, settled by the store itself."""
    build = ["cargo", "run", "--release", "--features", "store", "--bin", "fill", "--"]
    subprocess.run([*build, "--store", store, "--rows", str(rows)], cwd=HERE, check=True)


def measure(farebox, browser, often):
    now = int(time.time())
    day = lambda ago: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - ago * 86_400))
    span = f"since={day(90)}&until={day(0)}"
    print("| page | cold ms | p50 ms | p95 ms | CPU ms | first paint ms |\n|---|--:|--:|--:|--:|--:|")
    browser.ask("/url", {"url": farebox.url + "/sign-in"})
    name, value = farebox.cookie.split("=", 1)
    browser.ask("/cookie", {"cookie": {"name": name, "value": value, "path": "/"}})
    foreign, row = 0, farebox.page("/billing/a0/usage")[0]
    one = re.search(rb'href="(/billing/a0/usage/[^"]+)"', row)[1].decode().replace("&amp;", "&")
    for path in [*(f"/billing/a0/{page}" for page in PAGES), one]:
        cold, p50, p95, used = times(farebox, path, farebox.page, often)
        paints = [browser.paint(farebox.url + path) for _ in range(5)]
        foreign += sum(others for _, others in paints)
        name = "one request" if path == one else path.removeprefix("/billing/a0/")
        paint = quantile([paint for paint, _ in paints], .5)
        print(f"| {name} | {cold:.0f} | {p50:.0f} | {p95:.0f} | {used:.0f} | {paint:.0f} |")
    print("\n| API | cold ms | p50 ms | p95 ms | CPU ms |\n|---|--:|--:|--:|--:|")
    for path in API:
        full = "/admin/v1/accounts/a0" + path.replace("{90d}", span)
        cold, p50, p95, used = times(farebox, full, farebox.api, often)
        name = path.replace("{90d}", "90 days") or "the account"
        print(f"| {name} | {cold:.0f} | {p50:.0f} | {p95:.0f} | {used:.0f} |")
    count, plain, packed = assets(farebox)
    print(f"\n{count} assets: {plain:,} bytes, {packed:,} compressed; {foreign} requests to other origins")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("farebox")
    ap.add_argument("--rows", type=int, default=1_000_000)
    ap.add_argument("--store")
    ap.add_argument("--times", type=int, default=30)
    a = ap.parse_args()
    # Whoever ends us by a signal ends what we started too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="farebox-pages-"))
    store = a.store or str(folder / "farebox.db")
    started = []
    try:
        fill(store, a.rows)
        started.append(Farebox(os.path.abspath(a.farebox), store, folder))
        started.append(Chromium())
        measure(*started, a.times)
    finally:
        for one in reversed(started):
            one.end()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
