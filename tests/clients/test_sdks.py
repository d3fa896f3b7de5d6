"""The official OpenAI and Anthropic SDKs, Python and JavaScript, in front of Farebox."""

import json
import queue
import subprocess
import sys
import threading
import unittest
from decimal import Decimal

from harness import CLIENTS_DIR, HERE, PRICE, Stack, environment, refusal

ANSWER_SECONDS = 60

# What the SDKs must read from one answer of the upstream, in the words of each dialect.
CHAT_USAGE = {
    "prompt_tokens": 10_000,
    "completion_tokens": 11_000,
    "prompt_tokens_details.cached_tokens": 4_000,
    "completion_tokens_details.reasoning_tokens": 1_000,
}
RESPONSES_USAGE = {
    "input_tokens": 10_000,
    "output_tokens": 11_000,
    "input_tokens_details.cached_tokens": 4_000,
    "output_tokens_details.reasoning_tokens": 1_000,
}
MESSAGES_USAGE = {
    "input_tokens": 6_000,
    "cache_read_input_tokens": 4_000,
    "output_tokens": 11_000,
}

# And the classes that Farebox must count for it.
TEXT_CLASSES = {"input_tokens": 6_000, "cached_input_tokens": 4_000, "output_tokens": 11_000}
EMBEDDING_CLASSES = {"input_tokens": 30_000, "cached_input_tokens": 0, "output_tokens": 0}


class Sdk:
    """A program that drives one SDK with one client object; see `sdk.py`."""

    def __init__(self, command):
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment({}),
            text=True,
        )
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        with self.process.stdout as output:
            for line in output:
                self.lines.put(line)

    def ask(self, operation):
        self.process.stdin.write(f"{operation}\n")
        self.process.stdin.flush()
        return json.loads(self.lines.get(timeout=ANSWER_SECONDS))

    def stop(self):
        self.process.stdin.close()
        self.process.wait(10)


def at(value, path):
    for name in path.split("."):
        value = value[name]
    return value


class SdkPromises:
    """What holds for every SDK. A subclass names the SDK and what it can do."""

    driver = ()
    base_path = ""
    model = ""
    # Operation: what its `usage` must say; None where the dialect sends none unasked.
    answers = {}
    tools = ()
    payment_error = ""
    refusal_type = ""

    @classmethod
    def setUpClass(cls):
        cls.stack = Stack(cls.__name__)
        cls.addClassCleanup(cls.stack.stop)

    def sdk(self, account):
        kind, *command = self.driver
        url = self.stack.tap.url + self.base_path
        sdk = Sdk([*command, kind, url, account.key, self.model])
        self.addCleanup(sdk.stop)
        return sdk

    def upstream_ledger(self):
        return self.stack.upstream.ledger()

    def assert_usage(self, usage, expected):
        if expected is None:
            self.assertIsNone(usage)
            return
        self.assertEqual({path: at(usage, path) for path in expected}, expected)

    def test_models_on_sale_are_listed(self):
        account = self.stack.farebox.account("1")
        models = self.sdk(account).ask("models")
        self.assertEqual(sorted(models["models"]), ["claude-test", "gpt-test"])

    def test_answers_arrive_whole_and_are_debited_once(self):
        account = self.stack.farebox.account("100")
        sdk = self.sdk(account)
        for operation, usage in self.answers.items():
            with self.subTest(operation):
                seen, before = len(self.upstream_ledger()), account.balance()
                answer = sdk.ask(operation)

                entries = self.upstream_ledger()
                self.assertEqual(len(entries), seen + 1)
                self.assertEqual(answer.get("text"), f"Hello, this is answer {len(entries)}.")
                self.assert_usage(answer["usage"], usage)
                self.assertEqual(account.balance(), before - PRICE)
        self.assert_rows_match(account)

    def test_a_tool_is_called_and_each_step_is_debited(self):
        account = self.stack.farebox.account("100")
        sdk = self.sdk(account)
        for operation in self.tools:
            with self.subTest(operation):
                before = account.balance()
                answer = sdk.ask(operation)

                expected = {"name": "weather", "arguments": {"city": "Paris"}}
                self.assertEqual(answer.get("call"), expected, answer)
                number = len(self.upstream_ledger())
                self.assertEqual(answer["text"], f"Hello, this is answer {number}.")
                self.assertEqual(account.balance(), before - 2 * PRICE)
        self.assert_rows_match(account)

    def assert_rows_match(self, account):
        """Every debit is the upstream's count of an answer, and there is one for each."""
        rows = account.usage()
        self.assertEqual(100 - account.balance(), sum(Decimal(row["charge"]) for row in rows))
        for row in rows:
            self.assertEqual({name: row[name] for name in TEXT_CLASSES}, TEXT_CLASSES)
            self.assertEqual((row["source"], row["model"]), ("reported", self.model))

    def test_below_zero_the_next_request_is_refused_until_credits_are_added(self):
        for operation in self.answers:
            with self.subTest(operation):
                account = self.stack.farebox.account("0.2")
                sdk = self.sdk(account)

                complete = sdk.ask(operation)
                seen = len(self.upstream_ledger())
                self.assertEqual(complete.get("text"), f"Hello, this is answer {seen}.")
                self.assertEqual(account.balance(), Decimal("-0.1"))

                self.stack.tap.requests.clear()
                self.assert_refused(sdk.ask(operation))
                self.assertEqual(len(self.stack.tap.requests), 1, "the SDK must not retry")
                self.assertEqual(len(self.upstream_ledger()), seen)
                self.assertEqual(account.balance(), Decimal("-0.1"))

                account.credit("5")
                self.assertEqual(account.balance(), Decimal("4.9"))
                resumed = sdk.ask(operation)
                self.assertEqual(resumed.get("text"), f"Hello, this is answer {seen + 1}.")
                self.assertEqual(account.balance(), Decimal("4.6"))

    def assert_refused(self, answer):
        error = answer.get("error")
        self.assertIsNotNone(error, answer)
        self.assertEqual(error["status"], 402)
        self.assertEqual(error["class"], self.payment_error)
        self.assertEqual(error["type"], self.refusal_type)
        self.assertEqual(error["message"], refusal("-0.1"))


