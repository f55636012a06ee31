// Conversations repeat the counts of earlier turns, at no further cost of privacy. An entry holds no text: it is named by a keyed
// digest of variant, text and occurrence, so that two places with the same text carry independent noise.

import type { DelClient, Recall, RequestOptions } from "./client.js";
import { fromHex, KEY_BYTES, KeyedDigest, randomBytes, toHex } from "./digest.js";
import type { Drawn } from "./encoder.js";
import { BundleOutdatedError, MemoryInvalidError } from "./errors.js";
import type { Chunk } from "./events.js";
import { invalid, isChat, type Message, type Prompt } from "./spans.js";
import { CompletionStream, type Completion } from "./stream.js";

const HEAD = new TextEncoder().encode("DELW\u0001");
const NONCE_BYTES = 12;

export interface ConversationOptions {
  readonly variant?: string;
  /** Hide the server's own answers from it, too. */
  readonly privateAnswers?: boolean;
  /** What `save` returned, and the key that it was given. */
  readonly memory?: Uint8Array;
  readonly key?: Uint8Array;
}

interface Kept extends Drawn {
  /** What the counts depend on. */
  readonly origin: string;
}

interface Saved {
  readonly key: string;
  readonly session: string;
  readonly answers: string[];
  readonly spans: { name: string; origin: string; id: string; counts: string[] }[];
}

/** Every call takes the whole prompt, history included; a chat's own answers are public, as the server wrote them. */
export class Conversation {
  private constructor(
    private readonly client: DelClient,
    readonly variant: string,
    private readonly privateAnswers: boolean,
    private digest: KeyedDigest,
    private session: string,
    private readonly kept: Map<string, Kept>,
    private readonly answers: Set<string>,
  ) {}

  /** @internal */
  static async open(client: DelClient, options: ConversationOptions & { variant: string }): Promise<Conversation> {
    const { variant, privateAnswers = false, memory, key } = options;
    if (memory === undefined) {
      return new Conversation(client, variant, privateAnswers, await KeyedDigest.create(), newSession(), new Map(), new Set());
    }
    if (key === undefined) throw invalid("key", "the 32 bytes that save was given");
    const saved = await unseal(memory, key);
    const kept = saved.spans.map(({ name, origin, id, counts }): [string, Kept] => [name, { id, origin, counts: counts.map(fromHex) }]);
    return new Conversation(client, variant, privateAnswers, await KeyedDigest.create(fromHex(saved.key)), saved.session, new Map(kept), new Set(saved.answers));
  }

  /** One completion in one answer; `fresh` draws all noise anew. */
  async complete(prompt: Prompt, options: Omit<RequestOptions, "variant"> = {}): Promise<Completion> {
    const shown = await this.shown(prompt, options.fresh === true);
    const completion = await this.client.completeWith(shown, { ...options, variant: this.variant }, this.recall(options.fresh === true));
    await this.note(prompt, completion.text);
    return completion;
  }

  /** One completion in chunks. */
  stream(prompt: Prompt, options: Omit<RequestOptions, "variant"> = {}): CompletionStream {
    return new CompletionStream(this.chunks(prompt, options));
  }

  /** Drops all counts: text that is sent again gets fresh noise, and costs privacy again. */
  async forget(): Promise<void> {
    this.digest = await KeyedDigest.create();
    this.session = newSession();
    this.kept.clear();
    this.answers.clear();
  }

  /** All counts, without text, encrypted and authenticated with a key of 32 bytes (AES-256-GCM). */
  async save(key: Uint8Array): Promise<Uint8Array> {
    const spans = [...this.kept].map(([name, { id, origin, counts }]) => ({ name, origin, id, counts: counts.map(toHex) }));
    const saved: Saved = { key: toHex(this.digest.key), session: this.session, answers: [...this.answers], spans };
    const nonce = randomBytes(NONCE_BYTES);
    const cipher = await aes(key, "encrypt");
    const text = new TextEncoder().encode(JSON.stringify(saved));
    const sealed = new Uint8Array(await crypto.subtle.encrypt(gcm(nonce), cipher, text));
    return Uint8Array.from([...HEAD, ...nonce, ...sealed]);
  }

