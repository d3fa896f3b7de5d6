"""A real n8n in front of Farebox: workflows with the chat model nodes for OpenAI and Anthropic."""

import json
import subprocess
import unittest
from decimal import Decimal

from harness import CLIENTS_DIR, PRICE, Stack, environment, refusal

N8N = CLIENTS_DIR / "n8n" / "node_modules" / ".bin" / "n8n"
COMMAND_SECONDS = 180

LANGCHAIN = "@n8n/n8n-nodes-langchain"


def model_node(kind, version, model, credential):
    return {
        "type": f"{LANGCHAIN}.{kind}",
        "typeVersion": version,
        "parameters": {"model": {"__rl": True, "mode": "id", "value": model}, "options": {}},
        "credentials": {credential: {"id": credential, "name": "Farebox"}},
    }


# By the id of the workflow: the path that it calls, and its model node. The node for OpenAI
# changed to the Responses API with its version 1.3.
WORKFLOWS = {
    "chat": ("/v1/chat/completions", model_node("lmChatOpenAi", 1.2, "gpt-test", "openAiApi")),
    "responses": ("/v1/responses", model_node("lmChatOpenAi", 1.3, "gpt-test", "openAiApi")),
    "messages": ("/v1/messages", model_node("lmChatAnthropic", 1.6, "claude-test", "anthropicApi")),
}


def workflow(workflow_id, model):
    """A trigger, an agent that is asked to say hello, and its model."""
    agent = {"promptType": "define", "text": "Say hello.", "options": {}}
    nodes = [
        {"name": "Start", "type": "n8n-nodes-base.manualTrigger", "typeVersion": 1},
        {"name": "Agent", "type": f"{LANGCHAIN}.agent", "typeVersion": 3.1, "parameters": agent},
        {"name": "Model", **model},
    ]
    common = {"parameters": {}, "position": [0, 0]}
    to_agent = {"node": "Agent", "index": 0}
    return {
        "id": workflow_id,
        "name": workflow_id,
        "active": False,
        "settings": {},
        "nodes": [{**common, "id": node["name"], **node} for node in nodes],
        "connections": {
            "Start": {"main": [[{**to_agent, "type": "main"}]]},
            "Model": {"ai_languageModel": [[{**to_agent, "type": "ai_languageModel"}]]},
        },
    }


class N8n(unittest.TestCase):
    """Workflows run one by one on one n8n database, with the credential that it keeps."""

    @classmethod
    def setUpClass(cls):
        cls.stack = Stack(cls.__name__)
        cls.addClassCleanup(cls.stack.stop)
        cls.account = cls.stack.farebox.account("0.2")
        cls.import_json("credentials", cls.credentials())
        flows = [workflow(name, node) for name, (_, node) in WORKFLOWS.items()]
        cls.import_json("workflow", flows)

    @classmethod
    def credentials(cls):
        bases = {"openAiApi": f"{cls.stack.tap.url}/v1", "anthropicApi": cls.stack.tap.url}
        return [
            {
                "id": kind,
                "name": "Farebox",
                "type": kind,
                "data": {"apiKey": cls.account.key, "url": url},
            }
            for kind, url in bases.items()
        ]

    @classmethod
    def import_json(cls, kind, value):
        path = cls.stack.folder / f"{kind}.json"
        path.write_text(json.dumps(value, indent=1))
        run = cls.n8n(f"import:{kind}", f"--input={path}")
        if run.returncode:
            raise RuntimeError(f"n8n could not import the {kind}:\n{run.stdout}{run.stderr}")

    @classmethod
    def n8n(cls, *arguments):
        settings = {
            "HOME": str(cls.stack.folder),
            "N8N_USER_FOLDER": str(cls.stack.folder),
            "N8N_ENCRYPTION_KEY": "of the client tests",
            "N8N_DIAGNOSTICS_ENABLED": "false",
            "N8N_VERSION_NOTIFICATIONS_ENABLED": "false",
            "N8N_RUNNERS_BROKER_PORT": "0",
            "DB_TYPE": "sqlite",
        }
        return subprocess.run(
            [str(N8N), *arguments],
            env=environment(settings),
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )

    def execute(self, workflow_id):
        """Everything that n8n printed about one run, and the requests it made."""
        self.stack.tap.requests.clear()
        run = self.n8n("execute", f"--id={workflow_id}", "--rawOutput")
        return run.stdout + run.stderr, list(self.stack.tap.requests)

    def assert_answered(self, workflow_id, path):
        output, requests = self.execute(workflow_id)
        number = len(self.stack.upstream.ledger())
        self.assertIn(f"Hello, this is answer {number}.", output)
        self.assertEqual(requests, [f"POST {path}"])

    def test_a_workflow_is_served_until_zero_told_why_and_resumes_at_once(self):
        for workflow_id, (path, _) in WORKFLOWS.items():
            with self.subTest(workflow_id):
                self.account.set_balance("0.2")
                self.assert_answered(workflow_id, path)
                self.assertEqual(self.account.balance(), Decimal("-0.1"))

                output, requests = self.execute(workflow_id)
                self.assertIn(refusal("-0.1"), output)
                self.assertEqual(requests, [f"POST {path}"], "n8n must not retry")

                self.account.credit("5")
                self.assert_answered(workflow_id, path)
                self.assertEqual(self.account.balance(), Decimal("4.9") - PRICE)


if __name__ == "__main__":
    unittest.main()
