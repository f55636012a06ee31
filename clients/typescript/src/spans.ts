// Prompts: private and public spans, and chats that a template turns into spans.

import { InvalidRequestError } from "./errors.js";
import { detect } from "./detect.js";

/** The variant without noise, which accepts public spans only. */
export const CLEAR = "clear";
const MAX_CHARACTERS = 1 << 24;
const MAX_BUCKET = 4096;

/** A part of a prompt: private text is sent as noisy counts, public text as token ids that anyone can read. */
export type Span = { readonly private: string } | { readonly public: string };

/** One message of a chat. The role is public; a string as content is private, spans are as marked. */
export interface Message {
  readonly role: string;
  readonly content: string | readonly Span[];
}

/** A string is private as a whole, except under `clear`. */
export type Prompt = string | readonly Span[] | readonly Message[];

/** Text and whether it is private. */
export interface Part {
  readonly text: string;
  readonly isPrivate: boolean;
}

/** What stands around the messages of a chat; all of it is public. */
export interface ChatTemplate {
  /** By role, the text in front of a message's content; other roles are refused. */
  readonly before: Readonly<Record<string, string>>;
  readonly after: string;
  /** Text at the beginning, unless the first message has the role `system`. */
  readonly opening?: string;
  /** What begins the answer. */
  readonly answer: string;
  /** Tokens that end the answer. */
  readonly endTokenIds?: readonly number[];
}

/** The template of ChatML models, such as SmolLM2 and Qwen, with a system message for chats that have none. */
export function chatML(system?: string, endTokenIds: readonly number[] = []): ChatTemplate {
  const before = (role: string): string => `<|im_start|>${role}\n`;
  return {
    before: { system: before("system"), user: before("user"), assistant: before("assistant"), tool: before("tool") },
    after: "<|im_end|>\n",
    ...(system === undefined ? {} : { opening: `${before("system")}${system}<|im_end|>\n` }),
    answer: before("assistant"),
    endTokenIds,
  };
}

/** Pads the beginning of every private span to a multiple of `bucket` tokens with those of `text`, a line feed by default. */
export interface Padding {
  readonly bucket: number;
  readonly text?: string;
}

export function checkPadding(padding: Padding): Required<Padding> {
  const { bucket, text = "\n" } = padding;
  if (!Number.isSafeInteger(bucket) || bucket < 2 || bucket > MAX_BUCKET) throw invalid("padding.bucket", `an integer from 2 to ${MAX_BUCKET}`);
  if (text === "") throw invalid("padding.text", "at least one character");
  return { bucket, text };
}

export function invalid(field: string, wanted: string): InvalidRequestError {
  return new InvalidRequestError(`${field}: must be ${wanted}`, { field });
}

export function isChat(prompt: Prompt): prompt is readonly Message[] {
  return typeof prompt !== "string" && prompt.some((part) => "role" in part);
}

/** The parts of a prompt, checked, without empty ones. No error holds a text. */
export function partsOf(prompt: Prompt, variant: string, template: ChatTemplate | null): Part[] {
  if (isChat(prompt) && template === null) throw invalid("template", "given for prompts of messages, as this package runs no Jinja");
  const parts = isChat(prompt) ? render(prompt, variant, template!) : spansOf(prompt, variant, "prompt");
  if (parts.reduce((sum, part) => sum + part.text.length, 0) > MAX_CHARACTERS) throw invalid("prompt", `at most ${MAX_CHARACTERS} characters long`);
  if (!parts.length) throw invalid("prompt", "at least one character");
  return parts;
}

function spansOf(prompt: string | readonly Span[], variant: string, where: string): Part[] {
  const spans: readonly unknown[] = typeof prompt === "string" ? [variant === CLEAR ? { public: prompt } : { private: prompt }] : prompt;
  if (!Array.isArray(spans)) throw invalid(where, "a string, spans or messages");
  return spans.map((span: unknown, i): Part => {
    const names = typeof span === "object" && span !== null ? Object.keys(span) : [];
    const [name] = names;
    const text: unknown = (span as Record<string, unknown> | null)?.[name ?? ""];
    if (names.length !== 1 || (name !== "private" && name !== "public") || typeof text !== "string") {
      throw invalid(`${where}[${i}]`, "an object with private or public text");
    }
    if (/[\ud800-\udfff]/u.test(text)) throw invalid(`${where}[${i}]`, "valid Unicode");
    if (name === "private" && variant === CLEAR) throw invalid(`${where}[${i}]`, "public under the variant clear, which adds no noise");
    return { text, isPrivate: name === "private" };
  }).filter((part) => part.text !== "");
}

function render(messages: readonly Message[], variant: string, template: ChatTemplate): Part[] {
  const parts: Part[] = [];
  const say = (text: string): void => {
    if (text) parts.push({ text, isPrivate: false });
  };
  if (messages[0]?.role !== "system") say(template.opening ?? "");
  messages.forEach((message, i) => {
    const before = Object.hasOwn(template.before, message.role) ? template.before[message.role] : undefined;
    if (before === undefined) throw invalid(`prompt[${i}].role`, `one of ${Object.keys(template.before).join(", ")}`);
    say(before);
    parts.push(...spansOf(message.content, variant, `prompt[${i}].content`));
    say(template.after);
  });
  say(template.answer);
  // Public parts that touch are one text, so that their tokens are those of the whole text.
  return parts.reduce<Part[]>((joined, part) => {
    const last = joined.at(-1);
    if (last === undefined || last.isPrivate || part.isPrivate) return [...joined, part];
    return [...joined.slice(0, -1), { text: last.text + part.text, isPrivate: false }];
  }, []);
}

/** Splits a text into spans: private where `find` says, public elsewhere. What is not found is sent in the clear. */
export function mark(text: string, find: (text: string) => Iterable<readonly [number, number]>): Span[] {
  const spans: Span[] = [];
  let done = 0;
  for (const [start, end] of [...find(text)].sort(([a], [b]) => a - b)) {
    if (!Number.isSafeInteger(start) || !Number.isSafeInteger(end) || start < done || end <= start || end > text.length) {
      throw invalid("find", "a source of ranges within the text that do not overlap");
    }
    if (start > done) spans.push({ public: text.slice(done, start) });
    spans.push({ private: text.slice(start, end) });
    done = end;
  }
  if (done < text.length) spans.push({ public: text.slice(done) });
  return spans;
}

/** A text as spans: what the detectors of structured secrets find is private, and the rest public. */
export function detected(text: string): Span[] {
  return mark(text, (given) => detect(given).map(({ start, end }) => [start, end] as const));
}
