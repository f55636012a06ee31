// Detectors of structured personal data and secrets: those of client_lib/prompts/detect.py, in the same order of precedence.
// What no detector finds goes out in the clear, and none knows names, places or what somebody tells in words.

/** The characters `start` to `end` of a text, and what they are. */
export interface Finding {
  readonly start: number;
  readonly end: number;
  readonly kind: string;
}

function isCard(text: string): boolean {
  const digits = Array.from(text.replace(/[^0-9]/g, ""), Number);
  if (digits.length < 12 || digits.length > 19 || new Set(digits).size === 1) return false;
  const sum = digits.reverse().reduce((total, digit, i) => total + (i % 2 ? Math.floor((2 * digit) / 10) + ((2 * digit) % 10) : digit), 0);
  return sum % 10 === 0;
}

function isIban(text: string): boolean {
  const compact = text.replace(/[ -]/g, "").toUpperCase();
  if (compact.length < 15 || compact.length > 34) return false;
  const moved = compact.slice(4) + compact.slice(0, 4);
  return BigInt(Array.from(moved, (character) => String(parseInt(character, 36))).join("")) % 97n === 1n;
}

function isV4(text: string): boolean {
  return text.split(".").every((part) => /^(0|[1-9][0-9]{0,2})$/.test(part) && Number(part) < 256);
}

function isV6(text: string): boolean {
  const halves = text.split("::");
  if (halves.length > 2) return false;
  const groups = halves.flatMap((half) => (half === "" ? [] : half.split(":")));
  const fits = groups.every((group) => /^[0-9A-Fa-f]{1,4}$/.test(group));
  return fits && (halves.length === 2 ? groups.length < 8 : groups.length === 8);
}

/** Whether a text is an IPv6 address with an IPv4 address at its end. */
function isV6WithV4(text: string): boolean {
  const end = text.lastIndexOf(":") + 1;
  return isV4(text.slice(end)) && isV6(`${text.slice(0, end)}0:0`);
}

/** Whether a long word is too mixed for one of a language: 3.5 bits a character. */
function isRandom(text: string): boolean {
  const kinds = [/[a-z]/, /[A-Z]/, /[0-9]/].filter((kind) => kind.test(text)).length;
  const counts = new Map<string, number>();
  for (const character of text) counts.set(character, (counts.get(character) ?? 0) + 1);
  const entropy = [...counts.values()].reduce((sum, count) => sum - (count / text.length) * Math.log2(count / text.length), 0);
  const least = /^[A-Z]{0,2}[0-9a-fA-F]+$/.test(text) ? 3.0 : 3.5; // a digit of base 16 has four bits at most
  return kinds >= 2 && /[0-9]/.test(text) && entropy >= least;
}

function isPhone(text: string): boolean {
  const digits = text.match(/\p{Nd}/gu)?.length ?? 0;
  return digits >= 7 && digits <= 15;
}

function isIdentifier(text: string): boolean {
  return (text.match(/[0-9]/g)?.length ?? 0) >= 3 && /[A-Z]/i.test(text);
}

// Python's \w, \d, \s and \b know all of Unicode; these stand for them.
const W = "\\p{L}\\p{N}_";
const EDGE = `(?:(?<=[${W}])(?![${W}])|(?<![${W}])(?=[${W}]))`;
const MONTHS =
  "(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mär|mai|okt|dez|janv|févr|avr|juin|juil|août|déc|ene|abr|ago|dic)";
const LETTERS = "[\\p{L}\\p{Nl}\\p{No}_]";
const AT = " ?[\\[(] ?at ?[\\])] ?";
const DOT = "(?:\\.| ?[\\[(] ?dot ?[\\])] ?)";
const pattern = (source: string, flags = ""): RegExp =>
  new RegExp(source.replaceAll("\\b", EDGE).replaceAll("\\w", `[${W}]`).replaceAll("[[", "[").replaceAll("\\d", "\\p{Nd}"), `dgu${flags}`);

type Detector = readonly [kind: string, pattern: RegExp, check?: (text: string) => boolean];