class OpenAiPromises(SdkPromises):
    """What holds for the `openai` package besides."""

    base_path = "/v1"
    model = "gpt-test"
    answers = {
        "chat": CHAT_USAGE,
        "chat_stream": None,
        "chat_stream_usage": {**CHAT_USAGE, "cost": float(PRICE)},
        "completion": CHAT_USAGE,
        "completion_stream": None,
        "response": RESPONSES_USAGE,
        "response_stream": RESPONSES_USAGE,
    }
    tools = ("chat_tool", "chat_tool_stream", "response_tool", "response_tool_stream")
    refusal_type = "insufficient_credits"

    def test_embeddings_are_debited_by_their_input(self):
        account = self.stack.farebox.account("1")
        answer = self.sdk(account).ask("embedding")
        self.assertEqual(answer.get("vector"), [0.25, -0.5, 0.75], answer)
        self.assertEqual(account.balance(), 1 - PRICE)
        [row] = account.usage()
        self.assertEqual({name: row[name] for name in EMBEDDING_CLASSES}, EMBEDDING_CLASSES)


class AnthropicPromises(SdkPromises):
    """What holds for the `anthropic` package besides."""

    model = "claude-test"
    answers = {"message": MESSAGES_USAGE, "message_stream": MESSAGES_USAGE}
    tools = ("message_tool", "message_tool_stream")
    payment_error = "PaymentRequiredError"
    refusal_type = "billing_error"

    def test_counting_tokens_is_free(self):
        account = self.stack.farebox.account("1")
        answer = self.sdk(account).ask("count_tokens")
        self.assertEqual(answer, {"tokens": 10_000})
        self.assertEqual(account.balance(), Decimal("1"))


PYTHON = (sys.executable, HERE / "sdk.py")
JAVASCRIPT = ("node", HERE / "sdk.mjs", CLIENTS_DIR / "sdks")


class OpenAiPython(OpenAiPromises, unittest.TestCase):
    driver = ("openai", *PYTHON)
    payment_error = "APIStatusError"


class OpenAiJavaScript(OpenAiPromises, unittest.TestCase):
    driver = ("openai", *JAVASCRIPT)
    payment_error = "APIError"


class AnthropicPython(AnthropicPromises, unittest.TestCase):
    driver = ("anthropic", *PYTHON)


class AnthropicJavaScript(AnthropicPromises, unittest.TestCase):
    driver = ("anthropic", *JAVASCRIPT)
