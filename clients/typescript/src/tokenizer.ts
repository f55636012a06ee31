// Byte-level BPE from a tokenizer.json: docs/reference/bundle-format.md, "Tokenizer". The file is a program that a server chose
// and that runs on private text: known parts only, each of which takes about linear time; all others are refused by name.

import { BundleError } from "./errors.js";
import { JsonError, parse, type Json } from "./json.js";

const FILE = "tokenizer.json";
const MAX_VALUES = 1 << 22;
const MAX_PARTS = 16;
const MAX_ADDED_TOKENS = 1 << 16;
const MAX_TOKEN_CHARACTERS = 512;
const PLACES = 2 ** 30; // in a word; a rank is below 2^22, so that rank and place fit into a number
const MAX_ID = 2n ** 31n - 1n;

// GPT-2's pattern. White space is Unicode's property, which JavaScript's \s is not.
const WORDS =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
const DIGIT = /\p{N}|\P{N}+/gu;
const DIGITS = /\p{N}+|\P{N}+/gu;

/** The characters that stand for the 256 bytes: printable ones for themselves, the rest from U+0100 on. */
const BYTES = (() => {
  const symbols: string[] = [];
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    symbols.push(String.fromCharCode(printable ? byte : next++));
  }
  return symbols;
})();
const BYTE_OF = new Map(BYTES.map((symbol, byte) => [symbol, byte]));

type Members = Map<string, Json>;
type Check = (value: Json) => boolean;

const isFlag: Check = (value) => typeof value === "boolean";
const isNothing: Check = (value) => value === null;
const isText: Check = (value) => typeof value === "string";
const isAny: Check = () => true; // has no effect on the ids
const oneOf = (...allowed: Json[]): Check => (value) => allowed.includes(value);

const BYTE_LEVEL: Record<string, Check> = { type: isText, add_prefix_space: isFlag, trim_offsets: isFlag, use_regex: isFlag };

export class Tokenizer {
  private readonly vocabulary = new Map<string, number>();
  private readonly ranks = new Map<string, number>();
  private readonly added: [RegExp, Map<string, number>][] = [];
  private readonly addedIds = new Map<number, string>();
  private readonly cache = new Map<string, number[]>();
  private readonly splits: RegExp[] = [];
  private ignoreMerges = false;
  private prefixSpace = false;
  private useRegex = true;
  private symbols: (string | undefined)[] | undefined;

  /** Reads the file. Throws BundleError for a part that is not implemented, by its name. */
  constructor(data: Uint8Array) {
    let values = 0;
    for (const byte of data) if (byte === 0x2c || byte === 0x5b || byte === 0x7b) values++;
    if (values > MAX_VALUES) throw refused("the file", `more than ${MAX_VALUES} values`);
    const file = checked(read(data), "the file", {
      version: isText, truncation: isAny, padding: isAny, added_tokens: isAny, normalizer: isNothing, pre_tokenizer: isAny,
      post_processor: isAny, decoder: isAny, model: isAny,
    });
    this.readSplits(file.get("pre_tokenizer") ?? null, "pre_tokenizer", false);
    this.readModel(file.get("model") ?? null);
    this.readAdded(list(file.get("added_tokens") ?? [], "added_tokens", MAX_ADDED_TOKENS));
  }

  /** The ids of each span of a prompt, in order. Only the beginning of a text, or what follows an added token, gets the space. */
  encodeSpans(spans: readonly { readonly text: string; readonly shown: boolean }[]): number[][] {
    let begins = true;
    return spans.map(({ text, shown }) => {
      const ids = this.encode(text, begins);
      if (text !== "") begins = shown && this.addedIds.has(ids.at(-1) ?? -1);
      return ids;
    });
  }

  /** The ids of a text, without special tokens being added; such a token in the text is found, as in any text. */
  encode(text: string, begins = true): number[] {
    let parts: (string | number)[] = [text];
    for (const [pattern, ids] of this.added) {
      parts = parts.flatMap((part) =>
        typeof part === "number" ? [part] : part.split(pattern).map((piece) => ids.get(piece) ?? piece),
      );
    }
    return parts.flatMap((part) => {
      if (typeof part === "string") return this.words(part, begins);
      begins = true;
      return [part];
    });
  }

  /** The bytes of the text that a token stands for; none for an id without a token. */
  bytes(id: number): Uint8Array {
    const special = this.addedIds.get(id);
    if (special !== undefined) return new TextEncoder().encode(special);
    if (this.symbols === undefined) {
      this.symbols = [];
      for (const [symbol, index] of this.vocabulary) this.symbols[index] = symbol;
    }
    return Uint8Array.from(Array.from(this.symbols[id] ?? "", (symbol) => BYTE_OF.get(symbol) ?? 0x3f));
  }

