// Answers of a server, which is not trusted: every field's type and size is checked, and no error holds a part of an answer,
// which derives from the prompt. Server-sent events are those of the HTML standard, as far as the protocol uses them.

import {
  AccessDeniedError,
  BundleOutdatedError,
  ContextFullError,
  DelError,
  InvalidRequestError,
  OverloadedError,
  ProtocolError,
  ServerError,
  statusOf,
  type Details,
} from "./errors.js";

const MAX_EVENT = 1 << 20;
const TOKEN_CHARACTERS = 512;
const ID = /^[!-~]{1,200}$/;
const REASON = /^[a-z_]{1,32}$/;

/** The data of every event of a body. An event that the end cuts off is dropped. */
export async function* events(body: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let rest = "";
  let data: string[] = [];
  let size = 0;
  for await (const piece of body) {
    rest += decode(decoder, piece);
    // A CR at the end waits: an LF that belongs to it may follow.
    const lines = rest.endsWith("\r") ? rest.slice(0, -1).split(/\r\n|\r|\n/) : rest.split(/\r\n|\r|\n/);
    rest = lines.pop()! + (rest.endsWith("\r") ? "\r" : "");
    for (const line of lines) {
      if (line === "") {
        if (data.length) yield data.join("\n");
        [data, size] = [[], 0];
      } else if (line === "data" || line.startsWith("data:")) {
        data.push(line.slice(5).replace(/^ /, ""));
        size += line.length;
      }
    }
    if (rest.length + size > MAX_EVENT) throw new ProtocolError(`event stream: an event of more than ${MAX_EVENT} characters`);
  }
  if (rest === "\r" && data.length) yield data.join("\n");
}

function decode(decoder: TextDecoder, piece: Uint8Array): string {
  try {
    return decoder.decode(piece, { stream: true });
  } catch {
    throw new ProtocolError("event stream: not UTF-8");
  }
}

export interface Chunk {
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly finishReason: string | null;
  /** Logarithms of the tokens' probabilities, if the request asked for them. */
  readonly logprobs: readonly TokenLogprobs[] | null;
}

export interface TokenLogprobs {
  readonly logprob: number;
  /** The most probable tokens with their logarithms. */
  readonly top: readonly (readonly [number, number])[];
}

export interface Usage {
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly totalTokens: number;
}

/** Collects the chunks of one completion over all the connections that it took. */
export class Collector {
  text = "";
  readonly tokenIds: number[] = [];
  readonly logprobs: TokenLogprobs[] = [];
  finishReason: string | null = null;
  usage: Usage | null = null;
  private room: number;
  private done = false;

  /** `top` alternatives are expected at each token; null expects no logarithms. */
  constructor(
    private readonly maxTokens: number,
    private readonly top: number | null = null,
  ) {
    this.room = maxTokens * TOKEN_CHARACTERS; // events may have text without token ids
  }

  /** A new connection: its end mark is still to come. */
  resume(): void {
    this.done = false;
  }

  /** Accounts for one event: a chunk if it brought anything. Throws the error of an error event. */
  take(data: string): Chunk | null {
    if (this.done || data.trim() === "[DONE]") {
      this.done = true;
      return null;
    }
    const event = readObject(data, "event");
    const failure = member(event, "error");
    if (failure !== null) {
      throw readError(statusOf(member(failure, "code")), failure, {}); // the code implies the status
    }
    this.usage = readUsage(event) ?? this.usage;
    const chunk = readChoice(event, this.maxTokens, this.top);
    if (chunk === null) return null;
    if (this.finishReason !== null) {
      if (chunk.text || chunk.tokenIds.length) throw new ProtocolError("event.choices[0]: more output after a finish reason");
      return null;
    }
    this.room -= chunk.text.length;
    if (this.tokenIds.length + chunk.tokenIds.length > this.maxTokens || this.room < 0) {
      throw new ProtocolError(`event: more than the ${this.maxTokens} tokens that were asked for`);
    }
    this.text += chunk.text;
    this.tokenIds.push(...chunk.tokenIds);
    this.logprobs.push(...(chunk.logprobs ?? []));
    this.finishReason = chunk.finishReason;
    return chunk.text || chunk.tokenIds.length || chunk.finishReason ? chunk : null;
  }

  /** A stream that broke after all its tokens is complete. */
  finishIfFull(): Chunk | null {
    if (this.finishReason !== null || this.tokenIds.length < this.maxTokens) return null;
    this.finishReason = "length";
    return { text: "", tokenIds: [], finishReason: "length", logprobs: null };
  }
}

