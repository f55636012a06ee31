// Vercel's AI SDK, with its packages for OpenAI (the Responses API) and for servers like OpenAI's.

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const [proxy, model] = process.argv.slice(2);
const settings = { baseURL: `${proxy}/v1`, apiKey: "unused" };
const compatible = createOpenAICompatible({ name: "del", supportsStructuredOutputs: true, ...settings });
const openai = createOpenAI(settings);
const models = [compatible(model), openai(model)];
const prompt = "How warm is it in Paris today?";
const common = { prompt, maxRetries: 0 };
const results = {};

async function check(name, cases) {
  try {
    const found = [];
    for (const one of models) found.push(await cases(one));
    results[name] = found.every(Boolean) ? "yes" : "the result is another one";
  } catch (error) {
    console.error(error);
    results[name] = `${error.name}: ${error.message}`.slice(0, 300);
  }
}

await check("hello", async (model) => (await generateText({ model, ...common })).text);
await check("stream", async (model) => {
  let text = "";
  for await (const part of streamText({ model, ...common }).textStream) text += part;
  return text;
});
await check("tools", async (model) => {
  const called = [];
  const weather = tool({
    description: "Get the weather of a city.",
    inputSchema: z.object({ city: z.enum(["Paris", "London"]) }),
    execute: async ({ city }) => (called.push(city), "21 degrees"),
  });
  await generateText({ model, ...common, tools: { weather }, toolChoice: "required" });
  return called.length === 1;
});
await check("structured", async (model) => {
  const schema = z.object({ name: z.string().max(20), age: z.int().min(0).max(120) });
  return Number.isInteger((await generateObject({ model, ...common, schema })).object.age);
});
models.splice(0, 2, compatible("other"), openai("other"));
await check("error", async (model) => {
  try {
    await generateText({ model, ...common });
  } catch (error) {
    return APICallError.isInstance(error) && error.statusCode === 404;
  }
  return false;
});
console.log(JSON.stringify(results));
