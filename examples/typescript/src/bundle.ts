// The client part of a bundle: docs/reference/bundle-format.md. Nothing of it is used before all of it is verified.

import { BundleError } from "./errors.js";
import { JsonError, parse, write, type Json } from "./json.js";
import type { Mechanism } from "./sampler.js";

const BLOCK = 512;
const FILES = ["manifest.json", "table.safetensors", "tokenizer.json"] as const;
const MOST = { "manifest.json": 2 ** 20, "table.safetensors": 2 ** 32, "tokenizer.json": 2 ** 26 };
const MAX_TENSOR_HEADER = 65536;

type Name = (typeof FILES)[number];
export type Files = Record<Name, Uint8Array>;

/** The members of the archive of ``GET /v1/bundle``. Every header is compared with the one that has to be there. */
export function readArchive(archive: Uint8Array): Files {
  const files: Partial<Files> = {};
  let at = 0;
  for (const name of FILES) {
    const header = archive.subarray(at, at + BLOCK);
    if (header.length < BLOCK) throw new BundleError("archive", `ends within the header of ${name}`);
    const digits = String.fromCharCode(...header.subarray(124, 135));
    if (!/^[0-7]{11}$/.test(digits)) throw new BundleError(name, "has a size field that is not 11 octal digits");
    const size = parseInt(digits, 8);
    if (size > MOST[name]) throw new BundleError(name, `declares ${size} bytes; at most ${MOST[name]} are allowed`);
    if (!same(header, archiveHeader(name, digits))) {
      throw new BundleError(name, "has another member header than docs/reference/bundle-format.md prescribes");
    }
    const end = at + BLOCK + size;
    at = Math.ceil(end / BLOCK) * BLOCK;
    if (at > archive.length) throw new BundleError(name, "is cut off");
    if (archive.subarray(end, at).some((byte) => byte !== 0)) throw new BundleError(name, "is not followed by zeros");
    files[name] = archive.slice(end - size, end);
  }
  const rest = archive.subarray(at);
  if (rest.length !== 2 * BLOCK || rest.some((byte) => byte !== 0)) {
    throw new BundleError("archive", "does not end in two blocks of zeros");
  }
  return files as Files;
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

export interface Variant {
  readonly name: string;
  readonly mechanism: Mechanism;
}

/** A verified client part. */
export class Bundle {
  private constructor(
    readonly fingerprint: string,
    readonly dim: number,
    readonly vocabularySize: number,
    readonly bosTokenId: number | null,
    readonly variants: ReadonlyMap<string, Variant>,
    private readonly levels: DataView,
    private readonly width: 1 | 2,
    readonly tokenizerJson: Uint8Array,
  ) {}

  /** Verifies the files against the manifest and the manifest against its fingerprint. Throws BundleError. */
  static async open(files: Files): Promise<Bundle> {
    const text = new TextDecoder().decode(files["manifest.json"]);
    const manifest = await readManifest(files["manifest.json"], text);
    const entries = manifest.object("files");
    for (const name of FILES.slice(1)) {
      const entry = entries.object(name);
      const [data, size] = [files[name], entry.integer("size", 0, MOST[name])];
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
    const levels = readTable(files["table.safetensors"], width, rows, dim, maxLevel);
    const variants = manifest.array("variants").map((item): Variant => ({
      name: item.string("name", /^(?!clear$)[a-z0-9-]{1,64}$/),
      mechanism: {
        bits: item.integer("bits", 1, 8),
        ratioNumerator: BigInt(item.integer("ratio_numerator", 1, 2 ** 31 - 1)),
        maxLevel: BigInt(maxLevel),
      },
    }));
    const named = new Map(variants.map((variant) => [variant.name, variant]));
    if (!variants.length || named.size !== variants.length) throw new BundleError("manifest.json", "variants: names are missing or double");
    const bos = manifest.get("bos_token_id") === null ? null : manifest.integer("bos_token_id", 0, rows - 1);
    const fingerprint = manifest.string("fingerprint", /^[0-9a-f]{64}$/);
    return new Bundle(fingerprint, dim, rows, bos, named, levels, width, files["tokenizer.json"]);
  }

  /** The levels of one token: its row of the table. */
  row(tokenId: number): Int16Array {
    if (tokenId >= this.vocabularySize) throw new BundleError("tokenizer.json", "has token ids beyond the table");
    const start = tokenId * this.dim * this.width;
    return Int16Array.from({ length: this.dim }, (_, j) =>
      this.width === 1 ? this.levels.getInt8(start + j) : this.levels.getInt16(start + 2 * j, true),
    );
  }
}

async function readManifest(data: Uint8Array, text: string): Promise<Members> {
  let value: Json;
  try {
    if (data.length > MOST["manifest.json"]) throw new JsonError("too long");
    value = parse(data, 12);
  } catch (error) {
    if (error instanceof JsonError) throw new BundleError("manifest.json", error.message);
    throw error;
  }
  const manifest = new Members(value, "manifest");
  const version = manifest.get("format_version");
  if (version !== 1n) throw new BundleError("manifest.json", `format_version: is ${String(version)}; this client reads 1`);
  if (write(value, true) !== text) throw new BundleError("manifest.json", "is not in canonical JSON");
  const bare = new Map(value as Map<string, Json>);
  bare.delete("fingerprint");
  const found = await sha256(new TextEncoder().encode(write(bare, true)));
  if (found !== manifest.get("fingerprint")) throw new BundleError("manifest.json", "fingerprint: the content gives another: it was altered");
  return manifest;
}

function readTable(file: Uint8Array, width: 1 | 2, rows: number, dim: number, maxLevel: number): DataView {
  const fail = (message: string): never => {
    throw new BundleError("table.safetensors", message);
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
  const bytes = rows * dim * width;
  const wanted = `{"levels":{"data_offsets":[0,${bytes}],"dtype":"${width === 1 ? "I8" : "I16"}","shape":[${rows},${dim}]}}`;
  if (write(header, true) !== wanted) fail("holds other tensors than the manifest says");
  if (file.length !== 8 + size + bytes) fail("has another length than its header says");
  const levels = new DataView(file.buffer, file.byteOffset + 8 + size, bytes);
  for (let i = 0; i < bytes; i += width) {
    const level = width === 1 ? levels.getInt8(i) : levels.getInt16(i, true);
    if (Math.abs(level) > maxLevel) fail("holds a level beyond max_level");
  }
  return levels;
}

/** Members of an object of the manifest, checked as they are taken. */
class Members {
  private readonly members: Map<string, Json>;

  constructor(
    value: Json | undefined,
    private readonly where: string,
  ) {
    if (!(value instanceof Map)) throw new BundleError("manifest.json", `${where}: an object is needed`);
    this.members = value;
  }

  get(name: string): Json | undefined {
    return this.members.get(name);
  }

  object(name: string): Members {
    return new Members(this.members.get(name), name);
  }

  array(name: string): Members[] {
    const items = this.members.get(name);
    if (!Array.isArray(items)) throw new BundleError("manifest.json", `${this.where}.${name}: an array is needed`);
    return items.map((item, i) => new Members(item, `${name}[${i}]`));
  }

  integer(name: string, low: number, high: number): number {
    const value = this.members.get(name);
    if (typeof value !== "bigint" || value < BigInt(low) || value > BigInt(high)) {
      throw new BundleError("manifest.json", `${this.where}.${name}: an integer in ${low}..${high} is needed`);
    }
    return Number(value);
  }

  string(name: string, pattern: RegExp): string {
    const value = this.members.get(name);
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
