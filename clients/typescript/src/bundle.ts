// The client part of a bundle: docs/reference/bundle-format.md. Nothing of it is used before all of it is verified.

import { BundleError } from "./errors.js";
import { JsonError, parse, write, type Json } from "./json.js";
import type { Mechanism } from "./sampler.js";
import { Tokenizer } from "./tokenizer.js";

const BLOCK = 512;
const MANIFEST = "manifest.json";
const TABLE = "table.safetensors";
const TOKENIZER = "tokenizer.json";
const MOST: Readonly<Record<string, number>> = { [MANIFEST]: 2 ** 20, [TABLE]: 2 ** 31, [TOKENIZER]: 2 ** 26 };
const MAX_CODES = 2 ** 28;
const MAX_CODE_TABLES = 16;
const MAX_TENSOR_HEADER = 65536;
const SLUG = /^[a-z0-9-]{1,64}$/;

export type Files = ReadonlyMap<string, Uint8Array>;

/** The members of the archive of ``GET /v1/bundle``. Every header is compared with the one that has to be there. */
export function readArchive(archive: Uint8Array): Files {
  const files = new Map<string, Uint8Array>();
  const names = [MANIFEST, TABLE, TOKENIZER];
  let at = 0;
  for (let i = 0; i < names.length; i++) {
    const name = names[i]!;
    const header = archive.subarray(at, at + BLOCK);
    if (header.length < BLOCK) throw new BundleError("archive", `ends within the header of ${name}`);
    const digits = String.fromCharCode(...header.subarray(124, 135));
    if (!/^[0-7]{11}$/.test(digits)) throw new BundleError(name, "has a size field that is not 11 octal digits");
    const size = parseInt(digits, 8);
    if (size > most(name)) throw new BundleError(name, `declares ${size} bytes; at most ${most(name)} are allowed`);
    if (!same(header, archiveHeader(name, digits))) {
      throw new BundleError(name, "has another member header than docs/reference/bundle-format.md prescribes");
    }
    const end = at + BLOCK + size;
    at = Math.ceil(end / BLOCK) * BLOCK;
    if (at > archive.length) throw new BundleError(name, "is cut off");
    if (archive.subarray(end, at).some((byte) => byte !== 0)) throw new BundleError(name, "is not followed by zeros");
    files.set(name, archive.slice(end - size, end));
    // The manifest names the code tables, which follow the other files. Bundle.open verifies it.
    if (name === MANIFEST) names.push(...codeFiles(readMembers(files.get(name)!)));
  }
  const rest = archive.subarray(at);
  if (rest.length !== 2 * BLOCK || rest.some((byte) => byte !== 0)) {
    throw new BundleError("archive", "does not end in two blocks of zeros");
  }
  return files;
}

function most(name: string): number {
  return MOST[name] ?? MAX_CODES;
}

function codesFile(name: string): string {
  return `codes-${name}.safetensors`;
}

function codeFiles(manifest: Members): string[] {
  const names = manifest.get("code_tables") === undefined ? [] : manifest.object("code_tables").names();
  if (names.length > MAX_CODE_TABLES || names.some((name) => !SLUG.test(name))) {
    throw new BundleError(MANIFEST, `code_tables: at most ${MAX_CODE_TABLES} names of a-z, 0-9 and - are needed`);
  }
  return names.sort().map(codesFile);
}

function archiveHeader(name: string, sizeDigits: string): Uint8Array {
  const header = new Uint8Array(BLOCK);
  const put = (at: number, text: string) => header.set(new TextEncoder().encode(text), at);
  put(0, name);
  put(100, "0000644\0" + "0000000\0".repeat(2) + sizeDigits + "\0" + "0".repeat(11) + "\0" + " ".repeat(8) + "0");
  put(257, "ustar\0" + "00");
  put(329, "0000000\0".repeat(2));
  const sum = header.reduce((total, byte) => total + byte, 0);
  put(148, sum.toString(8).padStart(6, "0") + "\0 ");
  return header;
}

