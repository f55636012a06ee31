// The playground: the text becomes counts in this browser; they are read here, sent, and answered.

import { DelClient, DelError, Ledger, MemoryStorage, type EncodedPrompt, type Span, type TokenizedPart, type Variant } from "del-serve";
import type { LogPrior } from "del-serve/reading";
import { byId, make, percent, shown } from "./dom.js";
import { Editor } from "./editor.js";
import { forChat, preferred, showLevels, strongest } from "./levels.js";
import { Tokens, type Reading } from "./tokens.js";

interface Settings {
  readonly server: string;
  readonly fingerprint: string;
  readonly chat: { readonly before: string; readonly after: string; readonly end_token_ids: readonly number[] } | null;
  readonly has_prior: boolean;
}

interface Draft {
  readonly parts: readonly TokenizedPart[];
  readonly encoded: EncodedPrompt;
}

const EXAMPLES: readonly (readonly [name: string, text: string, detected: boolean])[] = [
  ["A question", "I have had a bad toothache since last night. What should I do?", false],
  ["A letter with data in it", "Please write a short, polite letter: I am Jane Miller, born 24.12.1983, and my card 4111 1111 1111 1111 was stolen. Call me at +49 30 901820 or write to jane@example.org.", true],
  ["Savings", "I want to save money for a house. What should I do?", false],
];
const SUBJECT = "this page";
const PAUSE_MS = 200;
const MOST_DRAFTS = 32;
const isMac = navigator.platform.startsWith("Mac");

class Playground {
  private readonly drafts = new Map<string, Draft>();
  private readonly sent = new Map<string, Draft>();
  private readonly ledger = new Ledger(new MemoryStorage(), { epsilon: Number.MAX_VALUE });
  private readonly editor: Editor;
  private readonly send = byId<HTMLButtonElement>("send");
  private draft: Draft | null = null;
  private reading: Reading | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private running: AbortController | null = null;
  private turn = 0;

