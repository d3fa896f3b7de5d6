"""A real OpenClaw in front of Farebox, headless and as a gateway with a chat channel."""

import json
import re
import socket
import subprocess
import unittest
from decimal import Decimal

from harness import CLIENTS_DIR, PRICE, Process, Stack, environment, refusal
from telegram import Telegram

OPENCLAW = CLIENTS_DIR / "openclaw" / "node_modules" / ".bin" / "openclaw"
START_SECONDS = 120
TURN_SECONDS = 60

# A person sees our text word for word, behind OpenClaw's warning signs.
REFUSAL = rf"^(⚠️\s*)*{re.escape(refusal(-12))}$"


def provider(api, base_url, key, model):
    limits = {"contextWindow": 128_000, "maxTokens": 4_096}
    return {
        "api": api,
        "baseUrl": base_url,
        # Inline, as our documents say: OpenClaw locks keys of its own store after an error.
        "apiKey": key,
        "models": [{"id": model, "name": model, **limits}],
        "request": {"allowPrivateNetwork": True},
    }


class OpenClaw(unittest.TestCase):
    """One gateway process serves all chat turns: nothing is restarted, nothing stays locked."""

    @classmethod
    def setUpClass(cls):
        cls.stack = Stack(cls.__name__)
        cls.addClassCleanup(cls.stack.stop)
        cls.account = cls.stack.farebox.account("100")
        cls.folder = cls.stack.folder
        cls.telegram = Telegram()
        cls.addClassCleanup(cls.telegram.stop)
        cls.config = cls.write_config()
        # A home of its own, so that the settings of whoever runs the tests do not matter.
        cls.home = {"HOME": str(cls.folder / "home")}

    @classmethod
    def write_config(cls):
        url, key = cls.stack.tap.url, cls.account.key
        (cls.folder / "workspace").mkdir()
        (cls.folder / "workspace" / "notes.txt").write_text("Nothing to note.\n")
        config = {
            "models": {
                "mode": "replace",
                "catalogRefresh": {"enabled": False},
                "providers": {
                    "chat": provider("openai-completions", f"{url}/v1", key, "gpt-test"),
                    "bare": provider("openai-completions", url, key, "gpt-test"),
                    "responses": provider("openai-responses", f"{url}/v1", key, "gpt-test"),
                    "messages": provider("anthropic-messages", url, key, "claude-test"),
                },
            },
            "agents": {
                "defaults": {
                    "model": {"primary": "chat/gpt-test"},
                    "heartbeat": {"every": "0m"},
                    "workspace": str(cls.folder / "workspace"),
                }
            },
            "gateway": {
                "mode": "local",
                "bind": "loopback",
                "auth": {"mode": "token", "token": "gateway-token"},
            },
            "channels": {
                "telegram": {
                    "botToken": cls.telegram.token,
                    "apiRoot": cls.telegram.url,
                    "dmPolicy": "open",
                    "allowFrom": ["*"],
                    "network": {"dangerouslyAllowPrivateNetwork": True},
                }
            },
            "logging": {"file": str(cls.folder / "openclaw.log")},
            "update": {"checkOnStart": False},
        }
        path = cls.folder / "openclaw.json"
        path.write_text(json.dumps(config, indent=1))
        return path

    def start_gateway(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        gateway = Process(
            [OPENCLAW, "gateway", "run", "--port", port],
            log=self.folder / "gateway.log",
            env={
                **self.home,
                "NO_COLOR": "1",
                "OPENCLAW_STATE_DIR": str(self.folder / "state"),
                "OPENCLAW_CONFIG_PATH": str(self.config),
            },
        )
        self.addCleanup(gateway.stop)
        gateway.wait_for("[gateway] ready", START_SECONDS)

    def write(self, text, expected):
        """Writes to the bot and waits for the text that must come back."""
        self.stack.tap.requests.clear()
        self.telegram.write(text)
        return self.telegram.wait_until_shown(expected, TURN_SECONDS)

    def next_answer(self, ahead=1):
        number = len(self.stack.upstream.ledger()) + ahead
        return rf"^Hello, this is answer {number}\.$"

    def test_a_headless_turn_is_answered_and_debited(self):
        before = self.account.balance()
        run = subprocess.run(
            [OPENCLAW, "agent", "exec", "Say hello.", "--json"]
            + ["--config", self.config, "--cwd", self.folder / "workspace"]
            + ["--model", "chat/gpt-test"],
            env=environment(self.home),
            capture_output=True,
            text=True,
            timeout=TURN_SECONDS,
        )
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertRegex(json.loads(run.stdout)["final"], self.next_answer(0))
        self.assertEqual(self.account.balance(), before - PRICE)

    def test_a_chat_is_served_until_zero_told_why_and_resumes_at_once(self):
        self.start_gateway()
        models = {
            "chat/gpt-test": "/v1/chat/completions",
            "bare/gpt-test": "/chat/completions",
            "responses/gpt-test": "/v1/responses",
            "messages/claude-test": "/v1/messages",
        }
        for model, path in models.items():
            with self.subTest(model):
                self.write(f"/model {model}", model)
                self.check_story([f"POST {path}"])

    def check_story(self, one_request):
        account, requests = self.account, self.stack.tap.requests
        account.set_balance("10")

        self.write("Say hello.", self.next_answer())
        self.assertEqual((account.balance(), requests), (10 - PRICE, one_request))

        tool = 'Use the tool read with {"path": "notes.txt"}.'
        self.write(tool, self.next_answer(2))
        self.assertEqual((account.balance(), requests), (10 - 3 * PRICE, 2 * one_request))
        self.assert_one_run(account.usage()[:2])

        account.set_balance("-12")
        for _ in range(2):
            self.write("Say hello again.", REFUSAL)
            self.assertEqual((account.balance(), requests), (Decimal(-12), one_request))

        account.credit("20")
        self.write("Say hello once more.", self.next_answer())
        self.assertEqual((account.balance(), requests), (8 - PRICE, one_request))

    def assert_one_run(self, rows):
        """The steps of a turn are told to be one run of one agent for a person."""
        [(_, *whose)] = {(row["run"], row["agent"], row["origin"]) for row in rows}
        self.assertEqual(whose, ["main", "user"])


if __name__ == "__main__":
    unittest.main()
