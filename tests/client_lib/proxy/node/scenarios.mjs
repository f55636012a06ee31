// OpenAI's package for Node, unchanged, against the proxy at argv[2]; prints what came out as one JSON object.

import OpenAI from "openai";

const api = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "unused", maxRetries: 0 });
const messages = [
  { role: "system", content: "You are kind." },
  { role: "user", content: "my doctor told me that the test was positive" },
];

async function failure(call) {
  try {
    await call();
  } catch (error) {
    const { name, status, code, param, requestID } = error;
    return { name: error.constructor.name, status, code, param, hasRequestId: typeof requestID === "string" };
  }
  return null;
}

async function chatStream() {
  const stream = await api.chat.completions.create({
    model: "open",
    messages,
    max_completion_tokens: 9,
    stream: true,
    stream_options: { include_usage: true },
  });
  const seen = { text: "", finish: [], usage: null, pieces: 0 };
  for await (const chunk of stream) {
    seen.pieces += 1;
    for (const choice of chunk.choices) {
      seen.text += choice.delta.content ?? "";
      if (choice.finish_reason) seen.finish.push(choice.finish_reason);
    }
    seen.usage = chunk.usage ?? seen.usage;
  }
  return seen;
}

async function abandoned() {
  const stream = await api.chat.completions.create({ model: "open", messages, max_tokens: 20, stream: true });
  for await (const chunk of stream) {
    if (chunk.choices[0].delta.content) break;
  }
  return stream.controller.signal.aborted;
}

const chat = await api.chat.completions.create({ model: "open", messages, max_tokens: 12 });
const grown = [...messages, chat.choices[0].message, { role: "user", content: "thanks" }];
const completion = await api.completions.create({ model: "strict", prompt: "the quick brown fox" });
let completionText = "";
for await (const piece of await api.completions.create({ model: "open", prompt: "a", max_tokens: 6, stream: true })) {
  completionText += piece.choices[0].text;
}
const models = [];
for await (const model of api.models.list()) models.push(model.id);

console.log(
  JSON.stringify({
    chat: { content: chat.choices[0].message.content, usage: chat.usage, requestId: typeof chat._request_id },
    chatStream: await chatStream(),
    grown: (await api.chat.completions.create({ model: "open", messages: grown, max_tokens: 2 })).choices.length,
    completion: completion.choices[0].text,
    completionText,
    models,
    abandoned: await abandoned(),
    unknownModel: await failure(() => api.chat.completions.create({ model: "gpt-4o", messages })),
    tools: await failure(() =>
      api.chat.completions.create({
        model: "open",
        messages,
        tools: [{ type: "custom", custom: { name: "f" } }],
      }),
    ),
    unknownField: await failure(() => api.chat.completions.create({ model: "open", messages, min_tokens: 3 })),
    busy: await failure(() => api.chat.completions.create({ model: "open", messages: [messages[1]], stream: true })),
  }),
);
