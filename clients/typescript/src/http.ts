// HTTP to the server: addresses, time limits, retries. A retry sends the very same bytes.

import {
  BundleOutdatedError, ConnectionFailedError, DelError, InvalidRequestError, ProtocolError, ServerError, TimeoutExceededError,
} from "./errors.js";
import { member, readError, readId, readObject } from "./events.js";
import { invalid } from "./spans.js";

const MAX_ERROR_BYTES = 1 << 16;
const LONGEST_PAUSE_S = 10;
const LONGEST_WAIT_S = 60;
const TEMPORARY = [408, 409, 429];

export interface Timeout {
  /** Seconds of the longest silence; 60 unless given. */
  readonly read?: number;
  /** Seconds of the whole call with all its retries; 600 unless given. */
  readonly total?: number;
}

export interface Asked {
  readonly path: string;
  readonly headers: Record<string, string>;
  readonly body?: Uint8Array;
}

/** The time that one call has, and why it may end early. */
export class Deadline {
  private readonly controller = new AbortController();
  private readonly timer: ReturnType<typeof setTimeout>;
  private readonly leave: () => void;
  /** Internal errors (500) of the call: one may be chance, a second one is no passing state. */
  internalErrors = 0;

  constructor(
    readonly timeout: Required<Timeout>,
    private readonly caller?: AbortSignal,
  ) {
    this.timer = setTimeout(() => this.controller.abort(new TimeoutExceededError(`total: the call took more than ${timeout.total} s`, "total")), 1000 * timeout.total);
    this.leave = () => this.controller.abort(caller?.reason);
    if (caller?.aborted) this.leave();
    caller?.addEventListener("abort", this.leave);
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  /** Ends the wait for whatever still runs. */
  end(): void {
    clearTimeout(this.timer);
    this.caller?.removeEventListener("abort", this.leave);
    this.controller.abort();
  }

  /** The result of work that has to end within the longest silence; `cancel` is told if it does not. */
  async within<T>(work: Promise<T>, cancel: (reason: unknown) => void): Promise<T> {
    const { signal } = this;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let stop: (() => void) | undefined;
    const over = new Promise<never>((_, reject) => {
      stop = () => reject(signal.reason as Error);
      if (signal.aborted) stop();
      signal.addEventListener("abort", stop);
      timer = setTimeout(() => reject(new TimeoutExceededError(`read: the server was silent for ${this.timeout.read} s`, "read")), 1000 * this.timeout.read);
    });
    try {
      return await Promise.race([work, over]);
    } catch (error) {
      work.catch(() => undefined);
      cancel(error);
      throw error;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", stop!);
    }
  }

  /** Waits, unless the call ends first. */
  async pause(seconds: number): Promise<void> {
    const { signal } = this;
    await new Promise<void>((resolve, reject) => {
      const stop = (): void => {
        clearTimeout(timer);
        reject(signal.reason as Error);
      };
      const timer = setTimeout(() => {
        signal.removeEventListener("abort", stop);
        resolve();
      }, 1000 * seconds);
      signal.addEventListener("abort", stop);
      if (signal.aborted) stop();
    });
  }
}

export class Http {
  constructor(
    readonly url: string,
    private readonly apiKey: string | null,
    private readonly send: typeof fetch,
    private readonly maxRetries: number,
  ) {}

  /** An answer that is a success. What passes is waited out, sending the same bytes again. */
  async request(asked: Asked, deadline: Deadline): Promise<Response> {
    for (let attempt = 0; ; attempt++) {
      let failure: unknown;
      try {
        return await this.attempt(asked, deadline);
      } catch (error) {
        failure = error;
      }
      const wish = failure instanceof DelError ? (failure.retryAfter ?? 0) : 0;
      if (attempt >= this.maxRetries || !isTemporary(failure) || wish > LONGEST_WAIT_S || endsCall(failure, deadline)) throw failure;
      await deadline.pause(Math.max(wish, backoff(attempt)));
    }
  }

