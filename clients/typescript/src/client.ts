// The client: fetches, checks and remembers the bundle, draws the noise, sends frames, reads answers, resumes broken streams.

import { DEFAULT_DELTA, epsilon, largestLoss } from "./accounting.js";
import { Bundle, readArchive, type Files, type Manifest, type Variant } from "./bundle.js";
import { Conversation, type ConversationOptions } from "./conversation.js";
import { Encoder, privateTokensOf, tokensOf, type EncodedPrompt, type TokenizedPart } from "./encoder.js";
import { BundleOutdatedError, ContextFullError, ProtocolError, StreamBrokenError, TimeoutExceededError } from "./errors.js";
import { Collector, events, member, readChoice, readId, readObject, readUsage, type Chunk, type Usage } from "./events.js";
import { MEDIA_TYPE, type Sampling } from "./frame.js";
import { backoff, checkUrl, Deadline, endsCall, Http, isTemporary, pieces, readBytes, type Timeout } from "./http.js";
import type { Spender } from "./ledger.js";
import { randomBytes, toHex } from "./digest.js";
import { PromptMemo } from "./memo.js";
import { checkHex, checkPolicy, enforce, type PrivacyPolicy } from "./policy.js";
import { samplingOf, type SamplingOptions } from "./sampling.js";
import { verifiedKey } from "./signature.js";
import { checkPadding, CLEAR, invalid, isChat, partsOf, type ChatTemplate, type Padding, type Prompt } from "./spans.js";
import { defaultStorage, type Storage } from "./storage.js";
import { CompletionStream, type Completion } from "./stream.js";
import { Trust } from "./trust.js";

const MAX_BUNDLE = 2 ** 30;
const MAX_MODELS = 1 << 20;
const MAX_ANSWER = 16 << 20;
const [ANSWER_BYTES, TOKEN_BYTES] = [64 << 10, 4 << 10];
const NAME = /^[ -~]{1,256}$/;

export interface ClientOptions {
  readonly apiKey?: string;
  /** The variant of calls that name none. */
  readonly variant?: string;
  readonly policy?: PrivacyPolicy;
  /** Where it is remembered what was accepted from servers: `localStorage` in browsers, else memory. */
  readonly storage?: Storage;
  /** Fingerprints of bundles that are accepted although they differ from what was accepted before. */
  readonly accept?: readonly string[];
  /** Ed25519 keys, 64 hexadecimal digits each; one of them must have signed the bundle. */
  readonly trustedKeys?: readonly string[];
  /** The only bundle that is accepted. */
  readonly fingerprint?: string;
  /** The files of a client part that the application brings along; then no server's offer is used. */
  readonly bundle?: Files;
  readonly ledger?: Spender;
  /** Whose budget is charged. */
  readonly subject?: string;
  readonly padding?: Padding;
  /** What stands around the messages of chats. */
  readonly template?: ChatTemplate;
  /** Retries of a request that failed for a while; 12 last for 43 to 86 s, longer than a replica takes to come back. */
  readonly maxRetries?: number;
  /** How often a stream that broke is resumed; 3 unless given. */
  readonly maxResumes?: number;
  readonly timeout?: Timeout;
  /** Permits http to other machines, for example inside a cluster. */
  readonly allowHttp?: boolean;
  /** Another implementation of `fetch`, for example Expo's, whose answers can be read in pieces. */
  readonly fetch?: typeof fetch;
}

/** Options that `with` may change; connections, bundle and memo stay shared. */
export type CallOptions = Pick<ClientOptions, "variant" | "policy" | "ledger" | "subject" | "padding" | "template" | "maxRetries" | "maxResumes" | "timeout">;

export interface RequestOptions extends SamplingOptions {
  readonly variant?: string;
  /** New noise for a prompt that was sent before, which costs privacy again. */
  readonly fresh?: boolean;
  readonly signal?: AbortSignal;
  /** 1 to 200 printable ASCII characters, the same for all tries with the same bytes; random unless given. */
  readonly idempotencyKey?: string;
}

