// Strict JSON as docs/reference/wire-format.md ("Header") and canonical JSON as docs/reference/bundle-format.md define them.
//
// Integers become bigint and all other numbers number, so that 16 and 16.0 stay apart and no integer loses digits.
// Objects become Map, which keeps the order and knows no inherited names.

export type Json = null | boolean | bigint | number | string | Json[] | Map<string, Json>;

/** Text that is not acceptable. The message never holds the text. */
export class JsonError extends Error {}

const MAX_DIGITS = 32;
const NUMBER = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/y;
const PLAIN = /[^"\\\u0000-\u001f]*/y;
const SURROGATE = /[\ud800-\udfff]/;
const UNPAIRED = /[\ud800-\udfff]/u;
const SPACE = /[ \t\n\r]*/y;
const LONG_DIGITS = new RegExp(`[0-9]{${MAX_DIGITS + 1}}`);
const ESCAPES: Record<string, string> = {
  '"': '"', "\\": "\\", "/": "/", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t",
};

/** The value of a JSON text in UTF-8. Throws JsonError. */
export function parse(data: Uint8Array, maxDepth: number): Json {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data);
  } catch {
    throw new JsonError("not UTF-8");
  }
  const reader = new Reader(text, maxDepth);
  const value = reader.value(0);
  reader.end();
  return value;
}

class Reader {
  private at = 0;

  constructor(
    private readonly text: string,
    private readonly maxDepth: number,
  ) {}

  end(): void {
    this.space();
    if (this.at !== this.text.length) throw this.error("something follows the value");
  }

  value(depth: number): Json {
    this.space();
    switch (this.text[this.at]) {
      case "{":
        return this.object(depth + 1);
      case "[":
        return this.array(depth + 1);
      case '"':
        return this.string();
      case "t":
        return this.word("true", true);
      case "f":
        return this.word("false", false);
      case "n":
        return this.word("null", null);
      default:
        return this.number();
    }
  }

  private object(depth: number): Json {
    this.enter(depth);
    const members = new Map<string, Json>();
    if (this.take("}")) return members;
    do {
      this.space();
      if (this.text[this.at] !== '"') throw this.error("a member's name is missing");
      const name = this.string();
      if (members.has(name)) throw this.error("a member appears twice");
      if (!this.take(":")) throw this.error("a colon is missing");
      members.set(name, this.value(depth));
    } while (this.take(","));
    if (!this.take("}")) throw this.error("an object does not end");
    return members;
  }

  private array(depth: number): Json {
    this.enter(depth);
    const items: Json[] = [];
    if (this.take("]")) return items;
    do items.push(this.value(depth));
    while (this.take(","));
    if (!this.take("]")) throw this.error("an array does not end");
    return items;
  }

  private string(): string {
    let result = "";
    for (this.at++; ; this.at++) {
      // Runs of plain characters at once: a tokenizer has a hundred thousand strings.
      PLAIN.lastIndex = this.at;
      const plain = PLAIN.exec(this.text)![0];
      result += plain;
      this.at += plain.length;
      const unit = this.text[this.at];
      if (unit === undefined) throw this.error("a string does not end");
      if (unit === '"') break;
      if (unit !== "\\") throw this.error("a control character in a string");
      const letter = this.text[++this.at] ?? "";
      if (letter === "u") {
        const digits = this.text.slice(this.at + 1, this.at + 5);
        if (!/^[0-9a-fA-F]{4}$/.test(digits)) throw this.error("an escape that is none");
        result += String.fromCharCode(parseInt(digits, 16));
        this.at += 4;
      } else {
        const escaped = ESCAPES[letter];
        if (escaped === undefined) throw this.error("an escape that is none");
        result += escaped;
      }
    }
    this.at++;
    if (SURROGATE.test(result) && UNPAIRED.test(result)) throw this.error("an unpaired surrogate");
    return result;
  }

  private number(): Json {
    NUMBER.lastIndex = this.at;
    const match = NUMBER.exec(this.text);
    if (match === null) throw this.error("no value");
    const digits = match[0];
    if (LONG_DIGITS.test(digits)) throw this.error(`more than ${MAX_DIGITS} digits`);
    this.at += digits.length;
    if (match[1] === undefined && match[2] === undefined) {
      if (digits === "-0") throw this.error("the integer -0");
      return BigInt(digits);
    }
    const value = Number(digits);
    if (!Number.isFinite(value)) throw this.error("a number beyond a 64-bit float");
    return value;
  }

  private word<T extends Json>(word: string, value: T): T {
    if (!this.text.startsWith(word, this.at)) throw this.error("no value");
    this.at += word.length;
    return value;
  }

  private enter(depth: number): void {
    if (depth > this.maxDepth) throw this.error(`nested more than ${this.maxDepth} levels deep`);
    this.at++;
  }

  private take(symbol: string): boolean {
    this.space();
    if (this.text[this.at] !== symbol) return false;
    this.at++;
    return true;
  }

  private space(): void {
    const code = this.text.charCodeAt(this.at);
    if (code > 0x20) return;
    SPACE.lastIndex = this.at;
    SPACE.test(this.text);
    this.at = SPACE.lastIndex;
  }

  private error(what: string): JsonError {
    return new JsonError(`${what}, at character ${this.at}`);
  }
}

/** JSON without spaces, members in their own order; ``sorted`` by code point is the canonical form. */
export function write(value: Json, sorted = false): string {
  if (value === null || typeof value === "boolean" || typeof value === "bigint") return String(value);
  if (typeof value === "number") return writeFloat(value);
  if (typeof value === "string") return writeString(value);
  if (Array.isArray(value)) return `[${value.map((item) => write(item, sorted)).join(",")}]`;
  const members = [...value];
  if (sorted) members.sort(([a], [b]) => byCodePoint(a, b));
  return `{${members.map(([name, item]) => `${writeString(name)}:${write(item, sorted)}`).join(",")}}`;
}

const SHORT: Record<string, string> = { "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r" };

function writeString(text: string): string {
  if (/[\ud800-\udfff]/u.test(text)) throw new JsonError("an unpaired surrogate");
  const escaped = text.replace(
    /["\\\u0000-\u001f]/g,
    (c) => SHORT[c] ?? (c < " " ? `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}` : `\\${c}`),
  );
  return `"${escaped}"`;
}

/** The shortest digits that read back as the same float, laid out as docs/reference/bundle-format.md says. */
function writeFloat(value: number): string {
  if (!Number.isFinite(value)) throw new JsonError("no finite number");
  const [mantissa, power] = value.toExponential().split("e") as [string, string];
  const exponent = Number(power);
  const sign = Object.is(value, -0) || mantissa.startsWith("-") ? "-" : "";
  const digits = mantissa.replace(/[-.]/g, "");
  if (exponent < -4 || exponent >= 16) {
    const fraction = digits.length > 1 ? `.${digits.slice(1)}` : "";
    const size = String(Math.abs(exponent)).padStart(2, "0");
    return `${sign}${digits[0]}${fraction}e${exponent < 0 ? "-" : "+"}${size}`;
  }
  if (exponent < 0) return `${sign}0.${"0".repeat(-exponent - 1)}${digits}`;
  const whole = digits.slice(0, exponent + 1).padEnd(exponent + 1, "0");
  return `${sign}${whole}.${digits.slice(exponent + 1) || "0"}`;
}

function byCodePoint(a: string, b: string): number {
  const [left, right] = [[...a], [...b]];
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    const difference = left[i]!.codePointAt(0)! - right[i]!.codePointAt(0)!;
    if (difference !== 0) return difference;
  }
  return left.length - right.length;
}
