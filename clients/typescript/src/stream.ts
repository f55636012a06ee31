// A completion, as a whole and in chunks.

import type { Chunk, TokenLogprobs, Usage } from "./events.js";
import { invalid } from "./spans.js";

export interface Completion {
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly finishReason: string;
  readonly logprobs: readonly TokenLogprobs[] | null;
  readonly usage: Usage;
  readonly requestId: string | null;
  readonly variant: string;
  readonly bytesSent: number;
}

/** A completion in chunks. Nothing is sent before the first one is asked for; leaving the loop ends the generation. */
export class CompletionStream implements AsyncIterable<Chunk> {
  private done: Completion | null = null;

  constructor(private readonly chunks: AsyncGenerator<Chunk, Completion>) {}

  /** The whole, once the stream has ended. */
  get completion(): Completion {
    if (this.done === null) throw invalid("completion", "read after the last chunk");
    return this.done;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Chunk, void> {
    try {
      for (;;) {
        const next = await this.chunks.next();
        if (next.done) {
          this.done = next.value ?? this.done;
          return;
        }
        yield next.value;
      }
    } finally {
      await this.chunks.return(undefined as never);
    }
  }
}
