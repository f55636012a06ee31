// From a row of a table to counts: docs/reference/bundle-format.md, "From a level to a count" and "From a code to a
// released code". Integers only; no float decides a bit.

const ONE = 2n ** 31n;

/** What a count is drawn with: bits of a count, the noise as ratio_numerator / 2^31, the level that stands for the clip. */
export interface BinomialMechanism {
  readonly bits: number;
  /** Counts of a token. */
  readonly dim: number;
  readonly ratioNumerator: bigint;
  readonly maxLevel: bigint;
}

/** What a code is released with: bits of a code, and lambda 2^32 of each code of a token. */
export interface CategoricalMechanism {
  readonly bits: number;
  readonly noiseNumerators: readonly number[];
}

export type Mechanism = BinomialMechanism | CategoricalMechanism;

/** Source of independent uniform bytes. */
export interface RandomBytes {
  next(): number;
}

/** q 2^32 = 2^31 + round(level ratio_numerator / max_level), halves away from zero. */
export function numerator(mechanism: BinomialMechanism, level: number): number {
  const size = BigInt(Math.abs(level));
  if (!Number.isInteger(level) || size > mechanism.maxLevel) throw new RangeError("level: beyond max_level");
  const doubled = 2n * size * mechanism.ratioNumerator + mechanism.maxLevel;
  const rounded = doubled / (2n * mechanism.maxLevel); // of bigints, which rounds down
  return Number(level < 0 ? ONE - rounded : ONE + rounded); // below 2^32, which a number holds exactly
}

/** Counts, or codes, of a token. */
export function columns(mechanism: Mechanism): number {
  return "noiseNumerators" in mechanism ? mechanism.noiseNumerators.length : mechanism.dim;
}

/** Random bytes of the Web Crypto API, fetched as many at a time as it gives. */
export class CryptoBytes implements RandomBytes {
  private readonly pool = new Uint8Array(65536);
  private used = this.pool.length;

  next(): number {
    if (this.used === this.pool.length) {
      crypto.getRandomValues(this.pool);
      this.used = 0;
    }
    const byte = this.pool[this.used]!;
    this.pool[this.used++] = 0; // never twice
    return byte;
  }
}

/** Draws the counts of one token from its row of the table. */
export function sample(mechanism: Mechanism, levels: Int16Array, random: RandomBytes = new CryptoBytes()): Uint8Array {
  return "noiseNumerators" in mechanism ? respond(mechanism, levels, random) : count(mechanism, levels, random);
}

/** Randomized response: a uniform code is released if R < lambda 2^32, else the token's own. No branch on a code. */
function respond(mechanism: CategoricalMechanism, codes: Int16Array, random: RandomBytes): Uint8Array {
  const compared = Array.from(codes, () => {
    const bytes = [random.next(), random.next(), random.next(), random.next()] as const;
    return (bytes[0] | (bytes[1] << 8) | (bytes[2] << 16) | (bytes[3] << 24)) >>> 0;
  });
  const largest = (1 << mechanism.bits) - 1;
  return Uint8Array.from(codes, (code, j) => {
    if (code < 0 || code > largest) throw new RangeError("level: beyond the codes");
    const mask = -Number(compared[j]! < mechanism.noiseNumerators[j]!) & largest;
    return code ^ ((code ^ random.next()) & mask);
  });
}

/** K_j is the number of trials i with R_i < q_j 2^32, R_i uniform in 0..2^32 - 1. */
function count(mechanism: BinomialMechanism, levels: Int16Array, random: RandomBytes): Uint8Array {
  const trials = (1 << mechanism.bits) - 1;
  return Uint8Array.from(levels, (level) => {
    const q = numerator(mechanism, level);
    const top = q >>> 24;
    const rest = q & 0xffffff;
    let successes = 0;
    for (let i = 0; i < trials; i++) {
      // The most significant byte decides 255 of 256 trials; where it ties, the other three do.
      const first = random.next();
      if (first !== top) successes += first < top ? 1 : 0;
      else successes += ((random.next() << 16) | (random.next() << 8) | random.next()) < rest ? 1 : 0;
    }
    return successes;
  });
}