/** The one choice of a completion or of a chunk; null where a chunk has none. */
export function readChoice(event: unknown, maxTokens: number, top: number | null = null): Chunk | null {
  const choices = member(event, "choices");
  if (!Array.isArray(choices) || choices.length > 1) throw new ProtocolError("choices: an array of one choice is needed");
  if (!choices.length) return null;
  const [text, ids, reason] = ["text", "token_ids", "finish_reason"].map((name) => member(choices[0], name));
  if (typeof text !== "string" || /[\ud800-\udfff]/u.test(text)) throw new ProtocolError("choices[0].text: valid Unicode is needed");
  if (!Array.isArray(ids) || ids.length > maxTokens || !ids.every(isCount)) {
    throw new ProtocolError(`choices[0].token_ids: an array of at most ${maxTokens} integers from 0 is needed`);
  }
  if (reason !== null && !(typeof reason === "string" && REASON.test(reason))) {
    throw new ProtocolError("choices[0].finish_reason: null or a short name is needed");
  }
  if (text.length > maxTokens * TOKEN_CHARACTERS) throw new ProtocolError("choices[0].text: is too long for its tokens");
  const logprobs = top === null ? null : readLogprobs(member(choices[0], "logprobs"), ids.length, top);
  return { text, tokenIds: ids, finishReason: reason, logprobs };
}

function readLogprobs(value: unknown, tokens: number, top: number): TokenLogprobs[] {
  const [own, best] = [member(value, "token_logprobs"), member(value, "top_logprobs")];
  const isLogprob = (one: unknown): one is number => typeof one === "number" && one >= -9999 && one <= 0;
  const isPair = (one: unknown) => Array.isArray(one) && one.length === 2 && isCount(one[0]) && isLogprob(one[1]);
  const fits =
    Array.isArray(own) && Array.isArray(best) && own.length === tokens && best.length === tokens && own.every(isLogprob) &&
    best.every((pairs) => Array.isArray(pairs) && pairs.length <= top && pairs.every(isPair));
  if (!fits) throw new ProtocolError("choices[0].logprobs: logarithms of every token are needed");
  return (own as number[]).map((logprob, i) => ({ logprob, top: (best as [number, number][][])[i]! }));
}

/** The usage of an answer, or null without one. */
export function readUsage(answer: unknown): Usage | null {
  const usage = member(answer, "usage");
  if (usage === null) return null;
  const counts = ["prompt_tokens", "completion_tokens", "total_tokens"].map((name) => member(usage, name));
  if (!counts.every(isCount)) throw new ProtocolError("usage: integers from 0 are needed");
  const [promptTokens, completionTokens, totalTokens] = counts as [number, number, number];
  return { promptTokens, completionTokens, totalTokens };
}

/** The error of an answer that is not a success, by its status and, if it has one, its error object. */
export function readError(status: number, failure: unknown, headers: Pick<Details, "requestId" | "retryAfter">): DelError {
  const [message, code, param] = ["message", "code", "param"].map((name) => member(failure, name));
  const text = typeof message === "string" ? clean(message) : `HTTP ${status}`;
  const known = typeof code === "string" && REASON.test(code) ? code : null;
  const field = typeof param === "string" ? clean(param).slice(0, 100) : null;
  const details = { status, code: known, field, ...headers };
  if (known === "bundle_outdated") return new BundleOutdatedError(text, details);
  if (known === "context_length_exceeded") return new ContextFullError(text, details);
  if (status === 401 || status === 403) return new AccessDeniedError(text, details);
  if (status === 429 || status === 503) return new OverloadedError(text, details);
  if ([400, 404, 405, 411, 413, 415, 422].includes(status)) return new InvalidRequestError(text, details);
  return new ServerError(text, details);
}

/** One line of printable text, of a length for a message. */
function clean(text: string): string {
  return text.replace(/[\p{C}\p{Zl}\p{Zp}]+/gu, " ").slice(0, 1000);
}

/** An id that headers and logs can carry, or null. */
export function readId(value: unknown): string | null {
  return typeof value === "string" && ID.test(value) ? value : null;
}

export function readObject(text: string, where: string): unknown {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new ProtocolError(`${where}: not JSON`); // the parser's own message holds the text
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new ProtocolError(`${where}: an object is needed`);
  return value;
}

export function member(value: unknown, name: string): unknown {
  if (typeof value !== "object" || value === null || !Object.hasOwn(value, name)) return null;
  return (value as Record<string, unknown>)[name] ?? null;
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
