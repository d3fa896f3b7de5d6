#!/usr/bin/env python3
"""The scripted upstream: a stand-in for OpenAI and Anthropic that always uses the same tokens.

It speaks chat completions, completions, embeddings, Responses and Messages, as JSON and as
server-sent events, and writes down every request it answered. By the tests' price list
(`pricing.toml` beside this file) each answer costs exactly 0.3 credits.

The prompt decides what it does: `Use the tool NAME with {…}.` makes it call that tool, once for
each such sentence since its last answer; anything else gets a line of text with the number of
the request in it.

    GET /__ledger   every request so far, oldest first

It listens on a free port of the loopback, which it prints.
"""

import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# The tokens of every answer, in classes that do not overlap.
INPUT, CACHED_INPUT, OUTPUT, REASONING = 6_000, 4_000, 11_000, 1_000
# Embeddings have input only.
EMBEDDING_INPUT = 30_000
# The word that each frame of a stream carries is this many characters.
PIECE = 5

ASKED_TOOL = re.compile(r"Use the tool (\w+) with (\{[^{}\\]*\})\.")
CREATED = 1_700_000_000


class Ledger:
    """What was asked of this upstream, oldest first."""

    def __init__(self):
        self.entries = []
        self.lock = threading.Lock()

    def open(self, entry):
        """Writes down a request; its number, from 1."""
        with self.lock:
            self.entries.append(entry)
            return len(self.entries)

    def dump(self):
        with self.lock:
            return json.loads(json.dumps(self.entries))


