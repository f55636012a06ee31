// The text and which parts of it are private: a textarea over marks of the same text.

import { detect, type Span } from "del-serve";
import { byId, make } from "./dom.js";

const MARKED = "Highlighted text is private. The rest is sent as it is.";

type Range = readonly [start: number, end: number];

export class Editor {
  private ranges: Range[] = [];
  private before = "";
  /** Whether new text becomes private, as it does while everything is. */
  private everything = true;
  private readonly area = byId<HTMLTextAreaElement>("text");
  private readonly marks = byId("marks");

  /** `changed` is called after every change of the text or of what is private. */
  constructor(private readonly changed: () => void) {
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

  /** The prompt's spans. */
  get spans(): Span[] {
    const spans: Span[] = [];
    let done = 0;
    const text = this.area.value;
    for (const [start, end] of this.ranges) {
      if (start > done) spans.push({ public: text.slice(done, start) });
      spans.push({ private: text.slice(start, end) });
      done = end;
    }
    if (done < text.length) spans.push({ public: text.slice(done) });
    return spans;
  }

  /** Replaces the text; all of it is private, or what the detectors find. */
  show(text: string, detected: boolean): void {
    this.area.value = text;
    if (detected) this.detect();
    else this.all();
  }

  private all(): void {
    this.everything = true;
    byId("text-help").textContent = MARKED;
    const { length } = this.area.value;
    this.set(length ? [[0, length]] : []);
  }

  private detect(): void {
    this.everything = false;
    byId("text-help").textContent = `${MARKED} Detectors know numbers, addresses and keys: names and what is told in words stay public.`;
    this.set(detect(this.area.value).map(({ start, end }) => [start, end] as const));
  }

  /** Makes the selection private, or public if all of it is private; without a selection, the word at the caret. */
  private toggle(): void {
    const text = this.area.value;
    let [start, end] = [this.area.selectionStart, this.area.selectionEnd];
    if (start === end) {
      while (start > 0 && /\S/.test(text[start - 1]!)) start--;
      while (end < text.length && /\S/.test(text[end]!)) end++;
    }
    if (start === end) return;
    this.everything = false;
    const others = this.ranges.flatMap(([from, to]): Range[] => {
      const left: Range[] = from < start ? [[from, Math.min(to, start)]] : [];
      const right: Range[] = to > end ? [[Math.max(from, end), to]] : [];
      return from < end && to > start ? [...left, ...right] : [[from, to]];
    });
    const whole = this.ranges.some(([from, to]) => from <= start && to >= end);
    this.set(whole ? others : [...others, [start, end]]);
    this.area.focus();
  }

  /** Moves the ranges with an edit: what lies around it stays, what is typed within a private part is private. */
  private edited(): void {
    const [old, text] = [this.before, this.area.value];
    if (this.everything) return this.all();
    let head = 0;
    while (head < Math.min(old.length, text.length) && old[head] === text[head]) head++;
    let tail = 0;
    while (tail < Math.min(old.length, text.length) - head && old.at(-1 - tail) === text.at(-1 - tail)) tail++;
    const moved = text.length - old.length;
    const place = (at: number, isEnd: boolean): number => {
      if (at < head || (at === head && !isEnd)) return at;
      return at >= old.length - tail ? at + moved : Math.min(at, head);
    };
    this.set(this.ranges.map(([start, end]) => [place(start, false), place(end, true)] as const));
  }

  private set(ranges: readonly Range[]): void {
    const text = this.area.value;
    const sorted = ranges.map(([start, end]): [number, number] => [Math.max(0, start), Math.min(text.length, end)]).filter(([start, end]) => end > start);
    sorted.sort(([a], [b]) => a - b);
    // Ranges that touch are one.
    this.ranges = sorted.reduce<[number, number][]>((joined, [start, end]) => {
      const last = joined.at(-1);
      if (last !== undefined && start <= last[1]) last[1] = Math.max(last[1], end);
      else joined.push([start, end]);
      return joined;
    }, []);
    this.before = text;
    this.marks.replaceChildren(...this.spans.map((span) => ("private" in span ? make("mark", "", span.private) : span.public)), "\n");
    this.fit();
    this.changed();
  }

  private fit(): void {
    this.area.style.height = "auto";
    this.area.style.height = `${this.area.scrollHeight}px`;
  }
}
