// The request frame: docs/reference/wire-format.md, "Frame" and "Header". A client needs encodeFrame only; decodeFrame is what a
// server does, here to check the vectors in both directions.

import { FrameError } from "./errors.js";
import { parse, write, type Json, JsonError } from "./json.js";
import { pack, unpack } from "./packing.js";

export const MEDIA_TYPE = "application/vnd.del.frame";
const MAGIC = [0x44, 0x45, 0x4c, 0x46];
const VERSION = 1;
const PREFIX = 9;

export type Segment = { readonly private: readonly Uint8Array[] } | { readonly public: readonly number[] };

export interface Sampling {
  readonly max_tokens: number;
  readonly temperature: number;
  readonly top_p: number;
  readonly seed: bigint | null;
  readonly stop: readonly string[];
  readonly stream: boolean;
  readonly stop_token_ids: readonly number[];
  readonly ignore_eos: boolean;
  readonly top_k: number;
  readonly min_p: number;
  readonly presence_penalty: number;
  readonly frequency_penalty: number;
  readonly repetition_penalty: number;
  /** Pairs of a token id and what is added to its logit. */
  readonly logit_bias: readonly (readonly [number, number])[];
  readonly logprobs: number | null;
  readonly structured_outputs: Structure | null;
}

/** What a completion must be; ``json`` is a JSON schema as text. */
export type Structure =
  | { readonly json: string }
  | { readonly json_object: true }
  | { readonly regex: string }
  | { readonly choice: readonly string[] };

export const DEFAULTS: Sampling = {
  max_tokens: 16,
  temperature: 1,
  top_p: 1,
  seed: null,
  stop: [],
  stream: false,
  stop_token_ids: [],
  ignore_eos: false,
  top_k: 0,
  min_p: 0,
  presence_penalty: 0,
  frequency_penalty: 0,
  repetition_penalty: 1,
  logit_bias: [],
  logprobs: null,
  structured_outputs: null,
};

export interface Request {
  readonly fingerprint: string;
  readonly variant: string;
  readonly segments: readonly Segment[];
  readonly sampling: Sampling;
  readonly resume: readonly number[];
}

const integers = (values: readonly number[]): Json => values.map((value) => BigInt(value));

/** The bytes of a request. ``bits``: of the variant's counts; of no matter without a private segment. */
export function encodeFrame(request: Request, bits: number): Uint8Array {
  const rows = request.segments.flatMap((segment) => ("private" in segment ? segment.private : []));
  const header = new Map<string, Json>([
    ["fingerprint", request.fingerprint],
    ["variant", request.variant],
    [
      "segments",
      request.segments.map((segment) =>
        "private" in segment
          ? new Map<string, Json>([["private", BigInt(segment.private.length)]])
          : new Map<string, Json>([["public", integers(segment.public)]]),
      ),
    ],
    ["max_tokens", BigInt(request.sampling.max_tokens)],
  ]);
  const { temperature, top_p, seed, stop, stream, stop_token_ids, ignore_eos } = request.sampling;
  if (temperature !== DEFAULTS.temperature) header.set("temperature", temperature);
  if (top_p !== DEFAULTS.top_p) header.set("top_p", top_p);
  if (seed !== null) header.set("seed", seed);
  if (stop.length) header.set("stop", [...stop]);
  if (stream) header.set("stream", true);
  if (stop_token_ids.length) header.set("stop_token_ids", integers(stop_token_ids));
  if (ignore_eos) header.set("ignore_eos", true);
  const { top_k, logit_bias, logprobs, structured_outputs } = request.sampling;
  if (top_k !== DEFAULTS.top_k) header.set("top_k", BigInt(top_k));
  for (const name of ["min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"] as const) {
    if (request.sampling[name] !== DEFAULTS[name]) header.set(name, request.sampling[name]);
  }
  if (logit_bias.length) header.set("logit_bias", new Map(logit_bias.map(([id, bias]) => [String(id), bias])));
  if (logprobs !== null) header.set("logprobs", BigInt(logprobs));
  if (structured_outputs !== null) {
    header.set("structured_outputs", new Map(Object.entries(structured_outputs).map(([name, value]) => [name, Array.isArray(value) ? [...value] : (value as Json)])));
  }
  if (request.resume.length) header.set("resume", integers(request.resume));

  const text = new TextEncoder().encode(write(header));
  const payload = pack(rows, bits);
  const frame = new Uint8Array(PREFIX + text.length + payload.length);
  frame.set([...MAGIC, VERSION]);
  new DataView(frame.buffer).setUint32(5, text.length, true);
  frame.set(text, PREFIX);
  frame.set(payload, PREFIX + text.length);
  return frame;
}