/** A table of the client: a row of levels, or of codes, for each token. */
export class Table {
  constructor(
    readonly columns: number,
    private readonly rows: number,
    private readonly data: DataView,
    private readonly dtype: "I8" | "I16" | "U8",
  ) {}

  /** The row of one token. */
  row(tokenId: number): Int16Array {
    if (tokenId >= this.rows) throw new BundleError(TOKENIZER, "has token ids beyond the table");
    const start = tokenId * this.columns;
    return Int16Array.from({ length: this.columns }, (_, j) => this.at(start + j));
  }

  at(index: number): number {
    if (this.dtype === "I16") return this.data.getInt16(2 * index, true);
    return this.dtype === "I8" ? this.data.getInt8(index) : this.data.getUint8(index);
  }
}

export interface Variant {
  readonly name: string;
  readonly mechanism: Mechanism;
  readonly table: Table;
  /** SHA-256 of the table's file, and the mechanism in canonical JSON: what counts mean. */
  readonly tableSha256: string;
  readonly spec: string;
  readonly softPromptLength: number;
  readonly task: string;
  /** What the bundle states; for people. A client computes its guarantees itself. */
  readonly guarantees: Readonly<Record<string, number | null>>;
  readonly audit: Plain;
  readonly auditDate: string | null;
}

/** The chat template of a bundle: Jinja, which this package does not run. */
export interface ChatFormat {
  readonly template: string;
  readonly endTokenIds: readonly number[];
}

/** JSON as JavaScript has it. */
export type Plain = null | boolean | number | string | Plain[] | { [name: string]: Plain };

/** What is known of a bundle from its manifest alone, the fingerprint being verified. */
export interface Manifest {
  readonly fingerprint: string;
  readonly maxLevel: number;
  /** SHA-256 by file name. */
  readonly files: ReadonlyMap<string, string>;
  readonly variants: readonly Omit<Variant, "table">[];
  /** The bytes that a signature of the bundle signs, for a date of signing. */
  signedMessage(signed: string): Uint8Array;
}

/** A verified client part. */
export class Bundle {
  private read: Tokenizer | undefined;

  private constructor(
    readonly manifest: Manifest,
    readonly modelName: string,
    readonly vocabularySize: number,
    readonly bosTokenId: number | null,
    readonly chat: ChatFormat | null,
    readonly variants: ReadonlyMap<string, Variant>,
    readonly table: Table,
    readonly tokenizerJson: Uint8Array,
  ) {}

  get fingerprint(): string {
    return this.manifest.fingerprint;
  }

  /** The tokenizer, read when it is first needed. Throws BundleError for one that is not implemented. */
  get tokenizer(): Tokenizer {
    return (this.read ??= new Tokenizer(this.tokenizerJson));
  }

