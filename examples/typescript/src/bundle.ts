// The client part of a bundle: docs/reference/bundle-format.md. Nothing of it is used before all of it is verified.

import { BundleError } from "./errors.js";
import { JsonError, parse, write, type Json } from "./json.js";
import type { Mechanism } from "./sampler.js";

const BLOCK = 512;
const MANIFEST = "manifest.json";
const TABLE = "table.safetensors";
const TOKENIZER = "tokenizer.json";
const MOST: Readonly<Record<string, number>> = { [MANIFEST]: 2 ** 20, [TABLE]: 2 ** 32, [TOKENIZER]: 2 ** 26 };
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
}

/** A verified client part. */
export class Bundle {
  private constructor(
    readonly fingerprint: string,
    readonly vocabularySize: number,
    readonly bosTokenId: number | null,
    readonly variants: ReadonlyMap<string, Variant>,
    readonly table: Table,
    readonly tokenizerJson: Uint8Array,
  ) {}

  /** Verifies the files against the manifest and the manifest against its fingerprint. Throws BundleError. */
  static async open(files: Files): Promise<Bundle> {
    const file = (name: string): Uint8Array => {
      const data = files.get(name);
      if (data === undefined) throw new BundleError(name, "is missing");
      return data;
    };
    const manifest = await readManifest(file(MANIFEST));
    const entries = manifest.object("files");
    for (const name of [TABLE, TOKENIZER, ...codeFiles(manifest)]) {
      const entry = entries.object(name);
      const [data, size] = [file(name), entry.integer("size", 0, most(name))];
      if (data.length !== size) throw new BundleError(name, `has ${data.length} bytes; the manifest says ${size}`);
      if ((await sha256(data)) !== entry.string("sha256", /^[0-9a-f]{64}$/)) {
        throw new BundleError(name, "has another SHA-256 than the manifest says: it was altered");
      }
    }
    const dtype = manifest.string("table_dtype", /^(int8|int16)$/);
    const width = dtype === "int8" ? 1 : 2;
    const maxLevel = manifest.integer("max_level", 1, width === 1 ? 127 : 32767);
    const rows = manifest.object("base_model").integer("vocabulary_size", 1, 2 ** 24);
    const dim = manifest.integer("dim", 1, 65536);
    const table = readTable(TABLE, file(TABLE), width === 1 ? "I8" : "I16", rows, dim, -maxLevel, maxLevel);
    const codes = new Map<string, Table>();
    for (const name of manifest.get("code_tables") === undefined ? [] : manifest.object("code_tables").names()) {
      const shape = manifest.object("code_tables").object(name);
      const [columns, largest] = [shape.integer("columns", 1, 65536), (1 << shape.integer("bits", 1, 8)) - 1];
      codes.set(name, readTable(codesFile(name), file(codesFile(name)), "U8", rows, columns, 0, largest));
    }
    const variants = manifest.array("variants").map((item) => readVariant(item, table, maxLevel, codes));
    const named = new Map(variants.map((variant) => [variant.name, variant]));
    if (!variants.length || named.size !== variants.length) throw new BundleError("manifest.json", "variants: names are missing or double");
    const bos = manifest.get("bos_token_id") === null ? null : manifest.integer("bos_token_id", 0, rows - 1);
    const fingerprint = manifest.string("fingerprint", /^[0-9a-f]{64}$/);
    return new Bundle(fingerprint, rows, bos, named, table, file(TOKENIZER));
  }
}

function readVariant(item: Members, table: Table, maxLevel: number, codes: ReadonlyMap<string, Table>): Variant {
  const [name, bits] = [item.string("name", /^(?!clear$)[a-z0-9-]{1,64}$/), item.integer("bits", 1, 8)];
  if (item.get("mechanism") === undefined) {
    const ratioNumerator = BigInt(item.integer("ratio_numerator", 1, 2 ** 31 - 1));
    return { name, mechanism: { bits, ratioNumerator, maxLevel: BigInt(maxLevel) }, table };
  }
  const spec = item.object("mechanism");
  spec.string("kind", /^categorical$/);
  if (spec.integer("bits", 1, 8) !== bits) throw new BundleError(MANIFEST, "mechanism.bits: is not that of the variant");
  const read = item.get("table") === undefined ? table : codes.get(item.string("table", SLUG));
  if (read === undefined) throw new BundleError(MANIFEST, "table: is no code table of the bundle");
  return { name, mechanism: { bits, noiseNumerators: spec.integers("noise_numerators", read.columns, 1, 2 ** 32) }, table: read };
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