/** What a server that reads a frame allows. */
export interface Limits {
  readonly max_frame_bytes: number;
  readonly max_header_bytes: number;
  readonly max_segments: number;
  readonly max_prompt_tokens: number;
  readonly max_output_tokens: number;
  readonly vocabulary_size: number;
}

export type Shapes = ReadonlyMap<string, { readonly bits: number; readonly dim: number } | null>;

/** The request of a frame, every size checked before it is used. Throws FrameError. */
export function decodeFrame(frame: Uint8Array, shapes: Shapes, limits: Limits, fingerprint: string): Request {
  const fail = (code: string, field: string, message: string): never => {
    throw new FrameError(code, field, message);
  };
  if (frame.length > limits.max_frame_bytes) fail("frame_too_large", "frame", `${frame.length} bytes`);
  if (frame.length < PREFIX) fail("truncated_frame", "frame", `${frame.length} bytes; at least ${PREFIX} are needed`);
  if (MAGIC.some((byte, i) => frame[i] !== byte)) fail("invalid_magic", "magic", 'is not "DELF"');
  if (frame[4] !== VERSION) fail("unsupported_version", "version", `is ${frame[4]}; ${VERSION} is allowed`);
  const size = new DataView(frame.buffer, frame.byteOffset).getUint32(5, true);
  if (size > limits.max_header_bytes) fail("header_too_large", "header", `${size} bytes`);
  if (size > frame.length - PREFIX) fail("truncated_frame", "header", `${size} bytes; fewer follow`);

  let value: Json;
  try {
    value = parse(frame.subarray(PREFIX, PREFIX + size), 8);
  } catch (error) {
    if (error instanceof JsonError) return fail("invalid_header", "header", error.message);
    throw error;
  }
  const header = new HeaderReader(value, limits);
  const known = header.fingerprint();
  if (known !== fingerprint) fail("bundle_outdated", "header.fingerprint", "is another bundle's");
  const variant = header.variant();
  const parts = header.segments();
  header.refuseUnsupported();
  const sampling = header.sampling();
  const resume = header.resume(sampling.max_tokens);

  const shape = shapes.get(variant);
  if (shape === undefined) return fail("unknown_variant", "header.variant", "is not served");
  const payload = frame.subarray(PREFIX + size);
  const tokens = parts.reduce<number>((sum, part) => sum + (typeof part === "number" ? part : 0), 0);
  if (tokens === 0 && payload.length) fail("payload_length_mismatch", "payload", "without private segments 0 bytes are allowed");
  if (tokens > 0 && shape === null) fail("private_not_accepted", "header.segments", "public segments only are allowed");
  const rows = shape === null || tokens === 0 ? [] : unpack(payload, tokens, shape.dim, shape.bits);
  let row = 0;
  const segments = parts.map((part): Segment => {
    if (typeof part !== "number") return { public: part };
    row += part;
    return { private: rows.slice(row - part, row) };
  });
  return { fingerprint: known, variant, segments, sampling, resume };
}

const REQUIRED = ["fingerprint", "variant", "segments"];
const NEUTRAL = new Map<string, (value: Json) => boolean>([
  ["prompt_logprobs", () => false],
  ["echo", (value) => value === false],
  ["n", (value) => isNumber(value) && Number(value) === 1],
  ["best_of", (value) => isNumber(value) && Number(value) === 1],
  ["suffix", (value) => value === ""],
]);
const OPTIONAL = new Set([...REQUIRED, ...Object.keys(DEFAULTS), ...NEUTRAL.keys(), "resume"]);

function isNumber(value: Json | undefined): value is bigint | number {
  return typeof value === "bigint" || typeof value === "number";
}

class HeaderReader {
  private readonly members: Map<string, Json>;