  /**
   * Verifies the files against the manifest and the manifest against its fingerprint. Throws BundleError.
   * `check` sees the manifest before anything of the other files is read.
   */
  static async open(files: Files, check: (manifest: Manifest) => unknown = () => undefined): Promise<Bundle> {
    const file = (name: string): Uint8Array => {
      const data = files.get(name);
      if (data === undefined) throw new BundleError(name, "is missing");
      return data;
    };
    const manifest = await readManifest(file(MANIFEST));
    const dtype = manifest.string("table_dtype", /^(int8|int16)$/);
    const width = dtype === "int8" ? 1 : 2;
    const maxLevel = manifest.integer("max_level", 1, width === 1 ? 127 : 32767);
    const model = manifest.object("base_model");
    const rows = model.integer("vocabulary_size", 1, 2 ** 24);
    const dim = manifest.integer("dim", 1, 65536);
    const shapes = new Map<string, { columns: number; bits: number }>();
    for (const name of manifest.get("code_tables") === undefined ? [] : manifest.object("code_tables").names()) {
      const shape = manifest.object("code_tables").object(name);
      shapes.set(name, { columns: shape.integer("columns", 1, 65536), bits: shape.integer("bits", 1, 8) });
    }
    const digests = new Map<string, string>();
    const entries = manifest.object("files");
    for (const name of [TABLE, TOKENIZER, ...codeFiles(manifest)]) {
      digests.set(name, entries.object(name).string("sha256", /^[0-9a-f]{64}$/));
    }
    const known = manifest.array("variants").map((item) => readVariant(item, { dim, maxLevel, shapes, digests }));
    const named = new Set(known.map(({ variant }) => variant.name));
    if (!known.length || named.size !== known.length) throw new BundleError(MANIFEST, "variants: names are missing or double");
    const fingerprint = manifest.string("fingerprint", /^[0-9a-f]{64}$/);
    const summary: Manifest = {
      fingerprint,
      maxLevel,
      files: digests,
      variants: known.map(({ variant }) => variant),
      signedMessage: (signed) => signedMessage(manifest, signed),
    };
    const chat = readChat(manifest);
    const bos = manifest.get("bos_token_id") === null ? null : manifest.integer("bos_token_id", 0, rows - 1);
    const modelName = manifest.object("base_model").string("name", /^[^\p{C}]{1,200}$/u);
    await check(summary);

    for (const [name, digest] of digests) {
      const [data, size] = [file(name), entries.object(name).integer("size", 0, most(name))];
      if (data.length !== size) throw new BundleError(name, `has ${data.length} bytes; the manifest says ${size}`);
      if ((await sha256(data)) !== digest) throw new BundleError(name, "has another SHA-256 than the manifest says: it was altered");
    }
    const table = readTable(TABLE, file(TABLE), width === 1 ? "I8" : "I16", rows, dim, -maxLevel, maxLevel);
    const codes = new Map<string, Table>();
    for (const [name, { columns, bits }] of shapes) {
      codes.set(name, readTable(codesFile(name), file(codesFile(name)), "U8", rows, columns, 0, (1 << bits) - 1));
    }
    const variants = known.map(({ variant, codes: name }): [string, Variant] => [
      variant.name,
      { ...variant, table: name === null ? table : codes.get(name)! },
    ]);
    return new Bundle(summary, modelName, rows, bos, chat, new Map(variants), table, file(TOKENIZER));
  }
}

interface Setting {
  readonly dim: number;
  readonly maxLevel: number;
  readonly shapes: ReadonlyMap<string, { readonly columns: number; readonly bits: number }>;
  readonly digests: ReadonlyMap<string, string>;
}

function readVariant(item: Members, setting: Setting): { variant: Omit<Variant, "table">; codes: string | null } {
  const [name, bits] = [item.string("name", /^(?!clear$)[a-z0-9-]{1,64}$/), item.integer("bits", 1, 8)];
  const audit = item.get("audit") === undefined ? new Map<string, Json>() : item.object("audit").json;
  const date = audit.get("date");
  const guarantees = item.object("guarantees");
  const common = {
    name,
    softPromptLength: item.integer("soft_prompt_length", 0, 65536),
    task: item.string("task", /^[^\p{C}]{1,64}$/u),
    guarantees: Object.fromEntries(guarantees.names().map((member) => [member, guarantees.number(member)])),
    audit: plain(audit),
    auditDate: typeof date === "string" && isDate(date) ? date : null,
  };
  if (item.get("mechanism") === undefined) {
    const ratioNumerator = item.integer("ratio_numerator", 1, 2 ** 31 - 1);
    const mechanism = { bits, dim: setting.dim, ratioNumerator: BigInt(ratioNumerator), maxLevel: BigInt(setting.maxLevel) };
    const spec = `{"bits":${bits},"kind":"binomial","ratio_numerator":${ratioNumerator}}`;
    return { variant: { ...common, mechanism, spec, tableSha256: setting.digests.get(TABLE)! }, codes: null };
  }
  const spec = item.object("mechanism");
  spec.string("kind", /^categorical$/);
  if (spec.integer("bits", 1, 8) !== bits) throw new BundleError(MANIFEST, "mechanism.bits: is not that of the variant");
  const codes = item.get("table") === undefined ? null : item.string("table", SLUG);
  const shape = codes === null ? { columns: setting.dim, bits } : setting.shapes.get(codes);
  if (shape === undefined) throw new BundleError(MANIFEST, "table: is no code table of the bundle");
  if (shape.bits !== bits) throw new BundleError(MANIFEST, "table: has codes of other bits than the mechanism");
  const mechanism = { bits, noiseNumerators: spec.integers("noise_numerators", shape.columns, 1, 2 ** 32) };
  const text = write(spec.json, true);
  return { variant: { ...common, mechanism, spec: text, tableSha256: setting.digests.get(codes === null ? TABLE : codesFile(codes))! }, codes };
}

