// Drives the official JavaScript SDKs: one line with an operation in, one line of JSON out.
//
//     sdk.mjs PACKAGES openai|anthropic BASE_URL KEY MODEL
//
// PACKAGES is the folder that holds `node_modules`. The operations and their answers are those
// of `sdk.py`.

import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";

const [packages, kind, baseURL, apiKey, model] = process.argv.slice(2);
const require = createRequire(join(packages, "package.json"));

const QUESTION = "Say hello.";
const ASK_TOOL = 'Use the tool weather with {"city": "Paris"}.';
const TOOL_RESULT = "Sunny.";
const PARAMETERS = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
};
const WEATHER = { name: "weather", description: "Tells the weather of a city." };

const user = (content) => ({ role: "user", content });

async function idsOf(pages) {
  const models = [];
  for await (const entry of pages) models.push(entry.id);
  return { models };
}

/** The operations of the `openai` package. */
function openai() {
  const OpenAI = require("openai").default;
  const client = new OpenAI({ baseURL, apiKey });

  const chatStream = async (options) => {
    let [text, usage] = ["", null];
    const messages = [user(QUESTION)];
    const asking = { model, messages, stream: true, ...options };
    for await (const chunk of await client.chat.completions.create(asking)) {
      usage = chunk.usage ?? usage;
      for (const choice of chunk.choices) text += choice.delta.content ?? "";
    }
    return { text, usage };
  };

  const chatRoundTrip = async (turn) => {
    const tools = [{ type: "function", function: { ...WEATHER, parameters: PARAMETERS } }];
    const messages = [user(ASK_TOOL)];
    const asked = await turn({ model, messages, tools });
    const [{ id, function: called }] = asked.tool_calls;
    messages.push(
      { role: "assistant", content: null, tool_calls: asked.tool_calls },
      { role: "tool", tool_call_id: id, content: TOOL_RESULT },
    );
    const { content } = await turn({ model, messages, tools });
    return {
      call: { name: called.name, arguments: JSON.parse(called.arguments) },
      text: content,
    };
  };

  const responseRoundTrip = async (turn) => {
    const tools = [{ type: "function", ...WEATHER, parameters: PARAMETERS, strict: false }];
    const input = [user(ASK_TOOL)];
    const [{ call_id, name, arguments: args }] = (await turn({ model, input, tools })).output;
    input.push(
      { type: "function_call", call_id, name, arguments: args },
      { type: "function_call_output", call_id, output: TOOL_RESULT },
    );
    const after = await turn({ model, input, tools });
    return { call: { name, arguments: JSON.parse(args) }, text: after.output_text };
  };

  return {
    models: () => idsOf(client.models.list()),
    async chat() {
      const reply = await client.chat.completions.create({ model, messages: [user(QUESTION)] });
      return { text: reply.choices[0].message.content, usage: reply.usage };
    },
    chat_stream: () => chatStream({}),
    chat_stream_usage: () => chatStream({ stream_options: { include_usage: true } }),
    chat_tool: () =>
      chatRoundTrip(async (asking) => {
        const reply = await client.chat.completions.create(asking);
        return reply.choices[0].message;
      }),
    chat_tool_stream: () =>
      chatRoundTrip((asking) => client.chat.completions.stream(asking).finalMessage()),
    async completion() {
      const reply = await client.completions.create({ model, prompt: QUESTION });
      return { text: reply.choices[0].text, usage: reply.usage };
    },
    async completion_stream() {
      let text = "";
      const asking = { model, prompt: QUESTION, stream: true };
      for await (const chunk of await client.completions.create(asking)) {
        for (const choice of chunk.choices) text += choice.text;
      }
      return { text, usage: null };
    },
    async embedding() {
      const asking = { model, input: QUESTION, encoding_format: "float" };
      const reply = await client.embeddings.create(asking);
      return { vector: reply.data[0].embedding, usage: reply.usage };
    },
    async response() {
      const reply = await client.responses.create({ model, input: QUESTION });
      return { text: reply.output_text, usage: reply.usage };
    },
    async response_stream() {
      let [text, usage] = ["", null];
      const asking = { model, input: QUESTION, stream: true };
      for await (const event of await client.responses.create(asking)) {
        if (event.type === "response.output_text.delta") text += event.delta;
        if (event.type === "response.completed") usage = event.response.usage;
      }
      return { text, usage };
    },
    response_tool: () => responseRoundTrip((asking) => client.responses.create(asking)),
    response_tool_stream: () =>
      responseRoundTrip((asking) => client.responses.stream(asking).finalResponse()),
  };
}

/** The operations of the `@anthropic-ai/sdk` package. */
function anthropic() {
  const Anthropic = require("@anthropic-ai/sdk").default;
  const client = new Anthropic({ baseURL, apiKey });
  const asking = (messages, options) => ({ model, max_tokens: 1000, messages, ...options });

  const roundTrip = async (turn) => {
    const tools = [{ ...WEATHER, input_schema: PARAMETERS }];
    const messages = [user(ASK_TOOL)];
    const [use] = (await turn(asking(messages, { tools }))).content;
    messages.push(
      { role: "assistant", content: [use] },
      user([{ type: "tool_result", tool_use_id: use.id, content: TOOL_RESULT }]),
    );
    const after = await turn(asking(messages, { tools }));
    return { call: { name: use.name, arguments: use.input }, text: after.content[0].text };
  };

  return {
    models: () => idsOf(client.models.list()),
    async message() {
      const reply = await client.messages.create(asking([user(QUESTION)]));
      return { text: reply.content[0].text, usage: reply.usage };
    },
    async message_stream() {
      let text = "";
      const stream = client.messages.stream(asking([user(QUESTION)]));
      stream.on("text", (piece) => (text += piece));
      const reply = await stream.finalMessage();
      return { text, usage: reply.usage };
    },
    message_tool: () => roundTrip((body) => client.messages.create(body)),
    message_tool_stream: () => roundTrip((body) => client.messages.stream(body).finalMessage()),
    async count_tokens() {
      const messages = [user(QUESTION)];
      const count = await client.messages.countTokens({ model, messages });
      return { tokens: count.input_tokens };
    },
  };
}

/** What a program can learn from an error; the two SDKs keep the body differently. */
function failure(error) {
  const body = error.error?.error ?? error.error ?? {};
  return {
    error: {
      class: error.constructor.name,
      status: error.status ?? null,
      code: body.code ?? null,
      type: body.type ?? null,
      message: body.message ?? null,
    },
  };
}

const operations = { openai, anthropic }[kind]();
for await (const line of createInterface({ input: process.stdin })) {
  const answer = await operations[line.trim()]().catch(failure);
  console.log(JSON.stringify(answer));
}