  constructor(
    value: Json,
    private readonly limits: Limits,
  ) {
    if (!(value instanceof Map)) throw invalid("header", "an object is allowed");
    for (const name of REQUIRED) {
      if (!value.has(name)) throw new FrameError("missing_field", `header.${name}`, "is missing; it is required");
    }
    for (const name of value.keys()) {
      if (!OPTIONAL.has(name)) throw new FrameError("unknown_field", "header", "has an unknown member");
    }
    this.members = value;
  }

  fingerprint(): string {
    return this.text("fingerprint", /^[0-9a-f]{64}$/);
  }

  variant(): string {
    return this.text("variant", /^[a-z0-9-]{1,64}$/);
  }

  segments(): (number | number[])[] {
    const items = this.members.get("segments")!;
    if (!Array.isArray(items) || items.length < 1 || items.length > this.limits.max_segments) {
      throw invalid("header.segments", `an array of 1 to ${this.limits.max_segments} is allowed`);
    }
    let total = 0;
    return items.map((item, i) => {
      const where = `header.segments[${i}]`;
      if (!(item instanceof Map)) throw invalid(where, "an object is allowed");
      for (const name of item.keys()) {
        if (name !== "private" && name !== "public") throw new FrameError("unknown_field", where, "has an unknown member");
      }
      if (item.size !== 1) throw invalid(where, "exactly one of private, public is allowed");
      const count = item.get("private");
      const part =
        count === undefined
          ? this.ids(item.get("public")!, `${where}.public`, 1, Infinity)
          : this.integer(count, `${where}.private`, 1n, 2n ** 31n - 1n);
      total += typeof part === "number" ? part : part.length;
      if (total > this.limits.max_prompt_tokens) {
        throw new FrameError("context_length_exceeded", where, `brings the prompt to ${total} tokens`);
      }
      return part;
    });
  }

  refuseUnsupported(): void {
    for (const [name, neutral] of NEUTRAL) {
      const value = this.members.get(name) ?? null;
      if (value !== null && !neutral(value)) throw new FrameError("unsupported_parameter", `header.${name}`, "is not supported");
    }
  }

  sampling(): Sampling {
    const given = <T>(name: string, read: (value: Json, where: string) => T, otherwise: T): T => {
      const value = this.members.get(name) ?? null;
      return value === null ? otherwise : read(value, `header.${name}`);
    };
    const boolean = (value: Json, where: string): boolean => {
      if (typeof value !== "boolean") throw invalid(where, "true or false is allowed");
      return value;
    };
    const sampling: Sampling = {
      max_tokens: given(
        "max_tokens",
        (value, where) => this.integer(value, where, 1n, BigInt(this.limits.max_output_tokens)),
        Math.min(DEFAULTS.max_tokens, this.limits.max_output_tokens),
      ),
      temperature: given("temperature", (value, where) => real(value, where, (x) => x >= 0 && x <= 2), DEFAULTS.temperature),
      top_p: given("top_p", (value, where) => real(value, where, (x) => x > 0 && x <= 1), DEFAULTS.top_p),
      seed: given<bigint | null>("seed", seed, null),
      stop: given("stop", stopStrings, []),
      stream: given("stream", boolean, false),
      stop_token_ids: given("stop_token_ids", (value, where) => this.ids(value, where, 0, 64), []),
      ignore_eos: given("ignore_eos", boolean, false),
      top_k: given("top_k", (value, where) => this.integer(value, where, 0n, 2n ** 31n - 1n), 0),
      min_p: given("min_p", (value, where) => real(value, where, (x) => x >= 0 && x <= 1), 0),
      presence_penalty: given("presence_penalty", penalty, 0),
      frequency_penalty: given("frequency_penalty", penalty, 0),
      repetition_penalty: given("repetition_penalty", (value, where) => real(value, where, (x) => x > 0 && x <= 2), 1),
      logit_bias: given("logit_bias", (value, where) => this.biases(value, where), []),
      logprobs: given<number | null>("logprobs", (value, where) => this.integer(value, where, 0n, 20n), null),
      structured_outputs: given<Structure | null>("structured_outputs", structure, null),
    };
    if (sampling.ignore_eos && sampling.structured_outputs !== null) throw invalid("header.ignore_eos", "false is allowed with structured_outputs");
    return sampling;
  }

