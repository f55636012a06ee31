// A client: fetches and verifies the bundle, draws the noise, sends frames, reads answers, resumes broken streams.

import { Bundle, readArchive } from "./bundle.js";
import { ServerError } from "./errors.js";
import { Collector, events, member, readChoice, readError, readJson, type Chunk } from "./events.js";
import { DEFAULTS, encodeFrame, MEDIA_TYPE, type Sampling, type Segment } from "./frame.js";
import { CryptoBytes, sample } from "./sampler.js";
import { Tokenizer } from "./tokenizer.js";

/** A part of a prompt. What is not public is private. */
export type Span = string | { readonly private: string } | { readonly public: string };

/** A prompt with its noise drawn: sending it again, for whatever reason, tells the server nothing new. */
export interface EncodedPrompt {
  readonly variant: string;
  readonly segments: readonly Segment[];
}

export interface Completion extends Chunk {
  readonly usage: unknown;
  readonly requestId: string | null;
}

const RESUMES = 3;
// Through them a call lasts for 43 to 86 s without a server, longer than a replica takes to come back.
const RETRIES = 12;
const LONGEST_PAUSE_S = 10;
const LONGEST_WAIT_S = 60;
const TEMPORARY = [408, 409, 429, 500, 502, 503, 504];
const MAX_BUNDLE = 2 ** 32;

export class DelClient {
  private constructor(
    private readonly url: string,
    private readonly headers: Record<string, string>,
    readonly bundle: Bundle,
    private readonly tokenizer: Tokenizer,
  ) {}

  /** Fetches the server's bundle and verifies it. */
  static async connect(url: string, apiKey?: string): Promise<DelClient> {
    const base = url.replace(/\/+$/, "");
    const headers: Record<string, string> = apiKey ? { authorization: `Bearer ${apiKey}` } : {};
    const answer = await request(`${base}/v1/bundle`, { headers: { ...headers, accept: "application/x-tar" } });
    const bundle = await Bundle.open(readArchive(await readBytes(answer, MAX_BUNDLE)));
    const tag = answer.headers.get("etag");
    if (tag !== `"${bundle.fingerprint}"`) throw new ServerError(200, null, "ETag: is not the bundle's fingerprint");
    return new DelClient(base, headers, bundle, new Tokenizer(bundle.tokenizerJson));
  }

  /** Tokenises a prompt and draws the noise of its private spans, once and for all. */
  encode(spans: readonly Span[], variant: string): EncodedPrompt {
    const known = this.bundle.variants.get(variant);
    if (known === undefined) throw new RangeError(`variant: unknown; allowed: ${[...this.bundle.variants.keys()].join(", ")}`);
    const random = new CryptoBytes();
    const parts = spans.map((span) => {
      const shown = typeof span === "object" && "public" in span;
      return { shown, text: shown ? span.public : typeof span === "string" ? span : span.private };
    }).filter((part) => part.text !== "");
    const bos = this.bundle.bosTokenId;
    const encoded = this.tokenizer.encodeSpans(parts);
    // The bundle's begin-of-text token is sent below; a template may have written it already.
    if (bos !== null && parts[0]?.shown && encoded[0]![0] === bos) encoded[0]!.shift();
    const segments = encoded.flatMap((ids, index): Segment[] => {
      if (!ids.length) return [];
      return [parts[index]!.shown ? { public: ids } : { private: ids.map((id) => sample(known.mechanism, known.table.row(id), random)) }];
    });
    if (!segments.length) throw new RangeError("prompt: no token remains; at least one is needed");
    return { variant, segments: bos === null ? segments : [{ public: [bos] }, ...segments] };
  }

  /** One completion in one answer. */
  async complete(prompt: EncodedPrompt, options: Partial<Sampling> = {}): Promise<Completion> {
    const answer = await this.send(prompt, { ...DEFAULTS, ...options, stream: false }, []);
    const body = readJson(new TextDecoder().decode(await readBytes(answer, 1 << 24)), "body");
    const chunk = readChoice(body);
    if (chunk === null || chunk.finishReason === null) throw new ServerError(200, null, "body: no whole completion");
    return { ...chunk, usage: member(body, "usage"), requestId: answer.headers.get("x-request-id") };
  }

