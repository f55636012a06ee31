// Byte-level BPE from a tokenizer.json: docs/reference/bundle-format.md, "Tokeniser". What is not implemented is refused by name.

import { BundleError } from "./errors.js";
import { parse, type Json } from "./json.js";

// GPT-2's pattern. White space is Unicode's property, which JavaScript's \s is not.
const WORDS =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

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

export class Tokenizer {
  private readonly vocabulary = new Map<string, number>();
  private readonly ranks = new Map<string, number>();
  private readonly added: [RegExp, Map<string, number>][] = [];
  private readonly ignoreMerges: boolean;
  private readonly prefixSpace: boolean;
  private readonly useRegex: boolean;
  private readonly addedIds = new Set<number>();
  private readonly cache = new Map<string, number[]>();

  constructor(data: Uint8Array) {
    const file = object(parse(data, 64), "file");
    refuseUnless(file, "normalizer", [null]);
    const pre = object(file.get("pre_tokenizer"), "pre_tokenizer");
    refuseUnless(pre, "type", ["ByteLevel"], "pre_tokenizer");
    this.prefixSpace = pre.get("add_prefix_space") === true;
    this.useRegex = pre.get("use_regex") !== false;
    const model = object(file.get("model"), "model");
    refuseUnless(model, "type", ["BPE"], "model");
    for (const name of ["dropout", "unk_token"]) refuseUnless(model, name, [null], "model");
    for (const name of ["continuing_subword_prefix", "end_of_word_suffix"]) refuseUnless(model, name, [null, ""], "model");
    refuseUnless(model, "byte_fallback", [false, null], "model");
    this.ignoreMerges = model.get("ignore_merges") === true;
    for (const [token, id] of object(model.get("vocab"), "model.vocab")) this.vocabulary.set(token, Number(id));
    for (const [rank, merge] of list(model.get("merges"), "model.merges").entries()) {
      const pair = typeof merge === "string" ? merge : list(merge, "model.merges").join(" ");
      if (!this.ranks.has(pair)) this.ranks.set(pair, rank);
    }
    this.readAdded(list(file.get("added_tokens") ?? [], "added_tokens"));
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

  private words(text: string, begins: boolean): number[] {
    if (text === "") return [];
    const spaced = this.prefixSpace && begins && !text.startsWith(" ") ? ` ${text}` : text;
    const words = this.useRegex ? (spaced.match(WORDS) ?? []) : [spaced];
    return words.flatMap((word) => this.word(word));
  }

  private word(word: string): number[] {
    const known = this.cache.get(word);
    if (known) return known;
    const symbols = Array.from(new TextEncoder().encode(word), (byte) => BYTES[byte]!);
    const whole = this.ignoreMerges ? this.vocabulary.get(symbols.join("")) : undefined;
    const ids = whole === undefined ? this.merge(symbols).map((symbol) => this.id(symbol)) : [whole];
    if (this.cache.size < 10000) this.cache.set(word, ids);
    return ids;
  }

  /** Joins the pair of least rank, the leftmost of equals, until none is left. */
  private merge(symbols: string[]): string[] {
    for (;;) {
      let [best, at] = [Infinity, -1];
      for (let i = 0; i + 1 < symbols.length; i++) {
        const rank = this.ranks.get(`${symbols[i]} ${symbols[i + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) return symbols;
      symbols.splice(at, 2, symbols[at]! + symbols[at + 1]!);
    }
  }

  private id(symbol: string): number {
    const id = this.vocabulary.get(symbol);
    if (id === undefined) throw new BundleError("tokenizer.json", "model.vocab: a byte has no token");
    return id;
  }

  private readAdded(tokens: readonly Json[]): void {
    // Those found in the raw text come first; without a normalizer the others are found in the same text.
    for (const normalized of [false, true]) {
      const ids = new Map<string, number>();
      for (const token of tokens.map((item) => object(item, "added_tokens"))) {
        for (const name of ["single_word", "lstrip", "rstrip"]) refuseUnless(token, name, [false, null], "added_tokens");
        this.addedIds.add(Number(token.get("id")));
        if ((token.get("normalized") === true) === normalized) ids.set(String(token.get("content")), Number(token.get("id")));
      }
      ids.delete("");
      if (!ids.size) continue;
      const longestFirst = [...ids.keys()].sort((a, b) => b.length - a.length);
      const escaped = longestFirst.map((content) => content.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"));
      this.added.push([new RegExp(`(${escaped.join("|")})`, "u"), ids]);
    }
  }
}

function object(value: Json | undefined, where: string): Map<string, Json> {
  if (!(value instanceof Map)) throw new BundleError("tokenizer.json", `${where}: an object is needed`);
  return value;
}

function list(value: Json | undefined, where: string): Json[] {
  if (!Array.isArray(value)) throw new BundleError("tokenizer.json", `${where}: an array is needed`);
  return value;
}

function refuseUnless(members: Map<string, Json>, name: string, allowed: readonly Json[], where = ""): void {
  const value = members.get(name) ?? null;
  if (allowed.includes(value)) return;
  const found = value instanceof Map ? JSON.stringify(value.get("type") ?? "an object") : JSON.stringify(value);
  const path = where ? `${where}.${name}` : name;
  throw new BundleError("tokenizer.json", `${path}: ${found} is not implemented; ${allowed.map((one) => JSON.stringify(one)).join(" or ")} is`);
}
