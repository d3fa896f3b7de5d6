"""What the client tests stand on: the scripted upstream, Farebox, its accounts, and a tap.

Everything runs as a process of its own and is spoken to over loopback sockets on free ports.
Logs stay in the folder CLIENTS_DIR for whoever has to look into a failure.
"""

import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from decimal import Decimal
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Where the packages are installed and the logs go.
CLIENTS_DIR = Path(os.environ.get("CLIENTS_DIR", ROOT / "target" / "clients"))
FAREBOX_BIN = Path(os.environ.get("FAREBOX_BIN", ROOT / "target" / "debug" / "farebox"))

UPSTREAM_KEY = "sk-the-upstreams-own"
ADMIN_KEY = "fbx-admin-for-the-client-tests"
START_SECONDS = 30
STOP_SECONDS = 30

# What every answer of the scripted upstream costs by `pricing.toml`.
PRICE = Decimal("0.3")

BILLING_URL = "https://pay.example/credits"


def fresh_folder(name):
    """An empty folder for one test's files and logs."""
    folder = CLIENTS_DIR / "run" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def get_json(url, *, method="GET", body=None, headers=None, timeout=30):
    """The JSON answer of an HTTP request; an error status raises with the body in its text."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        error.msg = f"{error.msg}: {error.read().decode(errors='replace')}"
        raise


def environment(extra):
    """Our environment with the pinned Node.js first on the path, and `extra`.

    Without the settings and keys that whoever runs the tests may have for the same programs.
    """
    ours = ("FAREBOX_", "OPENAI_", "ANTHROPIC_", "OPENCLAW_", "N8N_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(ours) and "_API_KEY" not in name
    }
    path = f"{CLIENTS_DIR / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "NO_PROXY": "127.0.0.1", **extra}


def refusal(balance):
    """What a client must be told when its credits are used up.

    Word for word: OpenClaw decides by these words whether it shows the text and calls again.
    """
    return (
        f"Usage limit reached: prepaid credits are used up (balance {balance}). "
        f"Add credits at {BILLING_URL} and send again; requests resume at once. "
        "(Prepaid quota, not a monthly limit.)"
    )


class Process:
    """A server in a process group of its own, with its output in a file."""

    def __init__(self, command, *, log, env=None):
        self.log = Path(log)
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(env or {}),
                start_new_session=True,
            )

    def wait_for(self, mark, seconds=START_SECONDS):
        """What follows `mark` on the first line that has it; without one, the process ends."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            running = self.process.poll() is None
            whole_lines = self.log.read_text(errors="replace").split("\n")[:-1]
            for line in whole_lines:
                if mark in line:
                    return line.split(mark, 1)[1].strip()
            if not running:
                break
            time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"no line with {mark!r} in {self.log}:\n{self.tail()}")

    def tail(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def stop(self):
        """Ends the group: a client may be a launcher that has started the real program."""
        self.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self.signal(0) and time.monotonic() < deadline:
            self.process.poll()
            time.sleep(0.05)
        self.signal(signal.SIGKILL)
        self.process.wait()

    def signal(self, number):
        """Signals the group; whether there was anyone left in it."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return False
        return True


class Upstream(Process):
    """The scripted upstream (`upstream.py`)."""

    def __init__(self, folder):
        super().__init__(
            [sys.executable, HERE / "upstream.py"],
            log=folder / "upstream.log",
            env={"UPSTREAM_KEY": UPSTREAM_KEY},
        )
        self.url = self.wait_for("listening on ")

    def ledger(self):
        """Every request it answered, oldest first."""
        return get_json(f"{self.url}/__ledger")


class Farebox(Process):
    """The proxy in front of the scripted upstream, on an empty store."""

    def __init__(self, folder, upstream):
        (folder / "farebox.toml").write_text(
            f"""
            billing_url = "{BILLING_URL}"

            [[upstream]]
            name = "scripted-openai"
            kind = "openai"
            base_url = "{upstream.url}/v1"
            api_key_env = "UPSTREAM_KEY"

            [[upstream]]
            name = "scripted-anthropic"
            kind = "anthropic"
            base_url = "{upstream.url}"
            api_key_env = "UPSTREAM_KEY"
            """
        )
        super().__init__(
            [FAREBOX_BIN, "serve"],
            log=folder / "farebox.log",
            env={
                "FAREBOX_LISTEN": "127.0.0.1:0",
                "FAREBOX_ADMIN_LISTEN": "127.0.0.1:0",
                "FAREBOX_CONFIG": str(folder / "farebox.toml"),
                "FAREBOX_PRICING": str(HERE / "pricing.toml"),
                "FAREBOX_STORE": str(folder / "farebox.db"),
                "FAREBOX_ADMIN_KEY": ADMIN_KEY,
                "UPSTREAM_KEY": UPSTREAM_KEY,
            },
        )
        self.url = f"http://{self.wait_for('listening on http://')}"
        self.admin_url = f"http://{self.wait_for('control plane on http://')}"

    def admin(self, method, path, body=None, **headers):
        headers = {"authorization": f"Bearer {ADMIN_KEY}", **headers}
        url = f"{self.admin_url}/admin/v1/{path}"
        return get_json(url, method=method, body=body, headers=headers)

    def account(self, credits):
        """A new account with a key and this many credits (a decimal string)."""
        account = Account(self, f"acct-{uuid.uuid4().hex[:12]}")
        self.admin("POST", "accounts", {"id": account.id, "name": account.id})
        path = f"accounts/{account.id}/keys"
        account.key = self.admin("POST", path, {"name": "test"})["key"]
        account.credit(credits)
        return account


class Account:
    """An account, through the control plane."""

    def __init__(self, farebox, account_id):
        self.farebox = farebox
        self.id = account_id
        self.key = None

    def credit(self, amount):
        """Adds credits, or takes them if the amount is negative."""
        kind = "adjust" if Decimal(amount) < 0 else "topup"
        body = {"kind": kind, "amount": str(amount), "note": "client test"}
        once = {"Idempotency-Key": uuid.uuid4().hex}
        self.farebox.admin("POST", f"accounts/{self.id}/credits", body, **once)

    def set_balance(self, balance):
        """Sets the balance, below zero if asked."""
        if change := Decimal(balance) - self.balance():
            self.credit(str(change))

    def balance(self):
        return Decimal(self.farebox.admin("GET", f"accounts/{self.id}")["balance"])

    def usage(self):
        """The usage rows (a test makes few: they fit one page)."""
        return self.farebox.admin("GET", f"accounts/{self.id}/usage")["data"]


class Tap:
    """Passes a client's bytes on to Farebox and notes the requests that went by.

    A client waits for the answer before it sends its next request on a connection, so a request
    line is always at the start of what arrives.
    """

    METHODS = (b"GET ", b"POST ", b"PUT ", b"DELETE ", b"HEAD ", b"OPTIONS ")

    def __init__(self, target):
        host, port = target.removeprefix("http://").split(":")
        self.requests = []
        tap = self

        class Relay(socketserver.BaseRequestHandler):
            def handle(self):
                with socket.create_connection((host, int(port))) as proxy:
                    threading.Thread(
                        target=copy, args=(proxy, self.request), daemon=True
                    ).start()
                    copy(self.request, proxy, tap.note)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 64

        self.server = Server(("127.0.0.1", 0), Relay)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def note(self, data):
        if data.startswith(self.METHODS):
            method, path, _ = data.split(b" ", 2)
            self.requests.append(f"{method.decode()} {path.decode()}")

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def copy(source, target, note=lambda data: None):
    """Copies one direction of a connection until it ends, and passes the end on."""
    try:
        while data := source.recv(65536):
            note(data)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # The other side has closed: the connection is over.


class Stack:
    """Upstream, Farebox and the tap in front of it, for one test class."""

    def __init__(self, name):
        self.folder = fresh_folder(name)
        self.parts = []
        try:
            self.upstream = self.started(Upstream(self.folder))
            self.farebox = self.started(Farebox(self.folder, self.upstream))
            self.tap = self.started(Tap(self.farebox.url))
        except BaseException:
            self.stop()
            raise

    def started(self, part):
        self.parts.append(part)
        return part

    def stop(self):
        for part in reversed(self.parts):
            part.stop()
