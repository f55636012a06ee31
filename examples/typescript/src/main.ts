// Sends what stands on standard input, privately, and prints what the model writes.

import { parseArgs } from "node:util";
import { DelClient, type Completion } from "./client.js";

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
  const client = await DelClient.connect(String(values["url"]), process.env["DEL_API_KEY"]);
  const variant = String(values["variant"] ?? [...client.bundle.variants.keys()][0]);
  const options = { max_tokens: Number(values["max-tokens"]), temperature: Number(values["temperature"]) };
  const encoded = client.encode([prompt], variant);
  const completion = values["stream"] ? await show(client, encoded, options) : await client.complete(encoded, options);
  if (values["json"]) {
    const { text, tokenIds, finishReason, usage, requestId } = completion;
    const report = { text, token_ids: tokenIds, finish_reason: finishReason, usage, request_id: requestId };
    process.stdout.write(`${JSON.stringify({ ...report, variant, fingerprint: client.bundle.fingerprint })}\n`);
  } else {
    process.stdout.write(values["stream"] ? "\n" : `${completion.text}\n`);
  }
}

async function show(client: DelClient, ...request: Parameters<DelClient["stream"]>): Promise<Completion> {
  const chunks = client.stream(...request);
  for (;;) {
    const next = await chunks.next();
    if (next.done) return next.value;
    if (!values["json"]) process.stdout.write(next.value.text);
  }
}

main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.message : "failed"}\n`);
  process.exitCode = 1;
});
