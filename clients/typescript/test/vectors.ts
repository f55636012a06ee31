// Runs every test vector of tests/vectors, and checks of its own on damaged input: node build/test/vectors.js DIRECTORY

import { readdir, readFile } from "node:fs/promises";
import { epsilon } from "../src/accounting.js";
import { Bundle, readArchive } from "../src/bundle.js";
import { BundleError, DelError, FrameError } from "../src/errors.js";
import { Collector, events } from "../src/events.js";
import { decodeFrame, encodeFrame, type Limits, type Request, type Sampling, type Segment, type Shapes, type Structure } from "../src/frame.js";
import { parse, write, type Json } from "../src/json.js";
import { pack, rowBytes, unpack } from "../src/packing.js";
import { numerator, sample } from "../src/sampler.js";
import { Tokenizer } from "../src/tokenizer.js";

type Members = Map<string, Json>;

const map = (value: Json | undefined) => value as Members;
const list = (value: Json | undefined) => value as Json[];
const maps = (value: Json | undefined) => value as Members[];
const text = (value: Json | undefined) => value as string;
const numbers = (value: Json | undefined) => list(value).map(Number);
const rows = (value: Json | undefined) => list(value).map((row) => Uint8Array.from(numbers(row)));
const bytes = (hex: Json | undefined) => Uint8Array.from(text(hex).match(/../g) ?? [], (pair) => parseInt(pair, 16));
const hex = (data: Uint8Array) => Array.from(data, (byte) => byte.toString(16).padStart(2, "0")).join("");
const utf8 = (value: string) => new TextEncoder().encode(value);

function equal(found: unknown, wanted: unknown, what: string): void {
  const plain = (value: unknown) => JSON.stringify(value, (_, item: unknown) => (typeof item === "bigint" ? `${item}n` : item));
  if (plain(found) !== plain(wanted)) throw new Error(`${what}: found ${plain(found)}, wanted ${plain(wanted)}`);
}

/** The error of a kind that the work has to end in. */
async function refused<T extends Error>(kind: abstract new (...given: never[]) => T, work: () => unknown): Promise<T> {
  try {
    await work();
  } catch (error) {
    if (error instanceof kind) return error;
    throw error;
  }
  throw new Error("accepted");
}

function structure(members: Members): Structure {
  const choice = members.get("choice");
  return choice === undefined ? (Object.fromEntries(members) as unknown as Structure) : { choice: list(choice).map(text) };
}

function readRequest(value: Members): Request {
  const given = map(value.get("sampling"));
  const sampling: Sampling = {
    max_tokens: Number(given.get("max_tokens")),
    temperature: Number(given.get("temperature")),
    top_p: Number(given.get("top_p")),
    seed: given.get("seed") as bigint | null,
    stop: list(given.get("stop")).map(text),
    stream: given.get("stream") as boolean,
    stop_token_ids: numbers(given.get("stop_token_ids")),
    ignore_eos: given.get("ignore_eos") as boolean,
    top_k: Number(given.get("top_k")),
    min_p: Number(given.get("min_p")),
    presence_penalty: Number(given.get("presence_penalty")),
    frequency_penalty: Number(given.get("frequency_penalty")),
    repetition_penalty: Number(given.get("repetition_penalty")),
    logit_bias: list(given.get("logit_bias")).map((pair) => numbers(pair) as [number, number]),
    logprobs: given.get("logprobs") === null ? null : Number(given.get("logprobs")),
    structured_outputs: given.get("structured_outputs") === null ? null : structure(map(given.get("structured_outputs"))),
  };
  const segments = maps(value.get("segments")).map((part): Segment =>
    part.has("private") ? { private: rows(part.get("private")) } : { public: numbers(part.get("public")) },
  );
  const [fingerprint, variant] = [text(value.get("fingerprint")), text(value.get("variant"))];
  return { fingerprint, variant, segments, sampling, resume: numbers(value.get("resume")) };
}

function server(file: Members): [Shapes, Limits, string] {
  const shapes = new Map(
    [...map(file.get("shapes"))].map(([name, shape]) => [
      name,
      shape === null ? null : { bits: Number(map(shape).get("bits")), dim: Number(map(shape).get("dim")) },
    ]),
  );
  const limits = Object.fromEntries([...map(file.get("limits"))].map(([name, bound]) => [name, Number(bound)]));
  return [shapes, limits as unknown as Limits, text(file.get("fingerprint"))];
}