/** A variant as the server lists it. Its guarantees are statements; the client's own are those of `epsilon`. */
export interface Model {
  readonly name: string;
  readonly guarantees: unknown;
  readonly audit: unknown;
  readonly contextLength: number | null;
}

/** What `with` shares. @internal */
interface Shared {
  readonly http: Http;
  readonly trust: Trust;
  readonly memo: PromptMemo;
  encoder: Promise<Encoder> | null;
}

interface Prepared {
  encoder: Encoder;
  encoded: EncodedPrompt;
  sampling: Sampling;
  key: string;
  /** A prompt without private spans, which may be encoded again at no cost. */
  readonly publicPrompt: Prompt | null;
  readonly deadline: Deadline;
  bytesSent: number;
}

/** How a conversation encodes a prompt. @internal */
export type Recall = (encoder: Encoder, parts: readonly TokenizedPart[], variant: string, endTokenIds: readonly number[]) => Promise<EncodedPrompt>;

export class DelClient {
  /** Nothing is sent before the first call, which fetches the bundle. */
  constructor(url: string, options?: ClientOptions);
  /** @internal */
  constructor(url: string, options: ClientOptions, shared: Shared);
  constructor(
    readonly url: string,
    private readonly options: ClientOptions = {},
    private readonly shared: Shared = share(url, options),
  ) {
    checkPolicy(options.policy ?? {});
    if (options.padding) checkPadding(options.padding);
    for (const field of ["accept", "trustedKeys"] as const) options[field]?.forEach((one) => checkHex(field, one));
    if (options.fingerprint !== undefined) checkHex("fingerprint", options.fingerprint);
    for (const field of ["maxRetries", "maxResumes"] as const) {
      const value = options[field];
      if (value !== undefined && !(Number.isInteger(value) && value >= 0 && value <= 100)) throw invalid(field, "an integer from 0 to 100");
    }
  }

  /** The client with other options, on the same bundle and memo. */
  with(options: CallOptions): DelClient {
    const merged = { ...this.options, ...options };
    const { http } = this.shared;
    return new DelClient(this.url, merged, "maxRetries" in options ? { ...this.shared, http: httpOf(http.url, merged) } : this.shared);
  }

  /** What was accepted from each server. */
  get trust(): Trust {
    return this.shared.trust;
  }

  /** The bundle in use, fetched and verified by the first call. */
  async bundle(): Promise<Bundle> {
    return (await this.encoder()).bundle;
  }

  /** The variants of the bundle. */
  async variants(): Promise<ReadonlyMap<string, Variant>> {
    return (await this.bundle()).variants;
  }

  /** The exact worst-case epsilon of `tokens` private tokens, computed from the integers of the noise; infinite under `clear`. */
  async epsilon(variant: string, { delta = DEFAULT_DELTA, tokens = 1 }: { delta?: number; tokens?: number } = {}): Promise<number> {
    const encoder = await this.encoder();
    encoder.checkVariant(variant);
    if (variant === CLEAR) return Infinity;
    const { mechanism } = encoder.bundle.variants.get(variant)!;
    return delta === 0 ? largestLoss(mechanism, tokens) : epsilon(mechanism, delta, tokens);
  }

  /** What the server lists. */
  async models(): Promise<Model[]> {
    const deadline = this.deadline();
    try {
      const answer = await this.shared.http.request({ path: "/v1/models", headers: { accept: "application/json" } }, deadline);
      const data = member(readObject(new TextDecoder().decode(await readBytes(answer, MAX_MODELS, deadline)), "body"), "data");
      if (!Array.isArray(data)) throw new ProtocolError("body.data: an array is needed");
      return data.map((entry: unknown, i) => {
        const [name, length] = [member(entry, "id"), member(entry, "context_length")];
        if (typeof name !== "string" || !NAME.test(name)) throw new ProtocolError(`body.data[${i}].id: a name is needed`);
        if (length !== null && !Number.isSafeInteger(length)) throw new ProtocolError(`body.data[${i}].context_length: an integer is needed`);
        return { name, guarantees: member(entry, "guarantees"), audit: member(entry, "audit"), contextLength: length as number | null };
      });
    } finally {
      deadline.end();
    }
  }