  private words(text: string, begins: boolean): number[] {
    let pieces = text === "" ? [] : [text];
    for (const split of this.splits) pieces = pieces.flatMap((piece) => piece.match(split) ?? []);
    return pieces.flatMap((piece) => {
      const spaced = this.prefixSpace && begins && !piece.startsWith(" ") ? ` ${piece}` : piece;
      const words = this.useRegex ? (spaced.match(WORDS) ?? []) : [spaced];
      return words.flatMap((word) => this.word(word));
    });
  }

  private word(word: string): number[] {
    const known = this.cache.get(word);
    if (known) return known;
    const symbols = Array.from(new TextEncoder().encode(word), (byte) => BYTES[byte]!);
    const whole = this.ignoreMerges ? this.vocabulary.get(symbols.join("")) : undefined;
    const ids = whole === undefined ? this.merge(symbols).map((symbol) => this.id(symbol)) : [whole];
    if (word.length <= 64 && this.cache.size < 10000) this.cache.set(word, ids);
    return ids;
  }

  /** Joins the pair of least rank, the leftmost of equals, until none is left. A heap keeps long words from taking quadratic time. */
  private merge(symbols: (string | undefined)[]): string[] {
    const count = symbols.length;
    const next = Int32Array.from(symbols, (_, i) => i + 1);
    const before = Int32Array.from(symbols, (_, i) => i - 1);
    const heap = new Heap();
    const offer = (at: number): void => {
      const end = next[at]!;
      if (end >= count) return;
      const rank = this.ranks.get(`${symbols[at]} ${symbols[end]}`);
      if (rank !== undefined) heap.push(rank * PLACES + at, `${symbols[at]} ${symbols[end]}`);
    };
    for (let at = 0; at + 1 < count; at++) offer(at);
    for (let top = heap.pop(); top !== undefined; top = heap.pop()) {
      const at = top.key % PLACES;
      const end = next[at]!;
      // The pair may be gone: its left part was joined to something, or its right part was.
      if (symbols[at] === undefined || end >= count || `${symbols[at]} ${symbols[end]}` !== top.pair) continue;
      symbols[at] = symbols[at]! + symbols[end]!;
      symbols[end] = undefined;
      next[at] = next[end]!;
      if (next[at]! < count) before[next[at]!] = at;
      if (before[at]! >= 0) offer(before[at]!);
      offer(at);
    }
    return symbols.filter((symbol) => symbol !== undefined);
  }

  private id(symbol: string): number {
    const id = this.vocabulary.get(symbol);
    if (id === undefined) throw refused("model.vocab", "a byte without a token");
    return id;
  }

  private readSplits(value: Json, where: string, nested: boolean): void {
    const kind = value instanceof Map ? value.get("type") : undefined;
    if (kind === "Sequence" && !nested) {
      const parts = list(checked(value, where, { type: isText, pretokenizers: isAny }).get("pretokenizers") ?? null, where, MAX_PARTS);
      if (!parts.length || parts.slice(0, -1).some((part) => part instanceof Map && part.get("type") === "ByteLevel")) {
        throw refused(where, "a sequence that does not end in its one ByteLevel");
      }
      parts.forEach((part, i) => this.readSplits(part, `${where}.pretokenizers[${i}]`, true));
      const last = parts.at(-1);
      if (!(last instanceof Map) || last.get("type") !== "ByteLevel") throw refused(where, "a sequence that does not end in ByteLevel");
    } else if (kind === "ByteLevel") {
      const part = checked(value, where, BYTE_LEVEL);
      this.prefixSpace = part.get("add_prefix_space") === true;
      this.useRegex = part.get("use_regex") !== false;
    } else if (kind === "Digits" && nested) {
      const part = checked(value, where, { type: isText, individual_digits: isFlag });
      this.splits.push(part.get("individual_digits") === true ? DIGIT : DIGITS);
    } else {
      throw refused(`${where}.type`, typeof kind === "string" ? `"${kind.slice(0, 64)}"` : "another value");
    }
  }

  private readModel(value: Json): void {
    const model = checked(value, "model", {
      type: oneOf("BPE"), vocab: isAny, merges: isAny, dropout: oneOf(null, 0, 0n), unk_token: isNothing,
      continuing_subword_prefix: oneOf(null, ""), end_of_word_suffix: oneOf(null, ""), fuse_unk: isFlag,
      byte_fallback: oneOf(false), ignore_merges: isFlag,
    });
    if (!model.has("type")) throw refused("model.type", "none");
    this.ignoreMerges = model.get("ignore_merges") === true;
    const vocab = model.get("vocab");
    if (!(vocab instanceof Map)) throw refused("model.vocab", "another value");
    for (const [token, id] of vocab) this.vocabulary.set(text(token, "model.vocab", 0), tokenId(id, "model.vocab"));
    for (const [rank, merge] of list(model.get("merges") ?? null, "model.merges", MAX_VALUES).entries()) {
      const pair = typeof merge === "string" ? merge.split(" ") : merge;
      const [left, right] = Array.isArray(pair) && pair.length === 2 ? pair : [];
      const known = typeof left === "string" && typeof right === "string" && [left, right, left + right].every((one) => vocab.has(one));
      if (!known) throw refused(`model.merges[${rank}]`, "tokens that are not in vocab");
      const name = `${left} ${right}`;
      if (!this.ranks.has(name)) this.ranks.set(name, rank);
    }
  }

