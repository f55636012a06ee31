// Built from clients/playground and clients/typescript: (cd clients/playground && node build.mjs)

// ../typescript/src/sampler.ts
var ONE = 2n ** 31n;
function numerator(mechanism, level2) {
  const size = BigInt(Math.abs(level2));
  if (!Number.isInteger(level2) || size > mechanism.maxLevel) throw new RangeError("level: beyond max_level");
  const doubled = 2n * size * mechanism.ratioNumerator + mechanism.maxLevel;
  const rounded = doubled / (2n * mechanism.maxLevel);
  return Number(level2 < 0 ? ONE - rounded : ONE + rounded);
}
function columns(mechanism) {
  return "noiseNumerators" in mechanism ? mechanism.noiseNumerators.length : mechanism.dim;
}
var CryptoBytes = class {
  pool = new Uint8Array(65536);
  used = this.pool.length;
  next() {
    if (this.used === this.pool.length) {
      crypto.getRandomValues(this.pool);
      this.used = 0;
    }
    const byte = this.pool[this.used];
    this.pool[this.used++] = 0;
    return byte;
  }
};
function sample(mechanism, levels, random = new CryptoBytes()) {
  return "noiseNumerators" in mechanism ? respond(mechanism, levels, random) : count(mechanism, levels, random);
}
function respond(mechanism, codes, random) {
  const compared = Array.from(codes, () => {
    const bytes = [random.next(), random.next(), random.next(), random.next()];
    return (bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24) >>> 0;
  });
  const largest = (1 << mechanism.bits) - 1;
  return Uint8Array.from(codes, (code, j) => {
    if (code < 0 || code > largest) throw new RangeError("level: beyond the codes");
    const mask = -Number(compared[j] < mechanism.noiseNumerators[j]) & largest;
    return code ^ (code ^ random.next()) & mask;
  });
}
function count(mechanism, levels, random) {
  const trials = (1 << mechanism.bits) - 1;
  return Uint8Array.from(levels, (level2) => {
    const q = numerator(mechanism, level2);
    const top = q >>> 24;
    const rest = q & 16777215;
    let successes = 0;
    for (let i = 0; i < trials; i++) {
      const first = random.next();
      if (first !== top) successes += first < top ? 1 : 0;
      else successes += (random.next() << 16 | random.next() << 8 | random.next()) < rest ? 1 : 0;
    }
    return successes;
  });
}

// ../typescript/src/accounting.ts
var ONE2 = 2 ** 32;
var ROUND_UP = 1 + 2 ** -50;
var MAX_TRIALS = 1e10;
var NEGLIGIBLE = 2 ** -60;
var EXACT_CODES = 4096;
var DEFAULT_DELTA = 1e-6;
var MAX_EPSILON_PER_TOKEN = 350;
function epsilon(mechanism, delta = DEFAULT_DELTA, tokens = 1) {
  if (!(delta >= 0 && delta <= 1)) throw new RangeError("delta: a number from 0 to 1 is needed");
  if (!Number.isSafeInteger(tokens) || tokens < 1) throw new RangeError("tokens: an integer from 1 is needed");
  return isCategorical(mechanism) ? responseEpsilon(mechanism, delta, tokens) : binomialEpsilon(mechanism, delta, tokens);
}
var ORDERS = Array.from({ length: 97 }, (_, i) => 1 + 10 ** (-4 + 8 * i / 96));
function renyi(mechanism, tokens, orders = ORDERS) {
  if (isCategorical(mechanism)) {
    const groups = responseGroups(mechanism, tokens);
    return orders.map((order) => groups.reduce((sum, group) => sum + group.count * responseRenyi(group, order - 1), 0));
  }
  const trials = columns(mechanism) * ((1 << mechanism.bits) - 1) * tokens;
  const p = ONE2 / 2 + Number(mechanism.ratioNumerator);
  const [win, lose, step] = [Math.log(p / ONE2), Math.log((ONE2 - p) / ONE2), logRatio(p, ONE2 - p)];
  return orders.map((order) => trials * Math.max(0, logSum(win + (order - 1) * step, lose - (order - 1) * step)) / (order - 1));
}
function renyiEpsilon(divergences, delta, orders = ORDERS) {
  const each = orders.map((order, i) => {
    const excess = order - 1;
    return Math.max(0, divergences[i] - Math.log1p(1 / excess) - (Math.log(delta) + Math.log(order)) / excess);
  });
  return Math.min(...each);
}
function largestLoss(mechanism, tokens = 1) {
  if (isCategorical(mechanism)) {
    const total = responseGroups(mechanism, tokens).reduce((sum, { count: count3, step }) => sum + count3 * step, 0);
    return total * ROUND_UP;
  }
  const p = ONE2 / 2 + Number(mechanism.ratioNumerator);
  return columns(mechanism) * ((1 << mechanism.bits) - 1) * tokens * logRatio(p, ONE2 - p) * ROUND_UP;
}
function isCategorical(mechanism) {
  return "noiseNumerators" in mechanism;
}
function binomialEpsilon(mechanism, delta, tokens) {
  const trials = columns(mechanism) * ((1 << mechanism.bits) - 1) * tokens;
  if (trials > MAX_TRIALS) return Infinity;
  const p = ONE2 / 2 + Number(mechanism.ratioNumerator);
  const largest = largestLoss(mechanism, tokens);
  if (delta === 1) return 0;
  if (delta === 0) return largest;
  const ratio = logRatio(p, ONE2 - p);
  const step = 2 * ratio;
  const loss = (k) => (2 * k - trials) * ratio;
  const logDeltaFrom = (start, margin) => logWeightedTail(start, trials, p, (offset) => -Math.expm1(-(margin + step * offset)));
  const target = Math.log(delta);
  const first = Math.max(0, Math.ceil(-loss(0) / step));
  if (target >= logDeltaFrom(first, loss(first))) return 0;
  let [high, low] = [trials, -1];
  while (high - low > 1) {
    const middle = Math.floor((high + low) / 2);
    if (logDeltaFrom(middle + 1, step) <= target) high = middle;
    else low = middle;
  }
  const above = logDeltaFrom(high, step);
  const below = logDeltaFrom(high + 1, step);
  const rest = Math.exp(below - target);
  const share2 = (1 - rest) / (Math.exp(Math.min(709, above - target)) - rest);
  const value = loss(high) + Math.log1p(share2 * Math.expm1(-step));
  return Math.min(Math.max(0, value) * ROUND_UP, largest);
}
function logWeightedTail(start, trials, numerator2, weight) {
  if (start > trials) return -Infinity;
  const odds = numerator2 / (ONE2 - numerator2);
  const mode = Number(BigInt(trials + 1) * BigInt(numerator2) >> 32n);
  const anchor = Math.min(Math.max(start, mode), trials);
  const offset = anchor - start;
  let total = sumFrom(
    (j) => (trials - anchor - j) / (anchor + 1 + j) * odds,
    (j) => weight(offset + j),
    trials - anchor + 1
  );
  if (offset) {
    const below = anchor / (trials - anchor + 1) / odds;
    total += below * sumFrom(
      (j) => (anchor - 1 - j) / (trials - anchor + 2 + j) / odds,
      (j) => weight(offset - 1 - j),
      offset
    );
  }
  return total > 0 ? logProbability(anchor, trials, numerator2) + Math.log(total) : -Infinity;
}
function sumFrom(ratio, weight, count3) {
  let [total, scale] = [0, 1];
  for (let j = 0; j < count3; j++) {
    total += scale * weight(j);
    const next = ratio(j);
    scale *= next;
    if ((j & 255) === 255 && j + 1 < count3 && next < 1) {
      const rest = scale / (1 - next);
      if (rest <= NEGLIGIBLE * total) return total + rest;
    }
  }
  return total;
}
function logProbability(k, trials, numerator2) {
  const failures = trials - k;
  const complement = ONE2 - numerator2;
  if (k === 0) return trials * Math.log1p((complement - ONE2) / ONE2);
  if (failures === 0) return trials * Math.log1p((numerator2 - ONE2) / ONE2);
  return stirlingError(trials) - stirlingError(k) - stirlingError(failures) - deviance(k, trials, numerator2) - deviance(failures, trials, complement) - 0.5 * Math.log(2 * Math.PI * (k * failures / trials));
}
function stirlingError(n) {
  if (n < 16) {
    let factorial = 1;
    for (let i = 2; i <= n; i++) factorial *= i;
    return Math.log(factorial) - (n + 0.5) * Math.log(n) + n - 0.5 * Math.log(2 * Math.PI);
  }
  const square = n * n;
  return (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - 1 / 1188 / square) / square) / square) / square) / n;
}
function deviance(count3, trials, numerator2) {
  const scaled = BigInt(count3) << 32n;
  const mean = BigInt(trials) * BigInt(numerator2);
  const difference = Number(scaled - mean) / ONE2;
  const v = Number(scaled - mean) / Number(scaled + mean);
  if (Math.abs(v) > 0.25) return count3 * Math.log(Number(scaled) / Number(mean)) - difference;
  let [total, power2] = [difference * v, 2 * count3 * v];
  for (let j = 3; ; j += 2) {
    power2 *= v * v;
    const updated = total + power2 / j;
    if (updated === total) return total;
    total = updated;
  }
}
function logRatio(above, below) {
  return Math.log1p((above - below) / below);
}
function logSum(...terms) {
  const top = Math.max(...terms);
  return top + Math.log(terms.reduce((sum, term) => sum + Math.exp(term - top), 0));
}
function responseGroups(mechanism, tokens) {
  const counts = /* @__PURE__ */ new Map();
  for (const numerator2 of mechanism.noiseNumerators) counts.set(numerator2, (counts.get(numerator2) ?? 0) + tokens);
  const codes = 1 << mechanism.bits;
  return [...counts].map(([numerator2, count3]) => {
    const other = numerator2 / (ONE2 * codes);
    const excess = codes * (ONE2 - numerator2) / numerator2;
    return { codes, count: count3, keep: 1 - (codes - 1) * other, other, step: Math.log1p(excess) * (1 + 2 ** -51) };
  });
}
function responseRenyi({ codes, keep, other, step }, excess) {
  if (step === 0) return 0;
  const terms = [Math.log(keep) + excess * step, Math.log(other) - excess * step];
  if (codes > 2) terms.push(Math.log((codes - 2) * other));
  return Math.max(0, logSum(...terms)) / excess;
}
function responseEpsilon(mechanism, delta, tokens) {
  const largest = largestLoss(mechanism, tokens);
  if (delta === 0) return largest;
  const groups = responseGroups(mechanism, tokens);
  if (groups.length !== 1 || groups[0].count > EXACT_CODES) {
    const orders = Array.from({ length: 193 }, (_, i) => 1 + 10 ** (-4 + 8 * i / 192));
    return Math.min(largest, renyiEpsilon(renyi(mechanism, tokens, orders), delta, orders));
  }
  const [{ codes, count: count3, keep, other, step }] = groups;
  const law = power([other, (codes - 2) * other, keep], count3);
  const deltaAt = (at) => law.reduce((sum, p, i) => sum + Math.max(0, -p * Math.expm1(at - (i - count3) * step)), 0) * (1 + 1e-9);
  if (deltaAt(0) <= delta) return 0;
  let [low, high] = [0, largest];
  while (high - low > 1e-12 * high) {
    const middle = 0.5 * (low + high);
    if (middle === low || middle === high) break;
    if (deltaAt(middle) <= delta) high = middle;
    else low = middle;
  }
  return high;
}
function power(step, count3) {
  let [result, square] = [[1], step];
  for (let left = count3; left; left >>= 1) {
    if (left & 1) result = convolve(result, square);
    if (left > 1) square = convolve(square, square);
  }
  return result;
}
function convolve(a, b) {
  const result = new Array(a.length + b.length - 1).fill(0);
  for (let i = 0; i < a.length; i++) for (let j = 0; j < b.length; j++) result[i + j] += a[i] * b[j];
  return result;
}

// ../typescript/src/errors.ts
var STATUS = {
  bundle_outdated: 409,
  deadline_exceeded: 408,
  engine_unavailable: 503,
  frame_too_large: 413,
  header_too_large: 413,
  internal_error: 500,
  invalid_api_key: 401,
  method_not_allowed: 405,
  not_found: 404,
  overloaded: 503,
  rate_limit_exceeded: 429,
  unknown_variant: 404,
  unsupported_media_type: 415
};
var BAD_REQUEST = /* @__PURE__ */ new Set([
  "context_length_exceeded",
  "invalid_header",
  "invalid_magic",
  "invalid_padding",
  "invalid_value",
  "missing_field",
  "payload_length_mismatch",
  "private_not_accepted",
  "truncated_frame",
  "unknown_field",
  "unsupported_parameter",
  "unsupported_version"
]);
function statusOf(code) {
  if (typeof code !== "string") return 500;
  return (Object.hasOwn(STATUS, code) ? STATUS[code] : void 0) ?? (BAD_REQUEST.has(code) ? 400 : 500);
}
var DelError = class extends Error {
  status;
  code;
  requestId;
  field;
  retryAfter;
  constructor(message, details = {}) {
    super(message, "cause" in details ? { cause: details.cause } : void 0);
    this.name = new.target.name;
    this.status = details.status ?? null;
    this.code = details.code ?? null;
    this.requestId = details.requestId ?? null;
    this.field = details.field ?? null;
    this.retryAfter = details.retryAfter ?? null;
  }
};
var InvalidRequestError = class extends DelError {
};
var ContextFullError = class extends InvalidRequestError {
  constructor(message, details = {}, promptTokens = null, room = null) {
    super(message, { code: "context_length_exceeded", field: "prompt", ...details });
    this.promptTokens = promptTokens;
    this.room = room;
  }
  promptTokens;
  room;
};
var AccessDeniedError = class extends DelError {
};
var OverloadedError = class extends DelError {
};
var ServerError = class extends DelError {
};
var ConnectionFailedError = class extends DelError {
};
var TimeoutExceededError = class extends DelError {
  constructor(message, phase) {
    super(message);
    this.phase = phase;
  }
  phase;
};
var StreamBrokenError = class extends DelError {
};
var ProtocolError = class extends DelError {
};
var BundleOutdatedError = class extends DelError {
};
var BundleRejectedError = class extends DelError {
  constructor(message, fingerprint, changes2) {
    super(message);
    this.fingerprint = fingerprint;
    this.changes = changes2;
  }
  fingerprint;
  changes;
};
var TrustUnavailableError = class extends DelError {
};
var PolicyViolationError = class extends DelError {
};
var BudgetExceededError = class extends DelError {
  constructor(message, spent, limit) {
    super(message);
    this.spent = spent;
    this.limit = limit;
  }
  spent;
  limit;
};
var MemoryInvalidError = class extends DelError {
};
var FrameError = class extends DelError {
  constructor(code, field, message) {
    super(`${field}: ${message}`, { code, field, status: statusOf(code) });
  }
};
var BundleError = class extends DelError {
  constructor(file, message) {
    super(`${file}: ${message}`);
    this.file = file;
  }
  file;
};