def texts(value):
    """Every string under `text`, `content`, `input` or `prompt`, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, dict):
        for name in ("text", "content"):
            if name in value:
                yield from texts(value[name])


def conversation(body):
    """The messages, whatever the dialect calls them; a bare prompt is one message."""
    turns = body.get("messages") or body.get("input") or []
    return [{"role": "user", "content": turns}] if isinstance(turns, str) else turns


def blocks(message):
    """The typed parts of a message."""
    content = message.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def is_answer(message):
    """Whether this is what the model said to the person, not a step on the way."""
    calls = message.get("tool_calls") or any(b.get("type") == "tool_use" for b in blocks(message))
    return message.get("role") == "assistant" and not calls


def is_tool_result(part):
    kinds = ("function_call_output", "tool_result")
    return part.get("role") == "tool" or part.get("type") in kinds


def asked_tool(body):
    """The name and arguments of the next tool to call, if the live turn asks for one."""
    if not body.get("tools"):
        return None
    messages = conversation(body)
    answers = [at for at, message in enumerate(messages) if is_answer(message)]
    turn = messages[answers[-1] + 1 :] if answers else messages
    prompts = [message for message in turn if message.get("role") == "user"]
    asked = [hit for text in texts(prompts) for hit in ASKED_TOOL.findall(text)]
    parts = [part for message in turn for part in (message, *blocks(message))]
    done = sum(map(is_tool_result, parts))
    return asked[done] if done < len(asked) else None


def pieces(text):
    return [text[at : at + PIECE] for at in range(0, len(text), PIECE)]


def sse(data, event=None):
    head = f"event: {event}\n" if event else ""
    data = data if isinstance(data, str) else json.dumps(data)
    return f"{head}data: {data}\n\n"


def chat_usage():
    return {
        "prompt_tokens": INPUT + CACHED_INPUT,
        "completion_tokens": OUTPUT,
        "total_tokens": INPUT + CACHED_INPUT + OUTPUT,
        "prompt_tokens_details": {"cached_tokens": CACHED_INPUT, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": REASONING, "audio_tokens": 0},
    }


def chat(body, number, text, tool):
    call = tool and {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": tool[0], "arguments": tool[1]},
    }
    finish = "tool_calls" if tool else "stop"
    shell = {"id": f"chatcmpl-{number}", "created": CREATED, "model": body["model"]}
    if not body.get("stream"):
        message = {"role": "assistant", "content": None if tool else text, "refusal": None}
        if call:
            message["tool_calls"] = [call]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return {**shell, "object": "chat.completion", "choices": [choice], "usage": chat_usage()}

    wants_usage = (body.get("stream_options") or {}).get("include_usage", False)

    def chunk(delta, reason=None):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        extra = {"usage": None} if wants_usage else {}
        return sse({**shell, "object": "chat.completion.chunk", "choices": [choice], **extra})

    def events():
        yield chunk({"role": "assistant", "content": None if tool else ""})
        if call:
            opened = {**call, "function": {"name": tool[0], "arguments": ""}}
            yield chunk({"tool_calls": [{"index": 0, **opened}]})
            for piece in pieces(tool[1]):
                yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        else:
            for piece in pieces(text):
                yield chunk({"content": piece})
        yield chunk({}, finish)
        if wants_usage:
            last = {"object": "chat.completion.chunk", "choices": [], "usage": chat_usage()}
            yield sse({**shell, **last})
        yield sse("[DONE]")

    return events()


def completion(body, number, text, _tool):
    shell = {
        "id": f"cmpl-{number}",
        "object": "text_completion",
        "created": CREATED,
        "model": body["model"],
    }

    def choices(piece, reason):
        return [{"index": 0, "text": piece, "logprobs": None, "finish_reason": reason}]

    if not body.get("stream"):
        return {**shell, "choices": choices(text, "stop"), "usage": chat_usage()}

    def events():
        for piece in pieces(text):
            yield sse({**shell, "choices": choices(piece, None)})
        yield sse({**shell, "choices": choices("", "stop")})
        if (body.get("stream_options") or {}).get("include_usage"):
            yield sse({**shell, "choices": [], "usage": chat_usage()})
        yield sse("[DONE]")

    return events()


def embedding(body, _number, _text, _tool):
    vector = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5, 0.75]}
    usage = {"prompt_tokens": EMBEDDING_INPUT, "total_tokens": EMBEDDING_INPUT}
    return {"object": "list", "data": [vector], "model": body["model"], "usage": usage}


def response(body, number, text, tool):
    if tool:
        item = {
            "id": f"fc_{number}",
            "type": "function_call",
            "call_id": f"call_{number}",
            "name": tool[0],
            "arguments": tool[1],
            "status": "completed",
        }
    else:
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        item = {
            "id": f"msg_{number}",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [part],
        }

    def whole(status, output, usage):
        return {
            "id": f"resp_{number}",
            "object": "response",
            "created_at": CREATED,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": None,
            "metadata": {},
            "model": body["model"],
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": body.get("store", True),
            "temperature": 1.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": usage,
        }

    usage = {
        "input_tokens": INPUT + CACHED_INPUT,
        "input_tokens_details": {"cached_tokens": CACHED_INPUT},
        "output_tokens": OUTPUT,
        "output_tokens_details": {"reasoning_tokens": REASONING},
        "total_tokens": INPUT + CACHED_INPUT + OUTPUT,
    }
    if not body.get("stream"):
        return whole("completed", [item], usage)

    def unnumbered():
        yield "response.created", {"response": whole("in_progress", [], None)}
        yield "response.in_progress", {"response": whole("in_progress", [], None)}
        at = {"output_index": 0, "item_id": item["id"]}
        if tool:
            opened = {**item, "arguments": "", "status": "in_progress"}
            yield "response.output_item.added", {"output_index": 0, "item": opened}
            for piece in pieces(tool[1]):
                yield "response.function_call_arguments.delta", {**at, "delta": piece}
            done = {**at, "name": tool[0], "arguments": tool[1]}
            yield "response.function_call_arguments.done", done
        else:
            opened = {**item, "content": [], "status": "in_progress"}
            yield "response.output_item.added", {"output_index": 0, "item": opened}
            at["content_index"] = 0
            yield "response.content_part.added", {**at, "part": {**part, "text": ""}}
            for piece in pieces(text):
                yield "response.output_text.delta", {**at, "delta": piece, "logprobs": []}
            yield "response.output_text.done", {**at, "text": text, "logprobs": []}
            yield "response.content_part.done", {**at, "part": part}
        yield "response.output_item.done", {"output_index": 0, "item": item}
        yield "response.completed", {"response": whole("completed", [item], usage)}

    def events():
        for sequence, (kind, data) in enumerate(unnumbered()):
            yield sse({"type": kind, "sequence_number": sequence, **data}, kind)

    return events()


def message(body, number, text, tool):
    if tool:
        arguments = json.loads(tool[1])
        block = {"type": "tool_use", "id": f"toolu_{number}", "name": tool[0], "input": arguments}
    else:
        block = {"type": "text", "text": text}
    stop = "tool_use" if tool else "end_turn"
    usage = {
        "input_tokens": INPUT,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": CACHED_INPUT,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": OUTPUT,
        "service_tier": "standard",
    }
    shell = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "stop_sequence": None,
    }
    if not body.get("stream"):
        return {**shell, "content": [block], "stop_reason": stop, "usage": usage}

    def events():
        def event(kind, **data):
            return sse({"type": kind, **data}, kind)

        opening = {**shell, "content": [], "stop_reason": None}
        opening["usage"] = {**usage, "output_tokens": 1}
        yield event("message_start", message=opening)
        if tool:
            yield event("content_block_start", index=0, content_block={**block, "input": {}})
            deltas = [{"type": "input_json_delta", "partial_json": p} for p in pieces(tool[1])]
        else:
            yield event("content_block_start", index=0, content_block={**block, "text": ""})
            deltas = [{"type": "text_delta", "text": p} for p in pieces(text)]
        yield event("ping")
        for delta in deltas:
            yield event("content_block_delta", index=0, delta=delta)
        yield event("content_block_stop", index=0)
        end = {"stop_reason": stop, "stop_sequence": None}
        yield event("message_delta", delta=end, usage={"output_tokens": OUTPUT})
        yield event("message_stop")

    return events()


def count_tokens(_body, _number, _text, _tool):
    return {"input_tokens": INPUT + CACHED_INPUT}


SCRIPTS = {
    "/v1/chat/completions": chat,
    "/v1/completions": completion,
    "/v1/embeddings": embedding,
    "/v1/responses": response,
    "/v1/messages": message,
    "/v1/messages/count_tokens": count_tokens,
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/__ledger":
            return self.reply(200, self.server.ledger.dump())
        return self.reply(404, {"error": {"message": f"No such path: {self.path}"}})

    def do_POST(self):
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        script = SCRIPTS.get(self.path)
        if script is None:
            return self.reply(404, {"error": {"message": f"No such path: {self.path}"}})
        if not self.authorized():
            return self.reply(401, {"error": {"message": "Not the upstream's key."}})
        body = json.loads(raw)
        tool = asked_tool(body)
        entry = {
            "path": self.path,
            "model": body["model"],
            "stream": bool(body.get("stream")),
            "tool": tool and tool[0],
        }
        number = self.server.ledger.open(entry)
        answer = script(body, number, f"Hello, this is answer {number}.", tool)
        if isinstance(answer, dict):
            return self.reply(200, answer)
        return self.stream(answer)

    def authorized(self):
        """Whether the request carries the key of this upstream, as either dialect sends it."""
        key = os.environ.get("UPSTREAM_KEY", "")
        bearer = self.headers.get("authorization") == f"Bearer {key}"
        return bearer or self.headers.get("x-api-key") == key

    def reply(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, events):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in events:
            frame = event.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(frame), frame))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.ledger = Ledger()
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
