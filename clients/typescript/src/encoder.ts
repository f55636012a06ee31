// From a prompt to segments: tokenize each span on its own, look up its rows, draw its counts. The only place where noise is drawn.

import type { Bundle } from "./bundle.js";
import { randomBytes, toHex } from "./digest.js";
import { BundleError, ContextFullError, FrameError, InvalidRequestError } from "./errors.js";
import { decodeFrame, encodeFrame, type Limits, type Sampling, type Segment, type Shapes } from "./frame.js";
import type { Draw } from "./ledger.js";
import { columns, CryptoBytes, sample } from "./sampler.js";
import { checkPadding, CLEAR, invalid, type Padding, type Part } from "./spans.js";
import type { Tokenizer } from "./tokenizer.js";

/** The largest frame, as servers allow it by default; what is left to the server is its context. */
const LIMITS = { max_frame_bytes: 1 << 24, max_header_bytes: 1 << 20, max_segments: 1024, max_prompt_tokens: 131072, max_output_tokens: 131072 };

/** A span with its tokens. */
export interface TokenizedPart extends Part {
  readonly ids: readonly number[];
}

/** The counts of one private span. */
export interface Drawn {
  readonly id: string;
  readonly counts: readonly Uint8Array[];
}

/** A prompt with its noise drawn: sending it again, for whatever reason, tells the server nothing new. */
export interface EncodedPrompt {
  readonly fingerprint: string;
  readonly variant: string;
  readonly segments: readonly Segment[];
  /** The drawings of its private spans, which a ledger charges once. */
  readonly draws: readonly Draw[];
  /** What the counts depend on besides the prompt and the random bytes. */
  readonly origin: string;
  readonly session: string | null;
  /** Tokens that end the answer besides the model's own. */
  readonly endTokenIds: readonly number[];
}

export class Encoder {
  readonly tokenizer: Tokenizer;
  private readonly shapes: Shapes;
  private readonly random = new CryptoBytes();

  constructor(
    readonly bundle: Bundle,
    /** The server's context length, as it stated it, or null. */
    readonly contextLength: number | null,
  ) {
    this.tokenizer = bundle.tokenizer;
    const shapes = [...bundle.variants].map(([name, { mechanism }]) => [name, { bits: mechanism.bits, dim: columns(mechanism) }] as const);
    this.shapes = new Map([...shapes, [CLEAR, null]]);
  }

  checkVariant(variant: string): void {
    if (this.shapes.has(variant)) return;
    throw new InvalidRequestError(`variant: must be one of ${[...this.shapes.keys()].join(", ")}`, { code: "unknown_variant", field: "variant" });
  }

  /** The tokens of each part; parts without a token are left out. */
  tokenize(parts: readonly Part[], padding: Padding | null): TokenizedPart[] {
    const encoded = this.tokenizer.encodeSpans(parts.map(({ text, isPrivate }) => ({ text, shown: !isPrivate })));
    // The bundle's begin-of-text token is sent anyway; a template may have written it already.
    const { bosTokenId, vocabularySize } = this.bundle;
    if (bosTokenId !== null && !parts[0]?.isPrivate && encoded[0]?.[0] === bosTokenId) encoded[0].shift();
    const found = parts.map((part, i) => ({ ...part, ids: padding !== null && part.isPrivate ? this.pad(encoded[i]!, padding) : encoded[i]! }));
    if (found.some(({ ids }) => ids.some((id) => id >= vocabularySize))) throw new BundleError("tokenizer.json", "has token ids beyond the table");
    const kept = found.filter(({ ids }) => ids.length);
    if (!kept.length) throw invalid("prompt", "at least one token long");
    return kept;
  }

  private pad(ids: readonly number[], given: Padding): number[] {
    const { bucket, text } = checkPadding(given);
    const filler = this.tokenizer.encode(text, false); // it must not depend on what precedes it
    if (!filler.length) throw invalid("padding.text", "text with at least one token");
    const missing = (bucket - (ids.length % bucket)) % bucket;
    return [...Array.from({ length: missing }, (_, i) => filler[i % filler.length]!), ...ids];
  }

