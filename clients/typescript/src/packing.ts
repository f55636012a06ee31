// Counts of n bits each in rows of whole bytes: docs/reference/wire-format.md, "Payload".

import { FrameError } from "./errors.js";

/** Bytes of one token's counts. */
export function rowBytes(dim: number, bits: number): number {
  return (dim * bits + 7) >> 3;
}

/** Rows of counts as bytes: bit i of a row is the bit of value 2^(i mod 8) in its byte floor(i / 8). */
export function pack(rows: readonly Uint8Array[], bits: number): Uint8Array {
  const dim = rows[0]?.length ?? 0;
  const width = rowBytes(dim, bits);
  const payload = new Uint8Array(rows.length * width);
  rows.forEach((row, t) => {
    if (row.length !== dim) throw new RangeError(`counts[${t}]: has ${row.length} counts; ${dim} are allowed`);
    let [held, filled, at] = [0, 0, t * width];
    for (const count of row) {
      if (count >> bits) throw new RangeError(`counts[${t}]: a count above ${(1 << bits) - 1}`);
      held |= count << filled;
      for (filled += bits; filled >= 8; filled -= 8) {
        payload[at++] = held & 0xff;
        held >>= 8;
      }
    }
    if (filled) payload[at] = held;
  });
  return payload;
}

/** The inverse of pack. Throws FrameError for another length and for padding that is not zero. */
export function unpack(payload: Uint8Array, tokens: number, dim: number, bits: number): Uint8Array[] {
  const width = rowBytes(dim, bits);
  if (payload.length !== tokens * width) {
    throw new FrameError("payload_length_mismatch", "payload", `${payload.length} bytes; ${tokens * width} are allowed`);
  }
  const padding = (dim * bits) % 8;
  return Array.from({ length: tokens }, (_, t) => {
    const bytes = payload.subarray(t * width, (t + 1) * width);
    if (padding && bytes[width - 1]! >> padding) {
      throw new FrameError("invalid_padding", `payload row ${t}`, "padding bits are set; zeros are allowed");
    }
    const row = new Uint8Array(dim);
    let [held, filled, at] = [0, 0, 0];
    for (let j = 0; j < dim; j++) {
      if (filled < bits) {
        held |= bytes[at++]! << filled;
        filled += 8;
      }
      row[j] = held & ((1 << bits) - 1);
      held >>= bits;
      filled -= bits;
    }
    return row;
  });
}