const RUNNERS: Record<string, (file: Members, one: Members) => void | Promise<void>> = {
  "packing.json": (_, one) => {
    const [bits, dim, codes] = [Number(one.get("bits")), Number(one.get("dim")), rows(one.get("codes"))];
    equal(hex(pack(codes, bits)), one.get("payload"), "packed");
    equal(codes.length * rowBytes(dim, bits), bytes(one.get("payload")).length, "length");
    equal(unpack(bytes(one.get("payload")), codes.length, dim, bits), codes, "unpacked");
  },
  "frames.json": (file, one) => {
    const [shapes, limits, fingerprint] = server(file);
    const meaning = readRequest(map(one.get("decoded")));
    equal(decodeFrame(bytes(one.get("frame")), shapes, limits, fingerprint), meaning, "decoded");
    const encoded = encodeFrame(meaning, shapes.get(meaning.variant)?.bits ?? 1);
    equal(hex(encoded) === one.get("frame"), one.get("encoded_by_us"), "the very same bytes");
    equal(decodeFrame(encoded, shapes, limits, fingerprint), meaning, "decoded again");
  },
  "malformed.json": async (file, one) => {
    const error = await refused(FrameError, () => decodeFrame(bytes(one.get("frame")), ...server(file)));
    const wanted = [one.get("code"), Number(one.get("status")), one.get("field")];
    equal([error.code, error.status, error.field], wanted, "error");
  },
  "levels.json": (_, one) => {
    const ratioNumerator = one.get("ratio_numerator") as bigint;
    const mechanism = { bits: 4, dim: 1, ratioNumerator, maxLevel: one.get("max_level") as bigint };
    equal(numbers(one.get("levels")).map((level) => numerator(mechanism, level)), numbers(one.get("numerators")), "numerators");
  },
  "codes.json": (_, one) => {
    const mechanism = { bits: Number(one.get("bits")), noiseNumerators: numbers(one.get("noise_numerators")) };
    const random = [...bytes(one.get("random"))];
    const released = sample(mechanism, Int16Array.from(numbers(one.get("codes"))), { next: () => random.shift()! });
    equal([...released], numbers(one.get("released")), "released");
    equal(random.length, 0, "random bytes that are left");
  },
  "epsilon.json": (_, one) => {
    const given = map(one.get("mechanism"));
    const bits = Number(given.get("bits"));
    const mechanism = given.has("ratio_numerator")
      ? { bits, dim: Number(given.get("dim")), ratioNumerator: given.get("ratio_numerator") as bigint, maxLevel: 1n }
      : { bits, noiseNumerators: numbers(given.get("noise_numerators")) };
    const found = epsilon(mechanism, Number(one.get("delta")), Number(one.get("tokens")));
    const wanted = Number(one.get("epsilon"));
    equal(Math.abs(found - wanted) <= 2e-9 * wanted, true, `epsilon ${found} for ${wanted}`);
  },
  "tokenizer.json": (_, one) => {
    const tokenizer = new Tokenizer(utf8(write(one.get("tokenizer")!)));
    for (const case_ of maps(one.get("texts"))) {
      equal(tokenizer.encode(text(case_.get("text"))), numbers(case_.get("ids")), `ids of ${JSON.stringify(case_.get("text"))}`);
    }
    for (const case_ of maps(one.get("prompts"))) {
      const spans = maps(case_.get("spans")).map((span) => ({ text: text(span.get("text")), shown: span.get("public") === true }));
      equal(tokenizer.encodeSpans(spans), maps(case_.get("spans")).map((span) => numbers(span.get("ids"))), "ids of spans");
    }
  },
  "streams.json": async (file, one) => {
    const body = bytes(one.get("body"));
    // In one piece, byte by byte, and in pieces of seven.
    for (const size of [body.length || 1, 1, 7]) {
      const received = new Collector(Number(file.get("max_tokens")));
      const read = async () => {
        for await (const data of events(pieces(body, size))) received.take(data);
      };
      const error = one.get("error") === null ? (await read(), null) : (await refused(DelError, read)).code;
      const found = [received.text, received.tokenIds, received.finishReason, error];
      equal(found, [one.get("text"), numbers(one.get("token_ids")), one.get("finish_reason"), one.get("error")], `pieces of ${size}`);
    }
  },
};

async function* pieces(body: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < body.length; at += size) yield body.subarray(at, at + size);
}