function readChat(manifest: Members): ChatFormat | null {
  if ((manifest.get("chat") ?? null) === null) return null;
  const chat = manifest.object("chat");
  const ends = chat.get("end_token_ids") ?? [];
  if (!Array.isArray(ends) || ends.length > 16) throw new BundleError(MANIFEST, "chat.end_token_ids: an array of up to 16 ids is needed");
  return { template: chat.string("template", /^[^]{1,65536}$/), endTokenIds: chat.integers("end_token_ids", ends.length, 0, 2 ** 31 - 1) };
}

function signedMessage(manifest: Members, signed: string): Uint8Array {
  const variants = new Map<string, Json>();
  for (const item of manifest.array("variants")) {
    const [guarantees, audit] = [item.object("guarantees"), item.object("audit").json];
    const success = new Map<string, Json>();
    for (const [name, value] of audit) {
      if (value instanceof Map && value.has("success")) success.set(name, value.get("success")!);
    }
    variants.set(item.string("name", SLUG), new Map<string, Json>([
      ["epsilon", guarantees.get("epsilon") ?? null],
      ["delta", guarantees.get("delta") ?? null],
      ["audit", new Map<string, Json>([["date", audit.get("date") ?? null], ["success", success]])],
    ]));
  }
  const statement = new Map<string, Json>([["fingerprint", manifest.get("fingerprint")!], ["signed", signed], ["variants", variants]]);
  return new TextEncoder().encode(`DEL bundle signature, version 1\n${write(statement, true)}`);
}

export function isDate(text: string): boolean {
  const [, year, month, day] = /^([0-9]{4})-([0-9]{2})-([0-9]{2})$/.exec(text) ?? [];
  const date = new Date(`${year}-${month}-${day}T00:00:00Z`);
  return Number(year) > 0 && !Number.isNaN(date.getTime()) && date.toISOString().startsWith(text);
}

function plain(value: Json): Plain {
  if (typeof value === "bigint") return Number(value);
  if (Array.isArray(value)) return value.map(plain);
  // Without a prototype: a member may be called __proto__.
  if (value instanceof Map) return Object.assign(Object.create(null), Object.fromEntries([...value].map(([name, item]) => [name, plain(item)])));
  return value;
}

function readMembers(data: Uint8Array): Members {
  try {
    if (data.length > most(MANIFEST)) throw new JsonError("too long");
    return new Members(parse(data, 12), "manifest");
  } catch (error) {
    if (error instanceof JsonError) throw new BundleError("manifest.json", error.message);
    throw error;
  }
}

