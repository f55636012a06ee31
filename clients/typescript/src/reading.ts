// What anyone who sees the counts can read of them with the bundle alone: the likelihood of every token of the vocabulary, for
// each token by itself. It is a lower bound of what an attacker reads: one who has the language model, too, reads more.

import type { Variant } from "./bundle.js";
import { columns, numerator } from "./sampler.js";

/** A guess of one token. */
export interface Guess {
  readonly id: number;
  /** The probability of the token, given the counts and the prior. */
  readonly probability: number;
}

/** A natural logarithm of each token's probability before anything is seen. */
export type LogPrior = Float32Array | Float64Array;

/**
 * Zipf's law over the token ids. A vocabulary of byte pairs is numbered in the order of its merges, the frequent ones first,
 * so that this is a guess at the frequencies which needs no text.
 */
export function zipfPrior(vocabularySize: number): LogPrior {
  const weights = Float64Array.from({ length: vocabularySize }, (_, id) => 1 / (id + 100));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => Math.log(weight / total));
}

/** Reads counts of one variant. */
export class Reader {
  private readonly score: (counts: Uint8Array) => Float64Array;

  constructor(
    { mechanism, table }: Pick<Variant, "mechanism" | "table">,
    private readonly prior: LogPrior,
  ) {
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
          for (let j = 0; j < width; j++, at++) if (table.at(at) === counts[j]) scores[id]! += gains[j]!;
        }
        return scores;
      };
      return;
    }
    // log P(counts | token) is, up to a constant, the sum of (K_j - u/2) log(q/(1-q)) + (u/2) log(4 q (1-q)); docs/privacy/audit.md.
    const trials = (1 << mechanism.bits) - 1;
    const odds = new Float32Array(size * width);
    const constants = new Float64Array(size);
    const known = new Map<number, readonly [number, number]>();
    for (let id = 0, at = 0; id < size; id++) {
      for (let j = 0; j < width; j++, at++) {
        const level = table.at(at);
        let terms = known.get(level);
        if (terms === undefined) {
          const q = numerator(mechanism, level) / 2 ** 32;
          const [win, lose] = [Math.log(q), Math.log1p(-q)];
          known.set(level, (terms = [win - lose, 0.5 * trials * (win + lose + Math.log(4))]));
        }
        odds[at] = terms[0];
        constants[id]! += terms[1];
      }
    }
    this.score = (counts) => {
      const centered = Float64Array.from(counts, (count) => count - 0.5 * trials);
      const scores = Float64Array.from(constants);
      for (let id = 0, at = 0; id < size; id++) {
        let sum = 0;
        for (let j = 0; j < width; j++, at++) sum += centered[j]! * odds[at]!;
        scores[id]! += sum;
      }
      return scores;
    };
  }

  /** The most probable tokens behind one token's counts, the best first. */
  read(counts: Uint8Array, most = 3): Guess[] {
    const scores = this.score(counts);
    let best = -Infinity;
    for (let id = 0; id < scores.length; id++) {
      scores[id]! += this.prior[id]!;
      if (scores[id]! > best) best = scores[id]!;
    }
    let total = 0;
    const top: number[] = [];
    for (let id = 0; id < scores.length; id++) {
      total += Math.exp(scores[id]! - best);
      let at = top.length;
      while (at > 0 && scores[top[at - 1]!]! < scores[id]!) at--;
      if (at < most) {
        top.splice(at, 0, id);
        if (top.length > most) top.pop();
      }
    }
    return top.map((id) => ({ id, probability: Math.exp(scores[id]! - best) / total }));
  }
}