  private biases(value: Json, where: string): [number, number][] {
    if (!(value instanceof Map) || value.size > 300) throw invalid(where, "an object of up to 300 members is allowed");
    return [...value].map(([name, bias]) => {
      if (!/^(0|[1-9][0-9]{0,9})$/.test(name) || Number(name) >= this.limits.vocabulary_size) throw invalid(where, "token ids are allowed as names");
      return [Number(name), real(bias, where, (x) => x >= -100 && x <= 100)];
    });
  }

  resume(maxTokens: number): number[] {
    const value = this.members.get("resume") ?? null;
    if (value === null) return [];
    const ids = this.ids(value, "header.resume", 0, this.limits.max_output_tokens);
    if (ids.length >= maxTokens) throw invalid("header.resume", `at most ${maxTokens - 1} ids are allowed`);
    return ids;
  }

  private text(name: string, pattern: RegExp): string {
    const value = this.members.get(name)!;
    if (typeof value !== "string" || !pattern.test(value)) throw invalid(`header.${name}`, `${pattern.source} is allowed`);
    return value;
  }

  private integer(value: Json, where: string, low: bigint, high: bigint): number {
    if (typeof value !== "bigint" || value < low || value > high) throw invalid(where, `an integer in ${low}..${high} is allowed`);
    return Number(value);
  }

  private ids(value: Json, where: string, least: number, most: number): number[] {
    if (!Array.isArray(value) || value.length < least || value.length > most) {
      throw invalid(where, `an array of ${least} to ${most} token ids is allowed`);
    }
    const last = BigInt(this.limits.vocabulary_size - 1);
    return value.map((item, i) => this.integer(item, `${where}[${i}]`, 0n, last));
  }
}

function invalid(field: string, message: string): FrameError {
  return new FrameError("invalid_value", field, message);
}

function real(value: Json, where: string, fits: (x: number) => boolean): number {
  if (!isNumber(value) || !fits(Number(value))) throw invalid(where, "another range is allowed");
  return Number(value);
}

function penalty(value: Json, where: string): number {
  return real(value, where, (x) => x >= -2 && x <= 2);
}

const STRUCTURE_BYTES = 65536;

function structure(value: Json, where: string): Structure {
  if (!(value instanceof Map)) throw invalid(where, "an object is allowed");
  for (const name of value.keys()) {
    if (!["json", "json_object", "regex", "choice"].includes(name)) throw new FrameError("unknown_field", where, "has an unknown member");
  }
  if (value.size !== 1) throw invalid(where, "exactly one member is allowed");
  const [name, given] = [...value][0]!;
  where = `${where}.${name}`;
  let room = STRUCTURE_BYTES;
  const text = (item: Json, place: string): string => {
    const size = typeof item === "string" ? new TextEncoder().encode(item).length : 0;
    if (typeof item !== "string" || size < 1 || size > room) throw invalid(place, `1 to ${room} bytes are allowed`);
    room -= size;
    return item;
  };
  if (name === "json") return { json: text(given, where) };
  if (name === "regex") return { regex: text(given, where) };
  if (name === "choice") {
    if (!Array.isArray(given) || given.length < 1 || given.length > 1024) throw invalid(where, "1 to 1024 strings are allowed");
    return { choice: given.map((item, i) => text(item, `${where}[${i}]`)) };
  }
  if (given !== true) throw invalid(where, "true is allowed");
  return { json_object: true };
}

function seed(value: Json, where: string): bigint {
  const bound = 2n ** 63n;
  if (typeof value !== "bigint" || value < -bound || value >= bound) throw invalid(where, "a signed 64-bit integer is allowed");
  return value;
}

function stopStrings(value: Json, where: string): string[] {
  const items = typeof value === "string" ? [value] : value;
  if (!Array.isArray(items) || items.length > 4) throw invalid(where, "up to 4 strings are allowed");
  return items.map((item, i) => {
    const size = typeof item === "string" ? new TextEncoder().encode(item).length : 0;
    if (typeof item !== "string" || size < 1 || size > 256) throw invalid(`${where}[${i}]`, "1 to 256 bytes are allowed");
    return item;
  });
}