// ../typescript/src/json.ts
var JsonError = class extends Error {
};
var MAX_DIGITS = 32;
var NUMBER = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/y;
var PLAIN = /[^"\\\u0000-\u001f]*/y;
var SURROGATE = /[\ud800-\udfff]/;
var UNPAIRED = /[\ud800-\udfff]/u;
var SPACE = /[ \t\n\r]*/y;
var LONG_DIGITS = new RegExp(`[0-9]{${MAX_DIGITS + 1}}`);
var ESCAPES = {
  '"': '"',
  "\\": "\\",
  "/": "/",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "	"
};
function parse(data, maxDepth) {
  let text2;
  try {
    text2 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data);
  } catch {
    throw new JsonError("not UTF-8");
  }
  const reader = new Reader(text2, maxDepth);
  const value = reader.value(0);
  reader.end();
  return value;
}
var Reader = class {
  constructor(text2, maxDepth) {
    this.text = text2;
    this.maxDepth = maxDepth;
  }
  text;
  maxDepth;
  at = 0;
  end() {
    this.space();
    if (this.at !== this.text.length) throw this.error("something follows the value");
  }
  value(depth) {
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
  object(depth) {
    this.enter(depth);
    const members = /* @__PURE__ */ new Map();
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
  array(depth) {
    this.enter(depth);
    const items = [];
    if (this.take("]")) return items;
    do
      items.push(this.value(depth));
    while (this.take(","));
    if (!this.take("]")) throw this.error("an array does not end");
    return items;
  }
  string() {
    let result = "";
    for (this.at++; ; this.at++) {
      PLAIN.lastIndex = this.at;
      const plain2 = PLAIN.exec(this.text)[0];
      result += plain2;
      this.at += plain2.length;
      const unit = this.text[this.at];
      if (unit === void 0) throw this.error("a string does not end");
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
        if (escaped === void 0) throw this.error("an escape that is none");
        result += escaped;
      }
    }
    this.at++;
    if (SURROGATE.test(result) && UNPAIRED.test(result)) throw this.error("an unpaired surrogate");
    return result;
  }
  number() {
    NUMBER.lastIndex = this.at;
    const match = NUMBER.exec(this.text);
    if (match === null) throw this.error("no value");
    const digits = match[0];
    if (LONG_DIGITS.test(digits)) throw this.error(`more than ${MAX_DIGITS} digits`);
    this.at += digits.length;
    if (match[1] === void 0 && match[2] === void 0) {
      if (digits === "-0") throw this.error("the integer -0");
      return BigInt(digits);
    }
    const value = Number(digits);
    if (!Number.isFinite(value)) throw this.error("a number beyond a 64-bit float");
    return value;
  }
  word(word, value) {
    if (!this.text.startsWith(word, this.at)) throw this.error("no value");
    this.at += word.length;
    return value;
  }
  enter(depth) {
    if (depth > this.maxDepth) throw this.error(`nested more than ${this.maxDepth} levels deep`);
    this.at++;
  }
  take(symbol) {
    this.space();
    if (this.text[this.at] !== symbol) return false;
    this.at++;
    return true;
  }
  space() {
    const code = this.text.charCodeAt(this.at);
    if (code > 32) return;
    SPACE.lastIndex = this.at;
    SPACE.test(this.text);
    this.at = SPACE.lastIndex;
  }
  error(what) {
    return new JsonError(`${what}, at character ${this.at}`);
  }
};
function write(value, sorted = false) {
  if (value === null || typeof value === "boolean" || typeof value === "bigint") return String(value);
  if (typeof value === "number") return writeFloat(value);
  if (typeof value === "string") return writeString(value);
  if (Array.isArray(value)) return `[${value.map((item) => write(item, sorted)).join(",")}]`;
  const members = [...value];
  if (sorted) members.sort(([a], [b]) => byCodePoint(a, b));
  return `{${members.map(([name, item]) => `${writeString(name)}:${write(item, sorted)}`).join(",")}}`;
}
var SHORT = { "\b": "\\b", "	": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r" };
function writeString(text2) {
  if (/[\ud800-\udfff]/u.test(text2)) throw new JsonError("an unpaired surrogate");
  const escaped = text2.replace(
    /["\\\u0000-\u001f]/g,
    (c) => SHORT[c] ?? (c < " " ? `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}` : `\\${c}`)
  );
  return `"${escaped}"`;
}
function writeFloat(value) {
  if (!Number.isFinite(value)) throw new JsonError("no finite number");
  const [mantissa, power2] = value.toExponential().split("e");
  const exponent = Number(power2);
  const sign = Object.is(value, -0) || mantissa.startsWith("-") ? "-" : "";
  const digits = mantissa.replace(/[-.]/g, "");
  if (exponent < -4 || exponent >= 16) {
    const fraction = digits.length > 1 ? `.${digits.slice(1)}` : "";
    const size = String(Math.abs(exponent)).padStart(2, "0");
    return `${sign}${digits[0]}${fraction}e${exponent < 0 ? "-" : "+"}${size}`;
  }
  if (exponent < 0) return `${sign}0.${"0".repeat(-exponent - 1)}${digits}`;
  const whole2 = digits.slice(0, exponent + 1).padEnd(exponent + 1, "0");
  return `${sign}${whole2}.${digits.slice(exponent + 1) || "0"}`;
}
function byCodePoint(a, b) {
  const [left, right] = [[...a], [...b]];
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    const difference = left[i].codePointAt(0) - right[i].codePointAt(0);
    if (difference !== 0) return difference;
  }
  return left.length - right.length;
}

// ../typescript/src/tokenizer.ts
var FILE = "tokenizer.json";
var MAX_VALUES = 1 << 22;
var MAX_PARTS = 16;
var MAX_ADDED_TOKENS = 1 << 16;
var MAX_TOKEN_CHARACTERS = 512;
var PLACES = 2 ** 30;
var MAX_ID = 2n ** 31n - 1n;
var WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
var DIGIT = /\p{N}|\P{N}+/gu;
var DIGITS = /\p{N}+|\P{N}+/gu;
var BYTES = (() => {
  const symbols = [];
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable = byte >= 33 && byte <= 126 || byte >= 161 && byte <= 172 || byte >= 174;
    symbols.push(String.fromCharCode(printable ? byte : next++));
  }
  return symbols;
})();
var BYTE_OF = new Map(BYTES.map((symbol, byte) => [symbol, byte]));
var isFlag = (value) => typeof value === "boolean";
var isNothing = (value) => value === null;
var isText = (value) => typeof value === "string";
var isAny = () => true;
var oneOf = (...allowed) => (value) => allowed.includes(value);
var BYTE_LEVEL = { type: isText, add_prefix_space: isFlag, trim_offsets: isFlag, use_regex: isFlag };
var Tokenizer = class {
  vocabulary = /* @__PURE__ */ new Map();
  ranks = /* @__PURE__ */ new Map();
  added = [];
  addedIds = /* @__PURE__ */ new Map();
  cache = /* @__PURE__ */ new Map();
  splits = [];
  ignoreMerges = false;
  prefixSpace = false;
  useRegex = true;
  symbols;
  /** Reads the file. Throws BundleError for a part that is not implemented, by its name. */
  constructor(data) {
    let values = 0;
    for (const byte of data) if (byte === 44 || byte === 91 || byte === 123) values++;
    if (values > MAX_VALUES) throw refused("the file", `more than ${MAX_VALUES} values`);
    const file = checked(read(data), "the file", {
      version: isText,
      truncation: isAny,
      padding: isAny,
      added_tokens: isAny,
      normalizer: isNothing,
      pre_tokenizer: isAny,
      post_processor: isAny,
      decoder: isAny,
      model: isAny
    });
    this.readSplits(file.get("pre_tokenizer") ?? null, "pre_tokenizer", false);
    this.readModel(file.get("model") ?? null);
    this.readAdded(list(file.get("added_tokens") ?? [], "added_tokens", MAX_ADDED_TOKENS));
  }
  /** The ids of each span of a prompt, in order. Only the beginning of a text, or what follows an added token, gets the space. */
  encodeSpans(spans) {
    let begins = true;
    return spans.map(({ text: text2, shown: shown2 }) => {
      const ids = this.encode(text2, begins);
      if (text2 !== "") begins = shown2 && this.addedIds.has(ids.at(-1) ?? -1);
      return ids;
    });
  }
  /** The ids of a text, without special tokens being added; such a token in the text is found, as in any text. */
  encode(text2, begins = true) {
    let parts = [text2];
    for (const [pattern2, ids] of this.added) {
      parts = parts.flatMap(
        (part) => typeof part === "number" ? [part] : part.split(pattern2).map((piece) => ids.get(piece) ?? piece)
      );
    }
    return parts.flatMap((part) => {
      if (typeof part === "string") return this.words(part, begins);
      begins = true;
      return [part];
    });
  }
  /** The bytes of the text that a token stands for; none for an id without a token. */
  bytes(id) {
    const special = this.addedIds.get(id);
    if (special !== void 0) return new TextEncoder().encode(special);
    if (this.symbols === void 0) {
      this.symbols = [];
      for (const [symbol, index] of this.vocabulary) this.symbols[index] = symbol;
    }
    return Uint8Array.from(Array.from(this.symbols[id] ?? "", (symbol) => BYTE_OF.get(symbol) ?? 63));
  }
  words(text2, begins) {
    let pieces2 = text2 === "" ? [] : [text2];
    for (const split of this.splits) pieces2 = pieces2.flatMap((piece) => piece.match(split) ?? []);
    return pieces2.flatMap((piece) => {
      const spaced = this.prefixSpace && begins && !piece.startsWith(" ") ? ` ${piece}` : piece;
      const words = this.useRegex ? spaced.match(WORDS) ?? [] : [spaced];
      return words.flatMap((word) => this.word(word));
    });
  }
  word(word) {
    const known = this.cache.get(word);
    if (known) return known;
    const symbols = Array.from(new TextEncoder().encode(word), (byte) => BYTES[byte]);
    const whole2 = this.ignoreMerges ? this.vocabulary.get(symbols.join("")) : void 0;
    const ids = whole2 === void 0 ? this.merge(symbols).map((symbol) => this.id(symbol)) : [whole2];
    if (word.length <= 64 && this.cache.size < 1e4) this.cache.set(word, ids);
    return ids;
  }
  /** Joins the pair of least rank, the leftmost of equals, until none is left. A heap keeps long words from taking quadratic time. */
  merge(symbols) {
    const count3 = symbols.length;
    const next = Int32Array.from(symbols, (_, i) => i + 1);
    const before = Int32Array.from(symbols, (_, i) => i - 1);
    const heap = new Heap();
    const offer = (at) => {
      const end = next[at];
      if (end >= count3) return;
      const rank = this.ranks.get(`${symbols[at]} ${symbols[end]}`);
      if (rank !== void 0) heap.push(rank * PLACES + at, `${symbols[at]} ${symbols[end]}`);
    };
    for (let at = 0; at + 1 < count3; at++) offer(at);
    for (let top = heap.pop(); top !== void 0; top = heap.pop()) {
      const at = top.key % PLACES;
      const end = next[at];
      if (symbols[at] === void 0 || end >= count3 || `${symbols[at]} ${symbols[end]}` !== top.pair) continue;
      symbols[at] = symbols[at] + symbols[end];
      symbols[end] = void 0;
      next[at] = next[end];
      if (next[at] < count3) before[next[at]] = at;
      if (before[at] >= 0) offer(before[at]);
      offer(at);
    }
    return symbols.filter((symbol) => symbol !== void 0);
  }
  id(symbol) {
    const id = this.vocabulary.get(symbol);
    if (id === void 0) throw refused("model.vocab", "a byte without a token");
    return id;
  }
  readSplits(value, where, nested) {
    const kind = value instanceof Map ? value.get("type") : void 0;
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
  readModel(value) {
    const model = checked(value, "model", {
      type: oneOf("BPE"),
      vocab: isAny,
      merges: isAny,
      dropout: oneOf(null, 0, 0n),
      unk_token: isNothing,
      continuing_subword_prefix: oneOf(null, ""),
      end_of_word_suffix: oneOf(null, ""),
      fuse_unk: isFlag,
      byte_fallback: oneOf(false),
      ignore_merges: isFlag
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
  readAdded(tokens) {
    const found = tokens.map((item, i) => {
      const token = checked(item, `added_tokens[${i}]`, {
        id: isAny,
        content: isAny,
        single_word: oneOf(false),
        lstrip: oneOf(false),
        rstrip: oneOf(false),
        normalized: isFlag,
        special: isFlag
      });
      const content = text(token.get("content") ?? null, `added_tokens[${i}].content`, 1);
      const id = tokenId(token.get("id") ?? null, `added_tokens[${i}].id`);
      return { content, id, normalized: token.get("normalized") === true };
    });
    for (const { content, id } of found) this.addedIds.set(id, content);
    for (const normalized of [false, true]) {
      const ids = new Map(found.filter((token) => token.normalized === normalized).map(({ content, id }) => [content, id]));
      if (!ids.size) continue;
      const longestFirst = [...ids.keys()].sort((a, b) => b.length - a.length);
      const escaped = longestFirst.map((content) => content.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"));
      this.added.push([new RegExp(`(${escaped.join("|")})`, "u"), ids]);
    }
  }
};
var Heap = class {
  keys = [];
  pairs = [];
  push(key, pair) {
    let at = this.keys.length;
    for (let up = at - 1 >> 1; at > 0 && this.keys[up] > key; at = up, up = at - 1 >> 1) this.move(up, at);
    this.keys[at] = key;
    this.pairs[at] = pair;
  }
  pop() {
    if (!this.keys.length) return void 0;
    const top = { key: this.keys[0], pair: this.pairs[0] };
    const [key, pair] = [this.keys.pop(), this.pairs.pop()];
    const count3 = this.keys.length;
    if (count3) {
      let at = 0;
      for (; ; ) {
        let down = 2 * at + 1;
        if (down + 1 < count3 && this.keys[down + 1] < this.keys[down]) down++;
        if (down >= count3 || this.keys[down] >= key) break;
        this.move(down, at);
        at = down;
      }
      this.keys[at] = key;
      this.pairs[at] = pair;
    }
    return top;
  }
  move(from, to) {
    this.keys[to] = this.keys[from];
    this.pairs[to] = this.pairs[from];
  }
};
function read(data) {
  try {
    return parse(data, 64);
  } catch (error) {
    if (error instanceof JsonError) throw new BundleError(FILE, error.message);
    throw error;
  }
}
function refused(where, found) {
  return new BundleError(FILE, `${where}: ${found} is not implemented`);
}
function checked(value, where, checks) {
  if (!(value instanceof Map)) throw refused(where, "another value than an object");
  const path = where === "the file" ? "" : `${where}.`;
  for (const [name, item] of value) {
    const shown2 = /^[A-Za-z_]{1,64}$/.test(name) ? name : "another member";
    if (!Object.hasOwn(checks, name)) throw refused(`${path}${shown2}`, "the member");
    if (!checks[name](item)) {
      const found = item instanceof Map ? item.get("type") : item;
      throw refused(`${path}${shown2}`, typeof found === "string" ? JSON.stringify(found.slice(0, 64)) : String(found ?? null).slice(0, 64));
    }
  }
  return value;
}
function list(value, where, most2) {
  if (!Array.isArray(value) || value.length > most2) throw refused(where, `another value than an array of at most ${most2}`);
  return value;
}
function text(value, where, least) {
  const length = typeof value === "string" ? value.length > MAX_TOKEN_CHARACTERS ? [...value].length : value.length : -1;
  if (typeof value !== "string" || length < least || length > MAX_TOKEN_CHARACTERS) {
    throw refused(where, `another value than a token of ${least} to ${MAX_TOKEN_CHARACTERS} characters`);
  }
  return value;
}
function tokenId(value, where) {
  if (typeof value !== "bigint" || value < 0n || value > MAX_ID) throw refused(where, "another value than a token id");
  return Number(value);
}

// ../typescript/src/bundle.ts
var BLOCK = 512;
var MANIFEST = "manifest.json";
var TABLE = "table.safetensors";
var TOKENIZER = "tokenizer.json";
var MOST = { [MANIFEST]: 2 ** 20, [TABLE]: 2 ** 31, [TOKENIZER]: 2 ** 26 };
var MAX_CODES = 2 ** 28;
var MAX_CODE_TABLES = 16;
var MAX_TENSOR_HEADER = 65536;
var SLUG = /^[a-z0-9-]{1,64}$/;
function readArchive(archive) {
  const files = /* @__PURE__ */ new Map();
  const names = [MANIFEST, TABLE, TOKENIZER];
  let at = 0;
  for (let i = 0; i < names.length; i++) {
    const name = names[i];
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
    if (name === MANIFEST) names.push(...codeFiles(readMembers(files.get(name))));
  }
  const rest = archive.subarray(at);
  if (rest.length !== 2 * BLOCK || rest.some((byte) => byte !== 0)) {
    throw new BundleError("archive", "does not end in two blocks of zeros");
  }
  return files;
}
function most(name) {
  return MOST[name] ?? MAX_CODES;
}
function codesFile(name) {
  return `codes-${name}.safetensors`;
}
function codeFiles(manifest) {
  const names = manifest.get("code_tables") === void 0 ? [] : manifest.object("code_tables").names();
  if (names.length > MAX_CODE_TABLES || names.some((name) => !SLUG.test(name))) {
    throw new BundleError(MANIFEST, `code_tables: at most ${MAX_CODE_TABLES} names of a-z, 0-9 and - are needed`);
  }
  return names.sort().map(codesFile);
}
function archiveHeader(name, sizeDigits) {
  const header = new Uint8Array(BLOCK);
  const put = (at, text2) => header.set(new TextEncoder().encode(text2), at);
  put(0, name);
  put(100, "0000644\0" + "0000000\0".repeat(2) + sizeDigits + "\0" + "0".repeat(11) + "\0" + " ".repeat(8) + "0");
  put(257, "ustar\x0000");
  put(329, "0000000\0".repeat(2));
  const sum = header.reduce((total, byte) => total + byte, 0);
  put(148, sum.toString(8).padStart(6, "0") + "\0 ");
  return header;
}
var Table = class {
  constructor(columns2, rows, data, dtype) {
    this.columns = columns2;
    this.rows = rows;
    this.data = data;
    this.dtype = dtype;
  }
  columns;
  rows;
  data;
  dtype;
  /** The row of one token. */
  row(tokenId2) {
    if (tokenId2 >= this.rows) throw new BundleError(TOKENIZER, "has token ids beyond the table");
    const start = tokenId2 * this.columns;
    return Int16Array.from({ length: this.columns }, (_, j) => this.at(start + j));
  }
  at(index) {
    if (this.dtype === "I16") return this.data.getInt16(2 * index, true);
    return this.dtype === "I8" ? this.data.getInt8(index) : this.data.getUint8(index);
  }
};
var Bundle = class _Bundle {
  constructor(manifest, modelName, vocabularySize, bosTokenId, chat, variants, table, tokenizerJson) {
    this.manifest = manifest;
    this.modelName = modelName;
    this.vocabularySize = vocabularySize;
    this.bosTokenId = bosTokenId;
    this.chat = chat;
    this.variants = variants;
    this.table = table;
    this.tokenizerJson = tokenizerJson;
  }
  manifest;
  modelName;
  vocabularySize;
  bosTokenId;
  chat;
  variants;
  table;
  tokenizerJson;
  read;
  get fingerprint() {
    return this.manifest.fingerprint;
  }
  /** The tokenizer, read when it is first needed. Throws BundleError for one that is not implemented. */
  get tokenizer() {
    return this.read ??= new Tokenizer(this.tokenizerJson);
  }
  /**
   * Verifies the files against the manifest and the manifest against its fingerprint. Throws BundleError.
   * `check` sees the manifest before anything of the other files is read.
   */
  static async open(files, check = () => void 0) {
    const file = (name) => {
      const data = files.get(name);
      if (data === void 0) throw new BundleError(name, "is missing");
      return data;
    };
    const manifest = await readManifest(file(MANIFEST));
    const dtype = manifest.string("table_dtype", /^(int8|int16)$/);
    const width = dtype === "int8" ? 1 : 2;
    const maxLevel = manifest.integer("max_level", 1, width === 1 ? 127 : 32767);
    const model = manifest.object("base_model");
    const rows = model.integer("vocabulary_size", 1, 2 ** 24);
    const dim = manifest.integer("dim", 1, 65536);
    const shapes = /* @__PURE__ */ new Map();
    for (const name of manifest.get("code_tables") === void 0 ? [] : manifest.object("code_tables").names()) {
      const shape = manifest.object("code_tables").object(name);
      shapes.set(name, { columns: shape.integer("columns", 1, 65536), bits: shape.integer("bits", 1, 8) });
    }
    const digests = /* @__PURE__ */ new Map();
    const entries = manifest.object("files");
    for (const name of [TABLE, TOKENIZER, ...codeFiles(manifest)]) {
      digests.set(name, entries.object(name).string("sha256", /^[0-9a-f]{64}$/));
    }
    const known = manifest.array("variants").map((item) => readVariant(item, { dim, maxLevel, shapes, digests }));
    const named = new Set(known.map(({ variant }) => variant.name));
    if (!known.length || named.size !== known.length) throw new BundleError(MANIFEST, "variants: names are missing or double");
    const fingerprint = manifest.string("fingerprint", /^[0-9a-f]{64}$/);
    const summary = {
      fingerprint,
      maxLevel,
      files: digests,
      variants: known.map(({ variant }) => variant),
      signedMessage: (signed) => signedMessage(manifest, signed)
    };
    const chat = readChat(manifest);
    const bos = manifest.get("bos_token_id") === null ? null : manifest.integer("bos_token_id", 0, rows - 1);
    const modelName = manifest.object("base_model").string("name", /^[^\p{C}]{1,200}$/u);
    await check(summary);
    for (const [name, digest] of digests) {
      const [data, size] = [file(name), entries.object(name).integer("size", 0, most(name))];
      if (data.length !== size) throw new BundleError(name, `has ${data.length} bytes; the manifest says ${size}`);
      if (await sha256(data) !== digest) throw new BundleError(name, "has another SHA-256 than the manifest says: it was altered");
    }
    const table = readTable(TABLE, file(TABLE), width === 1 ? "I8" : "I16", rows, dim, -maxLevel, maxLevel);
    const codes = /* @__PURE__ */ new Map();
    for (const [name, { columns: columns2, bits }] of shapes) {
      codes.set(name, readTable(codesFile(name), file(codesFile(name)), "U8", rows, columns2, 0, (1 << bits) - 1));
    }
    const variants = known.map(({ variant, codes: name }) => [
      variant.name,
      { ...variant, table: name === null ? table : codes.get(name) }
    ]);
    return new _Bundle(summary, modelName, rows, bos, chat, new Map(variants), table, file(TOKENIZER));
  }
};
function readVariant(item, setting) {
  const [name, bits] = [item.string("name", /^(?!clear$)[a-z0-9-]{1,64}$/), item.integer("bits", 1, 8)];
  const audit = item.get("audit") === void 0 ? /* @__PURE__ */ new Map() : item.object("audit").json;
  const date = audit.get("date");
  const guarantees = item.object("guarantees");
  const common = {
    name,
    softPromptLength: item.integer("soft_prompt_length", 0, 65536),
    task: item.string("task", /^[^\p{C}]{1,64}$/u),
    guarantees: Object.fromEntries(guarantees.names().map((member2) => [member2, guarantees.number(member2)])),
    audit: plain(audit),
    auditDate: typeof date === "string" && isDate(date) ? date : null
  };
  if (item.get("mechanism") === void 0) {
    const ratioNumerator = item.integer("ratio_numerator", 1, 2 ** 31 - 1);
    const mechanism2 = { bits, dim: setting.dim, ratioNumerator: BigInt(ratioNumerator), maxLevel: BigInt(setting.maxLevel) };
    const spec2 = `{"bits":${bits},"kind":"binomial","ratio_numerator":${ratioNumerator}}`;
    return { variant: { ...common, mechanism: mechanism2, spec: spec2, tableSha256: setting.digests.get(TABLE) }, codes: null };
  }
  const spec = item.object("mechanism");
  spec.string("kind", /^categorical$/);
  if (spec.integer("bits", 1, 8) !== bits) throw new BundleError(MANIFEST, "mechanism.bits: is not that of the variant");
  const codes = item.get("table") === void 0 ? null : item.string("table", SLUG);
  const shape = codes === null ? { columns: setting.dim, bits } : setting.shapes.get(codes);
  if (shape === void 0) throw new BundleError(MANIFEST, "table: is no code table of the bundle");
  if (shape.bits !== bits) throw new BundleError(MANIFEST, "table: has codes of other bits than the mechanism");
  const mechanism = { bits, noiseNumerators: spec.integers("noise_numerators", shape.columns, 1, 2 ** 32) };
  const text2 = write(spec.json, true);
  return { variant: { ...common, mechanism, spec: text2, tableSha256: setting.digests.get(codes === null ? TABLE : codesFile(codes)) }, codes };
}
function readChat(manifest) {
  if ((manifest.get("chat") ?? null) === null) return null;
  const chat = manifest.object("chat");
  const ends = chat.get("end_token_ids") ?? [];
  if (!Array.isArray(ends) || ends.length > 16) throw new BundleError(MANIFEST, "chat.end_token_ids: an array of up to 16 ids is needed");
  return { template: chat.string("template", /^[^]{1,65536}$/), endTokenIds: chat.integers("end_token_ids", ends.length, 0, 2 ** 31 - 1) };
}
function signedMessage(manifest, signed) {
  const variants = /* @__PURE__ */ new Map();
  for (const item of manifest.array("variants")) {
    const [guarantees, audit] = [item.object("guarantees"), item.object("audit").json];
    const success = /* @__PURE__ */ new Map();
    for (const [name, value] of audit) {
      if (value instanceof Map && value.has("success")) success.set(name, value.get("success"));
    }
    variants.set(item.string("name", SLUG), /* @__PURE__ */ new Map([
      ["epsilon", guarantees.get("epsilon") ?? null],
      ["delta", guarantees.get("delta") ?? null],
      ["audit", /* @__PURE__ */ new Map([["date", audit.get("date") ?? null], ["success", success]])]
    ]));
  }
  const statement = /* @__PURE__ */ new Map([["fingerprint", manifest.get("fingerprint")], ["signed", signed], ["variants", variants]]);
  return new TextEncoder().encode(`DEL bundle signature, version 1
${write(statement, true)}`);
}
function isDate(text2) {
  const [, year, month, day] = /^([0-9]{4})-([0-9]{2})-([0-9]{2})$/.exec(text2) ?? [];
  const date = /* @__PURE__ */ new Date(`${year}-${month}-${day}T00:00:00Z`);
  return Number(year) > 0 && !Number.isNaN(date.getTime()) && date.toISOString().startsWith(text2);
}
function plain(value) {
  if (typeof value === "bigint") return Number(value);
  if (Array.isArray(value)) return value.map(plain);
  if (value instanceof Map) return Object.assign(/* @__PURE__ */ Object.create(null), Object.fromEntries([...value].map(([name, item]) => [name, plain(item)])));
  return value;
}
function readMembers(data) {
  try {
    if (data.length > most(MANIFEST)) throw new JsonError("too long");
    return new Members(parse(data, 12), "manifest");
  } catch (error) {
    if (error instanceof JsonError) throw new BundleError("manifest.json", error.message);
    throw error;
  }
}
async function readManifest(data) {
  const manifest = readMembers(data);
  const value = manifest.json;
  const text2 = new TextDecoder().decode(data);
  const version = manifest.get("format_version");
  if (version !== 1n) throw new BundleError("manifest.json", `format_version: is ${String(version)}; this client reads 1`);
  if (write(value, true) !== text2) throw new BundleError("manifest.json", "is not in canonical JSON");
  const bare = new Map(value);
  bare.delete("fingerprint");
  const found = await sha256(new TextEncoder().encode(write(bare, true)));
  if (found !== manifest.get("fingerprint")) throw new BundleError("manifest.json", "fingerprint: the content gives another: it was altered");
  return manifest;
}
function readTable(name, file, dtype, rows, columns2, low, high) {
  const fail = (message) => {
    throw new BundleError(name, message);
  };
  if (file.length < 8) fail("is cut off");
  const size = Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));
  if (size > MAX_TENSOR_HEADER || size > file.length - 8) fail("has a header of a wrong length");
  let header;
  try {
    header = parse(file.subarray(8, 8 + size), 8);
  } catch {
    return fail("has a header that is not JSON");
  }
  const count3 = rows * columns2;
  const bytes = count3 * (dtype === "I16" ? 2 : 1);
  const wanted = `{"levels":{"data_offsets":[0,${bytes}],"dtype":"${dtype}","shape":[${rows},${columns2}]}}`;
  if (write(header, true) !== wanted) fail("holds other tensors than the manifest says");
  if (file.length !== 8 + size + bytes) fail("has another length than its header says");
  const table = new Table(columns2, rows, new DataView(file.buffer, file.byteOffset + 8 + size, bytes), dtype);
  for (let i = 0; i < count3; i++) {
    const level2 = table.at(i);
    if (level2 < low || level2 > high) fail("holds a level beyond those of its table");
  }
  return table;
}
var Members = class _Members {
  constructor(value, where) {
    this.where = where;
    if (!(value instanceof Map)) throw new BundleError("manifest.json", `${where}: an object is needed`);
    this.json = value;
  }
  where;
  json;
  get(name) {
    return this.json.get(name);
  }
  names() {
    return [...this.json.keys()];
  }
  object(name) {
    return new _Members(this.json.get(name), name);
  }
  array(name) {
    const items = this.json.get(name);
    if (!Array.isArray(items)) throw new BundleError("manifest.json", `${this.where}.${name}: an array is needed`);
    return items.map((item, i) => new _Members(item, `${name}[${i}]`));
  }
  number(name) {
    const value = this.json.get(name);
    if (value !== null && typeof value !== "number" && typeof value !== "bigint") {
      throw new BundleError("manifest.json", `${this.where}.${name}: a number or null is needed`);
    }
    return value === null ? null : Number(value);
  }
  integer(name, low, high) {
    return this.checked(this.json.get(name), name, low, high);
  }
  integers(name, count3, low, high) {
    const items = this.json.get(name);
    if (!Array.isArray(items) || items.length !== count3) {
      throw new BundleError("manifest.json", `${this.where}.${name}: an array of ${count3} integers is needed`);
    }
    return items.map((item) => this.checked(item, name, low, high));
  }
  checked(value, name, low, high) {
    if (typeof value !== "bigint" || value < BigInt(low) || value > BigInt(high)) {
      throw new BundleError("manifest.json", `${this.where}.${name}: an integer in ${low}..${high} is needed`);
    }
    return Number(value);
  }
  string(name, pattern2) {
    const value = this.json.get(name);
    if (typeof value !== "string" || !pattern2.test(value)) {
      throw new BundleError("manifest.json", `${this.where}.${name}: ${pattern2.source} is needed`);
    }
    return value;
  }
};
async function sha256(data) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
function same(a, b) {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

// ../typescript/src/digest.ts
var KEY_BYTES = 32;
var KeyedDigest = class _KeyedDigest {
  constructor(key, imported) {
    this.key = key;
    this.imported = imported;
  }
  key;
  imported;
  static async create(key = randomBytes(KEY_BYTES)) {
    const imported = await crypto.subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
    return new _KeyedDigest(key, imported);
  }
  /** The digest of the texts, in hexadecimal. */
  async of(...fields) {
    const encoded = fields.map((field) => new TextEncoder().encode(field));
    const data = new Uint8Array(encoded.reduce((sum, field) => sum + 8 + field.length, 0));
    const view = new DataView(data.buffer);
    let at = 0;
    for (const field of encoded) {
      view.setBigUint64(at, BigInt(field.length), true);
      data.set(field, at + 8);
      at += 8 + field.length;
    }
    return toHex(new Uint8Array(await crypto.subtle.sign("HMAC", this.imported, data)));
  }
};
function randomBytes(count3) {
  return crypto.getRandomValues(new Uint8Array(count3));
}
function toHex(data) {
  return Array.from(data, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
function fromHex(text2) {
  return Uint8Array.from(text2.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

// ../typescript/src/detect.ts
function isCard(text2) {
  const digits = Array.from(text2.replace(/[^0-9]/g, ""), Number);
  if (digits.length < 12 || digits.length > 19 || new Set(digits).size === 1) return false;
  const sum = digits.reverse().reduce((total, digit, i) => total + (i % 2 ? Math.floor(2 * digit / 10) + 2 * digit % 10 : digit), 0);
  return sum % 10 === 0;
}
function isIban(text2) {
  const compact = text2.replace(/[ -]/g, "").toUpperCase();
  if (compact.length < 15 || compact.length > 34) return false;
  const moved = compact.slice(4) + compact.slice(0, 4);
  return BigInt(Array.from(moved, (character) => String(parseInt(character, 36))).join("")) % 97n === 1n;
}
function isV4(text2) {
  return text2.split(".").every((part) => /^(0|[1-9][0-9]{0,2})$/.test(part) && Number(part) < 256);
}
function isV6(text2) {
  const halves = text2.split("::");
  if (halves.length > 2) return false;
  const groups = halves.flatMap((half) => half === "" ? [] : half.split(":"));
  const fits = groups.every((group) => /^[0-9A-Fa-f]{1,4}$/.test(group));
  return fits && (halves.length === 2 ? groups.length < 8 : groups.length === 8);
}
function isV6WithV4(text2) {
  const end = text2.lastIndexOf(":") + 1;
  return isV4(text2.slice(end)) && isV6(`${text2.slice(0, end)}0:0`);
}
function isRandom(text2) {
  const kinds = [/[a-z]/, /[A-Z]/, /[0-9]/].filter((kind) => kind.test(text2)).length;
  const counts = /* @__PURE__ */ new Map();
  for (const character of text2) counts.set(character, (counts.get(character) ?? 0) + 1);
  const entropy = [...counts.values()].reduce((sum, count3) => sum - count3 / text2.length * Math.log2(count3 / text2.length), 0);
  const least = /^[A-Z]{0,2}[0-9a-fA-F]+$/.test(text2) ? 3 : 3.5;
  return kinds >= 2 && /[0-9]/.test(text2) && entropy >= least;
}
function isPhone(text2) {
  const digits = text2.match(/\p{Nd}/gu)?.length ?? 0;
  return digits >= 7 && digits <= 15;
}
function isIdentifier(text2) {
  return (text2.match(/[0-9]/g)?.length ?? 0) >= 3 && /[A-Z]/i.test(text2);
}
var W = "\\p{L}\\p{N}_";
var EDGE = `(?:(?<=[${W}])(?![${W}])|(?<![${W}])(?=[${W}]))`;
var MONTHS = "(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mär|mai|okt|dez|janv|févr|avr|juin|juil|août|déc|ene|abr|ago|dic)";
var LETTERS = "[\\p{L}\\p{Nl}\\p{No}_]";
var AT = " ?[\\[(] ?at ?[\\])] ?";
var DOT = "(?:\\.| ?[\\[(] ?dot ?[\\])] ?)";
var pattern = (source, flags = "") => new RegExp(source.replaceAll("\\b", EDGE).replaceAll("\\w", `[${W}]`).replaceAll("[[", "[").replaceAll("\\d", "\\p{Nd}"), `dgu${flags}`);
var DETECTORS = [
  ["key", pattern("-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", "s")],
  ["key", pattern(`(?<![${W}\\-])eyJ[${W}\\-]{8,}\\.[${W}\\-]{8,}\\.[${W}\\-]*`)],
  // JSON Web Token
  [
    "key",
    pattern(
      `\\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[${W}]{20,}|github_pat_[${W}]{20,}|glpat-[${W}\\-]{16,}|xox[abprs]-[${W}\\-]{10,}|(?:sk|pk|rk)[\\-_](?:[a-z]+[\\-_])*[A-Za-z0-9_\\-]{16,}|AIza[${W}\\-]{30,}|hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{30,}|SG\\.[${W}\\-]{16,}\\.[${W}\\-]{16,}|ya29\\.[${W}\\-]{20,}|AAAA[BCE][A-Za-z0-9+\\/]{16,}=*)`
    )
  ],
  [
    "key",
    pattern(
      "\\b(?:password|passwd|passphrase|pass|secret|token|api[ _\\-]?key|pin)\\b\\s*(?:is|:|=)\\s*(?!(?:a|an|in|my|not|on|that|the|to|too|very)\\b)([^\\s,;]+)",
      "i"
    )
  ],
  ["key", pattern("\\bpass(?:word|phrase|code)?\\s+((?=\\S*[\\d!@#$%&*])[^\\s,;]*[^\\s,;.?])", "i")],
  ["key", pattern("(?<!\\S)(\\S{1,64}) as (?:my|his|her|their|our|your|the) password\\b")],
  ["key", pattern(`(?<![${W}+.\\-])[a-z][a-z0-9+.\\-]{0,30}:\\/\\/[^\\s\\/:@]+:[^\\s\\/@]+@[^\\s]+`, "i")],
  // a URL with a password
  ["email", pattern(`(?<![${W}.+%'\\-])[${W}.+%'\\-]+@[${W}\\-]+(?:\\.[${W}\\-]+)+`)],
  ["email", pattern(`(?<![${W}.+%'\\-])[${W}.+%'\\-]+@\\[(?:[0-9A-Fa-f.:])+\\]`)],
  ["email", pattern(`"[^"\\s@]{1,64}(?: [^"\\s@]{1,64})?"@[${W}.\\-]+`)],
  ["email", pattern(`(?<![${W}.+%'\\-])[${W}.+%'\\-]{1,64}${AT}[${W}\\-]+${DOT}[${W}\\-]+`)],
  ["iban", pattern("\\b[A-Z]{2}[0-9]{2}(?:[ \\-]?[A-Z0-9]){11,30}\\b"), isIban],
  ["card", pattern("(?<![\\p{Nd}.])\\d(?:[ \\-]?\\d){11,18}(?!\\d)"), isCard],
  ["network", pattern("\\b(?:[0-9A-Fa-f]{2}[:\\-]){5}[0-9A-Fa-f]{2}\\b")],
  ["network", pattern("\\b(?:[0-9A-Fa-f]{4}\\.){2}[0-9A-Fa-f]{4}\\b")],
  ["network", pattern(`(?<![${W}:])(?:[0-9A-Fa-f]{0,4}:){2,6}\\d{1,3}(?:\\.\\d{1,3}){3}(?!\\.?[${W}])`), isV6WithV4],
  ["network", pattern(`(?<![${W}.])\\d{1,3}(?:\\.\\d{1,3}){3}(?!\\.?[${W}])`), isV4],
  ["network", pattern(`(?<![${W}:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![${W}:])`), isV6],
  [
    "date",
    pattern(
      // A longer row of groups is a phone number or an identifier.
      `(?<![${W}+])(?<!\\d[\\-\\/.])(?:\\d{4}[\\-\\/.]\\d{1,2}[\\-\\/.]\\d{1,2}|\\d{1,2}[\\-\\/.]\\d{1,2}[\\-\\/.](?:\\d{4}|\\d{2}))(?![\\-\\/.]?[${W}])|\\b(?:\\d{1,2}(?:st|nd|rd|th|\\.)?[ \\-](?:of |de )?)?${MONTHS}${LETTERS}*\\.?,?(?: de)?[ \\-](?:\\d{4}|'\\d{2})\\b|\\b${MONTHS}${LETTERS}*\\.? \\d{1,2}(?:st|nd|rd|th)?,? (?:\\d{4}\\b|'\\d{2}\\b)`,
      "i"
    )
  ],
  ["number", pattern("\\b[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\\b")],
  // UUID
  ["key", pattern(`(?<![${W}\\/+=\\-])[A-Za-z0-9_\\/+=\\-]{20,}`), isRandom],
  [
    // Groups of digits with letters among them: insurance numbers, number plates
    "number",
    pattern(
      `(?<![${W}.,+(\\/\\-])(?:[A-Z]{1,3} )?\\d{1,9}(?:[ \\-]\\d{1,9}){1,5}[ \\-][A-Z](?:[ \\-]\\d{1,4})?(?![${W}\\-])|(?<![${W}\\-])[A-Z]{1,3}[ \\-](?:[A-Z]{1,2}[ \\-])?\\d{4,10}(?![${W}.,\\-]?\\d)|(?<![${W}\\-])[A-Z]-\\d{4}-\\d{3,9}\\b`
    )
  ],
  [
    "phone",
    pattern(
      `(?<![${W}.])(?:\\+|00)\\d[\\p{Nd} ()\\/.\\-]{5,22}\\d|(?<![${W}.])(?<!\\d[ \\-])(?:1[ .\\-])?\\(?0?\\d{2,5}\\)?[ \\/.\\-]\\d{2,4}(?:[ .\\-]?\\d{2,4}){1,3}(?![${W}]|[ .\\-]\\d)`
    ),
    isPhone
  ],
  ["number", pattern("(?<![A-Z0-9\\-])[A-Z0-9][A-Z0-9\\-]{5,24}(?![A-Z0-9\\-])"), isIdentifier],
  ["number", pattern("(?<![\\p{Nd}.,])\\d(?:[ \\-]?\\d){5,}(?!\\d|[.,]\\d)")]
];
function detect(text2) {
  const taken = [];
  for (const [kind, expression, check] of DETECTORS) {
    for (const match of text2.matchAll(expression)) {
      const [start, end] = match.indices[1] ?? match.indices[0];
      if (end === start || check !== void 0 && !check(text2.slice(start, end))) continue;
      if (taken.some((one) => one.start < end && start < one.end)) continue;
      taken.push({ start, end, kind });
    }
  }
  return taken.sort((a, b) => a.start - b.start);
}

// ../typescript/src/spans.ts
var CLEAR = "clear";
var MAX_CHARACTERS = 1 << 24;
var MAX_BUCKET = 4096;
function checkPadding(padding) {
  const { bucket, text: text2 = "\n" } = padding;
  if (!Number.isSafeInteger(bucket) || bucket < 2 || bucket > MAX_BUCKET) throw invalid("padding.bucket", `an integer from 2 to ${MAX_BUCKET}`);
  if (text2 === "") throw invalid("padding.text", "at least one character");
  return { bucket, text: text2 };
}
function invalid(field, wanted) {
  return new InvalidRequestError(`${field}: must be ${wanted}`, { field });
}
function isChat(prompt) {
  return typeof prompt !== "string" && prompt.some((part) => "role" in part);
}
function partsOf(prompt, variant, template) {
  if (isChat(prompt) && template === null) throw invalid("template", "given for prompts of messages, as this package runs no Jinja");
  const parts = isChat(prompt) ? render(prompt, variant, template) : spansOf(prompt, variant, "prompt");
  if (parts.reduce((sum, part) => sum + part.text.length, 0) > MAX_CHARACTERS) throw invalid("prompt", `at most ${MAX_CHARACTERS} characters long`);
  if (!parts.length) throw invalid("prompt", "at least one character");
  return parts;
}
function spansOf(prompt, variant, where) {
  const spans = typeof prompt === "string" ? [variant === CLEAR ? { public: prompt } : { private: prompt }] : prompt;
  if (!Array.isArray(spans)) throw invalid(where, "a string, spans or messages");
  return spans.map((span, i) => {
    const names = typeof span === "object" && span !== null ? Object.keys(span) : [];
    const [name] = names;
    const text2 = span?.[name ?? ""];
    if (names.length !== 1 || name !== "private" && name !== "public" || typeof text2 !== "string") {
      throw invalid(`${where}[${i}]`, "an object with private or public text");
    }
    if (/[\ud800-\udfff]/u.test(text2)) throw invalid(`${where}[${i}]`, "valid Unicode");
    if (name === "private" && variant === CLEAR) throw invalid(`${where}[${i}]`, "public under the variant clear, which adds no noise");
    return { text: text2, isPrivate: name === "private" };
  }).filter((part) => part.text !== "");
}
function render(messages, variant, template) {
  const parts = [];
  const say = (text2) => {
    if (text2) parts.push({ text: text2, isPrivate: false });
  };
  if (messages[0]?.role !== "system") say(template.opening ?? "");
  messages.forEach((message, i) => {
    const before = Object.hasOwn(template.before, message.role) ? template.before[message.role] : void 0;
    if (before === void 0) throw invalid(`prompt[${i}].role`, `one of ${Object.keys(template.before).join(", ")}`);
    say(before);
    parts.push(...spansOf(message.content, variant, `prompt[${i}].content`));
    say(template.after);
  });
  say(template.answer);
  return parts.reduce((joined, part) => {
    const last = joined.at(-1);
    if (last === void 0 || last.isPrivate || part.isPrivate) return [...joined, part];
    return [...joined.slice(0, -1), { text: last.text + part.text, isPrivate: false }];
  }, []);
}

// ../typescript/src/stream.ts
var CompletionStream = class {
  constructor(chunks) {
    this.chunks = chunks;
  }
  chunks;
  done = null;
  /** The whole, once the stream has ended. */
  get completion() {
    if (this.done === null) throw invalid("completion", "read after the last chunk");
    return this.done;
  }
  async *[Symbol.asyncIterator]() {
    try {
      for (; ; ) {
        const next = await this.chunks.next();
        if (next.done) {
          this.done = next.value ?? this.done;
          return;
        }
        yield next.value;
      }
    } finally {
      await this.chunks.return(void 0);
    }
  }
};

// ../typescript/src/conversation.ts
var HEAD = new TextEncoder().encode("DELW");
var NONCE_BYTES = 12;
var Conversation = class _Conversation {
  constructor(client, variant, privateAnswers, digest, session, kept, answers) {
    this.client = client;
    this.variant = variant;
    this.privateAnswers = privateAnswers;
    this.digest = digest;
    this.session = session;
    this.kept = kept;
    this.answers = answers;
  }
  client;
  variant;
  privateAnswers;
  digest;
  session;
  kept;
  answers;
  /** @internal */
  static async open(client, options) {
    const { variant, privateAnswers = false, memory, key } = options;
    if (memory === void 0) {
      return new _Conversation(client, variant, privateAnswers, await KeyedDigest.create(), newSession(), /* @__PURE__ */ new Map(), /* @__PURE__ */ new Set());
    }
    if (key === void 0) throw invalid("key", "the 32 bytes that save was given");
    const saved = await unseal(memory, key);
    const kept = saved.spans.map(({ name, origin, id, counts }) => [name, { id, origin, counts: counts.map(fromHex) }]);
    return new _Conversation(client, variant, privateAnswers, await KeyedDigest.create(fromHex(saved.key)), saved.session, new Map(kept), new Set(saved.answers));
  }
  /** One completion in one answer; `fresh` draws all noise anew. */
  async complete(prompt, options = {}) {
    const shown2 = await this.shown(prompt, options.fresh === true);
    const completion = await this.client.completeWith(shown2, { ...options, variant: this.variant }, this.recall(options.fresh === true));
    await this.note(prompt, completion.text);
    return completion;
  }
  /** One completion in chunks. */
  stream(prompt, options = {}) {
    return new CompletionStream(this.chunks(prompt, options));
  }
  /** Drops all counts: text that is sent again gets fresh noise, and costs privacy again. */
  async forget() {
    this.digest = await KeyedDigest.create();
    this.session = newSession();
    this.kept.clear();
    this.answers.clear();
  }
  /** All counts, without text, encrypted and authenticated with a key of 32 bytes (AES-256-GCM). */
  async save(key) {
    const spans = [...this.kept].map(([name, { id, origin, counts }]) => ({ name, origin, id, counts: counts.map(toHex) }));
    const saved = { key: toHex(this.digest.key), session: this.session, answers: [...this.answers], spans };
    const nonce = randomBytes(NONCE_BYTES);
    const cipher = await aes(key, "encrypt");
    const text2 = new TextEncoder().encode(JSON.stringify(saved));
    const sealed = new Uint8Array(await crypto.subtle.encrypt(gcm(nonce), cipher, text2));
    return Uint8Array.from([...HEAD, ...nonce, ...sealed]);
  }
  async *chunks(prompt, options) {
    const shown2 = await this.shown(prompt, options.fresh === true);
    const stream = this.client.streamWith(shown2, { ...options, variant: this.variant }, this.recall(options.fresh === true));
    yield* stream;
    await this.note(prompt, stream.completion.text);
    return stream.completion;
  }
  /** Counts that were sent before, or drawn now. */
  recall(fresh) {
    return async (encoder, parts, variant, endTokenIds) => {
      const hidden2 = parts.filter((part) => part.isPrivate);
      const seen = /* @__PURE__ */ new Map();
      const names = await Promise.all(
        hidden2.map((part) => {
          const occurrence = (seen.get(part.text) ?? 0) + 1;
          seen.set(part.text, occurrence);
          return this.digest.of(variant, String(part.ids.length), part.text, String(occurrence));
        })
      );
      const origin = encoder.origin(variant);
      if (!fresh && names.some((name) => (this.kept.get(name)?.origin ?? origin) !== origin)) {
        throw new BundleOutdatedError("spans of this conversation were drawn for another bundle; forget() or fresh spends fresh noise on them");
      }
      if (fresh) {
        this.session = newSession();
        this.answers.clear();
      }
      const drawn = hidden2.map((part, i) => {
        const known = fresh ? void 0 : this.kept.get(names[i]);
        const one = known ?? { ...encoder.draw(part.ids, variant), origin };
        this.kept.set(names[i], one);
        return one;
      });
      return encoder.assemble(parts, drawn, variant, { session: this.session, endTokenIds });
    };
  }
  /** The prompt with the answers that the server wrote itself as public text. */
  async shown(prompt, fresh) {
    if (fresh || this.privateAnswers || !isChat(prompt)) return prompt;
    const turns = await this.turns(prompt);
    return Promise.all(
      prompt.map(async (message, i) => {
        if (message.role !== "assistant" || typeof message.content !== "string") return message;
        const own = this.answers.has(await this.digest.of("answer", turns[i], message.content.trim()));
        return own ? { role: message.role, content: [{ public: message.content }] } : message;
      })
    );
  }
  async note(prompt, text2) {
    if (!isChat(prompt)) return;
    const turns = await this.turns(prompt);
    this.answers.add(await this.digest.of("answer", turns.at(-1), text2.trim()));
  }
  /** A name of the chat before each of its messages, and at its end. */
  async turns(messages) {
    const names = [await this.digest.of("chat", this.variant)];
    for (const { role, content } of messages) {
      const fields = typeof content === "string" ? [content] : content.flatMap((span) => "private" in span ? ["private", span.private] : ["public", span.public]);
      names.push(await this.digest.of("turn", names.at(-1), role, ...fields));
    }
    return names;
  }
};
function newSession() {
  return toHex(randomBytes(16));
}
function gcm(nonce) {
  return { name: "AES-GCM", iv: nonce, additionalData: HEAD };
}
async function aes(key, usage) {
  if (!(key instanceof Uint8Array) || key.length !== KEY_BYTES) throw invalid("key", `${KEY_BYTES} bytes, for example of crypto.getRandomValues`);
  return crypto.subtle.importKey("raw", key, "AES-GCM", false, [usage]);
}
async function unseal(memory, key) {
  const start = HEAD.length + NONCE_BYTES;
  const wrong2 = new MemoryInvalidError("memory: must be unaltered and opened with the key of save, got altered bytes, another key or another format", { field: "memory" });
  if (!(memory instanceof Uint8Array) || HEAD.some((byte, i) => memory[i] !== byte)) throw wrong2;
  const cipher = await aes(key, "decrypt");
  try {
    const text2 = await crypto.subtle.decrypt(gcm(memory.slice(HEAD.length, start)), cipher, memory.slice(start));
    return JSON.parse(new TextDecoder().decode(text2));
  } catch {
    throw wrong2;
  }
}

// ../typescript/src/packing.ts
function rowBytes(dim, bits) {
  return dim * bits + 7 >> 3;
}
function pack(rows, bits) {
  const dim = rows[0]?.length ?? 0;
  const width = rowBytes(dim, bits);
  const payload = new Uint8Array(rows.length * width);
  rows.forEach((row, t) => {
    if (row.length !== dim) throw new RangeError(`counts[${t}]: has ${row.length} counts; ${dim} are allowed`);
    let [held, filled, at] = [0, 0, t * width];
    for (const count3 of row) {
      if (count3 >> bits) throw new RangeError(`counts[${t}]: a count above ${(1 << bits) - 1}`);
      held |= count3 << filled;
      for (filled += bits; filled >= 8; filled -= 8) {
        payload[at++] = held & 255;
        held >>= 8;
      }
    }
    if (filled) payload[at] = held;
  });
  return payload;
}
function unpack(payload, tokens, dim, bits) {
  const width = rowBytes(dim, bits);
  if (payload.length !== tokens * width) {
    throw new FrameError("payload_length_mismatch", "payload", `${payload.length} bytes; ${tokens * width} are allowed`);
  }
  const padding = dim * bits % 8;
  return Array.from({ length: tokens }, (_, t) => {
    const bytes = payload.subarray(t * width, (t + 1) * width);
    if (padding && bytes[width - 1] >> padding) {
      throw new FrameError("invalid_padding", `payload row ${t}`, "padding bits are set; zeros are allowed");
    }
    const row = new Uint8Array(dim);
    let [held, filled, at] = [0, 0, 0];
    for (let j = 0; j < dim; j++) {
      if (filled < bits) {
        held |= bytes[at++] << filled;
        filled += 8;
      }
      row[j] = held & (1 << bits) - 1;
      held >>= bits;
      filled -= bits;
    }
    return row;
  });
}

// ../typescript/src/frame.ts
var MEDIA_TYPE = "application/vnd.del.frame";
var MAGIC = [68, 69, 76, 70];
var VERSION = 1;
var PREFIX = 9;
var DEFAULTS = {
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
  structured_outputs: null
};
var integers = (values) => values.map((value) => BigInt(value));
function encodeFrame(request, bits) {
  const rows = request.segments.flatMap((segment) => "private" in segment ? segment.private : []);
  const header = /* @__PURE__ */ new Map([
    ["fingerprint", request.fingerprint],
    ["variant", request.variant],
    [
      "segments",
      request.segments.map(
        (segment) => "private" in segment ? /* @__PURE__ */ new Map([["private", BigInt(segment.private.length)]]) : /* @__PURE__ */ new Map([["public", integers(segment.public)]])
      )
    ],
    ["max_tokens", BigInt(request.sampling.max_tokens)]
  ]);
  const { temperature, top_p, seed: seed2, stop, stream, stop_token_ids, ignore_eos } = request.sampling;
  if (temperature !== DEFAULTS.temperature) header.set("temperature", temperature);
  if (top_p !== DEFAULTS.top_p) header.set("top_p", top_p);
  if (seed2 !== null) header.set("seed", seed2);
  if (stop.length) header.set("stop", [...stop]);
  if (stream) header.set("stream", true);
  if (stop_token_ids.length) header.set("stop_token_ids", integers(stop_token_ids));
  if (ignore_eos) header.set("ignore_eos", true);
  const { top_k, logit_bias, logprobs, structured_outputs } = request.sampling;
  if (top_k !== DEFAULTS.top_k) header.set("top_k", BigInt(top_k));
  for (const name of ["min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"]) {
    if (request.sampling[name] !== DEFAULTS[name]) header.set(name, request.sampling[name]);
  }
  if (logit_bias.length) header.set("logit_bias", new Map(logit_bias.map(([id, bias]) => [String(id), bias])));
  if (logprobs !== null) header.set("logprobs", BigInt(logprobs));
  if (structured_outputs !== null) {
    header.set("structured_outputs", new Map(Object.entries(structured_outputs).map(([name, value]) => [name, Array.isArray(value) ? [...value] : value])));
  }
  if (request.resume.length) header.set("resume", integers(request.resume));
  const text2 = new TextEncoder().encode(write(header));
  const payload = pack(rows, bits);
  const frame = new Uint8Array(PREFIX + text2.length + payload.length);
  frame.set([...MAGIC, VERSION]);
  new DataView(frame.buffer).setUint32(5, text2.length, true);
  frame.set(text2, PREFIX);
  frame.set(payload, PREFIX + text2.length);
  return frame;
}
function decodeFrame(frame, shapes, limits, fingerprint) {
  const fail = (code, field, message) => {
    throw new FrameError(code, field, message);
  };
  if (frame.length > limits.max_frame_bytes) fail("frame_too_large", "frame", `${frame.length} bytes`);
  if (frame.length < PREFIX) fail("truncated_frame", "frame", `${frame.length} bytes; at least ${PREFIX} are needed`);
  if (MAGIC.some((byte, i) => frame[i] !== byte)) fail("invalid_magic", "magic", 'is not "DELF"');
  if (frame[4] !== VERSION) fail("unsupported_version", "version", `is ${frame[4]}; ${VERSION} is allowed`);
  const size = new DataView(frame.buffer, frame.byteOffset).getUint32(5, true);
  if (size > limits.max_header_bytes) fail("header_too_large", "header", `${size} bytes`);
  if (size > frame.length - PREFIX) fail("truncated_frame", "header", `${size} bytes; fewer follow`);
  let value;
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
  if (shape === void 0) return fail("unknown_variant", "header.variant", "is not served");
  const payload = frame.subarray(PREFIX + size);
  const tokens = parts.reduce((sum, part) => sum + (typeof part === "number" ? part : 0), 0);
  if (tokens === 0 && payload.length) fail("payload_length_mismatch", "payload", "without private segments 0 bytes are allowed");
  if (tokens > 0 && shape === null) fail("private_not_accepted", "header.segments", "public segments only are allowed");
  const rows = shape === null || tokens === 0 ? [] : unpack(payload, tokens, shape.dim, shape.bits);
  let row = 0;
  const segments = parts.map((part) => {
    if (typeof part !== "number") return { public: part };
    row += part;
    return { private: rows.slice(row - part, row) };
  });
  return { fingerprint: known, variant, segments, sampling, resume };
}
var REQUIRED = ["fingerprint", "variant", "segments"];
var NEUTRAL = /* @__PURE__ */ new Map([
  ["prompt_logprobs", () => false],
  ["echo", (value) => value === false],
  ["n", (value) => isNumber(value) && Number(value) === 1],
  ["best_of", (value) => isNumber(value) && Number(value) === 1],
  ["suffix", (value) => value === ""]
]);
var OPTIONAL = /* @__PURE__ */ new Set([...REQUIRED, ...Object.keys(DEFAULTS), ...NEUTRAL.keys(), "resume"]);
function isNumber(value) {
  return typeof value === "bigint" || typeof value === "number";
}
var HeaderReader = class {
  constructor(value, limits) {
    this.limits = limits;
    if (!(value instanceof Map)) throw invalid2("header", "an object is allowed");
    for (const name of REQUIRED) {
      if (!value.has(name)) throw new FrameError("missing_field", `header.${name}`, "is missing; it is required");
    }
    for (const name of value.keys()) {
      if (!OPTIONAL.has(name)) throw new FrameError("unknown_field", "header", "has an unknown member");
    }
    this.members = value;
  }
  limits;
  members;
  fingerprint() {
    return this.text("fingerprint", /^[0-9a-f]{64}$/);
  }
  variant() {
    return this.text("variant", /^[a-z0-9-]{1,64}$/);
  }
  segments() {
    const items = this.members.get("segments");
    if (!Array.isArray(items) || items.length < 1 || items.length > this.limits.max_segments) {
      throw invalid2("header.segments", `an array of 1 to ${this.limits.max_segments} is allowed`);
    }
    let total = 0;
    return items.map((item, i) => {
      const where = `header.segments[${i}]`;
      if (!(item instanceof Map)) throw invalid2(where, "an object is allowed");
      for (const name of item.keys()) {
        if (name !== "private" && name !== "public") throw new FrameError("unknown_field", where, "has an unknown member");
      }
      if (item.size !== 1) throw invalid2(where, "exactly one of private, public is allowed");
      const count3 = item.get("private");
      const part = count3 === void 0 ? this.ids(item.get("public"), `${where}.public`, 1, Infinity) : this.integer(count3, `${where}.private`, 1n, 2n ** 31n - 1n);
      total += typeof part === "number" ? part : part.length;
      if (total > this.limits.max_prompt_tokens) {
        throw new FrameError("context_length_exceeded", where, `brings the prompt to ${total} tokens`);
      }
      return part;
    });
  }
  refuseUnsupported() {
    for (const [name, neutral] of NEUTRAL) {
      const value = this.members.get(name) ?? null;
      if (value !== null && !neutral(value)) throw new FrameError("unsupported_parameter", `header.${name}`, "is not supported");
    }
  }
  sampling() {
    const given = (name, read2, otherwise) => {
      const value = this.members.get(name) ?? null;
      return value === null ? otherwise : read2(value, `header.${name}`);
    };
    const boolean = (value, where) => {
      if (typeof value !== "boolean") throw invalid2(where, "true or false is allowed");
      return value;
    };
    const sampling = {
      max_tokens: given(
        "max_tokens",
        (value, where) => this.integer(value, where, 1n, BigInt(this.limits.max_output_tokens)),
        Math.min(DEFAULTS.max_tokens, this.limits.max_output_tokens)
      ),
      temperature: given("temperature", (value, where) => real(value, where, (x) => x >= 0 && x <= 2), DEFAULTS.temperature),
      top_p: given("top_p", (value, where) => real(value, where, (x) => x > 0 && x <= 1), DEFAULTS.top_p),
      seed: given("seed", seed, null),
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
      logprobs: given("logprobs", (value, where) => this.integer(value, where, 0n, 20n), null),
      structured_outputs: given("structured_outputs", structure, null)
    };
    if (sampling.ignore_eos && sampling.structured_outputs !== null) throw invalid2("header.ignore_eos", "false is allowed with structured_outputs");
    return sampling;
  }
  biases(value, where) {
    if (!(value instanceof Map) || value.size > 300) throw invalid2(where, "an object of up to 300 members is allowed");
    return [...value].map(([name, bias]) => {
      if (!/^(0|[1-9][0-9]{0,9})$/.test(name) || Number(name) >= this.limits.vocabulary_size) throw invalid2(where, "token ids are allowed as names");
      return [Number(name), real(bias, where, (x) => x >= -100 && x <= 100)];
    });
  }
  resume(maxTokens) {
    const value = this.members.get("resume") ?? null;
    if (value === null) return [];
    const ids = this.ids(value, "header.resume", 0, this.limits.max_output_tokens);
    if (ids.length >= maxTokens) throw invalid2("header.resume", `at most ${maxTokens - 1} ids are allowed`);
    return ids;
  }
  text(name, pattern2) {
    const value = this.members.get(name);
    if (typeof value !== "string" || !pattern2.test(value)) throw invalid2(`header.${name}`, `${pattern2.source} is allowed`);
    return value;
  }
  integer(value, where, low, high) {
    if (typeof value !== "bigint" || value < low || value > high) throw invalid2(where, `an integer in ${low}..${high} is allowed`);
    return Number(value);
  }
  ids(value, where, least, most2) {
    if (!Array.isArray(value) || value.length < least || value.length > most2) {
      throw invalid2(where, `an array of ${least} to ${most2} token ids is allowed`);
    }
    const last = BigInt(this.limits.vocabulary_size - 1);
    return value.map((item, i) => this.integer(item, `${where}[${i}]`, 0n, last));
  }
};
function invalid2(field, message) {
  return new FrameError("invalid_value", field, message);
}
function real(value, where, fits) {
  if (!isNumber(value) || !fits(Number(value))) throw invalid2(where, "another range is allowed");
  return Number(value);
}
function penalty(value, where) {
  return real(value, where, (x) => x >= -2 && x <= 2);
}
var STRUCTURE_BYTES = 65536;
function structure(value, where) {
  if (!(value instanceof Map)) throw invalid2(where, "an object is allowed");
  for (const name2 of value.keys()) {
    if (!["json", "json_object", "regex", "choice"].includes(name2)) throw new FrameError("unknown_field", where, "has an unknown member");
  }
  if (value.size !== 1) throw invalid2(where, "exactly one member is allowed");
  const [name, given] = [...value][0];
  where = `${where}.${name}`;
  let room = STRUCTURE_BYTES;
  const text2 = (item, place) => {
    const size = typeof item === "string" ? new TextEncoder().encode(item).length : 0;
    if (typeof item !== "string" || size < 1 || size > room) throw invalid2(place, `1 to ${room} bytes are allowed`);
    room -= size;
    return item;
  };
  if (name === "json") return { json: text2(given, where) };
  if (name === "regex") return { regex: text2(given, where) };
  if (name === "choice") {
    if (!Array.isArray(given) || given.length < 1 || given.length > 1024) throw invalid2(where, "1 to 1024 strings are allowed");
    return { choice: given.map((item, i) => text2(item, `${where}[${i}]`)) };
  }
  if (given !== true) throw invalid2(where, "true is allowed");
  return { json_object: true };
}
function seed(value, where) {
  const bound = 2n ** 63n;
  if (typeof value !== "bigint" || value < -bound || value >= bound) throw invalid2(where, "a signed 64-bit integer is allowed");
  return value;
}
function stopStrings(value, where) {
  const items = typeof value === "string" ? [value] : value;
  if (!Array.isArray(items) || items.length > 4) throw invalid2(where, "up to 4 strings are allowed");
  return items.map((item, i) => {
    const size = typeof item === "string" ? new TextEncoder().encode(item).length : 0;
    if (typeof item !== "string" || size < 1 || size > 256) throw invalid2(`${where}[${i}]`, "1 to 256 bytes are allowed");
    return item;
  });
}

// ../typescript/src/encoder.ts
var LIMITS = { max_frame_bytes: 1 << 24, max_header_bytes: 1 << 20, max_segments: 1024, max_prompt_tokens: 131072, max_output_tokens: 131072 };
var Encoder = class {
  constructor(bundle, contextLength2) {
    this.bundle = bundle;
    this.contextLength = contextLength2;
    this.tokenizer = bundle.tokenizer;
    const shapes = [...bundle.variants].map(([name, { mechanism }]) => [name, { bits: mechanism.bits, dim: columns(mechanism) }]);
    this.shapes = new Map([...shapes, [CLEAR, null]]);
  }
  bundle;
  contextLength;
  tokenizer;
  shapes;
  random = new CryptoBytes();
  checkVariant(variant) {
    if (this.shapes.has(variant)) return;
    throw new InvalidRequestError(`variant: must be one of ${[...this.shapes.keys()].join(", ")}`, { code: "unknown_variant", field: "variant" });
  }
  /** The tokens of each part; parts without a token are left out. */
  tokenize(parts, padding) {
    const encoded = this.tokenizer.encodeSpans(parts.map(({ text: text2, isPrivate }) => ({ text: text2, shown: !isPrivate })));
    const { bosTokenId, vocabularySize } = this.bundle;
    if (bosTokenId !== null && !parts[0]?.isPrivate && encoded[0]?.[0] === bosTokenId) encoded[0].shift();
    const found = parts.map((part, i) => ({ ...part, ids: padding !== null && part.isPrivate ? this.pad(encoded[i], padding) : encoded[i] }));
    if (found.some(({ ids }) => ids.some((id) => id >= vocabularySize))) throw new BundleError("tokenizer.json", "has token ids beyond the table");
    const kept = found.filter(({ ids }) => ids.length);
    if (!kept.length) throw invalid("prompt", "at least one token long");
    return kept;
  }
  pad(ids, given) {
    const { bucket, text: text2 } = checkPadding(given);
    const filler = this.tokenizer.encode(text2, false);
    if (!filler.length) throw invalid("padding.text", "text with at least one token");
    const missing = (bucket - ids.length % bucket) % bucket;
    return [...Array.from({ length: missing }, (_, i) => filler[i % filler.length]), ...ids];
  }
  /** Tokens of a prompt as the server counts them. */
  count(parts) {
    return parts.reduce((sum, { ids }) => sum + ids.length, this.bundle.bosTokenId === null ? 0 : 1);
  }
  /** The most tokens that a prompt and its answer may have together, or null if it is not known. */
  room(variant) {
    if (this.contextLength === null) return null;
    return Math.max(0, this.contextLength - (this.bundle.variants.get(variant)?.softPromptLength ?? 0));
  }
  /** Throws ContextFullError if a prompt leaves no room for an answer. */
  checkRoom(variant, tokens) {
    const room = this.room(variant);
    if (room === null || tokens < room) return;
    const most2 = Math.max(0, room - 1);
    throw new ContextFullError(`prompt: must be at most ${most2} tokens long, which leaves room for an answer, got ${tokens}`, {}, tokens, room);
  }
  /** Draws the counts of a private span. */
  draw(ids, variant) {
    const { mechanism, table } = this.bundle.variants.get(variant);
    return { id: toHex(randomBytes(16)), counts: ids.map((id) => sample(mechanism, table.row(id), this.random)) };
  }
  /** A prompt of tokenized parts and the counts of its private ones, in order. */
  assemble(parts, drawn, variant, more) {
    const counts = drawn.values();
    const segments = parts.map((part) => part.isPrivate ? { private: counts.next().value.counts } : { public: part.ids });
    const { bosTokenId, fingerprint } = this.bundle;
    return {
      fingerprint,
      variant,
      segments: bosTokenId === null ? segments : [{ public: [bosTokenId] }, ...segments],
      draws: drawn.map(({ id, counts: rows }) => ({ id, tokens: rows.length })),
      origin: this.origin(variant),
      ...more
    };
  }
  /** What counts mean under this bundle. */
  origin(variant) {
    const { manifest, bosTokenId, variants } = this.bundle;
    const noise = variants.get(variant);
    const meaning = noise === void 0 ? null : [noise.tableSha256, noise.spec, manifest.maxLevel];
    return JSON.stringify([manifest.files.get("tokenizer.json"), bosTokenId, meaning]);
  }
  /** The same segments for this bundle, or null if they mean something else under it. */
  adopt(encoded) {
    if (!this.shapes.has(encoded.variant) || encoded.origin !== this.origin(encoded.variant)) return null;
    return { ...encoded, fingerprint: this.bundle.fingerprint };
  }
  /** The bytes of a request, read again as a server reads them: what it would refuse is not sent. */
  frame(encoded, sampling, resume) {
    const { fingerprint, variant, segments } = encoded;
    const frame = encodeFrame({ fingerprint, variant, segments, sampling, resume }, this.shapes.get(variant)?.bits ?? 1);
    const limits = { ...LIMITS, vocabulary_size: this.bundle.vocabularySize };
    try {
      decodeFrame(frame, this.shapes, limits, this.bundle.fingerprint);
    } catch (error) {
      if (!(error instanceof FrameError)) throw error;
      throw new InvalidRequestError(error.message.replace(/^header\./, ""), { code: error.code, field: error.field.replace(/^header\./, "") });
    }
    return frame;
  }
};
function tokensOf(encoded) {
  return encoded.segments.reduce((sum, part) => sum + ("private" in part ? part.private.length : part.public.length), 0);
}
function privateTokensOf(encoded) {
  return encoded.draws.reduce((sum, { tokens }) => sum + tokens, 0);
}

// ../typescript/src/events.ts
var MAX_EVENT = 1 << 20;
var TOKEN_CHARACTERS = 512;
var ID = /^[!-~]{1,200}$/;
var REASON = /^[a-z_]{1,32}$/;
async function* events(body) {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let rest = "";
  let data = [];
  let size = 0;
  for await (const piece of body) {
    rest += decode(decoder, piece);
    const lines = rest.endsWith("\r") ? rest.slice(0, -1).split(/\r\n|\r|\n/) : rest.split(/\r\n|\r|\n/);
    rest = lines.pop() + (rest.endsWith("\r") ? "\r" : "");
    for (const line of lines) {
      if (line === "") {
        if (data.length) yield data.join("\n");
        [data, size] = [[], 0];
      } else if (line === "data" || line.startsWith("data:")) {
        data.push(line.slice(5).replace(/^ /, ""));
        size += line.length;
      }
    }
    if (rest.length + size > MAX_EVENT) throw new ProtocolError(`event stream: an event of more than ${MAX_EVENT} characters`);
  }
  if (rest === "\r" && data.length) yield data.join("\n");
}
function decode(decoder, piece) {
  try {
    return decoder.decode(piece, { stream: true });
  } catch {
    throw new ProtocolError("event stream: not UTF-8");
  }
}
var Collector = class {
  /** `top` alternatives are expected at each token; null expects no logarithms. */
  constructor(maxTokens, top = null) {
    this.maxTokens = maxTokens;
    this.top = top;
    this.room = maxTokens * TOKEN_CHARACTERS;
  }
  maxTokens;
  top;
  text = "";
  tokenIds = [];
  logprobs = [];
  finishReason = null;
  usage = null;
  room;
  done = false;
  /** A new connection: its end mark is still to come. */
  resume() {
    this.done = false;
  }
  /** Accounts for one event: a chunk if it brought anything. Throws the error of an error event. */
  take(data) {
    if (this.done || data.trim() === "[DONE]") {
      this.done = true;
      return null;
    }
    const event = readObject(data, "event");
    const failure = member(event, "error");
    if (failure !== null) {
      throw readError(statusOf(member(failure, "code")), failure, {});
    }
    this.usage = readUsage(event) ?? this.usage;
    const chunk = readChoice(event, this.maxTokens, this.top);
    if (chunk === null) return null;
    if (this.finishReason !== null) {
      if (chunk.text || chunk.tokenIds.length) throw new ProtocolError("event.choices[0]: more output after a finish reason");
      return null;
    }
    this.room -= chunk.text.length;
    if (this.tokenIds.length + chunk.tokenIds.length > this.maxTokens || this.room < 0) {
      throw new ProtocolError(`event: more than the ${this.maxTokens} tokens that were asked for`);
    }
    this.text += chunk.text;
    this.tokenIds.push(...chunk.tokenIds);
    this.logprobs.push(...chunk.logprobs ?? []);
    this.finishReason = chunk.finishReason;
    return chunk.text || chunk.tokenIds.length || chunk.finishReason ? chunk : null;
  }
  /** A stream that broke after all its tokens is complete. */
  finishIfFull() {
    if (this.finishReason !== null || this.tokenIds.length < this.maxTokens) return null;
    this.finishReason = "length";
    return { text: "", tokenIds: [], finishReason: "length", logprobs: null };
  }
};
function readChoice(event, maxTokens, top = null) {
  const choices = member(event, "choices");
  if (!Array.isArray(choices) || choices.length > 1) throw new ProtocolError("choices: an array of one choice is needed");
  if (!choices.length) return null;
  const [text2, ids, reason] = ["text", "token_ids", "finish_reason"].map((name) => member(choices[0], name));
  if (typeof text2 !== "string" || /[\ud800-\udfff]/u.test(text2)) throw new ProtocolError("choices[0].text: valid Unicode is needed");
  if (!Array.isArray(ids) || ids.length > maxTokens || !ids.every(isCount)) {
    throw new ProtocolError(`choices[0].token_ids: an array of at most ${maxTokens} integers from 0 is needed`);
  }
  if (reason !== null && !(typeof reason === "string" && REASON.test(reason))) {
    throw new ProtocolError("choices[0].finish_reason: null or a short name is needed");
  }
  if (text2.length > maxTokens * TOKEN_CHARACTERS) throw new ProtocolError("choices[0].text: is too long for its tokens");
  const logprobs = top === null ? null : readLogprobs(member(choices[0], "logprobs"), ids.length, top);
  return { text: text2, tokenIds: ids, finishReason: reason, logprobs };
}
function readLogprobs(value, tokens, top) {
  const [own, best] = [member(value, "token_logprobs"), member(value, "top_logprobs")];
  const isLogprob = (one) => typeof one === "number" && one >= -9999 && one <= 0;
  const isPair = (one) => Array.isArray(one) && one.length === 2 && isCount(one[0]) && isLogprob(one[1]);
  const fits = Array.isArray(own) && Array.isArray(best) && own.length === tokens && best.length === tokens && own.every(isLogprob) && best.every((pairs) => Array.isArray(pairs) && pairs.length <= top && pairs.every(isPair));
  if (!fits) throw new ProtocolError("choices[0].logprobs: logarithms of every token are needed");
  return own.map((logprob, i) => ({ logprob, top: best[i] }));
}
function readUsage(answer) {
  const usage = member(answer, "usage");
  if (usage === null) return null;
  const counts = ["prompt_tokens", "completion_tokens", "total_tokens"].map((name) => member(usage, name));
  if (!counts.every(isCount)) throw new ProtocolError("usage: integers from 0 are needed");
  const [promptTokens, completionTokens, totalTokens] = counts;
  return { promptTokens, completionTokens, totalTokens };
}
function readError(status, failure, headers) {
  const [message, code, param] = ["message", "code", "param"].map((name) => member(failure, name));
  const text2 = typeof message === "string" ? clean(message) : `HTTP ${status}`;
  const known = typeof code === "string" && REASON.test(code) ? code : null;
  const field = typeof param === "string" ? clean(param).slice(0, 100) : null;
  const details = { status, code: known, field, ...headers };
  if (known === "bundle_outdated") return new BundleOutdatedError(text2, details);
  if (known === "context_length_exceeded") return new ContextFullError(text2, details);
  if (status === 401 || status === 403) return new AccessDeniedError(text2, details);
  if (status === 429 || status === 503) return new OverloadedError(text2, details);
  if ([400, 404, 405, 411, 413, 415, 422].includes(status)) return new InvalidRequestError(text2, details);
  return new ServerError(text2, details);
}
function clean(text2) {
  return text2.replace(/[\p{C}\p{Zl}\p{Zp}]+/gu, " ").slice(0, 1e3);
}
function readId(value) {
  return typeof value === "string" && ID.test(value) ? value : null;
}
function readObject(text2, where) {
  let value;
  try {
    value = JSON.parse(text2);
  } catch {
    throw new ProtocolError(`${where}: not JSON`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new ProtocolError(`${where}: an object is needed`);
  return value;
}
function member(value, name) {
  if (typeof value !== "object" || value === null || !Object.hasOwn(value, name)) return null;
  return value[name] ?? null;
}
function isCount(value) {
  return Number.isSafeInteger(value) && value >= 0;
}

// ../typescript/src/http.ts
var MAX_ERROR_BYTES = 1 << 16;
var LONGEST_PAUSE_S = 10;
var LONGEST_WAIT_S = 60;
var TEMPORARY = [408, 409, 429];
var Deadline = class {
  constructor(timeout, caller) {
    this.timeout = timeout;
    this.caller = caller;
    this.timer = setTimeout(() => this.controller.abort(new TimeoutExceededError(`total: the call took more than ${timeout.total} s`, "total")), 1e3 * timeout.total);
    this.leave = () => this.controller.abort(caller?.reason);
    if (caller?.aborted) this.leave();
    caller?.addEventListener("abort", this.leave);
  }
  timeout;
  caller;
  controller = new AbortController();
  timer;
  leave;
  /** Internal errors (500) of the call: one may be chance, a second one is no passing state. */
  internalErrors = 0;
  get signal() {
    return this.controller.signal;
  }
  /** Ends the wait for whatever still runs. */
  end() {
    clearTimeout(this.timer);
    this.caller?.removeEventListener("abort", this.leave);
    this.controller.abort();
  }
  /** The result of work that has to end within the longest silence; `cancel` is told if it does not. */
  async within(work, cancel) {
    const { signal } = this;
    let timer;
    let stop;
    const over = new Promise((_, reject) => {
      stop = () => reject(signal.reason);
      if (signal.aborted) stop();
      signal.addEventListener("abort", stop);
      timer = setTimeout(() => reject(new TimeoutExceededError(`read: the server was silent for ${this.timeout.read} s`, "read")), 1e3 * this.timeout.read);
    });
    try {
      return await Promise.race([work, over]);
    } catch (error) {
      work.catch(() => void 0);
      cancel(error);
      throw error;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", stop);
    }
  }
  /** Waits, unless the call ends first. */
  async pause(seconds) {
    const { signal } = this;
    await new Promise((resolve, reject) => {
      const stop = () => {
        clearTimeout(timer);
        reject(signal.reason);
      };
      const timer = setTimeout(() => {
        signal.removeEventListener("abort", stop);
        resolve();
      }, 1e3 * seconds);
      signal.addEventListener("abort", stop);
      if (signal.aborted) stop();
    });
  }
};
var Http = class {
  constructor(url, apiKey, send, maxRetries) {
    this.url = url;
    this.apiKey = apiKey;
    this.send = send;
    this.maxRetries = maxRetries;
  }
  url;
  apiKey;
  send;
  maxRetries;
  /** An answer that is a success. What passes is waited out, sending the same bytes again. */
  async request(asked, deadline) {
    for (let attempt = 0; ; attempt++) {
      let failure;
      try {
        return await this.attempt(asked, deadline);
      } catch (error) {
        failure = error;
      }
      const wish = failure instanceof DelError ? failure.retryAfter ?? 0 : 0;
      if (attempt >= this.maxRetries || !isTemporary(failure) || wish > LONGEST_WAIT_S || endsCall(failure, deadline)) throw failure;
      await deadline.pause(Math.max(wish, backoff(attempt)));
    }
  }
  async attempt({ path, headers, body }, deadline) {
    const given = { ...headers, "accept-encoding": "identity" };
    if (this.apiKey !== null) given["authorization"] = `Bearer ${this.apiKey}`;
    const stop = new AbortController();
    const cancel = (reason) => stop.abort(reason);
    let answer;
    try {
      const { send } = this;
      answer = await deadline.within(
        send(`${this.url}${path}`, {
          method: body === void 0 ? "GET" : "POST",
          headers: given,
          // Nothing that a server set before is sent, nothing leads elsewhere.
          credentials: "omit",
          redirect: "error",
          referrerPolicy: "no-referrer",
          cache: body === void 0 ? "no-cache" : "no-store",
          signal: stop.signal,
          ...body === void 0 ? {} : { body }
        }),
        cancel
      );
    } catch (error) {
      if (error instanceof DelError || deadline.signal.aborted) throw error;
      throw new ConnectionFailedError(`${path}: no connection, or the server redirects`, { cause: error });
    }
    if (answer.ok) return answer;
    const text2 = new TextDecoder().decode(await readBytes(answer, MAX_ERROR_BYTES, deadline));
    let failure = null;
    try {
      failure = member(readObject(text2, "error"), "error");
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
    }
    throw readError(answer.status, failure, { requestId: readId(answer.headers.get("x-request-id")), retryAfter: retryAfter(answer.headers.get("retry-after")) });
  }
};
function isTemporary(failure) {
  if (failure instanceof BundleOutdatedError || failure instanceof InvalidRequestError) return false;
  if (failure instanceof ConnectionFailedError) return true;
  return failure instanceof DelError && failure.status !== null && (TEMPORARY.includes(failure.status) || failure.status >= 500);
}
function endsCall(failure, deadline) {
  if (failure instanceof ServerError && failure.status === 500) deadline.internalErrors++;
  return deadline.internalErrors > 1;
}
function backoff(attempt) {
  const share2 = 0.5 + crypto.getRandomValues(new Uint32Array(1))[0] / 2 ** 33;
  return Math.min(LONGEST_PAUSE_S, 0.5 * 2 ** Math.min(attempt, 30)) * share2;
}
function retryAfter(value) {
  if (value === null) return null;
  if (/^[0-9]{1,9}(\.[0-9]{1,9})?$/.test(value)) return Number(value);
  const moment = Date.parse(value);
  return Number.isNaN(moment) ? null : Math.max(0, (moment - Date.now()) / 1e3);
}
async function* pieces(answer, deadline) {
  const reader = answer.body?.getReader();
  let done = false;
  try {
    if (reader === void 0) {
      yield new Uint8Array(await deadline.within(answer.arrayBuffer(), () => void 0));
      done = true;
      return;
    }
    for (; ; ) {
      const next = await deadline.within(reader.read(), () => void 0);
      if (next.done) break;
      yield next.value;
    }
    done = true;
  } catch (error) {
    if (error instanceof DelError || deadline.signal.aborted) throw error;
    throw new ConnectionFailedError("body: the connection broke", { cause: error });
  } finally {
    if (!done) reader?.cancel().catch(() => void 0);
  }
}
async function readBytes(answer, most2, deadline) {
  const found = [];
  let size = 0;
  for await (const piece of pieces(answer, deadline)) {
    size += piece.length;
    if (size > most2) throw new ProtocolError(`body: more than ${most2} bytes`);
    found.push(piece);
  }
  const whole2 = new Uint8Array(size);
  let at = 0;
  for (const piece of found) {
    whole2.set(piece, at);
    at += piece.length;
  }
  return whole2;
}
function checkUrl(url, allowHttp) {
  let parsed;
  try {
    parsed = new URL(url);
  } catch {
    throw invalid("url", "https://host[:port][/path]");
  }
  const { protocol, hostname, username, password, search, hash } = parsed;
  if (protocol !== "https:" && protocol !== "http:" || username || password || search || hash) throw invalid("url", "https://host[:port][/path]");
  const loopback = hostname === "localhost" || hostname.endsWith(".localhost") || hostname === "[::1]" || /^127(\.[0-9]+){3}$/.test(hostname);
  if (protocol === "http:" && !loopback && !allowHttp) throw invalid("url", "https, as http is for this machine only (option allowHttp)");
  return parsed.href.replace(/\/+$/, "");
}

// ../typescript/src/memo.ts
var MAX_BYTES = 8 << 20;
var MAX_REDRAWS = 2;
var PromptMemo = class {
  digest = KeyedDigest.create();
  kept = /* @__PURE__ */ new Map();
  used = 0;
  /** The name of a prompt: a keyed digest, which reveals nothing about a text. */
  async name(subject, variant, padding, parts) {
    const fields = parts.flatMap(({ text: text2, isPrivate }) => [isPrivate ? "private" : "public", text2]);
    return (await this.digest).of(...subject === null ? ["none", ""] : ["some", subject], variant, padding, ...fields);
  }
  /** The prompt of this name as it was sent last. */
  recall(name) {
    const found = this.kept.get(name);
    if (found === void 0) return null;
    this.kept.delete(name);
    this.kept.set(name, found);
    return found.encoded;
  }
  /** Keeps a drawn prompt; returns the one to send, which is another one if a call at the same time was faster. */
  keep(name, encoded, fresh) {
    const found = this.kept.get(name);
    let redraws = 0;
    if (found !== void 0 && !fresh) {
      if (found.encoded.origin === encoded.origin) return found.encoded;
      redraws = found.redraws + 1;
      if (redraws > MAX_REDRAWS) {
        throw new BundleOutdatedError(`prompt: the server changed what counts mean ${redraws} times since it was first sent; fresh draws another copy`);
      }
    }
    if (found !== void 0) this.drop(name);
    this.kept.set(name, { encoded, redraws });
    this.used += sizeOf(encoded);
    while (this.used > MAX_BYTES) this.drop(this.kept.keys().next().value);
    return encoded;
  }
  drop(name) {
    this.used -= sizeOf(this.kept.get(name).encoded);
    this.kept.delete(name);
  }
};
function sizeOf(encoded) {
  const counts = encoded.segments.reduce((sum, part) => sum + ("private" in part ? part.private.length * (part.private[0]?.length ?? 0) : 0), 0);
  return 600 + counts + 32 * tokensOf(encoded);
}

// ../typescript/src/policy.ts
function checkPolicy(policy) {
  for (const name of ["maxEpsilonPerToken", "maxEpsilonPerPrompt", "maxPureEpsilonPerToken"]) {
    const value = policy[name];
    if (value !== void 0 && !(value > 0)) throw invalid(`policy.${name}`, "a number above 0");
  }
  if (policy.delta !== void 0 && !(policy.delta > 0 && policy.delta < 1)) throw invalid("policy.delta", "a number above 0 and below 1");
  if (policy.minAuditDate !== void 0 && !isDate(policy.minAuditDate)) throw invalid("policy.minAuditDate", "an ISO date");
  for (const one of policy.fingerprints ?? []) checkHex("policy.fingerprints", one);
}
function checkHex(field, value) {
  if (!/^[0-9a-f]{64}$/.test(value)) throw invalid(field, "64 hexadecimal digits");
}
function enforce(policy, bundle, variant, privateTokens) {
  const fail = (message) => {
    throw new PolicyViolationError(message, { field: "variant" });
  };
  if (policy.fingerprints && !policy.fingerprints.includes(bundle.fingerprint)) {
    throw new PolicyViolationError(`fingerprint: the policy does not list ${bundle.fingerprint}`, { field: "fingerprint" });
  }
  if (policy.variants && !policy.variants.includes(variant)) fail(`variant: the policy does not list ${variant}`);
  if (variant === CLEAR) {
    if (privateTokens) fail("variant: clear adds no noise to private spans");
    return;
  }
  const { mechanism, auditDate } = bundle.variants.get(variant);
  const delta = policy.delta ?? DEFAULT_DELTA;
  const within = (limit, value, what) => {
    if (limit === void 0 || limit === Infinity) return;
    const found = value();
    if (!(found <= limit)) fail(`the epsilon of ${variant} at delta ${what}: must be at most ${limit}, got ${found.toPrecision(6)}`);
  };
  within(policy.maxEpsilonPerToken ?? MAX_EPSILON_PER_TOKEN, () => epsilon(mechanism, delta, 1), `${delta} for a private token`);
  within(policy.maxPureEpsilonPerToken, () => largestLoss(mechanism), "0 for a private token");
  const tokens = Math.max(1, privateTokens);
  within(policy.maxEpsilonPerPrompt, () => epsilon(mechanism, delta, tokens), `${delta} for ${tokens} private tokens`);
  if (policy.minAuditDate !== void 0 && (auditDate ?? "") < policy.minAuditDate) {
    fail(`the audit date of ${variant}: must be ${policy.minAuditDate} or later, got ${auditDate ?? "no date"}`);
  }
}

// ../typescript/src/sampling.ts
var NAMES = Object.keys(DEFAULTS).filter((name) => name !== "stream");
function samplingOf(options, stream) {
  const given = {};
  for (const name of NAMES) if (options[name] !== void 0) given[name] = options[name];
  const { seed: seed2, stop, logit_bias } = options;
  if (typeof seed2 === "number") given["seed"] = whole("seed", seed2);
  if (typeof stop === "string") given["stop"] = [stop];
  if (logit_bias !== void 0 && !Array.isArray(logit_bias)) {
    given["logit_bias"] = Object.entries(logit_bias).map(([id, bias]) => [Number(id), bias]);
  }
  const sampling = { ...DEFAULTS, ...given, stream };
  for (const name of ["max_tokens", "top_k"]) whole(name, sampling[name]);
  if (sampling.logprobs !== null) whole("logprobs", sampling.logprobs);
  for (const name of ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"]) {
    if (typeof sampling[name] !== "number" || !Number.isFinite(sampling[name])) throw wrong(name, "a number");
  }
  if (!Array.isArray(sampling.stop) || !sampling.stop.every((text2) => typeof text2 === "string")) throw wrong("stop", "a string or strings");
  if (!Array.isArray(sampling.stop_token_ids)) throw wrong("stop_token_ids", "an array of token ids");
  sampling.stop_token_ids.forEach((id) => whole("stop_token_ids", id));
  sampling.logit_bias.forEach(([id, bias]) => {
    whole("logit_bias", id);
    if (typeof bias !== "number" || !Number.isFinite(bias)) throw wrong("logit_bias", "token ids and numbers");
  });
  return sampling;
}
function whole(field, value) {
  if (!Number.isSafeInteger(value)) throw wrong(field, "an integer");
  return BigInt(value);
}
function wrong(field, wanted) {
  return new InvalidRequestError(`${field}: must be ${wanted}`, { field });
}

// ../typescript/src/signature.ts
var FILE2 = "signature";
var HEADER = /^key=([0-9a-f]{64}); signed=([0-9-]{10}); signature=([0-9a-f]{128})$/;
async function verifiedKey(manifest, header, trusted) {
  const found = header === null ? null : HEADER.exec(header);
  if (header !== null && (found === null || !isDate(found[2]))) throw new BundleError(FILE2, "the header has another form");
  const [, key, signed, signature] = found ?? [];
  if (trusted.length && (key === void 0 || !trusted.includes(key))) {
    const change = { field: "the signing key", accepted: `one of ${trusted.join(", ")}`, offered: key ?? "no signature" };
    throw new BundleRejectedError(`bundle ${manifest.fingerprint}: the signing key must be ${change.accepted}, got ${change.offered}`, manifest.fingerprint, [change]);
  }
  if (key === void 0) return null;
  let imported;
  try {
    imported = await crypto.subtle.importKey("raw", fromHex(key), { name: "Ed25519" }, false, ["verify"]);
  } catch (cause) {
    if (cause instanceof Error && cause.name !== "NotSupportedError" && cause.name !== "SyntaxError") {
      throw new BundleError(FILE2, "the key is none of Ed25519");
    }
    if (trusted.length) throw new BundleError(FILE2, "this platform's Web Crypto API has no Ed25519, so trustedKeys cannot be used");
    return null;
  }
  const message = manifest.signedMessage(signed);
  if (!await crypto.subtle.verify("Ed25519", imported, fromHex(signature), message)) {
    throw new BundleError(FILE2, `is not the signature of this bundle by ${key}`);
  }
  return key;
}

// ../typescript/src/storage.ts
var MemoryStorage = class {
  items = /* @__PURE__ */ new Map();
  getItem(name) {
    return this.items.get(name) ?? null;
  }
  setItem(name, value) {
    this.items.set(name, value);
  }
};
function defaultStorage() {
  try {
    const { localStorage } = globalThis;
    if (typeof document !== "undefined" && localStorage) return localStorage;
  } catch {
  }
  return new MemoryStorage();
}
var queues = /* @__PURE__ */ new WeakMap();
function exclusively(storage, name, work) {
  const locks = globalThis.navigator?.locks;
  const locked = async () => locks && typeof document !== "undefined" ? await locks.request(`del-serve ${name}`, work) : await work();
  const run = (queues.get(storage) ?? Promise.resolve()).then(locked, locked);
  queues.set(storage, run.catch(() => void 0));
  return run;
}

// ../typescript/src/trust.ts
var NAME = "del-serve.trust";
var VERSION2 = 1;
var TABLE2 = "table.safetensors";
var TOKENIZER2 = "tokenizer.json";
var DELTAS = [DEFAULT_DELTA, 1e-3, 0.1];
var TOLERANCE = 1e-9;
var Trust = class {
  constructor(storage) {
    this.storage = storage;
  }
  storage;
  /** Throws BundleRejectedError for an offer that is different from, or weaker than, what was accepted. */
  async check(offer) {
    judge((await this.read()).get(serverName(offer.url)), offer);
  }
  /** Checks an offer and remembers it. */
  async admit(offer) {
    await exclusively(this.storage, NAME, async () => {
      const records = await this.read();
      const name = serverName(offer.url);
      const before = records.get(name);
      const after = judge(before, offer);
      if (before !== void 0 && JSON.stringify({ ...after, accepted_at: before.accepted_at }) === JSON.stringify(before)) return;
      await this.write(records.set(name, after));
    });
  }
  /** Forgets a server: its next offer is a first one again. */
  async forget(url) {
    await exclusively(this.storage, NAME, async () => {
      const records = await this.read();
      if (records.delete(serverName(url))) await this.write(records);
    });
  }
  /** What was accepted from each server, by host, port and base path. */
  async records() {
    return this.read();
  }
  async read() {
    let text2;
    try {
      text2 = await this.storage.getItem(NAME);
    } catch (cause) {
      throw new TrustUnavailableError("trust: the storage cannot be read", { cause });
    }
    if (text2 === null) return /* @__PURE__ */ new Map();
    try {
      const value = JSON.parse(text2);
      const { version, servers } = value;
      if (version === VERSION2 && Object.values(servers).every(isRecord)) return new Map(Object.entries(servers));
    } catch {
    }
    throw new TrustUnavailableError(`trust: ${NAME} is damaged; restore it, or delete it to trust every server's next offer`);
  }
  async write(records) {
    try {
      await this.storage.setItem(NAME, JSON.stringify({ version: VERSION2, servers: Object.fromEntries(records) }));
    } catch (cause) {
      throw new TrustUnavailableError("trust: the storage cannot be written", { cause });
    }
  }
};
function serverName(url) {
  return url.slice(url.indexOf("://") + 3);
}
function judge(record, offer) {
  const offered = recordOf(offer);
  if (record === void 0) return offered;
  const trusted = offer.signingKey !== null && offer.trustedKeys.includes(offer.signingKey);
  const accepted = trusted ? { ...record, signing_key: offer.signingKey } : record;
  const found = offer.onPurpose ? [] : changes(accepted, offered, offer.named);
  if (!found.length) return { ...offered, variants: { ...record.variants, ...offered.variants } };
  const said2 = found.map((change) => `${change.field} must be ${change.accepted}, got ${change.offered}`).join("; ");
  const message = `${offer.url} offers the bundle ${offered.fingerprint}, which differs from what was accepted on ${record.accepted_at}: ${said2}. If this is intended, accept it by its fingerprint with the option accept`;
  throw new BundleRejectedError(message, offered.fingerprint, found);
}
function recordOf({ url, manifest, signingKey }) {
  const variants = manifest.variants.map((variant) => [
    variant.name,
    {
      table: variant.tableSha256,
      mechanism: variant.spec,
      kind: "noiseNumerators" in variant.mechanism ? "categorical" : "binomial",
      epsilons: DELTAS.map((delta) => epsilon(variant.mechanism, delta)).map((value) => value === Infinity ? null : value),
      audit_date: variant.auditDate
    }
  ]);
  return {
    fingerprint: manifest.fingerprint,
    table: manifest.files.get(TABLE2),
    tokenizer: manifest.files.get(TOKENIZER2),
    max_level: manifest.maxLevel,
    variants: Object.fromEntries(variants),
    signing_key: signingKey,
    transport: url.slice(0, url.indexOf("://")),
    accepted_at: (/* @__PURE__ */ new Date()).toISOString().slice(0, 10)
  };
}
function changes(record, offer, named) {
  const found = [];
  const differs = (field, accepted, offered) => {
    found.push({ field, accepted, offered });
  };
  if (record.table !== offer.table) differs("the SHA-256 of the table", record.table, offer.table);
  if (record.tokenizer !== offer.tokenizer) differs("the SHA-256 of the tokenizer", record.tokenizer, offer.tokenizer);
  if (offer.max_level < record.max_level) differs("max_level", `at least ${record.max_level}`, `${offer.max_level}, which is less noise`);
  if (record.signing_key !== null && offer.signing_key !== record.signing_key) {
    differs("the signing key", record.signing_key, offer.signing_key ?? "no signature");
  }
  if (record.transport === "https" && offer.transport !== "https") differs("the transport", "https", offer.transport);
  for (const [name, accepted] of Object.entries(record.variants)) {
    const offered = Object.hasOwn(offer.variants, name) ? offer.variants[name] : void 0;
    if (offered === void 0) {
      if (named.includes(name)) differs(`variant ${name}`, "offered", "a bundle without it");
      continue;
    }
    const follows = accepted.table === record.table && offered.table === offer.table;
    if (accepted.table !== offered.table && !follows) differs(`the SHA-256 of the table of ${name}`, accepted.table, offered.table);
    if (accepted.kind !== offered.kind) {
      differs(`the mechanism of ${name}`, accepted.mechanism, offered.mechanism);
      continue;
    }
    const weaker = DELTAS.findIndex((_, i) => (offered.epsilons[i] ?? Infinity) > (accepted.epsilons[i] ?? Infinity) * (1 + TOLERANCE));
    if (accepted.mechanism !== offered.mechanism && weaker >= 0) {
      const shown2 = (value) => value?.toPrecision(6) ?? "beyond the range of the accounting";
      differs(`the epsilon of ${name} at delta ${DELTAS[weaker]}`, `at most ${shown2(accepted.epsilons[weaker])}`, shown2(offered.epsilons[weaker]));
    }
    if (accepted.audit_date !== null && (offered.audit_date ?? "") < accepted.audit_date) {
      differs(`the audit date of ${name}`, `${accepted.audit_date} or later`, offered.audit_date ?? "no date");
    }
  }
  return found;
}
function isRecord(value) {
  const texts = [value.fingerprint, value.table, value.tokenizer, value.transport, value.accepted_at];
  const key = value.signing_key === null || typeof value.signing_key === "string";
  return texts.every((text2) => typeof text2 === "string") && key && Number.isInteger(value.max_level) && Object.values(value.variants).every(isVariant);
}
function isVariant(value) {
  const texts = [value.table, value.mechanism, value.kind].every((text2) => typeof text2 === "string");
  const date = value.audit_date === null || isDate(value.audit_date);
  return texts && date && value.epsilons.length === DELTAS.length && value.epsilons.every((one) => one === null || typeof one === "number");
}

// ../typescript/src/client.ts
var MAX_BUNDLE = 2 ** 30;
var MAX_MODELS = 1 << 20;
var MAX_ANSWER = 16 << 20;
var [ANSWER_BYTES, TOKEN_BYTES] = [64 << 10, 4 << 10];
var NAME2 = /^[ -~]{1,256}$/;
var DelClient = class _DelClient {
  constructor(url, options = {}, shared = share(url, options)) {
    this.url = url;
    this.options = options;
    this.shared = shared;
    checkPolicy(options.policy ?? {});
    if (options.padding) checkPadding(options.padding);
    for (const field of ["accept", "trustedKeys"]) options[field]?.forEach((one) => checkHex(field, one));
    if (options.fingerprint !== void 0) checkHex("fingerprint", options.fingerprint);
    for (const field of ["maxRetries", "maxResumes"]) {
      const value = options[field];
      if (value !== void 0 && !(Number.isInteger(value) && value >= 0 && value <= 100)) throw invalid(field, "an integer from 0 to 100");
    }
  }
  url;
  options;
  shared;
  /** The client with other options, on the same bundle and memo. */
  with(options) {
    const merged = { ...this.options, ...options };
    const { http } = this.shared;
    return new _DelClient(this.url, merged, "maxRetries" in options ? { ...this.shared, http: httpOf(http.url, merged) } : this.shared);
  }
  /** What was accepted from each server. */
  get trust() {
    return this.shared.trust;
  }
  /** The bundle in use, fetched and verified by the first call. */
  async bundle() {
    return (await this.encoder()).bundle;
  }
  /** The variants of the bundle. */
  async variants() {
    return (await this.bundle()).variants;
  }
  /** The exact worst-case epsilon of `tokens` private tokens, computed from the integers of the noise; infinite under `clear`. */
  async epsilon(variant, { delta = DEFAULT_DELTA, tokens = 1 } = {}) {
    const encoder = await this.encoder();
    encoder.checkVariant(variant);
    if (variant === CLEAR) return Infinity;
    const { mechanism } = encoder.bundle.variants.get(variant);
    return delta === 0 ? largestLoss(mechanism, tokens) : epsilon(mechanism, delta, tokens);
  }
  /** What the server lists. */
  async models() {
    const deadline = this.deadline();
    try {
      const answer = await this.shared.http.request({ path: "/v1/models", headers: { accept: "application/json" } }, deadline);
      const data = member(readObject(new TextDecoder().decode(await readBytes(answer, MAX_MODELS, deadline)), "body"), "data");
      if (!Array.isArray(data)) throw new ProtocolError("body.data: an array is needed");
      return data.map((entry, i) => {
        const [name, length] = [member(entry, "id"), member(entry, "context_length")];
        if (typeof name !== "string" || !NAME2.test(name)) throw new ProtocolError(`body.data[${i}].id: a name is needed`);
        if (length !== null && !Number.isSafeInteger(length)) throw new ProtocolError(`body.data[${i}].context_length: an integer is needed`);
        return { name, guarantees: member(entry, "guarantees"), audit: member(entry, "audit"), contextLength: length };
      });
    } finally {
      deadline.end();
    }
  }
  /** The parts of a prompt with their tokens, for display: nothing is drawn or sent. */
  async tokenize(prompt, variant) {
    const encoder = await this.encoder();
    const chosen = this.chosen(variant);
    encoder.checkVariant(chosen);
    return encoder.tokenize(partsOf(prompt, chosen, this.template()), this.options.padding ?? null);
  }
  /** Draws the noise of a prompt now; `complete` and `stream` accept the result any number of times. */
  async encode(prompt, variant) {
    return this.encodeWith(await this.encoder(), prompt, this.chosen(variant), true, null);
  }
  /** One completion in one answer. */
  async complete(prompt, options = {}) {
    return this.completeWith(prompt, options, null);
  }
  /** One completion in chunks. A stream that breaks is resumed with the same bytes and the token ids received. */
  stream(prompt, options = {}) {
    return this.streamWith(prompt, options, null);
  }
  /** A conversation, whose earlier turns are sent with the counts that they had. */
  async conversation(options = {}) {
    return Conversation.open(this, { ...options, variant: this.chosen(options.variant) });
  }
  /** @internal */
  template() {
    return this.options.template ?? null;
  }
  /** @internal */
  async completeWith(prompt, options, recall) {
    const request = await this.prepare(prompt, options, false, recall);
    try {
      const { max_tokens, logprobs } = request.sampling;
      const answer = await this.submit(request, []);
      const most2 = Math.min(MAX_ANSWER, ANSWER_BYTES + max_tokens * TOKEN_BYTES);
      const body = readObject(decoded(await readBytes(answer, most2, request.deadline)), "body");
      const chunk = readChoice(body, max_tokens, logprobs);
      if (chunk === null || chunk.finishReason === null) throw new ProtocolError("body: no whole completion");
      return completionOf(request, { ...chunk, finishReason: chunk.finishReason }, readUsage(body), requestIdOf(answer) ?? readId(member(body, "id")));
    } finally {
      request.deadline.end();
    }
  }
  /** @internal */
  streamWith(prompt, options, recall) {
    return new CompletionStream(this.chunks(prompt, options, recall));
  }
  async *chunks(prompt, options, recall) {
    const request = await this.prepare(prompt, options, true, recall);
    const { deadline } = request;
    try {
      const received = new Collector(request.sampling.max_tokens, request.sampling.logprobs);
      const most2 = this.options.maxResumes ?? 3;
      let requestId = null;
      let failure = null;
      for (let resumes = 0; resumes <= most2; resumes++) {
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
          if (received.finishReason === null || error instanceof ProtocolError) {
            const silent = error instanceof TimeoutExceededError && error.phase === "read" && received.tokenIds.length > before;
            if (!isTemporary(error) && !silent || endsCall(error, deadline)) throw error;
            failure = error;
          }
        }
        const last = received.finishIfFull();
        if (last) yield last;
        if (received.finishReason !== null) {
          const { text: text2, tokenIds, finishReason } = received;
          const logprobs = request.sampling.logprobs === null ? null : received.logprobs;
          return completionOf(request, { text: text2, tokenIds, finishReason, logprobs }, resumes ? null : received.usage, requestId);
        }
      }
      throw new StreamBrokenError(`stream: broke again after ${most2} resumptions, the limit of maxResumes`, { cause: failure });
    } finally {
      deadline.end();
    }
  }
  // --- the bundle ---------------------------------------------------------------------------------------------------------
  deadline(signal) {
    const { read: read2 = 60, total = 600 } = this.options.timeout ?? {};
    return new Deadline({ read: read2, total }, signal);
  }
  chosen(variant) {
    const chosen = variant ?? this.options.variant;
    if (chosen === void 0) throw invalid("variant", "named in the call or with the client");
    return chosen;
  }
  /** The encoder of the bundle in use; calls at the same time share one download. */
  async encoder() {
    this.shared.encoder ??= this.load();
    const loading = this.shared.encoder;
    try {
      return await loading;
    } catch (error) {
      if (this.shared.encoder === loading) this.shared.encoder = null;
      throw error;
    }
  }
  async load() {
    const { bundle: files, fingerprint, trustedKeys = [] } = this.options;
    const checkPin = (manifest) => {
      if (fingerprint === void 0 || manifest.fingerprint === fingerprint) return;
      throw new BundleOutdatedError(`the bundle's fingerprint: must be the pinned ${fingerprint}, got ${manifest.fingerprint}`);
    };
    if (files !== void 0) return new Encoder(await Bundle.open(files, checkPin), null);
    const deadline = this.deadline();
    try {
      const answer = await this.shared.http.request({ path: "/v1/bundle", headers: { accept: "application/x-tar" } }, deadline);
      const archive = await readBytes(answer, MAX_BUNDLE, deadline);
      const named = [...this.options.policy?.variants ?? [], ...this.options.variant === void 0 ? [] : [this.options.variant]];
      const chosen = [...this.options.accept ?? [], ...this.options.policy?.fingerprints ?? [], fingerprint];
      const offer = async (manifest) => ({
        url: this.shared.http.url,
        manifest,
        signingKey: await verifiedKey(manifest, answer.headers.get("x-del-signature"), trustedKeys),
        trustedKeys,
        named,
        onPurpose: chosen.includes(manifest.fingerprint)
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
  async prepare(prompt, options, stream, recall) {
    const sampling = samplingOf(options, stream);
    const { ledger, subject } = this.options;
    if (ledger !== void 0 && subject === void 0) throw invalid("subject", "given with a ledger, which records spending by subject");
    const key = options.idempotencyKey ?? toHex(randomBytes(16));
    if (!/^[!-~]{1,200}$/.test(key)) throw invalid("idempotencyKey", "1 to 200 printable ASCII characters without spaces");
    const deadline = this.deadline(options.signal);
    try {
      const encoder = await this.encoder();
      let encoded;
      let publicPrompt = null;
      if (isEncoded(prompt)) {
        const adopted = encoder.adopt(prompt);
        if (options.variant !== void 0 && options.variant !== prompt.variant) throw invalid("variant", `${prompt.variant}, the variant of the encoding`);
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
      const cut = {
        ...sampling,
        max_tokens: room === null ? sampling.max_tokens : Math.min(sampling.max_tokens, room - tokensOf(encoded)),
        stop_token_ids: [...sampling.stop_token_ids, ...ends]
      };
      encoder.frame(encoded, cut, []);
      if (ledger !== void 0 && encoded.draws.length) {
        await ledger.spend(subject, encoder.bundle.variants.get(encoded.variant).mechanism, encoded.draws);
      }
      return { encoder, encoded, sampling: cut, key, publicPrompt, deadline, bytesSent: 0 };
    } catch (error) {
      deadline.end();
      throw error;
    }
  }
  enforce(encoder, variant, privateTokens) {
    enforce(this.options.policy ?? {}, encoder.bundle, variant, privateTokens);
  }
  /** Checks the policy, then draws the noise, or takes the counts of the last time that the prompt was sent. */
  async encodeWith(encoder, prompt, variant, fresh, recall) {
    encoder.checkVariant(variant);
    this.enforce(encoder, variant, 0);
    const { padding = null, subject = null } = this.options;
    const tokenized = encoder.tokenize(partsOf(prompt, variant, this.template()), padding);
    const hidden2 = tokenized.filter((part) => part.isPrivate);
    encoder.checkRoom(variant, encoder.count(tokenized));
    this.enforce(encoder, variant, hidden2.reduce((sum, part) => sum + part.ids.length, 0));
    const endTokenIds = isChat(prompt) ? this.template()?.endTokenIds ?? encoder.bundle.chat?.endTokenIds ?? [] : [];
    if (recall !== null) return recall(encoder, tokenized, variant, endTokenIds);
    const draw = () => encoder.assemble(tokenized, hidden2.map((part) => encoder.draw(part.ids, variant)), variant, { session: null, endTokenIds });
    if (!hidden2.length) return draw();
    const { memo } = this.shared;
    const name = await memo.name(subject, variant, padding === null ? "" : JSON.stringify(checkPadding(padding)), tokenized);
    const known = fresh ? null : memo.recall(name);
    const adopted = known && encoder.adopt(known);
    return adopted ?? { ...memo.keep(name, draw(), fresh), fingerprint: encoder.bundle.fingerprint };
  }
  /** Sends a prompt, moving it to the server's new bundle at most once. */
  async submit(request, resume) {
    try {
      return await this.send(request, resume);
    } catch (error) {
      if (error instanceof ContextFullError) this.shared.encoder = null;
      if (!(error instanceof BundleOutdatedError)) throw error;
      await this.renew(request, error, !resume.length);
    }
    return this.send(request, resume);
  }
  send(request, resume) {
    const { encoder, encoded, sampling, key, deadline } = request;
    const frame = encoder.frame(encoded, sampling, resume);
    request.bytesSent ||= frame.length;
    const headers = {
      "content-type": MEDIA_TYPE,
      accept: sampling.stream ? "text/event-stream" : "application/json",
      // A key must not stand for different bytes.
      "idempotency-key": resume.length ? `${key}.${resume.length}` : key
    };
    if (encoded.session !== null) headers["x-session-id"] = encoded.session;
    return this.shared.http.request({ path: "/v1/private/completions", headers, body: frame }, deadline);
  }
  /** Moves a request to the server's bundle if that needs no fresh noise. */
  async renew(request, mismatch, mayEncode) {
    const stale = request.encoder.bundle.fingerprint;
    if (this.options.fingerprint !== void 0 || this.options.bundle !== void 0) throw mismatch;
    if (this.shared.encoder !== null && (await this.shared.encoder).bundle.fingerprint === stale) this.shared.encoder = null;
    const encoder = await this.encoder();
    if (encoder.bundle.fingerprint === stale) throw mismatch;
    let encoded = encoder.adopt(request.encoded);
    if (encoded === null && mayEncode && request.publicPrompt !== null) {
      encoded = await this.encodeWith(encoder, request.publicPrompt, request.encoded.variant, true, null);
    }
    if (encoded === null) throw meaningChanged(stale, encoder);
    this.enforce(encoder, encoded.variant, privateTokensOf(encoded));
    request.encoder = encoder;
    request.encoded = encoded;
    request.key += "-renewed";
  }
};
function httpOf(url, options) {
  const send = options.fetch ?? globalThis.fetch.bind(globalThis);
  return new Http(url, options.apiKey ?? null, send, options.maxRetries ?? 12);
}
function share(url, options) {
  if (globalThis.crypto?.subtle === void 0) {
    throw invalid("crypto", "a Web Crypto API with subtle, which browsers have on https and on this machine");
  }
  const http = httpOf(checkUrl(url, options.allowHttp === true), options);
  return { http, trust: new Trust(options.storage ?? defaultStorage()), memo: new PromptMemo(), encoder: null };
}
function isEncoded(prompt) {
  return typeof prompt === "object" && "segments" in prompt;
}
function meaningChanged(stale, encoder) {
  const message = `prompt: its counts, drawn for the bundle ${stale}, mean something else under ${encoder.bundle.fingerprint}, which is in use now; calling again draws fresh noise, which adds to the prompt's privacy loss`;
  return new BundleOutdatedError(message, { code: "bundle_outdated" });
}
function completionOf(request, chunk, usage, requestId) {
  const { text: text2, tokenIds, finishReason, logprobs } = chunk;
  const [promptTokens, completionTokens] = [tokensOf(request.encoded), tokenIds.length];
  const counted = { promptTokens, completionTokens, totalTokens: promptTokens + completionTokens };
  return { text: text2, tokenIds, finishReason, logprobs, usage: usage ?? counted, requestId, variant: request.encoded.variant, bytesSent: request.bytesSent };
}
function requestIdOf(answer) {
  return readId(answer.headers.get("x-request-id"));
}
function contextLength(answer) {
  const stated = answer.headers.get("x-del-context-length");
  return stated !== null && /^[0-9]{1,9}$/.test(stated) ? Number(stated) : null;
}
function decoded(data) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(data);
  } catch {
    throw new ProtocolError("body: not UTF-8");
  }
}

// ../typescript/src/ledger.ts
var Ledger = class {
  constructor(storage, budget) {
    this.storage = storage;
    this.budget = budget;
    this.delta = budget.delta ?? DEFAULT_DELTA;
    if (!(budget.epsilon > 0)) throw invalid("budget.epsilon", "a number above 0");
    if (!(this.delta > 0 && this.delta < 1)) throw invalid("budget.delta", "a number above 0 and below 1");
  }
  storage;
  budget;
  delta;
  async spend(subject, mechanism, draws) {
    const name = nameOf(subject);
    await exclusively(this.storage, name, async () => {
      const account = await this.read(name);
      const fresh = draws.filter((draw) => !account.draws.includes(draw.id));
      if (!fresh.length) return;
      const level2 = levelOf(mechanism);
      account.levels[level2] = (account.levels[level2] ?? 0) + fresh.reduce((sum, draw) => sum + draw.tokens, 0);
      account.draws.push(...fresh.map((draw) => draw.id));
      const total = this.total(account);
      if (!(total <= this.budget.epsilon)) {
        throw new BudgetExceededError(`budget: must be at most epsilon ${this.budget.epsilon} at delta ${this.delta}, got more`, total, this.budget.epsilon);
      }
      await this.storage.setItem(name, JSON.stringify(account));
    });
  }
  /** What a subject has spent, as epsilon at the budget's delta. */
  async spent(subject) {
    return this.total(await this.read(nameOf(subject)));
  }
  /** One noise level adds up exactly; several add their Renyi divergences, an upper bound. */
  total(account) {
    const levels = Object.entries(account.levels).map(([level2, tokens]) => [mechanismOf(level2), tokens]);
    if (!levels.length) return 0;
    if (levels.length === 1) return epsilon(levels[0][0], this.delta, levels[0][1]);
    const curves = levels.map(([mechanism, tokens]) => renyi(mechanism, tokens));
    return renyiEpsilon(curves.reduce((sum, curve) => sum.map((value, i) => value + curve[i])), this.delta);
  }
  async read(name) {
    const text2 = await this.storage.getItem(name);
    if (text2 === null) return { levels: {}, draws: [] };
    try {
      const { levels, draws } = JSON.parse(text2);
      Object.keys(levels).forEach(mechanismOf);
      if (Object.values(levels).every((tokens) => Number.isSafeInteger(tokens) && tokens > 0) && Array.isArray(draws)) return { levels, draws };
    } catch {
    }
    throw new DelError("ledger: an account is damaged; it never counts as empty");
  }
};
function nameOf(subject) {
  if (typeof subject !== "string" || !subject || subject.length > 256) throw invalid("subject", "a text of 1 to 256 characters");
  return `del-serve.ledger.${subject}`;
}
function levelOf(mechanism) {
  const { bits } = mechanism;
  if ("noiseNumerators" in mechanism) return JSON.stringify({ bits, noise: mechanism.noiseNumerators });
  return JSON.stringify({ bits, dim: columns(mechanism), ratio: Number(mechanism.ratioNumerator) });
}
function mechanismOf(level2) {
  const { bits, noise, dim, ratio } = JSON.parse(level2);
  if (noise !== void 0) return { bits, noiseNumerators: noise };
  return { bits, dim, ratioNumerator: BigInt(ratio), maxLevel: 1n };
}

// src/dom.ts
function byId(id) {
  return document.getElementById(id);
}
function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}
function shown(value) {
  if (value === Infinity) return "∞";
  if (value >= 1e3) return Math.round(value).toLocaleString("en");
  return value.toPrecision(3).replace(/(\.[0-9]*?)0+$/, "$1").replace(/\.$/, "");
}
function percent(share2) {
  return `${(100 * share2).toFixed(share2 < 0.995 && share2 > 0 ? 1 : 0)} %`;
}
function visible(text2) {
  return text2.replace(/\r?\n/g, "↵").replace(/\t/g, "⇥").replace(/^ +(?=\S)/, "").replace(/^ +$/, "␣");
}

// src/editor.ts
var MARKED = "Highlighted text is private. The rest is sent as it is.";
var Editor = class {
  /** `changed` is called after every change of the text or of what is private. */
  constructor(changed) {
    this.changed = changed;
    this.area.addEventListener("input", () => this.edited());
    this.area.addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "b") {
        event.preventDefault();
        this.toggle();
      }
    });
    byId("toggle").addEventListener("click", () => this.toggle());
    byId("detect").addEventListener("click", () => this.detect());
    byId("all").addEventListener("click", () => this.all());
    new ResizeObserver(() => this.fit()).observe(this.area);
  }
  changed;
  ranges = [];
  before = "";
  /** Whether new text becomes private, as it does while everything is. */
  everything = true;
  area = byId("text");
  marks = byId("marks");
  /** The prompt's spans. */
  get spans() {
    const spans = [];
    let done = 0;
    const text2 = this.area.value;
    for (const [start, end] of this.ranges) {
      if (start > done) spans.push({ public: text2.slice(done, start) });
      spans.push({ private: text2.slice(start, end) });
      done = end;
    }
    if (done < text2.length) spans.push({ public: text2.slice(done) });
    return spans;
  }
  /** Replaces the text; all of it is private, or what the detectors find. */
  show(text2, detected) {
    this.area.value = text2;
    if (detected) this.detect();
    else this.all();
  }
  all() {
    this.everything = true;
    byId("text-help").textContent = MARKED;
    const { length } = this.area.value;
    this.set(length ? [[0, length]] : []);
  }
  detect() {
    this.everything = false;
    byId("text-help").textContent = `${MARKED} Detectors know numbers, addresses and keys: names and what is told in words stay public.`;
    this.set(detect(this.area.value).map(({ start, end }) => [start, end]));
  }
  /** Makes the selection private, or public if all of it is private; without a selection, the word at the caret. */
  toggle() {
    const text2 = this.area.value;
    let [start, end] = [this.area.selectionStart, this.area.selectionEnd];
    if (start === end) {
      while (start > 0 && /\S/.test(text2[start - 1])) start--;
      while (end < text2.length && /\S/.test(text2[end])) end++;
    }
    if (start === end) return;
    this.everything = false;
    const others = this.ranges.flatMap(([from, to]) => {
      const left = from < start ? [[from, Math.min(to, start)]] : [];
      const right = to > end ? [[Math.max(from, end), to]] : [];
      return from < end && to > start ? [...left, ...right] : [[from, to]];
    });
    const whole2 = this.ranges.some(([from, to]) => from <= start && to >= end);
    this.set(whole2 ? others : [...others, [start, end]]);
    this.area.focus();
  }
  /** Moves the ranges with an edit: what lies around it stays, what is typed within a private part is private. */
  edited() {
    const [old, text2] = [this.before, this.area.value];
    if (this.everything) return this.all();
    let head = 0;
    while (head < Math.min(old.length, text2.length) && old[head] === text2[head]) head++;
    let tail = 0;
    while (tail < Math.min(old.length, text2.length) - head && old.at(-1 - tail) === text2.at(-1 - tail)) tail++;
    const moved = text2.length - old.length;
    const place = (at, isEnd) => {
      if (at < head || at === head && !isEnd) return at;
      return at >= old.length - tail ? at + moved : Math.min(at, head);
    };
    this.set(this.ranges.map(([start, end]) => [place(start, false), place(end, true)]));
  }
  set(ranges) {
    const text2 = this.area.value;
    const sorted = ranges.map(([start, end]) => [Math.max(0, start), Math.min(text2.length, end)]).filter(([start, end]) => end > start);
    sorted.sort(([a], [b]) => a - b);
    this.ranges = sorted.reduce((joined, [start, end]) => {
      const last = joined.at(-1);
      if (last !== void 0 && start <= last[1]) last[1] = Math.max(last[1], end);
      else joined.push([start, end]);
      return joined;
    }, []);
    this.before = text2;
    this.marks.replaceChildren(...this.spans.map((span) => "private" in span ? make("mark", "", span.private) : span.public), "\n");
    this.fit();
    this.changed();
  }
  fit() {
    this.area.style.height = "auto";
    this.area.style.height = `${this.area.scrollHeight}px`;
  }
};

// src/levels.ts
var ATTACKS = {
  bidirectional: "a language model that reads both sides",
  combined: "two language models together",
  inverter: "a trained inverter",
  map: "the most probable token, each alone",
  nearest: "the nearest embedding",
  sequence: "a language model over the whole prompt"
};
function strongest(variant) {
  const audit = variant.audit;
  const found = Object.entries(audit).flatMap(([name, value]) => {
    const success = typeof value === "object" && value !== null && !Array.isArray(value) ? value["success"] : null;
    if (typeof success !== "number" || !Object.hasOwn(ATTACKS, name)) return [];
    return [{ success, label: ATTACKS[name], date: variant.auditDate }];
  });
  return found.sort((a, b) => b.success - a.success)[0] ?? null;
}
function forChat(variants) {
  for (const task of ["chat", "general"]) {
    const found = variants.filter((variant) => variant.task === task);
    if (found.length) return found;
  }
  return variants;
}
function preferred(variants, epsilons) {
  const chats = forChat(variants);
  const codes = chats.filter((variant) => "noiseNumerators" in variant.mechanism);
  const among = codes.length ? codes : chats;
  const sorted = [...among].sort((a, b) => epsilons.get(a.name) - epsilons.get(b.name));
  return sorted[codes.length ? 0 : sorted.length >> 1].name;
}
function showLevels(variants, epsilons, first, chosen) {
  const inSight = variants.find((variant) => variant.name === first).task;
  const tasks = [...new Set(variants.map((variant) => variant.task))];
  const titles = tasks.includes("chat") ? { chat: "Privacy level of a question", general: "Privacy level of a text to continue" } : { general: "Privacy level" };
  const title = (task) => tasks.length === 1 ? "Privacy level" : titles[task] ?? `Privacy level: ${task}`;
  const group = (task) => {
    const captions = make("div", "captions", make("span", "", "ε a token"), make("span", "", "attack reads"));
    captions.ariaHidden = "true";
    const fieldset = make("fieldset", "levels", make("legend", "", title(task)), captions);
    const sorted = variants.filter((variant) => variant.task === task).sort((a, b) => epsilons.get(a.name) - epsilons.get(b.name));
    fieldset.append(...sorted.map((variant) => level(variant, epsilons.get(variant.name), variant.name === first, chosen)));
    return fieldset;
  };
  const others = tasks.filter((task) => task !== inSight);
  byId("levels").replaceChildren(group(inSight));
  if (others.length) byId("levels").append(make("details", "more", make("summary", "", "More levels"), ...others.map(group)));
}
function level(variant, epsilon2, isFirst, chosen) {
  const radio = make("input");
  radio.type = "radio";
  radio.name = "level";
  radio.value = variant.name;
  radio.checked = isFirst;
  radio.addEventListener("change", () => chosen(variant.name));
  const attack = strongest(variant);
  const bar = make("i");
  bar.style.width = percent(attack?.success ?? 0).replace(" ", "");
  const said2 = attack === null ? "no audit" : percent(attack.success);
  const read2 = make("span", "attack", make("span", "meter", bar), said2);
  return make("label", "level", radio, make("span", "name", variant.name), make("span", "epsilon", shown(epsilon2)), read2);
}

// ../typescript/src/reading.ts
function zipfPrior(vocabularySize) {
  const weights = Float64Array.from({ length: vocabularySize }, (_, id) => 1 / (id + 100));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => Math.log(weight / total));
}
var Reader2 = class {
  constructor({ mechanism, table }, prior) {
    this.prior = prior;
    const size = prior.length;
    const width = columns(mechanism);
    if ("noiseNumerators" in mechanism) {
      const codes = 1 << mechanism.bits;
      const gains = mechanism.noiseNumerators.map((noise) => {
        const other = noise / (2 ** 32 * codes);
        return Math.log(1 - (codes - 1) * other) - Math.log(other);
      });
      this.score = (counts) => {
        const scores = new Float64Array(size);
        for (let id = 0, at = 0; id < size; id++) {
          for (let j = 0; j < width; j++, at++) if (table.at(at) === counts[j]) scores[id] += gains[j];
        }
        return scores;
      };
      return;
    }
    const trials = (1 << mechanism.bits) - 1;
    const odds = new Float32Array(size * width);
    const constants = new Float64Array(size);
    const known = /* @__PURE__ */ new Map();
    for (let id = 0, at = 0; id < size; id++) {
      for (let j = 0; j < width; j++, at++) {
        const level2 = table.at(at);
        let terms = known.get(level2);
        if (terms === void 0) {
          const q = numerator(mechanism, level2) / 2 ** 32;
          const [win, lose] = [Math.log(q), Math.log1p(-q)];
          known.set(level2, terms = [win - lose, 0.5 * trials * (win + lose + Math.log(4))]);
        }
        odds[at] = terms[0];
        constants[id] += terms[1];
      }
    }
    this.score = (counts) => {
      const centered = Float64Array.from(counts, (count3) => count3 - 0.5 * trials);
      const scores = Float64Array.from(constants);
      for (let id = 0, at = 0; id < size; id++) {
        let sum = 0;
        for (let j = 0; j < width; j++, at++) sum += centered[j] * odds[at];
        scores[id] += sum;
      }
      return scores;
    };
  }
  prior;
  score;
  /** The most probable tokens behind one token's counts, the best first. */
  read(counts, most2 = 3) {
    const scores = this.score(counts);
    let best = -Infinity;
    for (let id = 0; id < scores.length; id++) {
      scores[id] += this.prior[id];
      if (scores[id] > best) best = scores[id];
    }
    let total = 0;
    const top = [];
    for (let id = 0; id < scores.length; id++) {
      total += Math.exp(scores[id] - best);
      let at = top.length;
      while (at > 0 && scores[top[at - 1]] < scores[id]) at--;
      if (at < most2) {
        top.splice(at, 0, id);
        if (top.length > most2) top.pop();
      }
    }
    return top.map((id) => ({ id, probability: Math.exp(scores[id] - best) / total }));
  }
};

// src/tokens.ts
var MOST_SHOWN = 400;
var CELL = 4;
var Tokens = class {
  constructor(bundle, prior) {
    this.bundle = bundle;
    this.prior = prior ?? zipfPrior(bundle.vocabularySize);
  }
  bundle;
  list = byId("tokens");
  readers = /* @__PURE__ */ new Map();
  glyphs = [];
  run = 0;
  prior;
  clear() {
    this.run++;
    this.glyphs = [];
    this.list.replaceChildren();
  }
  /**
   * Shows a prompt, and then what can be read of it, token by token. `told` is called with every token that was read.
   * `template` says which public parts are the chat template's.
   */
  async show(parts, encoded, variant, template, told) {
    this.clear();
    const run = this.run;
    const rows = encoded.segments.flatMap((segment) => "private" in segment ? segment.private : []);
    const { bits } = variant.mechanism;
    const waiting = [];
    let at = 0;
    for (const part of parts) {
      if (!part.isPrivate) {
        const isTemplate = template.has(part.text);
        const own = make("span", "own", isTemplate ? "chat template" : part.text.trim() || "␣");
        const note = make("span", "guess", isTemplate ? `${part.ids.length} public tokens` : "in the clear");
        this.list.append(make("li", isTemplate ? "token public template" : "token public", own, note));
        continue;
      }
      for (const id of part.ids) {
        const counts = rows[at++];
        if (at > MOST_SHOWN) continue;
        const canvas = make("canvas");
        canvas.style.animationDelay = `${Math.min(at * 18, 900)}ms`;
        const guess = make("span", "guess");
        const item = make("li", "token private", make("span", "own", this.text(id)), hidden(" private. "), canvas, guess);
        this.glyphs.push({ canvas, counts, bits });
        waiting.push({ id, counts, guess, item });
        this.list.append(item);
      }
    }
    if (at > MOST_SHOWN) this.list.append(make("li", "token", make("span", "own", `and ${at - MOST_SHOWN} more`)));
    this.paint();
    const reader = await this.reader(variant);
    let [right, read2] = [0, 0];
    told({ right, read: read2, tokens: waiting.length });
    for (const { id, counts, guess, item } of waiting) {
      await new Promise((resolve) => setTimeout(resolve));
      if (run !== this.run) return;
      const [best] = reader.read(counts, 1);
      const isRight = best.id === id || same2(this.text(best.id), this.text(id));
      read2++;
      right += Number(isRight);
      guess.textContent = this.text(best.id);
      guess.classList.toggle("right", isRight);
      const words = `${isRight ? "Read correctly" : "Read as another token"}, with probability ${percent(best.probability)}`;
      item.title = words;
      item.append(hidden(`. ${words}.`));
      told({ right, read: read2, tokens: waiting.length });
    }
  }
  /** Draws the counts in the colors of the present theme. */
  paint() {
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--private").trim();
    for (const { canvas, counts, bits } of this.glyphs) {
      const cells = counts.length === 1 ? Array.from({ length: bits }, (_, i) => counts[0] >> bits - 1 - i & 1) : Array.from(counts, (count3) => count3 / ((1 << bits) - 1));
      const columns2 = counts.length === 1 ? Math.ceil(bits / 2) : Math.ceil(Math.sqrt(cells.length));
      const rows = Math.ceil(cells.length / columns2);
      [canvas.width, canvas.height] = [columns2 * CELL, rows * CELL];
      const context = canvas.getContext("2d");
      context.fillStyle = ink;
      cells.forEach((share2, i) => {
        context.globalAlpha = 0.1 + 0.9 * share2;
        context.fillRect(i % columns2 * CELL, Math.floor(i / columns2) * CELL, CELL, CELL);
      });
    }
  }
  text(id) {
    return visible(new TextDecoder().decode(this.bundle.tokenizer.bytes(id))) || "·";
  }
  /** The reader of a variant. Making one reads the whole table, so it is kept. */
  async reader(variant) {
    const known = this.readers.get(variant.name);
    if (known !== void 0) return known;
    await new Promise((resolve) => setTimeout(resolve, 30));
    const made = new Reader2(variant, this.prior.length === this.bundle.vocabularySize ? this.prior : zipfPrior(this.bundle.vocabularySize));
    this.readers.set(variant.name, made);
    return made;
  }
};
function same2(one, other) {
  return one.toLowerCase() === other.toLowerCase();
}
function hidden(text2) {
  return make("span", "unseen", text2);
}

// src/app.ts
var EXAMPLES = [
  ["A question", "I have had a bad toothache since last night. What should I do?", false],
  ["A letter with data in it", "Please write a short, polite letter: I am Jane Miller, born 24.12.1983, and my card 4111 1111 1111 1111 was stolen. Call me at +49 30 901820 or write to jane@example.org.", true],
  ["Savings", "I want to save money for a house. What should I do?", false]
];
var SUBJECT = "this page";
var PAUSE_MS = 200;
var MOST_DRAFTS = 32;
var isMac = navigator.platform.startsWith("Mac");
var Playground = class _Playground {
  constructor(settings, client, variants, tokens, variant) {
    this.settings = settings;
    this.client = client;
    this.variants = variants;
    this.tokens = tokens;
    this.variant = variant;
    this.editor = new Editor(() => this.changed());
    this.send.addEventListener("click", () => void this.ask());
    byId("text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        if (!this.send.disabled) void this.ask();
      }
    });
    byId("examples").replaceChildren(
      ...EXAMPLES.map(([name, text2, detected]) => {
        const button = make("button", "", name);
        button.type = "button";
        button.addEventListener("click", () => this.editor.show(text2, detected));
        return button;
      })
    );
  }
  settings;
  client;
  variants;
  tokens;
  variant;
  drafts = /* @__PURE__ */ new Map();
  sent = /* @__PURE__ */ new Map();
  ledger = new Ledger(new MemoryStorage(), { epsilon: Number.MAX_VALUE });
  editor;
  send = byId("send");
  draft = null;
  reading = null;
  timer;
  running = null;
  turn = 0;
  /** Fetches and verifies the bundle, and shows the first example. */
  static async open() {
    const settings = await (await fetch("playground.json")).json();
    const client = new DelClient(location.origin, { fingerprint: settings.fingerprint, storage: new MemoryStorage(), maxRetries: 4 });
    const bundle = await client.bundle();
    const variants = [...bundle.variants.values()];
    const epsilons = new Map(await Promise.all(variants.map(async ({ name }) => [name, await client.epsilon(name)])));
    const first = preferred(variants, epsilons);
    const tokens = new Tokens(bundle, settings.has_prior ? await fetchPrior() : null);
    byId("where").textContent = `${bundle.modelName} at ${settings.server}`;
    byId("prior-note").textContent = settings.has_prior ? " and the frequency of every token" : " and a guess at the frequency of every token";
    const page = new _Playground(settings, client, bundle.variants, tokens, first);
    showLevels(variants, epsilons, first, (name) => {
      page.variant = name;
      page.changed();
    });
    document.documentElement.addEventListener("themechange", () => tokens.paint());
    page.editor.show(EXAMPLES[0][1], EXAMPLES[0][2]);
  }
  /** The spans to send: of a chat, those of the text between the parts of the template. */
  spans() {
    const { chat } = this.settings;
    const spans = this.editor.spans;
    if (!this.isChat || chat === null) return spans;
    return [{ public: chat.before }, ...spans, { public: chat.after }];
  }
  get isChat() {
    return this.settings.chat !== null && forChat([...this.variants.values()]).some(({ name }) => name === this.variant);
  }
  changed() {
    clearTimeout(this.timer);
    this.send.disabled = true;
    this.timer = setTimeout(() => void this.update(), PAUSE_MS);
  }
  /** Draws the counts of the text as it is now, once for a text and a level, and shows them. */
  async update() {
    const turn = ++this.turn;
    const state = byId("state");
    this.draft = null;
    this.reading = null;
    if (!this.editor.spans.length) {
      this.tokens.clear();
      byId("figures").replaceChildren();
      state.textContent = "Write something, or take an example.";
      return;
    }
    try {
      const draft = await this.drawn();
      if (turn !== this.turn) return;
      this.draft = draft;
      this.send.disabled = this.running !== null;
      const hidden2 = draft.parts.filter((part) => part.isPrivate).reduce((sum, part) => sum + part.ids.length, 0);
      const open = draft.parts.reduce((sum, part) => sum + part.ids.length, 0) - hidden2;
      state.classList.remove("failed");
      state.textContent = `${count2(hidden2, "private token")}, ${open} public. ` + (this.sent.has(this.key()) ? "Sent; the same counts go out again." : "Drawn in this browser. Nothing has been sent.");
      const template = new Set(this.isChat ? [this.settings.chat.before, this.settings.chat.after] : []);
      const legend = byId("legend");
      legend.replaceChildren("your token · the counts · ", make("b", "", "what is read"));
      await this.figures();
      await this.tokens.show(draft.parts, draft.encoded, this.variants.get(this.variant), template, (reading) => {
        this.reading = reading;
        void this.figures();
      });
    } catch (error) {
      if (turn !== this.turn) return;
      this.tokens.clear();
      byId("figures").replaceChildren();
      state.classList.add("failed");
      state.textContent = said(error);
    }
  }
  key() {
    return JSON.stringify([this.variant, this.editor.spans]);
  }
  async drawn() {
    const key = this.key();
    const known = this.sent.get(key) ?? this.drafts.get(key);
    if (known !== void 0) return known;
    const spans = this.spans();
    const [parts, encoded] = await Promise.all([this.client.tokenize(spans, this.variant), this.client.encode(spans, this.variant)]);
    this.drafts.set(key, { parts, encoded });
    if (this.drafts.size > MOST_DRAFTS) this.drafts.delete(this.drafts.keys().next().value);
    return { parts, encoded };
  }
  async figures() {
    const { draft, reading, turn } = this;
    if (draft === null) return;
    const { encoded } = draft;
    const variant = this.variants.get(encoded.variant);
    const tokens = encoded.draws.reduce((sum, draw) => sum + draw.tokens, 0);
    const [one, all, spent] = await Promise.all([
      this.client.epsilon(variant.name),
      tokens ? this.client.epsilon(variant.name, { tokens }) : 0,
      this.ledger.spent(SUBJECT)
    ]);
    if (turn !== this.turn) return;
    const rows = encoded.segments.flatMap((segment) => "private" in segment ? segment.private : []);
    const bytes = tokens * Math.ceil((rows[0]?.length ?? 0) * variant.mechanism.bits / 8);
    const attack = strongest(variant);
    const figure = (className, name, value, note) => {
      return make("div", `figure ${className}`, make("dt", "", name), make("dd", "value", value), make("dd", "", note));
    };
    const right = reading === null ? "…" : `${reading.right} of ${reading.tokens}`;
    const ofAll = reading !== null && reading.tokens ? `${percent(reading.right / reading.tokens)}, each token alone` : "each token alone";
    byId("figures").replaceChildren(
      figure("kept", "Epsilon", tokens ? shown(all) : "0", `${shown(one)} a token, at delta 10⁻⁶. Sent so far: ${shown(spent)}`),
      figure("kept", "Counts", `${bytes.toLocaleString("en")} B`, `for ${count2(tokens, "private token")}`),
      figure("read", "Read here", tokens ? right : "–", tokens ? ofAll : "nothing is private"),
      figure("read", "Read in the audit", attack === null ? "–" : percent(attack.success), attack === null ? "the bundle has no audit" : attack.label)
    );
  }
  /** Sends the counts, and the clear text if it was asked for. */
  async ask() {
    const { draft } = this;
    if (draft === null || this.running !== null) return;
    const compare = byId("compare").checked;
    this.sent.set(this.key(), draft);
    const running = this.running = new AbortController();
    this.send.disabled = true;
    const options = {
      max_tokens: Number(byId("length").value),
      temperature: 0,
      stop_token_ids: this.isChat ? this.settings.chat.end_token_ids : [],
      signal: running.signal
    };
    const clear = this.spans().map((span) => ({ public: "private" in span ? span.private : span.public }));
    const charged = this.client.with({ ledger: this.ledger, subject: SUBJECT });
    if (matchMedia("(max-width: 62rem)").matches) byId("answers").scrollIntoView({ behavior: "smooth", block: "nearest" });
    const answers = [write2("private", charged, draft.encoded, options)];
    if (compare) answers.push(write2("clear", this.client, clear, { ...options, variant: "clear" }));
    else empty("clear", "Not asked: the private text has not left this device.");
    await Promise.all(answers);
    this.running = null;
    this.send.disabled = this.draft === null;
    if (this.draft === draft) byId("state").textContent = "Sent. The same text at the same level is sent with the same counts.";
    await this.figures();
  }
};
async function write2(which, client, prompt, options) {
  const [text2, meta] = [byId(`${which}-answer`), byId(`${which}-meta`)];
  text2.className = "text writing";
  text2.textContent = "";
  meta.textContent = "";
  const start = performance.now();
  const seconds = () => `${((performance.now() - start) / 1e3).toFixed(1)} s`;
  try {
    const stream = client.stream(prompt, options);
    let tokens = 0;
    for await (const chunk of stream) {
      text2.append(chunk.text);
      tokens += chunk.tokenIds.length;
      meta.textContent = `${count2(tokens, "token")}, ${seconds()}`;
    }
    const { bytesSent, tokenIds } = stream.completion;
    meta.textContent = `${count2(tokenIds.length, "token")} in ${seconds()}; ${bytesSent.toLocaleString("en")} bytes sent`;
    text2.className = "text";
    if (!text2.textContent?.trim()) empty(which, "The model wrote nothing.");
  } catch (error) {
    text2.className = "text failed";
    text2.textContent = said(error);
  }
}
function empty(which, words) {
  const text2 = byId(`${which}-answer`);
  text2.className = "text empty";
  text2.textContent = words;
  byId(`${which}-meta`).textContent = "";
}
async function fetchPrior() {
  return new Float32Array(await (await fetch("prior")).arrayBuffer());
}
function count2(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}
function said(error) {
  if (error instanceof DelError) return error.message;
  return error instanceof Error && error.name === "AbortError" ? "Stopped." : "The page failed; its console may say more.";
}
function theme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset["theme"] ?? (system.matches ? "dark" : "light")) === "dark";
  const told = () => root.dispatchEvent(new Event("themechange"));
  byId("theme").addEventListener("click", () => {
    root.dataset["theme"] = isDark() ? "light" : "dark";
    told();
  });
  system.addEventListener("change", told);
}
theme();
byId("keys").textContent = isMac ? "⌘B" : "Ctrl B";
byId("send-keys").textContent = isMac ? "⌘↵" : "Ctrl ↵";
empty("private", "The answer appears here.");
empty("clear", "Only if you ask with the clear text, too.");
Playground.open().catch((error) => {
  const state = byId("state");
  state.classList.add("failed");
  state.textContent = said(error);
});
