// The privacy levels to choose from, with the epsilon that is computed here and the attack that the bundle states.

import type { Plain, Variant } from "del-serve";
import { byId, make, percent, shown } from "./dom.js";

const ATTACKS: Record<string, string> = {
  bidirectional: "a language model that reads both sides",
  combined: "two language models together",
  inverter: "a trained inverter",
  map: "the most probable token, each alone",
  nearest: "the nearest embedding",
  sequence: "a language model over the whole prompt",
};

/** The strongest attack that the bundle's audit states, or null. */
export interface Attack {
  readonly success: number;
  readonly label: string;
  readonly date: string | null;
}

export function strongest(variant: Variant): Attack | null {
  const audit = variant.audit as { [name: string]: Plain };
  const found = Object.entries(audit).flatMap(([name, value]) => {
    const success = typeof value === "object" && value !== null && !Array.isArray(value) ? value["success"] : null;
    if (typeof success !== "number" || !Object.hasOwn(ATTACKS, name)) return [];
    return [{ success, label: ATTACKS[name]!, date: variant.auditDate }];
  });
  return found.sort((a, b) => b.success - a.success)[0] ?? null;
}

/** The variants to chat with: those of that task, else the general ones, else all. */
export function forChat(variants: readonly Variant[]): readonly Variant[] {
  for (const task of ["chat", "general"]) {
    const found = variants.filter((variant) => variant.task === task);
    if (found.length) return found;
  }
  return variants;
}

/** The variant that is shown first: of those to chat with, the code with the least epsilon; else the middle one. */
export function preferred(variants: readonly Variant[], epsilons: ReadonlyMap<string, number>): string {
  const chats = forChat(variants);
  const codes = chats.filter((variant) => "noiseNumerators" in variant.mechanism);
  const among = codes.length ? codes : chats;
  const sorted = [...among].sort((a, b) => epsilons.get(a.name)! - epsilons.get(b.name)!);
  return sorted[codes.length ? 0 : sorted.length >> 1]!.name;
}

/** Shows the levels as radio buttons, those of the first one's task in sight. `chosen` is called with every choice. */
export function showLevels(
  variants: readonly Variant[],
  epsilons: ReadonlyMap<string, number>,
  first: string,
  chosen: (name: string) => void,
): void {
  const inSight = variants.find((variant) => variant.name === first)!.task;
  const tasks = [...new Set(variants.map((variant) => variant.task))];
  const titles: Record<string, string> = tasks.includes("chat")
    ? { chat: "Privacy level of a question", general: "Privacy level of a text to continue" }
    : { general: "Privacy level" };
  const title = (task: string): string => (tasks.length === 1 ? "Privacy level" : (titles[task] ?? `Privacy level: ${task}`));
  const group = (task: string): HTMLElement => {
    const captions = make("div", "captions", make("span", "", "ε a token"), make("span", "", "attack reads"));
    captions.ariaHidden = "true";
    const fieldset = make("fieldset", "levels", make("legend", "", title(task)), captions);
    const sorted = variants.filter((variant) => variant.task === task).sort((a, b) => epsilons.get(a.name)! - epsilons.get(b.name)!);
    fieldset.append(...sorted.map((variant) => level(variant, epsilons.get(variant.name)!, variant.name === first, chosen)));
    return fieldset;
  };
  const others = tasks.filter((task) => task !== inSight);
  byId("levels").replaceChildren(group(inSight));
  if (others.length) byId("levels").append(make("details", "more", make("summary", "", "More levels"), ...others.map(group)));
}

function level(variant: Variant, epsilon: number, isFirst: boolean, chosen: (name: string) => void): HTMLElement {
  const radio = make("input");
  radio.type = "radio";
  radio.name = "level";
  radio.value = variant.name;
  radio.checked = isFirst;
  radio.addEventListener("change", () => chosen(variant.name));
  const attack = strongest(variant);
  const bar = make("i");
  bar.style.width = percent(attack?.success ?? 0).replace(" ", "");
  const said = attack === null ? "no audit" : percent(attack.success);
  const read = make("span", "attack", make("span", "meter", bar), said);
  return make("label", "level", radio, make("span", "name", variant.name), make("span", "epsilon", shown(epsilon)), read);
}