  private readAdded(tokens: readonly Json[]): void {
    const found = tokens.map((item, i) => {
      const token = checked(item, `added_tokens[${i}]`, {
        id: isAny, content: isAny, single_word: oneOf(false), lstrip: oneOf(false), rstrip: oneOf(false), normalized: isFlag, special: isFlag,
      });
      const content = text(token.get("content") ?? null, `added_tokens[${i}].content`, 1);
      const id = tokenId(token.get("id") ?? null, `added_tokens[${i}].id`);
      return { content, id, normalized: token.get("normalized") === true };
    });
    for (const { content, id } of found) this.addedIds.set(id, content);
    // Those found in the raw text come first; without a normalizer the others are found in the same text.
    for (const normalized of [false, true]) {
      const ids = new Map(found.filter((token) => token.normalized === normalized).map(({ content, id }) => [content, id]));
      if (!ids.size) continue;
      const longestFirst = [...ids.keys()].sort((a, b) => b.length - a.length);
      const escaped = longestFirst.map((content) => content.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"));
      this.added.push([new RegExp(`(${escaped.join("|")})`, "u"), ids]);
    }
  }
}

/** Pairs by rank and place, the least first. */
class Heap {
  private readonly keys: number[] = [];
  private readonly pairs: string[] = [];

  push(key: number, pair: string): void {
    let at = this.keys.length;
    for (let up = (at - 1) >> 1; at > 0 && this.keys[up]! > key; at = up, up = (at - 1) >> 1) this.move(up, at);
    this.keys[at] = key;
    this.pairs[at] = pair;
  }

  pop(): { key: number; pair: string } | undefined {
    if (!this.keys.length) return undefined;
    const top = { key: this.keys[0]!, pair: this.pairs[0]! };
    const [key, pair] = [this.keys.pop()!, this.pairs.pop()!];
    const count = this.keys.length;
    if (count) {
      let at = 0;
      for (;;) {
        let down = 2 * at + 1;
        if (down + 1 < count && this.keys[down + 1]! < this.keys[down]!) down++;
        if (down >= count || this.keys[down]! >= key) break;
        this.move(down, at);
        at = down;
      }
      this.keys[at] = key;
      this.pairs[at] = pair;
    }
    return top;
  }

  private move(from: number, to: number): void {
    this.keys[to] = this.keys[from]!;
    this.pairs[to] = this.pairs[from]!;
  }
}

function read(data: Uint8Array): Json {
  try {
    return parse(data, 64);
  } catch (error) {
    if (error instanceof JsonError) throw new BundleError(FILE, error.message);
    throw error;
  }
}

function refused(where: string, found: string): BundleError {
  return new BundleError(FILE, `${where}: ${found} is not implemented`);
}

/** An object that has no members but these, each as it has to be. */
function checked(value: Json, where: string, checks: Record<string, Check>): Members {
  if (!(value instanceof Map)) throw refused(where, "another value than an object");
  const path = where === "the file" ? "" : `${where}.`;
  for (const [name, item] of value) {
    const shown = /^[A-Za-z_]{1,64}$/.test(name) ? name : "another member";
    if (!Object.hasOwn(checks, name)) throw refused(`${path}${shown}`, "the member");
    if (!checks[name]!(item)) {
      const found = item instanceof Map ? item.get("type") : item;
      throw refused(`${path}${shown}`, typeof found === "string" ? JSON.stringify(found.slice(0, 64)) : String(found ?? null).slice(0, 64));
    }
  }
  return value;
}

function list(value: Json, where: string, most: number): Json[] {
  if (!Array.isArray(value) || value.length > most) throw refused(where, `another value than an array of at most ${most}`);
  return value;
}

function text(value: Json, where: string, least: number): string {
  // As JavaScript counts, a text is at least as long as in characters.
  const length = typeof value === "string" ? (value.length > MAX_TOKEN_CHARACTERS ? [...value].length : value.length) : -1;
  if (typeof value !== "string" || length < least || length > MAX_TOKEN_CHARACTERS) {
    throw refused(where, `another value than a token of ${least} to ${MAX_TOKEN_CHARACTERS} characters`);
  }
  return value;
}

function tokenId(value: Json, where: string): number {
  if (typeof value !== "bigint" || value < 0n || value > MAX_ID) throw refused(where, "another value than a token id");
  return Number(value);
}
