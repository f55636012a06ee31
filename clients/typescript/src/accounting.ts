// Exact accounting of the two mechanisms, computed from the integers that the noise is drawn with: what docs/privacy/guarantee.md
// and docs/privacy/categorical.md prove, and del_core/accounting computes. Epsilon is in nats, for replaced private tokens in the
// worst case over every table and tokenizer, so a false manifest changes nothing.

import { columns, type BinomialMechanism, type CategoricalMechanism, type Mechanism } from "./sampler.js";

const ONE = 2 ** 32;
const ROUND_UP = 1 + 2 ** -50;
const MAX_TRIALS = 1e10;
const NEGLIGIBLE = 2 ** -60;
const EXACT_CODES = 4096; // up to here the distribution of the loss is computed, above its Renyi bound

/** Delta of an epsilon unless another is given. */
export const DEFAULT_DELTA = 1e-6;
/** Largest epsilon of one private token, at `DEFAULT_DELTA`, that a client accepts unless its policy says another. */
export const MAX_EPSILON_PER_TOKEN = 350;

/** The smallest epsilon at `delta` from 0 to 1 of `tokens` private tokens; infinite beyond the range of the accounting. */
export function epsilon(mechanism: Mechanism, delta = DEFAULT_DELTA, tokens = 1): number {
  if (!(delta >= 0 && delta <= 1)) throw new RangeError("delta: a number from 0 to 1 is needed");
  if (!Number.isSafeInteger(tokens) || tokens < 1) throw new RangeError("tokens: an integer from 1 is needed");
  return isCategorical(mechanism) ? responseEpsilon(mechanism, delta, tokens) : binomialEpsilon(mechanism, delta, tokens);
}

/** Orders of Renyi divergences, as del_core's accounting has them by default. */
export const ORDERS: readonly number[] = Array.from({ length: 97 }, (_, i) => 1 + 10 ** (-4 + (8 * i) / 96));

/** Renyi divergences in nats of `tokens` private tokens at each order; those of several releases add. */
export function renyi(mechanism: Mechanism, tokens: number, orders: readonly number[] = ORDERS): number[] {
  if (isCategorical(mechanism)) {
    const groups = responseGroups(mechanism, tokens);
    return orders.map((order) => groups.reduce((sum, group) => sum + group.count * responseRenyi(group, order - 1), 0));
  }
  const trials = columns(mechanism) * ((1 << mechanism.bits) - 1) * tokens;
  const p = ONE / 2 + Number(mechanism.ratioNumerator);
  const [win, lose, step] = [Math.log(p / ONE), Math.log((ONE - p) / ONE), logRatio(p, ONE - p)];
  return orders.map((order) => (trials * Math.max(0, logSum(win + (order - 1) * step, lose - (order - 1) * step))) / (order - 1));
}

/** The smallest epsilon at `delta` above 0 that the divergences at the orders prove (arXiv 2004.00010, proposition 12). */
export function renyiEpsilon(divergences: readonly number[], delta: number, orders: readonly number[] = ORDERS): number {
  const each = orders.map((order, i) => {
    const excess = order - 1;
    return Math.max(0, divergences[i]! - Math.log1p(1 / excess) - (Math.log(delta) + Math.log(order)) / excess);
  });
  return Math.min(...each);
}

/** The largest privacy loss, which is epsilon at delta 0. */
export function largestLoss(mechanism: Mechanism, tokens = 1): number {
  if (isCategorical(mechanism)) {
    const total = responseGroups(mechanism, tokens).reduce((sum, { count, step }) => sum + count * step, 0);
    return total * ROUND_UP;
  }
  const p = ONE / 2 + Number(mechanism.ratioNumerator);
  return columns(mechanism) * ((1 << mechanism.bits) - 1) * tokens * logRatio(p, ONE - p) * ROUND_UP;
}

function isCategorical(mechanism: Mechanism): mechanism is CategoricalMechanism {
  return "noiseNumerators" in mechanism;
}

// ---------------------------------------------------------------------------------------------------------- binomial counts