  private async *chunks(prompt: Prompt, options: Omit<RequestOptions, "variant">): AsyncGenerator<Chunk, Completion> {
    const shown = await this.shown(prompt, options.fresh === true);
    const stream = this.client.streamWith(shown, { ...options, variant: this.variant }, this.recall(options.fresh === true));
    yield* stream;
    await this.note(prompt, stream.completion.text);
    return stream.completion;
  }

  /** Counts that were sent before, or drawn now. */
  private recall(fresh: boolean): Recall {
    return async (encoder, parts, variant, endTokenIds) => {
      const hidden = parts.filter((part) => part.isPrivate);
      const seen = new Map<string, number>();
      const names = await Promise.all(
        hidden.map((part) => {
          const occurrence = (seen.get(part.text) ?? 0) + 1;
          seen.set(part.text, occurrence);
          // The number of tokens tells paddings apart.
          return this.digest.of(variant, String(part.ids.length), part.text, String(occurrence));
        }),
      );
      const origin = encoder.origin(variant);
      // From here to the end nothing is awaited, so that two calls at the same time share their counts.
      if (!fresh && names.some((name) => (this.kept.get(name)?.origin ?? origin) !== origin)) {
        throw new BundleOutdatedError("spans of this conversation were drawn for another bundle; forget() or fresh spends fresh noise on them");
      }
      if (fresh) {
        this.session = newSession();
        this.answers.clear(); // in the clear, an answer would link the old counts with the new ones
      }
      const drawn = hidden.map((part, i) => {
        const known = fresh ? undefined : this.kept.get(names[i]!);
        const one = known ?? { ...encoder.draw(part.ids, variant), origin };
        this.kept.set(names[i]!, one);
        return one;
      });
      return encoder.assemble(parts, drawn, variant, { session: this.session, endTokenIds });
    };
  }

  /** The prompt with the answers that the server wrote itself as public text. */
  private async shown(prompt: Prompt, fresh: boolean): Promise<Prompt> {
    if (fresh || this.privateAnswers || !isChat(prompt)) return prompt;
    const turns = await this.turns(prompt);
    return Promise.all(
      prompt.map(async (message, i): Promise<Message> => {
        if (message.role !== "assistant" || typeof message.content !== "string") return message;
        const own = this.answers.has(await this.digest.of("answer", turns[i]!, message.content.trim()));
        return own ? { role: message.role, content: [{ public: message.content }] } : message;
      }),
    );
  }

  private async note(prompt: Prompt, text: string): Promise<void> {
    if (!isChat(prompt)) return;
    const turns = await this.turns(prompt);
    this.answers.add(await this.digest.of("answer", turns.at(-1)!, text.trim()));
  }

  /** A name of the chat before each of its messages, and at its end. */
  private async turns(messages: readonly Message[]): Promise<string[]> {
    const names = [await this.digest.of("chat", this.variant)];
    for (const { role, content } of messages) {
      const fields = typeof content === "string" ? [content] : content.flatMap((span) => ("private" in span ? ["private", span.private] : ["public", span.public]));
      names.push(await this.digest.of("turn", names.at(-1)!, role, ...fields));
    }
    return names;
  }
}

function newSession(): string {
  return toHex(randomBytes(16));
}

function gcm(nonce: Uint8Array): AesGcmParams {
  return { name: "AES-GCM", iv: nonce as Uint8Array<ArrayBuffer>, additionalData: HEAD };
}

async function aes(key: Uint8Array, usage: "encrypt" | "decrypt"): Promise<CryptoKey> {
  if (!(key instanceof Uint8Array) || key.length !== KEY_BYTES) throw invalid("key", `${KEY_BYTES} bytes, for example of crypto.getRandomValues`);
  return crypto.subtle.importKey("raw", key as Uint8Array<ArrayBuffer>, "AES-GCM", false, [usage]);
}

async function unseal(memory: Uint8Array, key: Uint8Array): Promise<Saved> {
  const start = HEAD.length + NONCE_BYTES;
  const wrong = new MemoryInvalidError("memory: must be unaltered and opened with the key of save, got altered bytes, another key or another format", { field: "memory" });
  if (!(memory instanceof Uint8Array) || HEAD.some((byte, i) => memory[i] !== byte)) throw wrong;
  const cipher = await aes(key, "decrypt");
  try {
    const text = await crypto.subtle.decrypt(gcm(memory.slice(HEAD.length, start)), cipher, memory.slice(start));
    return JSON.parse(new TextDecoder().decode(text)) as Saved;
  } catch {
    throw wrong;
  }
}
