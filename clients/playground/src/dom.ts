// Elements of the page. Text becomes text nodes only: nothing of a prompt or an answer is markup.

/** The element of an id, which the page has. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

/** A new element with a class and children. */
export function make<K extends keyof HTMLElementTagNameMap>(tag: K, className = "", ...children: (Node | string)[]): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** A number for people: three digits that count. */
export function shown(value: number): string {
  if (value === Infinity) return "∞";
  if (value >= 1000) return Math.round(value).toLocaleString("en");
  return value.toPrecision(3).replace(/(\.[0-9]*?)0+$/, "$1").replace(/\.$/, "");
}

export function percent(share: number): string {
  return `${(100 * share).toFixed(share < 0.995 && share > 0 ? 1 : 0)} %`;
}

/** A token's text as one can see it. */
export function visible(text: string): string {
  return text.replace(/\r?\n/g, "↵").replace(/\t/g, "⇥").replace(/^ +(?=\S)/, "").replace(/^ +$/, "␣");
}
