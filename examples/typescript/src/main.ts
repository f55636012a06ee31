// Sends what stands on standard input, privately, and prints what the model writes.

import { parseArgs } from "node:util";
import { DelClient, type Completion } from "del-serve";

const { values } = parseArgs({
  options: {
    url: { type: "string", default: "http://127.0.0.1:8000" },
    variant: { type: "string" },
    "max-tokens": { type: "string", default: "64" },
    temperature: { type: "string", default: "1" },
    stream: { type: "boolean", default: false },
    json: { type: "boolean", default: false },
  },
});

async function main(): Promise<void> {
  let prompt = "";
  const decoder = new TextDecoder();
  for await (const piece of process.stdin) prompt += decoder.decode(piece, { stream: true });
  const key = process.env["DEL_API_KEY"];
  const client = new DelClient(String(values["url"]), key === undefined ? {} : { apiKey: key });
  const variant = String(values["variant"] ?? [...(await client.variants()).keys()][0]);
  const options = { variant, max_tokens: Number(values["max-tokens"]), temperature: Number(values["temperature"]) };
  const completion = values["stream"] ? await show(client, prompt, options) : await client.complete(prompt, options);
  if (values["json"]) {
    const { text, tokenIds, finishReason, usage, requestId, bytesSent } = completion;
    const counted = { prompt_tokens: usage.promptTokens, completion_tokens: usage.completionTokens, total_tokens: usage.totalTokens };
    const report = { text, token_ids: tokenIds, finish_reason: finishReason, usage: counted, request_id: requestId, bytes_sent: bytesSent };
    const { fingerprint } = await client.bundle();
    process.stdout.write(`${JSON.stringify({ ...report, variant, epsilon: await client.epsilon(variant), fingerprint })}\n`);
  } else {
    process.stdout.write(values["stream"] ? "\n" : `${completion.text}\n`);
  }
}

async function show(client: DelClient, prompt: string, options: { variant: string }): Promise<Completion> {
  const stream = client.stream(prompt, options);
  for await (const chunk of stream) if (!values["json"]) process.stdout.write(chunk.text);
  return stream.completion;
}

main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.message : "failed"}\n`);
  process.exitCode = 1;
});
