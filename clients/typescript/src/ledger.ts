// A ledger limits what the prompts of a subject may reveal together: the spending is recorded before anything is sent.

import { DEFAULT_DELTA, epsilon, renyi, renyiEpsilon } from "./accounting.js";
import { BudgetExceededError, DelError } from "./errors.js";
import { columns, type Mechanism } from "./sampler.js";
import { invalid } from "./spans.js";
import { exclusively, type Storage } from "./storage.js";

export interface Budget {
  /** The most epsilon that all private tokens of a subject may cost together. */
  readonly epsilon: number;
  /** Its delta, above 0 and below 1; 1e-6 unless given. */
  readonly delta?: number;
}

/** One drawing of noise: it is charged once, however often it is sent. */
export interface Draw {
  readonly id: string;
  readonly tokens: number;
}

/** What a client charges; an application may bring its own. `spend` throws if the budget does not cover the draws. */
export interface Spender {
  spend(subject: string, mechanism: Mechanism, draws: readonly Draw[]): Promise<unknown>;
}

interface Account {
  /** Tokens by noise level. */
  levels: Record<string, number>;
  /** The drawings that were charged. */
  draws: string[];
}

/** Limits every subject of a storage to one budget. Guarantees are worst case over every table. */
export class Ledger implements Spender {
  private readonly delta: number;

  constructor(
    private readonly storage: Storage,
    private readonly budget: Budget,
  ) {
    this.delta = budget.delta ?? DEFAULT_DELTA;
    if (!(budget.epsilon > 0)) throw invalid("budget.epsilon", "a number above 0");
    if (!(this.delta > 0 && this.delta < 1)) throw invalid("budget.delta", "a number above 0 and below 1");
  }

  async spend(subject: string, mechanism: Mechanism, draws: readonly Draw[]): Promise<void> {
    const name = nameOf(subject);
    await exclusively(this.storage, name, async () => {
      const account = await this.read(name);
      const fresh = draws.filter((draw) => !account.draws.includes(draw.id));
      if (!fresh.length) return;
      const level = levelOf(mechanism);
      account.levels[level] = (account.levels[level] ?? 0) + fresh.reduce((sum, draw) => sum + draw.tokens, 0);
      account.draws.push(...fresh.map((draw) => draw.id));
      const total = this.total(account);
      if (!(total <= this.budget.epsilon)) {
        throw new BudgetExceededError(`budget: must be at most epsilon ${this.budget.epsilon} at delta ${this.delta}, got more`, total, this.budget.epsilon);
      }
      await this.storage.setItem(name, JSON.stringify(account));
    });
  }

  /** What a subject has spent, as epsilon at the budget's delta. */
  async spent(subject: string): Promise<number> {
    return this.total(await this.read(nameOf(subject)));
  }

  /** One noise level adds up exactly; several add their Renyi divergences, an upper bound. */
  private total(account: Account): number {
    const levels = Object.entries(account.levels).map(([level, tokens]): [Mechanism, number] => [mechanismOf(level), tokens]);
    if (!levels.length) return 0;
    if (levels.length === 1) return epsilon(levels[0]![0], this.delta, levels[0]![1]);
    const curves = levels.map(([mechanism, tokens]) => renyi(mechanism, tokens));
    return renyiEpsilon(curves.reduce((sum, curve) => sum.map((value, i) => value + curve[i]!)), this.delta);
  }

  private async read(name: string): Promise<Account> {
    const text = await this.storage.getItem(name);
    if (text === null) return { levels: {}, draws: [] };
    try {
      const { levels, draws } = JSON.parse(text) as Account;
      Object.keys(levels).forEach(mechanismOf);
      if (Object.values(levels).every((tokens) => Number.isSafeInteger(tokens) && tokens > 0) && Array.isArray(draws)) return { levels, draws };
    } catch {
      // told below
    }
    throw new DelError("ledger: an account is damaged; it never counts as empty");
  }
}

function nameOf(subject: string): string {
  if (typeof subject !== "string" || !subject || subject.length > 256) throw invalid("subject", "a text of 1 to 256 characters");
  return `del-serve.ledger.${subject}`;
}

function levelOf(mechanism: Mechanism): string {
  const { bits } = mechanism;
  if ("noiseNumerators" in mechanism) return JSON.stringify({ bits, noise: mechanism.noiseNumerators });
  return JSON.stringify({ bits, dim: columns(mechanism), ratio: Number(mechanism.ratioNumerator) });
}

function mechanismOf(level: string): Mechanism {
  const { bits, noise, dim, ratio } = JSON.parse(level) as { bits: number; noise?: number[]; dim: number; ratio: number };
  if (noise !== undefined) return { bits, noiseNumerators: noise };
  return { bits, dim, ratioNumerator: BigInt(ratio), maxLevel: 1n };
}