  /** One completion in chunks. A stream that breaks is resumed with the same bytes and the token ids received. */
  async *stream(prompt: EncodedPrompt, options: Partial<Sampling> = {}): AsyncGenerator<Chunk, Completion> {
    const sampling = { ...DEFAULTS, ...options, stream: true };
    const received = new Collector(sampling.max_tokens);
    let requestId: string | null = null;
    for (let attempt = 0; ; attempt++) {
      const answer = await this.send(prompt, sampling, received.tokenIds);
      requestId = answer.headers.get("x-request-id");
      try {
        for await (const data of events(answer.body as unknown as AsyncIterable<Uint8Array>)) {
          const chunk = received.take(data);
          if (chunk) yield chunk;
        }
      } catch (error) {
        if (error instanceof ServerError) throw error;
      }
      if (received.tokenIds.length >= sampling.max_tokens) received.finishReason ??= "length";
      if (received.finishReason !== null) break;
      if (attempt === RESUMES) throw new ServerError(0, null, "stream: broken again and again");
      await pause(attempt, null);
    }
    const { text, tokenIds, finishReason, usage } = received;
    return { text, tokenIds, finishReason, usage, requestId };
  }

  private async send(prompt: EncodedPrompt, sampling: Sampling, resume: readonly number[]): Promise<Response> {
    const { variant, segments } = prompt;
    const bits = this.bundle.variants.get(variant)!.mechanism.bits;
    const frame = encodeFrame({ fingerprint: this.bundle.fingerprint, variant, segments, sampling, resume }, bits);
    const accept = sampling.stream ? "text/event-stream" : "application/json";
    return request(`${this.url}/v1/private/completions`, {
      method: "POST",
      headers: { ...this.headers, "content-type": MEDIA_TYPE, accept },
      body: frame as Uint8Array<ArrayBuffer>,
    });
  }
}

/** An answer that is a success; overload and lost connections are waited out, sending the same bytes again. */
async function request(url: string, init: RequestInit): Promise<Response> {
  let internalErrors = 0;
  for (let attempt = 0; ; attempt++) {
    let failure: unknown;
    try {
      const answer = await fetch(url, { ...init, redirect: "error" });
      if (answer.ok) return answer;
      const seconds = Number(answer.headers.get("retry-after") ?? NaN);
      const text = await answer.text();
      const body = answer.headers.get("content-type")?.startsWith("application/json") ? readJson(text, "body") : null;
      failure = readError(answer.status, member(body, "error"), Number.isFinite(seconds) ? seconds : null);
    } catch (error) {
      failure = error;
    }
    if (attempt === RETRIES || !isTemporary(failure)) throw failure;
    // One may be chance; a second one is no passing state.
    if (failure instanceof ServerError && failure.status === 500 && ++internalErrors > 1) throw failure;
    await pause(attempt, failure instanceof ServerError ? failure.retryAfter : null);
  }
}

function isTemporary(failure: unknown): boolean {
  if (!(failure instanceof ServerError)) return true; // no connection
  return TEMPORARY.includes(failure.status) && failure.code !== "bundle_outdated" && (failure.retryAfter ?? 0) <= LONGEST_WAIT_S;
}

async function readBytes(answer: Response, most: number): Promise<Uint8Array> {
  const pieces: Uint8Array[] = [];
  let size = 0;
  for await (const piece of answer.body as unknown as AsyncIterable<Uint8Array>) {
    size += piece.length;
    if (size > most) throw new ServerError(200, null, `body: more than ${most} bytes`);
    pieces.push(piece);
  }
  const whole = new Uint8Array(size);
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

/** Waits longer every time, with jitter, and never shorter than the server wished. */
async function pause(attempt: number, seconds: number | null): Promise<void> {
  const backoff = Math.min(LONGEST_PAUSE_S, 0.5 * 2 ** attempt) * (0.5 + crypto.getRandomValues(new Uint32Array(1))[0]! / 2 ** 33);
  const wait = Math.max(seconds ?? 0, backoff);
  await new Promise((resolve) => setTimeout(resolve, 1000 * wait));
}
