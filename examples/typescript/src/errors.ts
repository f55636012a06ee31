// What can go wrong. Messages name fields and positions, never text, token ids or counts.

const STATUS: Record<string, number> = {
  frame_too_large: 413,
  header_too_large: 413,
  bundle_outdated: 409,
  unknown_variant: 404,
};

/** A frame that breaks docs/reference/wire-format.md, with the code that a server answers. */
export class FrameError extends Error {
  readonly status: number;

  constructor(
    readonly code: string,
    readonly field: string,
    message: string,
  ) {
    super(`${field}: ${message}`);
    this.status = STATUS[code] ?? 400;
  }
}

/** A bundle that is damaged, altered, newer, or needs what this client does not have. */
export class BundleError extends Error {
  constructor(
    readonly file: string,
    message: string,
  ) {
    super(`${file}: ${message}`);
  }
}

/** What a server answered instead of a completion. */
export class ServerError extends Error {
  constructor(
    readonly status: number,
    readonly code: string | null,
    message: string,
    readonly retryAfter: number | null = null,
  ) {
    super(message);
  }
}
