// The memo of a client: counts of prompts that it sent, for prompts that are sent again. An application's own retry would
// otherwise send one prompt under several drawings of noise, which the server could average.

import { KeyedDigest } from "./digest.js";
import { tokensOf, type EncodedPrompt } from "./encoder.js";
import { BundleOutdatedError } from "./errors.js";
import type { Part } from "./spans.js";

const MAX_BYTES = 8 << 20;
const MAX_REDRAWS = 2;

export class PromptMemo {
  private readonly digest = KeyedDigest.create();
  private readonly kept = new Map<string, { encoded: EncodedPrompt; redraws: number }>();
  private used = 0;

  /** The name of a prompt: a keyed digest, which reveals nothing about a text. */
  async name(subject: string | null, variant: string, padding: string, parts: readonly Part[]): Promise<string> {
    const fields = parts.flatMap(({ text, isPrivate }) => [isPrivate ? "private" : "public", text]);
    return (await this.digest).of(...(subject === null ? ["none", ""] : ["some", subject]), variant, padding, ...fields);
  }

  /** The prompt of this name as it was sent last. */
  recall(name: string): EncodedPrompt | null {
    const found = this.kept.get(name);
    if (found === undefined) return null;
    this.kept.delete(name); // the most recent one stands last
    this.kept.set(name, found);
    return found.encoded;
  }

  /** Keeps a drawn prompt; returns the one to send, which is another one if a call at the same time was faster. */
  keep(name: string, encoded: EncodedPrompt, fresh: boolean): EncodedPrompt {
    const found = this.kept.get(name);
    let redraws = 0;
    if (found !== undefined && !fresh) {
      if (found.encoded.origin === encoded.origin) return found.encoded;
      redraws = found.redraws + 1;
      if (redraws > MAX_REDRAWS) {
        throw new BundleOutdatedError(`prompt: the server changed what counts mean ${redraws} times since it was first sent; fresh draws another copy`);
      }
    }
    if (found !== undefined) this.drop(name);
    this.kept.set(name, { encoded, redraws });
    this.used += sizeOf(encoded);
    while (this.used > MAX_BYTES) this.drop(this.kept.keys().next().value!);
    return encoded;
  }

  private drop(name: string): void {
    this.used -= sizeOf(this.kept.get(name)!.encoded);
    this.kept.delete(name);
  }
}

function sizeOf(encoded: EncodedPrompt): number {
  const counts = encoded.segments.reduce((sum, part) => sum + ("private" in part ? part.private.length * (part.private[0]?.length ?? 0) : 0), 0);
  return 600 + counts + 32 * tokensOf(encoded);
}