  private async attempt({ path, headers, body }: Asked, deadline: Deadline): Promise<Response> {
    // Node asks for compressed answers unless told; a browser decides for itself.
    const given: Record<string, string> = { ...headers, "accept-encoding": "identity" };
    if (this.apiKey !== null) given["authorization"] = `Bearer ${this.apiKey}`;
    const stop = new AbortController();
    const cancel = (reason: unknown): void => stop.abort(reason);
    let answer: Response;
    try {
      const { send } = this;
      answer = await deadline.within(
        send(`${this.url}${path}`, {
          method: body === undefined ? "GET" : "POST",
          headers: given,
          // Nothing that a server set before is sent, nothing leads elsewhere.
          credentials: "omit",
          redirect: "error",
          referrerPolicy: "no-referrer",
          cache: body === undefined ? "no-cache" : "no-store",
          signal: stop.signal,
          ...(body === undefined ? {} : { body: body as Uint8Array<ArrayBuffer> }),
        }),
        cancel,
      );
    } catch (error) {
      if (error instanceof DelError || deadline.signal.aborted) throw error;
      throw new ConnectionFailedError(`${path}: no connection, or the server redirects`, { cause: error });
    }
    if (answer.ok) return answer;
    const text = new TextDecoder().decode(await readBytes(answer, MAX_ERROR_BYTES, deadline));
    let failure: unknown = null;
    try {
      failure = member(readObject(text, "error"), "error"); // an intermediary may send a page of its own; the status decides then
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
    }
    throw readError(answer.status, failure, { requestId: readId(answer.headers.get("x-request-id")), retryAfter: retryAfter(answer.headers.get("retry-after")) });
  }
}

/** Whether the same bytes may succeed later. */
export function isTemporary(failure: unknown): boolean {
  if (failure instanceof BundleOutdatedError || failure instanceof InvalidRequestError) return false;
  if (failure instanceof ConnectionFailedError) return true;
  return failure instanceof DelError && failure.status !== null && (TEMPORARY.includes(failure.status) || failure.status >= 500);
}

/** Whether a failure is a second internal error of the call. */
export function endsCall(failure: unknown, deadline: Deadline): boolean {
  if (failure instanceof ServerError && failure.status === 500) deadline.internalErrors++;
  return deadline.internalErrors > 1;
}

/** Seconds that double with every attempt, with jitter. */
export function backoff(attempt: number): number {
  const share = 0.5 + crypto.getRandomValues(new Uint32Array(1))[0]! / 2 ** 33;
  return Math.min(LONGEST_PAUSE_S, 0.5 * 2 ** Math.min(attempt, 30)) * share;
}

function retryAfter(value: string | null): number | null {
  if (value === null) return null;
  if (/^[0-9]{1,9}(\.[0-9]{1,9})?$/.test(value)) return Number(value);
  const moment = Date.parse(value);
  return Number.isNaN(moment) ? null : Math.max(0, (moment - Date.now()) / 1000);
}

/** The pieces of a body, each within the longest silence. A connection that breaks is a ConnectionFailedError. */
export async function* pieces(answer: Response, deadline: Deadline): AsyncGenerator<Uint8Array> {
  // React Native's own fetch has no streams: there the body comes as a whole.
  const reader = (answer.body as ReadableStream<Uint8Array> | null | undefined)?.getReader();
  let done = false;
  try {
    if (reader === undefined) {
      yield new Uint8Array(await deadline.within(answer.arrayBuffer(), () => undefined));
      done = true;
      return;
    }
    for (;;) {
      const next = await deadline.within(reader.read(), () => undefined);
      if (next.done) break;
      yield next.value;
    }
    done = true;
  } catch (error) {
    if (error instanceof DelError || deadline.signal.aborted) throw error;
    throw new ConnectionFailedError("body: the connection broke", { cause: error });
  } finally {
    if (!done) reader?.cancel().catch(() => undefined); // so that the server stops
  }
}

export async function readBytes(answer: Response, most: number, deadline: Deadline): Promise<Uint8Array> {
  const found: Uint8Array[] = [];
  let size = 0;
  for await (const piece of pieces(answer, deadline)) {
    size += piece.length;
    if (size > most) throw new ProtocolError(`body: more than ${most} bytes`);
    found.push(piece);
  }
  const whole = new Uint8Array(size);
  let at = 0;
  for (const piece of found) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

/** The address of a server without a slash at its end. Plain http is for this machine only, unless it is allowed. */
export function checkUrl(url: string, allowHttp: boolean): string {
  let parsed: URL;
  try {
    parsed = new URL(url);
  } catch {
    throw invalid("url", "https://host[:port][/path]");
  }
  const { protocol, hostname, username, password, search, hash } = parsed;
  if ((protocol !== "https:" && protocol !== "http:") || username || password || search || hash) throw invalid("url", "https://host[:port][/path]");
  const loopback = hostname === "localhost" || hostname.endsWith(".localhost") || hostname === "[::1]" || /^127(\.[0-9]+){3}$/.test(hostname);
  if (protocol === "http:" && !loopback && !allowHttp) throw invalid("url", "https, as http is for this machine only (option allowHttp)");
  return parsed.href.replace(/\/+$/, "");
}
