// Server-sent events as the HTML standard defines them, as far as the protocol uses them, and what they add up to.

import { ServerError } from "./errors.js";

const MAX_EVENT = 1 << 20;

/** The data of every event of a body. An event that the end cuts off is dropped. */
export async function* events(body: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let rest = "";
  let data: string[] = [];
  for await (const piece of body) {
    rest += decoder.decode(piece, { stream: true });
    if (rest.length > MAX_EVENT) throw new ServerError(200, null, `event stream: a line of more than ${MAX_EVENT} characters`);
    // A CR at the end waits: an LF that belongs to it may follow.
    const lines = rest.endsWith("\r") ? rest.slice(0, -1).split(/\r\n|\r|\n/) : rest.split(/\r\n|\r|\n/);
    rest = lines.pop()! + (rest.endsWith("\r") ? "\r" : "");
    for (const line of lines) {
      if (line === "") {
        if (data.length) yield data.join("\n");
        data = [];
      } else if (line === "data" || line.startsWith("data:")) {
        data.push(line.slice(5).replace(/^ /, ""));
      }
    }
  }
  if (rest.endsWith("\r") && rest.length === 1 && data.length) yield data.join("\n");
}

export interface Chunk {
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly finishReason: string | null;
}

/** Collects the chunks of one completion over all the connections that it took. */
export class Collector {
  text = "";
  readonly tokenIds: number[] = [];
  finishReason: string | null = null;
  usage: unknown = null;

  constructor(private readonly maxTokens: number) {}

  /** Accounts for one event: a chunk if it brought anything. Throws ServerError for an error event. */
  take(data: string): Chunk | null {
    if (data.trim() === "[DONE]") return null;
    const event: unknown = readJson(data, "event");
    const failure = member(event, "error");
    if (failure !== null) throw readError(500, failure, null);
    this.usage = member(event, "usage") ?? this.usage;
    const chunk = readChoice(event);
    if (chunk === null || this.finishReason !== null) return null;
    if (this.tokenIds.length + chunk.tokenIds.length > this.maxTokens) {
      throw new ServerError(200, null, `event: more than the ${this.maxTokens} tokens that were asked for`);
    }
    this.text += chunk.text;
    this.tokenIds.push(...chunk.tokenIds);
    this.finishReason = chunk.finishReason;
    return chunk.text || chunk.tokenIds.length || chunk.finishReason ? chunk : null;
  }
}

/** The one choice of a completion or of a chunk; null where there is none. */
export function readChoice(event: unknown): Chunk | null {
  const choices = member(event, "choices");
  if (!Array.isArray(choices)) throw new ServerError(200, null, "choices: an array is needed");
  if (!choices.length) return null;
  const [text, ids, reason] = ["text", "token_ids", "finish_reason"].map((name) => member(choices[0], name));
  const counted = Array.isArray(ids) && ids.every((id) => Number.isSafeInteger(id) && id >= 0);
  if (typeof text !== "string" || !counted || (reason !== null && typeof reason !== "string")) {
    throw new ServerError(200, null, "choices[0]: text, token_ids and finish_reason are needed");
  }
  return { text, tokenIds: ids as number[], finishReason: reason as string | null };
}

/** The error object of an answer that is not a success, if there is one. */
export function readError(status: number, failure: unknown, retryAfter: number | null): ServerError {
  const [message, code] = [member(failure, "message"), member(failure, "code")];
  const text = typeof message === "string" ? message : `HTTP ${status}`;
  return new ServerError(status, typeof code === "string" ? code : null, text, retryAfter);
}

export function readJson(text: string, where: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new ServerError(200, null, `${where}: not JSON`); // the parser's own message holds the text
  }
}

export function member(value: unknown, name: string): unknown {
  if (typeof value !== "object" || value === null || !Object.hasOwn(value, name)) return null;
  return (value as Record<string, unknown>)[name] ?? null;
}