  /** Tokens of a prompt as the server counts them. */
  count(parts: readonly TokenizedPart[]): number {
    return parts.reduce((sum, { ids }) => sum + ids.length, this.bundle.bosTokenId === null ? 0 : 1);
  }

  /** The most tokens that a prompt and its answer may have together, or null if it is not known. */
  room(variant: string): number | null {
    if (this.contextLength === null) return null;
    return Math.max(0, this.contextLength - (this.bundle.variants.get(variant)?.softPromptLength ?? 0));
  }

  /** Throws ContextFullError if a prompt leaves no room for an answer. */
  checkRoom(variant: string, tokens: number): void {
    const room = this.room(variant);
    if (room === null || tokens < room) return;
    const most = Math.max(0, room - 1);
    throw new ContextFullError(`prompt: must be at most ${most} tokens long, which leaves room for an answer, got ${tokens}`, {}, tokens, room);
  }

  /** Draws the counts of a private span. */
  draw(ids: readonly number[], variant: string): Drawn {
    const { mechanism, table } = this.bundle.variants.get(variant)!;
    return { id: toHex(randomBytes(16)), counts: ids.map((id) => sample(mechanism, table.row(id), this.random)) };
  }

  /** A prompt of tokenized parts and the counts of its private ones, in order. */
  assemble(parts: readonly TokenizedPart[], drawn: readonly Drawn[], variant: string, more: Pick<EncodedPrompt, "session" | "endTokenIds">): EncodedPrompt {
    const counts = drawn.values();
    const segments = parts.map((part): Segment => (part.isPrivate ? { private: counts.next().value!.counts } : { public: part.ids }));
    const { bosTokenId, fingerprint } = this.bundle;
    return {
      fingerprint,
      variant,
      segments: bosTokenId === null ? segments : [{ public: [bosTokenId] }, ...segments],
      draws: drawn.map(({ id, counts: rows }) => ({ id, tokens: rows.length })),
      origin: this.origin(variant),
      ...more,
    };
  }

  /** What counts mean under this bundle. */
  origin(variant: string): string {
    const { manifest, bosTokenId, variants } = this.bundle;
    const noise = variants.get(variant);
    const meaning = noise === undefined ? null : [noise.tableSha256, noise.spec, manifest.maxLevel];
    return JSON.stringify([manifest.files.get("tokenizer.json"), bosTokenId, meaning]);
  }

  /** The same segments for this bundle, or null if they mean something else under it. */
  adopt(encoded: EncodedPrompt): EncodedPrompt | null {
    if (!this.shapes.has(encoded.variant) || encoded.origin !== this.origin(encoded.variant)) return null;
    return { ...encoded, fingerprint: this.bundle.fingerprint };
  }

  /** The bytes of a request, read again as a server reads them: what it would refuse is not sent. */
  frame(encoded: EncodedPrompt, sampling: Sampling, resume: readonly number[]): Uint8Array {
    const { fingerprint, variant, segments } = encoded;
    const frame = encodeFrame({ fingerprint, variant, segments, sampling, resume }, this.shapes.get(variant)?.bits ?? 1);
    const limits: Limits = { ...LIMITS, vocabulary_size: this.bundle.vocabularySize };
    try {
      decodeFrame(frame, this.shapes, limits, this.bundle.fingerprint);
    } catch (error) {
      if (!(error instanceof FrameError)) throw error;
      throw new InvalidRequestError(error.message.replace(/^header\./, ""), { code: error.code, field: error.field.replace(/^header\./, "") });
    }
    return frame;
  }
}

export function tokensOf(encoded: EncodedPrompt): number {
  return encoded.segments.reduce((sum, part) => sum + ("private" in part ? part.private.length : part.public.length), 0);
}

export function privateTokensOf(encoded: EncodedPrompt): number {
  return encoded.draws.reduce((sum, { tokens }) => sum + tokens, 0);
}