  /** The parts of a prompt with their tokens, for display: nothing is drawn or sent. */
  async tokenize(prompt: Prompt, variant?: string): Promise<readonly TokenizedPart[]> {
    const encoder = await this.encoder();
    const chosen = this.chosen(variant);
    encoder.checkVariant(chosen);
    return encoder.tokenize(partsOf(prompt, chosen, this.template()), this.options.padding ?? null);
  }

  /** Draws the noise of a prompt now; `complete` and `stream` accept the result any number of times. */
  async encode(prompt: Prompt, variant?: string): Promise<EncodedPrompt> {
    return this.encodeWith(await this.encoder(), prompt, this.chosen(variant), true, null);
  }

  /** One completion in one answer. */
  async complete(prompt: Prompt | EncodedPrompt, options: RequestOptions = {}): Promise<Completion> {
    return this.completeWith(prompt, options, null);
  }

  /** One completion in chunks. A stream that breaks is resumed with the same bytes and the token ids received. */
  stream(prompt: Prompt | EncodedPrompt, options: RequestOptions = {}): CompletionStream {
    return this.streamWith(prompt, options, null);
  }

  /** A conversation, whose earlier turns are sent with the counts that they had. */
  async conversation(options: ConversationOptions = {}): Promise<Conversation> {
    return Conversation.open(this, { ...options, variant: this.chosen(options.variant) });
  }

  /** @internal */
  template(): ChatTemplate | null {
    return this.options.template ?? null;
  }

  /** @internal */
  async completeWith(prompt: Prompt | EncodedPrompt, options: RequestOptions, recall: Recall | null): Promise<Completion> {
    const request = await this.prepare(prompt, options, false, recall);
    try {
      const { max_tokens, logprobs } = request.sampling;
      const answer = await this.submit(request, []);
      const most = Math.min(MAX_ANSWER, ANSWER_BYTES + max_tokens * TOKEN_BYTES);
      const body = readObject(decoded(await readBytes(answer, most, request.deadline)), "body");
      const chunk = readChoice(body, max_tokens, logprobs);
      if (chunk === null || chunk.finishReason === null) throw new ProtocolError("body: no whole completion");
      return completionOf(request, { ...chunk, finishReason: chunk.finishReason }, readUsage(body), requestIdOf(answer) ?? readId(member(body, "id")));
    } finally {
      request.deadline.end();
    }
  }

  /** @internal */
  streamWith(prompt: Prompt | EncodedPrompt, options: RequestOptions, recall: Recall | null): CompletionStream {
    return new CompletionStream(this.chunks(prompt, options, recall));
  }

  private async *chunks(prompt: Prompt | EncodedPrompt, options: RequestOptions, recall: Recall | null): AsyncGenerator<Chunk, Completion> {
    const request = await this.prepare(prompt, options, true, recall);
    const { deadline } = request;
    try {
      const received = new Collector(request.sampling.max_tokens, request.sampling.logprobs);
      const most = this.options.maxResumes ?? 3;
      let requestId: string | null = null;
      let failure: unknown = null;
      for (let resumes = 0; resumes <= most; resumes++) {
        if (resumes) await deadline.pause(backoff(resumes - 1));
        const before = received.tokenIds.length;
        received.resume();
        const answer = await this.submit(request, received.tokenIds);
        requestId = requestIdOf(answer) ?? requestId;
        try {
          for await (const data of events(pieces(answer, deadline))) {
            const chunk = received.take(data);
            if (chunk) yield chunk;
          }
          failure = null;
        } catch (error) {
          // After the finish reason only the end mark is missing.
          if (received.finishReason === null || error instanceof ProtocolError) {
            // Silence after a token means a dead server; before, the request may be queued.
            const silent = error instanceof TimeoutExceededError && error.phase === "read" && received.tokenIds.length > before;
            if ((!isTemporary(error) && !silent) || endsCall(error, deadline)) throw error;
            failure = error;
          }
        }
        const last = received.finishIfFull();
        if (last) yield last;
        if (received.finishReason !== null) {
          const { text, tokenIds, finishReason } = received;
          const logprobs = request.sampling.logprobs === null ? null : received.logprobs;
          return completionOf(request, { text, tokenIds, finishReason, logprobs }, resumes ? null : received.usage, requestId);
        }
      }
      throw new StreamBrokenError(`stream: broke again after ${most} resumptions, the limit of maxResumes`, { cause: failure });
    } finally {
      deadline.end();
    }
  }