/** Binomial(N, p) against Binomial(N, 1 - p), N = trials dim tokens, p = (1 + r) / 2: two binomial tails. */
function binomialEpsilon(mechanism: BinomialMechanism, delta: number, tokens: number): number {
  const trials = columns(mechanism) * ((1 << mechanism.bits) - 1) * tokens;
  if (trials > MAX_TRIALS) return Infinity;
  const p = ONE / 2 + Number(mechanism.ratioNumerator);
  const largest = largestLoss(mechanism, tokens);
  if (delta === 1) return 0;
  if (delta === 0) return largest;
  const ratio = logRatio(p, ONE - p);
  const step = 2 * ratio;
  const loss = (k: number): number => (2 * k - trials) * ratio;
  const logDeltaFrom = (start: number, margin: number): number =>
    logWeightedTail(start, trials, p, (offset) => -Math.expm1(-(margin + step * offset)));
  const target = Math.log(delta);
  const first = Math.max(0, Math.ceil(-loss(0) / step));
  if (target >= logDeltaFrom(first, loss(first))) return 0;
  // Delta is linear in exp(epsilon) between adjacent losses. The first `high` with delta(L(high)) <= target:
  let [high, low] = [trials, -1];
  while (high - low > 1) {
    const middle = Math.floor((high + low) / 2);
    if (logDeltaFrom(middle + 1, step) <= target) high = middle;
    else low = middle;
  }
  const above = logDeltaFrom(high, step);
  const below = logDeltaFrom(high + 1, step);
  const rest = Math.exp(below - target);
  const share = (1 - rest) / (Math.exp(Math.min(709, above - target)) - rest);
  const value = loss(high) + Math.log1p(share * Math.expm1(-step));
  return Math.min(Math.max(0, value) * ROUND_UP, largest);
}

/** log of the sum over k >= start of P(k) weight(k - start), P = Binomial(trials, numerator / 2^32); outwards from the largest term. */
function logWeightedTail(start: number, trials: number, numerator: number, weight: (offset: number) => number): number {
  if (start > trials) return -Infinity;
  const odds = numerator / (ONE - numerator);
  const mode = Number((BigInt(trials + 1) * BigInt(numerator)) >> 32n);
  const anchor = Math.min(Math.max(start, mode), trials);
  const offset = anchor - start;
  let total = sumFrom(
    (j) => ((trials - anchor - j) / (anchor + 1 + j)) * odds,
    (j) => weight(offset + j),
    trials - anchor + 1,
  );
  if (offset) {
    const below = anchor / (trials - anchor + 1) / odds;
    total += below * sumFrom(
      (j) => (anchor - 1 - j) / (trials - anchor + 2 + j) / odds,
      (j) => weight(offset - 1 - j),
      offset,
    );
  }
  return total > 0 ? logProbability(anchor, trials, numerator) + Math.log(total) : -Infinity;
}

/** The sum over j < count of weight(j) times the product of ratio(i), i < j; ratios fall, weights are at most 1. */
function sumFrom(ratio: (j: number) => number, weight: (j: number) => number, count: number): number {
  let [total, scale] = [0, 1];
  for (let j = 0; j < count; j++) {
    total += scale * weight(j);
    const next = ratio(j);
    scale *= next;
    // Ratios only fall, so a geometric series bounds what is left; it is added, so that nothing is understated.
    if ((j & 255) === 255 && j + 1 < count && next < 1) {
      const rest = scale / (1 - next);
      if (rest <= NEGLIGIBLE * total) return total + rest;
    }
  }
  return total;
}

/** The log-probability of k successes by the saddle point (C. Loader, 2000), which keeps its accuracy at large n. */
function logProbability(k: number, trials: number, numerator: number): number {
  const failures = trials - k;
  const complement = ONE - numerator;
  if (k === 0) return trials * Math.log1p((complement - ONE) / ONE);
  if (failures === 0) return trials * Math.log1p((numerator - ONE) / ONE);
  return (
    stirlingError(trials) - stirlingError(k) - stirlingError(failures) - deviance(k, trials, numerator) -
    deviance(failures, trials, complement) - 0.5 * Math.log(2 * Math.PI * ((k * failures) / trials))
  );
}

function stirlingError(n: number): number {
  if (n < 16) {
    let factorial = 1;
    for (let i = 2; i <= n; i++) factorial *= i;
    return Math.log(factorial) - (n + 0.5) * Math.log(n) + n - 0.5 * Math.log(2 * Math.PI);
  }
  const square = n * n;
  return (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - 1 / 1188 / square) / square) / square) / square) / n;
}