// In the order of precedence: of two findings that overlap, the earlier kind stays.
const DETECTORS: readonly Detector[] = [
  ["key", pattern("-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", "s")],
  ["key", pattern(`(?<![${W}\\-])eyJ[${W}\\-]{8,}\\.[${W}\\-]{8,}\\.[${W}\\-]*`)], // JSON Web Token
  [
    "key",
    pattern(
      `\\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[${W}]{20,}|github_pat_[${W}]{20,}|glpat-[${W}\\-]{16,}|xox[abprs]-[${W}\\-]{10,}` +
        `|(?:sk|pk|rk)[\\-_](?:[a-z]+[\\-_])*[A-Za-z0-9_\\-]{16,}|AIza[${W}\\-]{30,}|hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{30,}` +
        `|SG\\.[${W}\\-]{16,}\\.[${W}\\-]{16,}|ya29\\.[${W}\\-]{20,}|AAAA[BCE][A-Za-z0-9+\\/]{16,}=*)`,
    ),
  ],
  [
    "key",
    pattern(
      "\\b(?:password|passwd|passphrase|pass|secret|token|api[ _\\-]?key|pin)\\b\\s*(?:is|:|=)\\s*" +
        "(?!(?:a|an|in|my|not|on|that|the|to|too|very)\\b)([^\\s,;]+)",
      "i",
    ),
  ],
  ["key", pattern("\\bpass(?:word|phrase|code)?\\s+((?=\\S*[\\d!@#$%&*])[^\\s,;]*[^\\s,;.?])", "i")],
  ["key", pattern("(?<!\\S)(\\S{1,64}) as (?:my|his|her|their|our|your|the) password\\b")],
  ["key", pattern(`(?<![${W}+.\\-])[a-z][a-z0-9+.\\-]{0,30}:\\/\\/[^\\s\\/:@]+:[^\\s\\/@]+@[^\\s]+`, "i")], // a URL with a password
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
      `(?<![${W}+])(?<!\\d[\\-\\/.])` +
        `(?:\\d{4}[\\-\\/.]\\d{1,2}[\\-\\/.]\\d{1,2}|\\d{1,2}[\\-\\/.]\\d{1,2}[\\-\\/.](?:\\d{4}|\\d{2}))(?![\\-\\/.]?[${W}])` +
        `|\\b(?:\\d{1,2}(?:st|nd|rd|th|\\.)?[ \\-](?:of |de )?)?${MONTHS}${LETTERS}*\\.?,?(?: de)?[ \\-](?:\\d{4}|'\\d{2})\\b` +
        `|\\b${MONTHS}${LETTERS}*\\.? \\d{1,2}(?:st|nd|rd|th)?,? (?:\\d{4}\\b|'\\d{2}\\b)`,
      "i",
    ),
  ],
  ["number", pattern("\\b[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\\b")], // UUID
  ["key", pattern(`(?<![${W}\\/+=\\-])[A-Za-z0-9_\\/+=\\-]{20,}`), isRandom],
  [
    // Groups of digits with letters among them: insurance numbers, number plates
    "number",
    pattern(
      `(?<![${W}.,+(\\/\\-])(?:[A-Z]{1,3} )?\\d{1,9}(?:[ \\-]\\d{1,9}){1,5}[ \\-][A-Z](?:[ \\-]\\d{1,4})?(?![${W}\\-])` +
        `|(?<![${W}\\-])[A-Z]{1,3}[ \\-](?:[A-Z]{1,2}[ \\-])?\\d{4,10}(?![${W}.,\\-]?\\d)` +
        `|(?<![${W}\\-])[A-Z]-\\d{4}-\\d{3,9}\\b`,
    ),
  ],
  [
    "phone",
    pattern(
      `(?<![${W}.])(?:\\+|00)\\d[\\p{Nd} ()\\/.\\-]{5,22}\\d` +
        `|(?<![${W}.])(?<!\\d[ \\-])(?:1[ .\\-])?\\(?0?\\d{2,5}\\)?[ \\/.\\-]\\d{2,4}(?:[ .\\-]?\\d{2,4}){1,3}(?![${W}]|[ .\\-]\\d)`,
    ),
    isPhone,
  ],
  ["number", pattern("(?<![A-Z0-9\\-])[A-Z0-9][A-Z0-9\\-]{5,24}(?![A-Z0-9\\-])"), isIdentifier],
  ["number", pattern("(?<![\\p{Nd}.,])\\d(?:[ \\-]?\\d){5,}(?!\\d|[.,]\\d)")],
];

/** What the detectors find in a text, in order and without overlaps. */
export function detect(text: string): Finding[] {
  const taken: Finding[] = [];
  for (const [kind, expression, check] of DETECTORS) {
    for (const match of text.matchAll(expression)) {
      const [start, end] = match.indices![1] ?? match.indices![0]!;
      if (end === start || (check !== undefined && !check(text.slice(start, end)))) continue;
      if (taken.some((one) => one.start < end && start < one.end)) continue;
      taken.push({ start, end, kind });
    }
  }
  return taken.sort((a, b) => a.start - b.start);
}
