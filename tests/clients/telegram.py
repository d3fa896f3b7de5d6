"""A stand-in for Telegram's bot API: what one person writes to a bot, and what they see.

OpenClaw shows an error to a person by rules of its own, unlike what it logs or answers to a
program, so the tests read it where a person would.
"""

import html
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

BOT = {"id": 123456, "is_bot": True, "first_name": "Bot", "username": "farebox_test_bot"}
PERSON = {"id": 777, "is_bot": False, "first_name": "Pat", "username": "pat"}
CHAT = {"id": 777, "type": "private", "first_name": "Pat"}
# A long poll without news is answered after this time.
POLL_SECONDS = 5

SHOWING = {"sendMessage", "editMessageText"}


class Telegram:
    """A chat between one person and the bot."""

    token = "123456:token-of-the-stand-in"

    def __init__(self):
        self.updates = []
        self.shown = []
        self.news = threading.Condition()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def write(self, text):
        """The person writes to the bot."""
        command = text.split()[0]
        entity = {"type": "bot_command", "offset": 0, "length": len(command)}
        with self.news:
            self.shown.clear()
            number = len(self.updates) + 1
            message = {
                "message_id": 2 * number,
                "date": int(time.time()),
                "chat": CHAT,
                "from": PERSON,
                "text": text,
                "entities": [entity] if command.startswith("/") else [],
            }
            self.updates.append({"update_id": number, "message": message})
            self.news.notify_all()

    def wait_until_shown(self, pattern, seconds):
        """The first text of the bot that matches, among those since the person last wrote."""
        with self.news:
            match = self.news.wait_for(lambda: self.match(pattern), seconds)
            if match:
                return match
            raise AssertionError(f"the bot showed {self.shown}, nothing like {pattern!r}")

    def match(self, pattern):
        return next((text for text in self.shown if re.search(pattern, text)), None)

    def call(self, method, arguments):
        """The result of one method of the bot API."""
        if method == "getMe":
            return BOT
        if method == "getUpdates":
            return self.poll(int(arguments.get("offset") or 0))
        if method in SHOWING:
            with self.news:
                self.shown.append(visible(arguments))
                self.news.notify_all()
            number = int(arguments.get("message_id") or 1_000_000 + len(self.shown))
            return {"message_id": number, "date": int(time.time()), "chat": CHAT, "from": BOT}
        if method == "getChat":
            return CHAT
        return True

    def poll(self, offset):
        def new():
            return [update for update in self.updates if update["update_id"] >= offset]

        with self.news:
            self.news.wait_for(new, POLL_SECONDS)
            return new()


def visible(message):
    """The text of a message as a person sees it, without the marks of its format."""
    text = message["text"]
    if message.get("parse_mode") == "HTML":
        text = html.unescape(re.sub(r"<[^>]*>", "", text))
    return text


def handler(telegram):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.answer()

        def do_POST(self):
            self.answer()

        def answer(self):
            path, _, query = self.path.partition("?")
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            if "json" in (self.headers.get("content-type") or ""):
                arguments = json.loads(raw or b"{}")
            else:
                arguments = dict(parse_qsl(f"{query}&{raw.decode(errors='replace')}"))
            result = telegram.call(path.rpartition("/")[2], arguments)
            body = json.dumps({"ok": True, "result": result}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body)
            except ConnectionError:
                pass  # The bot was stopped in the middle of a long poll.

    return Handler