/** count log(count / m) + m - count, m = trials numerator / 2^32, from exact integers. */
function deviance(count: number, trials: number, numerator: number): number {
  const scaled = BigInt(count) << 32n;
  const mean = BigInt(trials) * BigInt(numerator);
  const difference = Number(scaled - mean) / ONE;
  const v = Number(scaled - mean) / Number(scaled + mean);
  if (Math.abs(v) > 0.25) return count * Math.log(Number(scaled) / Number(mean)) - difference;
  let [total, power] = [difference * v, 2 * count * v];
  for (let j = 3; ; j += 2) {
    power *= v * v;
    const updated = total + power / j;
    if (updated === total) return total;
    total = updated;
  }
}

/** log(above / below) for above > below > 0 without cancellation. */
function logRatio(above: number, below: number): number {
  return Math.log1p((above - below) / below);
}

function logSum(...terms: number[]): number {
  const top = Math.max(...terms);
  return top + Math.log(terms.reduce((sum, term) => sum + Math.exp(term - top), 0));
}

// ----------------------------------------------------------------------------------------------------- randomized responses

interface ResponseGroup {
  readonly codes: number;
  readonly count: number;
  /** P(Z = c) of the own code, and P(Z = z) of any other. */
  readonly keep: number;
  readonly other: number;
  /** log(keep / other), rounded up. */
  readonly step: number;
}

function responseGroups(mechanism: CategoricalMechanism, tokens: number): ResponseGroup[] {
  const counts = new Map<number, number>();
  for (const numerator of mechanism.noiseNumerators) counts.set(numerator, (counts.get(numerator) ?? 0) + tokens);
  const codes = 1 << mechanism.bits;
  return [...counts].map(([numerator, count]) => {
    const other = numerator / (ONE * codes);
    const excess = (codes * (ONE - numerator)) / numerator;
    return { codes, count, keep: 1 - (codes - 1) * other, other, step: Math.log1p(excess) * (1 + 2 ** -51) };
  });
}

function responseRenyi({ codes, keep, other, step }: ResponseGroup, excess: number): number {
  if (step === 0) return 0; // the code says nothing
  const terms = [Math.log(keep) + excess * step, Math.log(other) - excess * step];
  if (codes > 2) terms.push(Math.log((codes - 2) * other));
  return Math.max(0, logSum(...terms)) / excess;
}

function responseEpsilon(mechanism: CategoricalMechanism, delta: number, tokens: number): number {
  const largest = largestLoss(mechanism, tokens);
  if (delta === 0) return largest;
  const groups = responseGroups(mechanism, tokens);
  if (groups.length !== 1 || groups[0]!.count > EXACT_CODES) {
    const orders = Array.from({ length: 193 }, (_, i) => 1 + 10 ** (-4 + (8 * i) / 192));
    return Math.min(largest, renyiEpsilon(renyi(mechanism, tokens, orders), delta, orders));
  }
  const [{ codes, count, keep, other, step }] = groups as [ResponseGroup];
  const law = power([other, (codes - 2) * other, keep], count);
  const deltaAt = (at: number): number =>
    law.reduce((sum, p, i) => sum + Math.max(0, -p * Math.expm1(at - (i - count) * step)), 0) * (1 + 1e-9);
  if (deltaAt(0) <= delta) return 0;
  let [low, high] = [0, largest];
  while (high - low > 1e-12 * high) {
    const middle = 0.5 * (low + high);
    if (middle === low || middle === high) break;
    if (deltaAt(middle) <= delta) high = middle;
    else low = middle;
  }
  return high;
}

/** The law of the sum of `count` steps of -1, 0 and 1, by repeated squaring. */
function power(step: number[], count: number): number[] {
  let [result, square] = [[1], step];
  for (let left = count; left; left >>= 1) {
    if (left & 1) result = convolve(result, square);
    if (left > 1) square = convolve(square, square);
  }
  return result;
}

function convolve(a: readonly number[], b: readonly number[]): number[] {
  const result = new Array<number>(a.length + b.length - 1).fill(0);
  for (let i = 0; i < a.length; i++) for (let j = 0; j < b.length; j++) result[i + j]! += a[i]! * b[j]!;
  return result;
}