  private constructor(
    private readonly settings: Settings,
    private readonly client: DelClient,
    private readonly variants: ReadonlyMap<string, Variant>,
    private readonly tokens: Tokens,
    private variant: string,
  ) {
    this.editor = new Editor(() => this.changed());
    this.send.addEventListener("click", () => void this.ask());
    byId("text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        if (!this.send.disabled) void this.ask();
      }
    });
    byId("examples").replaceChildren(
      ...EXAMPLES.map(([name, text, detected]) => {
        const button = make("button", "", name);
        button.type = "button";
        button.addEventListener("click", () => this.editor.show(text, detected));
        return button;
      }),
    );
  }

  /** Fetches and verifies the bundle, and shows the first example. */
  static async open(): Promise<void> {
    const settings = (await (await fetch("playground.json")).json()) as Settings;
    const client = new DelClient(location.origin, { fingerprint: settings.fingerprint, storage: new MemoryStorage(), maxRetries: 4 });
    const bundle = await client.bundle();
    const variants = [...bundle.variants.values()];
    const epsilons = new Map(await Promise.all(variants.map(async ({ name }) => [name, await client.epsilon(name)] as const)));
    const first = preferred(variants, epsilons);
    const tokens = new Tokens(bundle, settings.has_prior ? await fetchPrior() : null);
    byId("where").textContent = `${bundle.modelName} at ${settings.server}`;
    byId("prior-note").textContent = settings.has_prior ? " and the frequency of every token" : " and a guess at the frequency of every token";
    const page = new Playground(settings, client, bundle.variants, tokens, first);
    showLevels(variants, epsilons, first, (name) => {
      page.variant = name;
      page.changed();
    });
    document.documentElement.addEventListener("themechange", () => tokens.paint());
    page.editor.show(EXAMPLES[0]![1], EXAMPLES[0]![2]);
  }

  /** The spans to send: of a chat, those of the text between the parts of the template. */
  private spans(): Span[] {
    const { chat } = this.settings;
    const spans = this.editor.spans;
    if (!this.isChat || chat === null) return spans;
    return [{ public: chat.before }, ...spans, { public: chat.after }];
  }

  private get isChat(): boolean {
    return this.settings.chat !== null && forChat([...this.variants.values()]).some(({ name }) => name === this.variant);
  }

  private changed(): void {
    clearTimeout(this.timer);
    this.send.disabled = true;
    this.timer = setTimeout(() => void this.update(), PAUSE_MS);
  }

  /** Draws the counts of the text as it is now, once for a text and a level, and shows them. */
  private async update(): Promise<void> {
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
      const hidden = draft.parts.filter((part) => part.isPrivate).reduce((sum, part) => sum + part.ids.length, 0);
      const open = draft.parts.reduce((sum, part) => sum + part.ids.length, 0) - hidden;
      state.classList.remove("failed");
      state.textContent =
        `${count(hidden, "private token")}, ${open} public. ` +
        (this.sent.has(this.key()) ? "Sent; the same counts go out again." : "Drawn in this browser. Nothing has been sent.");
      const template = new Set(this.isChat ? [this.settings.chat!.before, this.settings.chat!.after] : []);
      const legend = byId("legend");
      legend.replaceChildren("your token · the counts · ", make("b", "", "what is read"));
      await this.figures();
      await this.tokens.show(draft.parts, draft.encoded, this.variants.get(this.variant)!, template, (reading) => {
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

  private key(): string {
    return JSON.stringify([this.variant, this.editor.spans]);
  }

  private async drawn(): Promise<Draft> {
    const key = this.key();
    const known = this.sent.get(key) ?? this.drafts.get(key);
    if (known !== undefined) return known;
    const spans = this.spans();
    const [parts, encoded] = await Promise.all([this.client.tokenize(spans, this.variant), this.client.encode(spans, this.variant)]);
    this.drafts.set(key, { parts, encoded });
    // Counts that were sent are never forgotten: the same text again has to be the same counts.
    if (this.drafts.size > MOST_DRAFTS) this.drafts.delete(this.drafts.keys().next().value!);
    return { parts, encoded };
  }

  private async figures(): Promise<void> {
    const { draft, reading, turn } = this;
    if (draft === null) return;
    const { encoded } = draft;
    const variant = this.variants.get(encoded.variant)!;
    const tokens = encoded.draws.reduce((sum, draw) => sum + draw.tokens, 0);
    const [one, all, spent] = await Promise.all([
      this.client.epsilon(variant.name),
      tokens ? this.client.epsilon(variant.name, { tokens }) : 0,
      this.ledger.spent(SUBJECT),
    ]);
    if (turn !== this.turn) return;
    const rows = encoded.segments.flatMap((segment) => ("private" in segment ? segment.private : []));
    const bytes = tokens * Math.ceil(((rows[0]?.length ?? 0) * variant.mechanism.bits) / 8);
    const attack = strongest(variant);
    const figure = (className: string, name: string, value: string, note: string): HTMLElement => {
      return make("div", `figure ${className}`, make("dt", "", name), make("dd", "value", value), make("dd", "", note));
    };
    const right = reading === null ? "…" : `${reading.right} of ${reading.tokens}`;
    const ofAll = reading !== null && reading.tokens ? `${percent(reading.right / reading.tokens)}, each token alone` : "each token alone";
    byId("figures").replaceChildren(
      figure("kept", "Epsilon", tokens ? shown(all) : "0", `${shown(one)} a token, at delta 10⁻⁶. Sent so far: ${shown(spent)}`),
      figure("kept", "Counts", `${bytes.toLocaleString("en")} B`, `for ${count(tokens, "private token")}`),
      figure("read", "Read here", tokens ? right : "–", tokens ? ofAll : "nothing is private"),
      figure("read", "Read in the audit", attack === null ? "–" : percent(attack.success), attack === null ? "the bundle has no audit" : attack.label),
    );
  }

  /** Sends the counts, and the clear text if it was asked for. */
  private async ask(): Promise<void> {
    const { draft } = this;
    if (draft === null || this.running !== null) return;
    const compare = byId<HTMLInputElement>("compare").checked;
    this.sent.set(this.key(), draft);
    const running = (this.running = new AbortController());
    this.send.disabled = true;
    const options = {
      max_tokens: Number(byId<HTMLSelectElement>("length").value),
      temperature: 0,
      stop_token_ids: this.isChat ? this.settings.chat!.end_token_ids : [],
      signal: running.signal,
    };
    const clear = this.spans().map((span) => ({ public: "private" in span ? span.private : span.public }));
    const charged = this.client.with({ ledger: this.ledger, subject: SUBJECT });
    if (matchMedia("(max-width: 62rem)").matches) byId("answers").scrollIntoView({ behavior: "smooth", block: "nearest" });
    const answers = [write("private", charged, draft.encoded, options)];
    if (compare) answers.push(write("clear", this.client, clear, { ...options, variant: "clear" }));
    else empty("clear", "Not asked: the private text has not left this device.");
    await Promise.all(answers);
    this.running = null;
    this.send.disabled = this.draft === null;
    if (this.draft === draft) byId("state").textContent = "Sent. The same text at the same level is sent with the same counts.";
    await this.figures();
  }
}

type Options = Parameters<DelClient["stream"]>[1];

/** Shows an answer while it is written. */
async function write(which: "private" | "clear", client: DelClient, prompt: EncodedPrompt | readonly Span[], options: Options): Promise<void> {
  const [text, meta] = [byId(`${which}-answer`), byId(`${which}-meta`)];
  text.className = "text writing";
  text.textContent = "";
  meta.textContent = "";
  const start = performance.now();
  const seconds = (): string => `${((performance.now() - start) / 1000).toFixed(1)} s`;
  try {
    const stream = client.stream(prompt, options);
    let tokens = 0;
    for await (const chunk of stream) {
      text.append(chunk.text);
      tokens += chunk.tokenIds.length;
      meta.textContent = `${count(tokens, "token")}, ${seconds()}`;
    }
    const { bytesSent, tokenIds } = stream.completion;
    meta.textContent = `${count(tokenIds.length, "token")} in ${seconds()}; ${bytesSent.toLocaleString("en")} bytes sent`;
    text.className = "text";
    if (!text.textContent?.trim()) empty(which, "The model wrote nothing.");
  } catch (error) {
    text.className = "text failed";
    text.textContent = said(error);
  }
}

function empty(which: "private" | "clear", words: string): void {
  const text = byId(`${which}-answer`);
  text.className = "text empty";
  text.textContent = words;
  byId(`${which}-meta`).textContent = "";
}

async function fetchPrior(): Promise<LogPrior> {
  return new Float32Array(await (await fetch("prior")).arrayBuffer());
}

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** An error in one sentence. */
function said(error: unknown): string {
  if (error instanceof DelError) return error.message;
  return error instanceof Error && error.name === "AbortError" ? "Stopped." : "The page failed; its console may say more.";
}

/** The theme follows the system until the button says another. */
function theme(): void {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = (): boolean => (root.dataset["theme"] ?? (system.matches ? "dark" : "light")) === "dark";
  const told = (): boolean => root.dispatchEvent(new Event("themechange"));
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
Playground.open().catch((error: unknown) => {
  const state = byId("state");
  state.classList.add("failed");
  state.textContent = said(error);
});
