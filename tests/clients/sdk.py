"""Drives the official Python SDKs: one line with an operation in, one line of JSON out.

    sdk.py openai|anthropic BASE_URL KEY MODEL

One client object lives as long as the program, as in a real agent. `sdk.mjs` is the same for
JavaScript; an operation means the same in both, and their answers have one shape:

    {"text": …, "usage": …}                 an answer
    {"call": {"name": …, "arguments": …}, "text": …}
                                            a tool was called, and what was said after its result
    {"error": {"class": …, "status": …, "code": …, "type": …, "message": …}}
"""

import json
import sys

import anthropic
import openai

QUESTION = "Say hello."
ASK_TOOL = 'Use the tool weather with {"city": "Paris"}.'
TOOL_RESULT = "Sunny."
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
DESCRIPTION = "Tells the weather of a city."


class OpenAi:
    """The operations of the `openai` package."""

    def __init__(self, base_url, key, model):
        self.client = openai.OpenAI(base_url=base_url, api_key=key)
        self.model = model

    def models(self):
        return {"models": [model.id for model in self.client.models.list()]}

    def chat(self):
        reply = self.client.chat.completions.create(model=self.model, messages=[user(QUESTION)])
        return {"text": reply.choices[0].message.content, "usage": dump(reply.usage)}

    def chat_stream(self, **options):
        text, usage = "", None
        for chunk in self.client.chat.completions.create(
            model=self.model, messages=[user(QUESTION)], stream=True, **options
        ):
            usage = chunk.usage or usage
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        return {"text": text, "usage": dump(usage)}

    def chat_stream_usage(self):
        return self.chat_stream(stream_options={"include_usage": True})

    def chat_tool(self):
        def turn(messages):
            reply = self.client.chat.completions.create(
                model=self.model, messages=messages, tools=[self.chat_weather()]
            )
            return reply.choices[0].message

        return self.chat_round_trip(turn)

    def chat_tool_stream(self):
        def turn(messages):
            with self.client.chat.completions.stream(
                model=self.model, messages=messages, tools=[self.chat_weather()]
            ) as stream:
                return stream.get_final_completion().choices[0].message

        return self.chat_round_trip(turn)

    def chat_round_trip(self, turn):
        messages = [user(ASK_TOOL)]
        [asked] = turn(messages).tool_calls
        function = {"name": asked.function.name, "arguments": asked.function.arguments}
        call = {"id": asked.id, "type": "function", "function": function}
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": asked.id, "content": TOOL_RESULT},
        ]
        return {"call": called(**function), "text": turn(messages).content}

    @staticmethod
    def chat_weather():
        function = {"name": "weather", "description": DESCRIPTION, "parameters": PARAMETERS}
        return {"type": "function", "function": {**function, "strict": False}}

    def completion(self):
        reply = self.client.completions.create(model=self.model, prompt=QUESTION)
        return {"text": reply.choices[0].text, "usage": dump(reply.usage)}

    def completion_stream(self):
        text = ""
        for chunk in self.client.completions.create(
            model=self.model, prompt=QUESTION, stream=True
        ):
            text += "".join(choice.text for choice in chunk.choices)
        return {"text": text, "usage": None}

    def embedding(self):
        reply = self.client.embeddings.create(
            model=self.model, input=QUESTION, encoding_format="float"
        )
        return {"vector": reply.data[0].embedding, "usage": dump(reply.usage)}

    def response(self):
        reply = self.client.responses.create(model=self.model, input=QUESTION)
        return {"text": reply.output_text, "usage": dump(reply.usage)}

    def response_stream(self):
        text, usage = "", None
        for event in self.client.responses.create(
            model=self.model, input=QUESTION, stream=True
        ):
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.completed":
                usage = event.response.usage
        return {"text": text, "usage": dump(usage)}

    def response_tool(self):
        def turn(turns):
            return self.client.responses.create(
                model=self.model, input=turns, tools=[self.response_weather()]
            )

        return self.response_round_trip(turn)

    def response_tool_stream(self):
        def turn(turns):
            with self.client.responses.stream(
                model=self.model, input=turns, tools=[self.response_weather()]
            ) as stream:
                return stream.get_final_response()

        return self.response_round_trip(turn)

    def response_round_trip(self, turn):
        turns = [user(ASK_TOOL)]
        [asked] = turn(turns).output
        call = {"call_id": asked.call_id, "name": asked.name, "arguments": asked.arguments}
        turns += [
            {"type": "function_call", **call},
            {"type": "function_call_output", "call_id": asked.call_id, "output": TOOL_RESULT},
        ]
        return {"call": called(asked.name, asked.arguments), "text": turn(turns).output_text}

    @staticmethod
    def response_weather():
        function = {"name": "weather", "description": DESCRIPTION, "parameters": PARAMETERS}
        return {"type": "function", **function, "strict": False}


class Anthropic:
    """The operations of the `anthropic` package."""

    def __init__(self, base_url, key, model):
        self.client = anthropic.Anthropic(base_url=base_url, api_key=key)
        self.model = model

    def models(self):
        return {"models": [model.id for model in self.client.models.list()]}

    def message(self):
        reply = self.client.messages.create(**self.asking([user(QUESTION)]))
        return {"text": reply.content[0].text, "usage": dump(reply.usage)}

    def message_stream(self):
        with self.client.messages.stream(**self.asking([user(QUESTION)])) as stream:
            text = "".join(stream.text_stream)
            return {"text": text, "usage": dump(stream.get_final_message().usage)}

    def message_tool(self):
        return self.round_trip(lambda asking: self.client.messages.create(**asking))

    def message_tool_stream(self):
        def turn(asking):
            with self.client.messages.stream(**asking) as stream:
                return stream.get_final_message()

        return self.round_trip(turn)

    def round_trip(self, turn):
        weather = {"name": "weather", "description": DESCRIPTION, "input_schema": PARAMETERS}
        messages = [user(ASK_TOOL)]
        [asked] = turn(self.asking(messages, tools=[weather])).content
        use = {"type": "tool_use", "id": asked.id, "name": asked.name, "input": asked.input}
        result = {"type": "tool_result", "tool_use_id": asked.id, "content": TOOL_RESULT}
        messages += [{"role": "assistant", "content": [use]}, user([result])]
        after = turn(self.asking(messages, tools=[weather]))
        call = {"name": asked.name, "arguments": asked.input}
        return {"call": call, "text": after.content[0].text}

    def count_tokens(self):
        count = self.client.messages.count_tokens(model=self.model, messages=[user(QUESTION)])
        return {"tokens": count.input_tokens}

    def asking(self, messages, **options):
        return {"model": self.model, "max_tokens": 1000, "messages": messages, **options}


def user(content):
    return {"role": "user", "content": content}


def called(name, arguments):
    return {"name": name, "arguments": json.loads(arguments)}


def dump(usage):
    return usage and usage.model_dump(mode="json")


def failure(error):
    """What a program can learn from an error; the two SDKs keep the body differently."""
    body = error.body if isinstance(error.body, dict) else {}
    body = body.get("error", body)
    return {
        "error": {
            "class": type(error).__name__,
            "status": getattr(error, "status_code", None),
            "code": body.get("code"),
            "type": body.get("type"),
            "message": body.get("message"),
        }
    }


def main():
    kind, base_url, key, model = sys.argv[1:]
    client = {"openai": OpenAi, "anthropic": Anthropic}[kind](base_url, key, model)
    for line in sys.stdin:
        try:
            answer = getattr(client, line.strip())()
        except (openai.APIError, anthropic.APIError) as error:
            answer = failure(error)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