async function readManifest(data: Uint8Array): Promise<Members> {
  const manifest = readMembers(data);
  const value = manifest.json;
  const text = new TextDecoder().decode(data);
  const version = manifest.get("format_version");
  if (version !== 1n) throw new BundleError("manifest.json", `format_version: is ${String(version)}; this client reads 1`);
  if (write(value, true) !== text) throw new BundleError("manifest.json", "is not in canonical JSON");
  const bare = new Map(value);
  bare.delete("fingerprint");
  const found = await sha256(new TextEncoder().encode(write(bare, true)));
  if (found !== manifest.get("fingerprint")) throw new BundleError("manifest.json", "fingerprint: the content gives another: it was altered");
  return manifest;
}

function readTable(
  name: string,
  file: Uint8Array,
  dtype: "I8" | "I16" | "U8",
  rows: number,
  columns: number,
  low: number,
  high: number,
): Table {
  const fail = (message: string): never => {
    throw new BundleError(name, message);
  };
  if (file.length < 8) fail("is cut off");
  const size = Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));
  if (size > MAX_TENSOR_HEADER || size > file.length - 8) fail("has a header of a wrong length");
  let header: Json;
  try {
    header = parse(file.subarray(8, 8 + size), 8);
  } catch {
    return fail("has a header that is not JSON");
  }
  const count = rows * columns;
  const bytes = count * (dtype === "I16" ? 2 : 1);
  const wanted = `{"levels":{"data_offsets":[0,${bytes}],"dtype":"${dtype}","shape":[${rows},${columns}]}}`;
  if (write(header, true) !== wanted) fail("holds other tensors than the manifest says");
  if (file.length !== 8 + size + bytes) fail("has another length than its header says");
  const table = new Table(columns, rows, new DataView(file.buffer, file.byteOffset + 8 + size, bytes), dtype);
  for (let i = 0; i < count; i++) {
    const level = table.at(i);
    if (level < low || level > high) fail("holds a level beyond those of its table");
  }
  return table;
}

/** Members of an object of the manifest, checked as they are taken. */
class Members {
  readonly json: Map<string, Json>;

  constructor(
    value: Json | undefined,
    private readonly where: string,
  ) {
    if (!(value instanceof Map)) throw new BundleError("manifest.json", `${where}: an object is needed`);
    this.json = value;
  }

  get(name: string): Json | undefined {
    return this.json.get(name);
  }

  names(): string[] {
    return [...this.json.keys()];
  }

  object(name: string): Members {
    return new Members(this.json.get(name), name);
  }

  array(name: string): Members[] {
    const items = this.json.get(name);
    if (!Array.isArray(items)) throw new BundleError("manifest.json", `${this.where}.${name}: an array is needed`);
    return items.map((item, i) => new Members(item, `${name}[${i}]`));
  }

  number(name: string): number | null {
    const value = this.json.get(name);
    if (value !== null && typeof value !== "number" && typeof value !== "bigint") {
      throw new BundleError("manifest.json", `${this.where}.${name}: a number or null is needed`);
    }
    return value === null ? null : Number(value);
  }

  integer(name: string, low: number, high: number): number {
    return this.checked(this.json.get(name), name, low, high);
  }

  integers(name: string, count: number, low: number, high: number): number[] {
    const items = this.json.get(name);
    if (!Array.isArray(items) || items.length !== count) {
      throw new BundleError("manifest.json", `${this.where}.${name}: an array of ${count} integers is needed`);
    }
    return items.map((item) => this.checked(item, name, low, high));
  }

  private checked(value: Json | undefined, name: string, low: number, high: number): number {
    if (typeof value !== "bigint" || value < BigInt(low) || value > BigInt(high)) {
      throw new BundleError("manifest.json", `${this.where}.${name}: an integer in ${low}..${high} is needed`);
    }
    return Number(value);
  }

  string(name: string, pattern: RegExp): string {
    const value = this.json.get(name);
    if (typeof value !== "string" || !pattern.test(value)) {
      throw new BundleError("manifest.json", `${this.where}.${name}: ${pattern.source} is needed`);
    }
    return value;
  }
}

export async function sha256(data: Uint8Array): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data as Uint8Array<ArrayBuffer>));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}
