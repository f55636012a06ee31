// What can go wrong. Messages name fields and positions, never text, token ids or counts.

/** The HTTP status of every stable code that is not 400. */
export const STATUS: Readonly<Record<string, number>> = {
  bundle_outdated: 409,
  deadline_exceeded: 408,
  engine_unavailable: 503,
  frame_too_large: 413,
  header_too_large: 413,
  internal_error: 500,
  invalid_api_key: 401,
  method_not_allowed: 405,
  not_found: 404,
  overloaded: 503,
  rate_limit_exceeded: 429,
  unknown_variant: 404,
  unsupported_media_type: 415,
};
const BAD_REQUEST = new Set([
  "context_length_exceeded", "invalid_header", "invalid_magic", "invalid_padding", "invalid_value", "missing_field",
  "payload_length_mismatch", "private_not_accepted", "truncated_frame", "unknown_field", "unsupported_parameter", "unsupported_version",
]);

/** The status that a code stands for; 500 for one that is not known. */
export function statusOf(code: unknown): number {
  if (typeof code !== "string") return 500;
  return (Object.hasOwn(STATUS, code) ? STATUS[code] : undefined) ?? (BAD_REQUEST.has(code) ? 400 : 500);
}

export interface Details {
  /** The status and the stable code of the server's answer, and its id of the request. */
  readonly status?: number | null;
  readonly code?: string | null;
  readonly requestId?: string | null;
  /** The field at fault. */
  readonly field?: string | null;
  /** Seconds that the server wants the caller to wait. */
  readonly retryAfter?: number | null;
  readonly cause?: unknown;
}

/** Base of every error that this package throws on purpose. */
export class DelError extends Error {
  readonly status: number | null;
  readonly code: string | null;
  readonly requestId: string | null;
  readonly field: string | null;
  readonly retryAfter: number | null;

  constructor(message: string, details: Details = {}) {
    super(message, "cause" in details ? { cause: details.cause } : undefined);
    this.name = new.target.name;
    this.status = details.status ?? null;
    this.code = details.code ?? null;
    this.requestId = details.requestId ?? null;
    this.field = details.field ?? null;
    this.retryAfter = details.retryAfter ?? null;
  }
}

/** A field of the request is not acceptable, found before sending or by the server. */
export class InvalidRequestError extends DelError {}

/** The prompt leaves no room for an answer in the server's context. */
export class ContextFullError extends InvalidRequestError {
  constructor(
    message: string,
    details: Details = {},
    /** The length of the prompt, and the most tokens that prompt and answer may have together; null if only the server found it. */
    readonly promptTokens: number | null = null,
    readonly room: number | null = null,
  ) {
    super(message, { code: "context_length_exceeded", field: "prompt", ...details });
  }
}

/** The API key is missing or unknown (401), or does not permit the call (403). */
export class AccessDeniedError extends DelError {}

/** The server cannot take the request now (429, 503), and the retries are spent; see `retryAfter`. */
export class OverloadedError extends DelError {}

/** The server failed, or sent a status that no other error describes. */
export class ServerError extends DelError {}

/** No connection could be made, or it broke before the answer was complete. */
export class ConnectionFailedError extends DelError {}

/** A time limit passed: `phase` is "read" or "total". */
export class TimeoutExceededError extends DelError {
  constructor(
    message: string,
    readonly phase: "read" | "total",
  ) {
    super(message);
  }
}

/** A stream broke more often than it may be resumed. */
export class StreamBrokenError extends DelError {}

/** The server's answer violates the wire format. */
export class ProtocolError extends DelError {}

/** The bundles of client and server differ, and the same counts would mean something else. */
export class BundleOutdatedError extends DelError {}

/** One difference between a server's offer and what was accepted from it. */
export interface Change {
  readonly field: string;
  readonly accepted: string;
  readonly offered: string;
}

/** The server offers a bundle that is not, or weaker than, the one accepted from it. */
export class BundleRejectedError extends DelError {
  constructor(
    message: string,
    readonly fingerprint: string,
    readonly changes: readonly Change[],
  ) {
    super(message);
  }
}

/** The record of what was accepted from servers cannot be read or written. */
export class TrustUnavailableError extends DelError {}

/** The caller's privacy policy forbids the call. */
export class PolicyViolationError extends DelError {}

/** The subject's privacy budget does not cover the call; `spent` and `limit` are epsilons. */
export class BudgetExceededError extends DelError {
  constructor(
    message: string,
    readonly spent: number,
    readonly limit: number,
  ) {
    super(message);
  }
}

/** A saved conversation cannot be opened: wrong key, altered bytes, or another format. */
export class MemoryInvalidError extends DelError {}

/** A frame that breaks docs/reference/wire-format.md, with the code that a server answers. */
export class FrameError extends DelError {
  declare readonly status: number;
  declare readonly code: string;
  declare readonly field: string;

  constructor(code: string, field: string, message: string) {
    super(`${field}: ${message}`, { code, field, status: statusOf(code) });
  }
}

/** A bundle that is damaged, altered, newer, or needs what this client does not have. */
export class BundleError extends DelError {
  constructor(
    readonly file: string,
    message: string,
  ) {
    super(`${file}: ${message}`);
  }
}