  // --- the bundle ---------------------------------------------------------------------------------------------------------

  private deadline(signal?: AbortSignal): Deadline {
    const { read = 60, total = 600 } = this.options.timeout ?? {};
    return new Deadline({ read, total }, signal);
  }

  private chosen(variant: string | undefined): string {
    const chosen = variant ?? this.options.variant;
    if (chosen === undefined) throw invalid("variant", "named in the call or with the client");
    return chosen;
  }

  /** The encoder of the bundle in use; calls at the same time share one download. */
  private async encoder(): Promise<Encoder> {
    this.shared.encoder ??= this.load();
    const loading = this.shared.encoder;
    try {
      return await loading;
    } catch (error) {
      if (this.shared.encoder === loading) this.shared.encoder = null; // the next call tries again
      throw error;
    }
  }

  private async load(): Promise<Encoder> {
    const { bundle: files, fingerprint, trustedKeys = [] } = this.options;
    const checkPin = (manifest: Manifest): void => {
      if (fingerprint === undefined || manifest.fingerprint === fingerprint) return;
      throw new BundleOutdatedError(`the bundle's fingerprint: must be the pinned ${fingerprint}, got ${manifest.fingerprint}`);
    };
    if (files !== undefined) return new Encoder(await Bundle.open(files, checkPin), null);
    const deadline = this.deadline();
    try {
      const answer = await this.shared.http.request({ path: "/v1/bundle", headers: { accept: "application/x-tar" } }, deadline);
      const archive = await readBytes(answer, MAX_BUNDLE, deadline);
      const named = [...(this.options.policy?.variants ?? []), ...(this.options.variant === undefined ? [] : [this.options.variant])];
      const chosen = [...(this.options.accept ?? []), ...(this.options.policy?.fingerprints ?? []), fingerprint];
      const offer = async (manifest: Manifest) => ({
        url: this.shared.http.url,
        manifest,
        signingKey: await verifiedKey(manifest, answer.headers.get("x-del-signature"), trustedKeys),
        trustedKeys,
        named,
        onPurpose: chosen.includes(manifest.fingerprint),
      });
      const bundle = await Bundle.open(readArchive(archive), async (manifest) => {
        checkPin(manifest);
        await this.trust.check(await offer(manifest));
      });
      const tag = answer.headers.get("etag");
      if (tag !== null && tag.replace(/^W\//, "") !== `"${bundle.fingerprint}"`) throw new ProtocolError("ETag: is not the bundle's fingerprint");
      const encoder = new Encoder(bundle, contextLength(answer));
      await this.trust.admit(await offer(bundle.manifest));
      return encoder;
    } finally {
      deadline.end();
    }
  }

  // --- requests -----------------------------------------------------------------------------------------------------------

  /** Checks everything, draws the noise and records the spending; nothing is sent before. */
  private async prepare(prompt: Prompt | EncodedPrompt, options: RequestOptions, stream: boolean, recall: Recall | null): Promise<Prepared> {
    const sampling = samplingOf(options, stream);
    const { ledger, subject } = this.options;
    if (ledger !== undefined && subject === undefined) throw invalid("subject", "given with a ledger, which records spending by subject");
    const key = options.idempotencyKey ?? toHex(randomBytes(16));
    if (!/^[!-~]{1,200}$/.test(key)) throw invalid("idempotencyKey", "1 to 200 printable ASCII characters without spaces");
    const deadline = this.deadline(options.signal);
    try {
      const encoder = await this.encoder();
      let encoded: EncodedPrompt;
      let publicPrompt: Prompt | null = null;
      if (isEncoded(prompt)) {
        const adopted = encoder.adopt(prompt);
        if (options.variant !== undefined && options.variant !== prompt.variant) throw invalid("variant", `${prompt.variant}, the variant of the encoding`);
        if (adopted === null) throw meaningChanged(prompt.fingerprint, encoder);
        encoded = adopted;
        this.enforce(encoder, encoded.variant, privateTokensOf(encoded));
        encoder.checkRoom(encoded.variant, tokensOf(encoded));
      } else {
        encoded = await this.encodeWith(encoder, prompt, this.chosen(options.variant), options.fresh === true, recall);
        if (!encoded.draws.length) publicPrompt = prompt;
      }
      const room = encoder.room(encoded.variant);
      const ends = sampling.ignore_eos ? [] : encoded.endTokenIds.filter((id) => !sampling.stop_token_ids.includes(id));
      const cut: Sampling = {
        ...sampling,
        max_tokens: room === null ? sampling.max_tokens : Math.min(sampling.max_tokens, room - tokensOf(encoded)),
        stop_token_ids: [...sampling.stop_token_ids, ...ends],
      };
      encoder.frame(encoded, cut, []); // what the server would refuse is found before anything is charged
      if (ledger !== undefined && encoded.draws.length) {
        await ledger.spend(subject!, encoder.bundle.variants.get(encoded.variant)!.mechanism, encoded.draws);
      }
      return { encoder, encoded, sampling: cut, key, publicPrompt, deadline, bytesSent: 0 };
    } catch (error) {
      deadline.end();
      throw error;
    }
  }

  private enforce(encoder: Encoder, variant: string, privateTokens: number): void {
    enforce(this.options.policy ?? {}, encoder.bundle, variant, privateTokens);
  }

  /** Checks the policy, then draws the noise, or takes the counts of the last time that the prompt was sent. */
  private async encodeWith(encoder: Encoder, prompt: Prompt, variant: string, fresh: boolean, recall: Recall | null): Promise<EncodedPrompt> {
    encoder.checkVariant(variant);
    this.enforce(encoder, variant, 0);
    const { padding = null, subject = null } = this.options;
    const tokenized = encoder.tokenize(partsOf(prompt, variant, this.template()), padding);
    const hidden = tokenized.filter((part) => part.isPrivate);
    encoder.checkRoom(variant, encoder.count(tokenized));
    this.enforce(encoder, variant, hidden.reduce((sum, part) => sum + part.ids.length, 0));
    const endTokenIds = isChat(prompt) ? (this.template()?.endTokenIds ?? encoder.bundle.chat?.endTokenIds ?? []) : [];
    if (recall !== null) return recall(encoder, tokenized, variant, endTokenIds);
    const draw = (): EncodedPrompt => encoder.assemble(tokenized, hidden.map((part) => encoder.draw(part.ids, variant)), variant, { session: null, endTokenIds });
    if (!hidden.length) return draw();
    const { memo } = this.shared;
    const name = await memo.name(subject, variant, padding === null ? "" : JSON.stringify(checkPadding(padding)), tokenized);
    const known = fresh ? null : memo.recall(name);
    const adopted = known && encoder.adopt(known);
    return adopted ?? { ...memo.keep(name, draw(), fresh), fingerprint: encoder.bundle.fingerprint };
  }

  /** Sends a prompt, moving it to the server's new bundle at most once. */
  private async submit(request: Prepared, resume: readonly number[]): Promise<Response> {
    try {
      return await this.send(request, resume);
    } catch (error) {
      if (error instanceof ContextFullError) this.shared.encoder = null; // the server has less room than it stated
      if (!(error instanceof BundleOutdatedError)) throw error;
      await this.renew(request, error, !resume.length);
    }
    return this.send(request, resume);
  }

  private send(request: Prepared, resume: readonly number[]): Promise<Response> {
    const { encoder, encoded, sampling, key, deadline } = request;
    const frame = encoder.frame(encoded, sampling, resume);
    request.bytesSent ||= frame.length;
    const headers: Record<string, string> = {
      "content-type": MEDIA_TYPE,
      accept: sampling.stream ? "text/event-stream" : "application/json",
      // A key must not stand for different bytes.
      "idempotency-key": resume.length ? `${key}.${resume.length}` : key,
    };
    if (encoded.session !== null) headers["x-session-id"] = encoded.session;
    return this.shared.http.request({ path: "/v1/private/completions", headers, body: frame }, deadline);
  }

  /** Moves a request to the server's bundle if that needs no fresh noise. */
  private async renew(request: Prepared, mismatch: BundleOutdatedError, mayEncode: boolean): Promise<void> {
    const stale = request.encoder.bundle.fingerprint;
    if (this.options.fingerprint !== undefined || this.options.bundle !== undefined) throw mismatch;
    if (this.shared.encoder !== null && (await this.shared.encoder).bundle.fingerprint === stale) this.shared.encoder = null;
    const encoder = await this.encoder();
    if (encoder.bundle.fingerprint === stale) throw mismatch; // the server hands out one bundle and wants another
    let encoded = encoder.adopt(request.encoded);
    if (encoded === null && mayEncode && request.publicPrompt !== null) {
      encoded = await this.encodeWith(encoder, request.publicPrompt, request.encoded.variant, true, null);
    }
    if (encoded === null) throw meaningChanged(stale, encoder);
    this.enforce(encoder, encoded.variant, privateTokensOf(encoded)); // the new bundle's audit may violate the policy
    request.encoder = encoder;
    request.encoded = encoded;
    request.key += "-renewed";
  }
}

function httpOf(url: string, options: ClientOptions): Http {
  const send = options.fetch ?? globalThis.fetch.bind(globalThis);
  return new Http(url, options.apiKey ?? null, send, options.maxRetries ?? 12);
}

function share(url: string, options: ClientOptions): Shared {
  if ((globalThis.crypto as Crypto | undefined)?.subtle === undefined) {
    throw invalid("crypto", "a Web Crypto API with subtle, which browsers have on https and on this machine");
  }
  const http = httpOf(checkUrl(url, options.allowHttp === true), options);
  return { http, trust: new Trust(options.storage ?? defaultStorage()), memo: new PromptMemo(), encoder: null };
}

function isEncoded(prompt: Prompt | EncodedPrompt): prompt is EncodedPrompt {
  return typeof prompt === "object" && "segments" in prompt;
}

function meaningChanged(stale: string, encoder: Encoder): BundleOutdatedError {
  const message = `prompt: its counts, drawn for the bundle ${stale}, mean something else under ${encoder.bundle.fingerprint}, which is in use now; ` +
    "calling again draws fresh noise, which adds to the prompt's privacy loss";
  return new BundleOutdatedError(message, { code: "bundle_outdated" });
}

function completionOf(request: Prepared, chunk: Chunk & { finishReason: string }, usage: Usage | null, requestId: string | null): Completion {
  const { text, tokenIds, finishReason, logprobs } = chunk;
  const [promptTokens, completionTokens] = [tokensOf(request.encoded), tokenIds.length];
  const counted = { promptTokens, completionTokens, totalTokens: promptTokens + completionTokens };
  return { text, tokenIds, finishReason, logprobs, usage: usage ?? counted, requestId, variant: request.encoded.variant, bytesSent: request.bytesSent };
}

function requestIdOf(answer: Response): string | null {
  return readId(answer.headers.get("x-request-id"));
}

function contextLength(answer: Response): number | null {
  const stated = answer.headers.get("x-del-context-length");
  return stated !== null && /^[0-9]{1,9}$/.test(stated) ? Number(stated) : null;
}

function decoded(data: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(data);
  } catch {
    throw new ProtocolError("body: not UTF-8");
  }
}