/** A file of a bundle has no cases: one bundle, in parts. Returns how many checks there were. */
async function runBundle(file: Members): Promise<number> {
  const archive = bytes(file.get("archive"));
  const files = readArchive(archive);
  const manifest = files.get("manifest.json")!;
  equal(new TextDecoder().decode(manifest), file.get("manifest"), "manifest");
  const value = parse(manifest, 12) as Members;
  value.delete("fingerprint");
  equal(write(value, true), file.get("manifest_without_fingerprint"), "manifest without fingerprint");
  const bundle = await Bundle.open(files);
  equal(bundle.fingerprint, file.get("fingerprint"), "fingerprint");
  list(file.get("table")).forEach((row, i) => equal([...bundle.table.row(i)], numbers(row), `row ${i}`));
  for (const [name, wanted] of map(file.get("tables"))) {
    const { table } = bundle.variants.get(name)!;
    list(wanted).forEach((row, i) => equal([...table.row(i)], numbers(row), `row ${i} of variant ${name}`));
  }
  for (const one of maps(file.get("canonical"))) equal(write(one.get("value")!, true), one.get("text"), "canonical");
  // Whatever byte is altered, wherever the archive is cut, it is refused.
  let damaged = 0;
  for (let at = 0; at < archive.length; at += 5, damaged++) {
    const altered = archive.slice();
    altered[at]! ^= 1 << (at % 8);
    await refused(BundleError, async () => Bundle.open(readArchive(altered)));
  }
  for (let end = 0; end < archive.length; end += 101, damaged++) {
    await refused(BundleError, async () => Bundle.open(readArchive(archive.subarray(0, end))));
  }
  return 4 + bundle.vocabularySize + list(file.get("canonical")).length + damaged;
}

/** A tokeniser that needs more than is implemented is refused, with the name of what is missing. */
async function runRefusals(file: Members): Promise<number> {
  const good = map(maps(file.get("cases"))[0]!.get("tokenizer"));
  const changes: [string, (value: Members) => void][] = [
    ["normalizer", (value) => value.set("normalizer", new Map([["type", "NFC"]]))],
    ["pre_tokenizer.type", (value) => map(value.get("pre_tokenizer")).set("type", "Metaspace")],
    ["model.type", (value) => map(value.get("model")).set("type", "WordPiece")],
    ["model.dropout", (value) => map(value.get("model")).set("dropout", 0.1)],
    ["model.unk_token", (value) => map(value.get("model")).set("unk_token", "<unk>")],
    ["model.byte_fallback", (value) => map(value.get("model")).set("byte_fallback", true)],
    ["pre_tokenizer.pretokenizers[0].type", (value) => value.set("pre_tokenizer", new Map<string, Json>([["type", "Sequence"], ["pretokenizers", [new Map([["type", "Punctuation"]]), map(value.get("pre_tokenizer"))]]]))],
    ["model.merges[0]", (value) => (list(map(value.get("model")).get("merges"))[0] = ["\u0120t", "\u0120nowhere"])],
    ["normalizers", (value) => value.set("normalizers", null)],
    ["model.end_of_word_suffix", (value) => map(value.get("model")).set("end_of_word_suffix", "</w>")],
    ["added_tokens[0].lstrip", (value) => maps(value.get("added_tokens"))[0]!.set("lstrip", true)],
  ];
  for (const [name, change] of changes) {
    const value = parse(utf8(write(good)), 64) as Members;
    change(value);
    const error = await refused(BundleError, () => new Tokenizer(utf8(write(value))));
    if (!error.message.includes(`${name}: `)) throw new Error(`${name} is not named: ${error.message}`);
  }
  return changes.length;
}

async function main(directory: string): Promise<void> {
  let failures = 0;
  // Vectors of RFCs are for passes, which this client does not have.
  for (const name of (await readdir(directory)).filter((one) => one.endsWith(".json")).sort()) {
    const file = parse(await readFile(`${directory}/${name}`), 64) as Members;
    const isBundle = name.startsWith("bundle");
    const cases = isBundle ? [] : maps(file.get("cases"));
    let checks = cases.length;
    const attempt = async (label: string, work: () => unknown) => {
      try {
        await work();
      } catch (error) {
        failures++;
        process.stderr.write(`${name}, ${label}: ${error instanceof Error ? error.message : "failed"}\n`);
      }
    };
    const runner = RUNNERS[name];
    if (!runner && !isBundle) await attempt("all", () => Promise.reject(new Error("no runner for this file")));
    for (const [i, one] of cases.entries()) await attempt(String(one.get("name") ?? i), () => runner?.(file, one));
    if (isBundle) await attempt("all", async () => (checks = await runBundle(file)));
    if (name === "tokenizer.json") await attempt("refusals", async () => (checks += await runRefusals(file)));
    process.stdout.write(`${name} ${checks}\n`);
  }
  if (failures) process.exitCode = 1;
}

await main(process.argv[2] ?? "tests/vectors");
