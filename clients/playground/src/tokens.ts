// The tokens of a prompt, one above the other: the token, the counts that stand for it, and what can be read of them.

import type { Bundle, EncodedPrompt, TokenizedPart, Variant } from "del-serve";
import { Reader, zipfPrior, type LogPrior } from "del-serve/reading";
import { byId, make, percent, visible } from "./dom.js";

const MOST_SHOWN = 400;
const CELL = 4;

/** What was read: for how many private tokens the most probable one was right, spaces and capitals aside. */
export interface Reading {
  readonly right: number;
  readonly read: number;
  readonly tokens: number;
}

interface Glyph {
  readonly canvas: HTMLCanvasElement;
  readonly counts: Uint8Array;
  readonly bits: number;
}

export class Tokens {
  private readonly list = byId("tokens");
  private readonly readers = new Map<string, Reader>();
  private glyphs: Glyph[] = [];
  private run = 0;
  private readonly prior: LogPrior;

  constructor(
    private readonly bundle: Bundle,
    prior: LogPrior | null,
  ) {
    this.prior = prior ?? zipfPrior(bundle.vocabularySize);
  }

  clear(): void {
    this.run++;
    this.glyphs = [];
    this.list.replaceChildren();
  }

  /**
   * Shows a prompt, and then what can be read of it, token by token. `told` is called with every token that was read.
   * `template` says which public parts are the chat template's.
   */
  async show(parts: readonly TokenizedPart[], encoded: EncodedPrompt, variant: Variant, template: ReadonlySet<string>, told: (reading: Reading) => void): Promise<void> {
    this.clear();
    const run = this.run;
    const rows = encoded.segments.flatMap((segment) => ("private" in segment ? segment.private : []));
    const { bits } = variant.mechanism;
    const waiting: { id: number; counts: Uint8Array; guess: HTMLElement; item: HTMLElement }[] = [];
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
        const counts = rows[at++]!;
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
    let [right, read] = [0, 0];
    told({ right, read, tokens: waiting.length });
    for (const { id, counts, guess, item } of waiting) {
      await new Promise((resolve) => setTimeout(resolve)); // so that the page stays alive
      if (run !== this.run) return;
      const [best] = reader.read(counts, 1);
      const isRight = best!.id === id || same(this.text(best!.id), this.text(id));
      read++;
      right += Number(isRight);
      guess.textContent = this.text(best!.id);
      guess.classList.toggle("right", isRight);
      const words = `${isRight ? "Read correctly" : "Read as another token"}, with probability ${percent(best!.probability)}`;
      item.title = words;
      item.append(hidden(`. ${words}.`));
      told({ right, read, tokens: waiting.length });
    }
  }

  /** Draws the counts in the colors of the present theme. */
  paint(): void {
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--private").trim();
    for (const { canvas, counts, bits } of this.glyphs) {
      // A single code is shown by its bits, many counts by their sizes.
      const cells = counts.length === 1 ? Array.from({ length: bits }, (_, i) => (counts[0]! >> (bits - 1 - i)) & 1) : Array.from(counts, (count) => count / ((1 << bits) - 1));
      const columns = counts.length === 1 ? Math.ceil(bits / 2) : Math.ceil(Math.sqrt(cells.length));
      const rows = Math.ceil(cells.length / columns);
      [canvas.width, canvas.height] = [columns * CELL, rows * CELL];
      const context = canvas.getContext("2d")!;
      context.fillStyle = ink;
      cells.forEach((share, i) => {
        context.globalAlpha = 0.1 + 0.9 * share;
        context.fillRect((i % columns) * CELL, Math.floor(i / columns) * CELL, CELL, CELL);
      });
    }
  }

  private text(id: number): string {
    return visible(new TextDecoder().decode(this.bundle.tokenizer.bytes(id))) || "·";
  }

  /** The reader of a variant. Making one reads the whole table, so it is kept. */
  private async reader(variant: Variant): Promise<Reader> {
    const known = this.readers.get(variant.name);
    if (known !== undefined) return known;
    await new Promise((resolve) => setTimeout(resolve, 30));
    const made = new Reader(variant, this.prior.length === this.bundle.vocabularySize ? this.prior : zipfPrior(this.bundle.vocabularySize));
    this.readers.set(variant.name, made);
    return made;
  }
}

/** Whether a reader takes two tokens for the same: spaces and capitals tell him nothing. */
function same(one: string, other: string): boolean {
  return one.toLowerCase() === other.toLowerCase();
}

function hidden(text: string): HTMLElement {
  return make("span", "unseen", text);
}
