// The sampling fields of a call, as OpenAI's completions have them, and their form on the wire.

import { InvalidRequestError } from "./errors.js";
import { DEFAULTS, type Sampling, type Structure } from "./frame.js";

/** Fields of an OpenAI completion; what is absent has its default there, `max_tokens` is 16. */
export interface SamplingOptions {
  readonly max_tokens?: number;
  readonly temperature?: number;
  readonly top_p?: number;
  readonly seed?: number | bigint | null;
  readonly stop?: string | readonly string[];
  readonly stop_token_ids?: readonly number[];
  readonly ignore_eos?: boolean;
  readonly top_k?: number;
  readonly min_p?: number;
  readonly presence_penalty?: number;
  readonly frequency_penalty?: number;
  readonly repetition_penalty?: number;
  /** What is added to the logits of tokens, by token id. */
  readonly logit_bias?: Readonly<Record<string, number>> | readonly (readonly [number, number])[];
  readonly logprobs?: number | null;
  readonly structured_outputs?: Structure | null;
}

const NAMES = Object.keys(DEFAULTS).filter((name) => name !== "stream") as (keyof SamplingOptions)[];

/** The fields as the wire has them; the frame checks their ranges. Throws InvalidRequestError for another type. */
export function samplingOf(options: SamplingOptions, stream: boolean): Sampling {
  const given: Record<string, unknown> = {};
  for (const name of NAMES) if (options[name] !== undefined) given[name] = options[name];
  const { seed, stop, logit_bias } = options;
  if (typeof seed === "number") given["seed"] = whole("seed", seed);
  if (typeof stop === "string") given["stop"] = [stop];
  if (logit_bias !== undefined && !Array.isArray(logit_bias)) {
    given["logit_bias"] = Object.entries(logit_bias).map(([id, bias]) => [Number(id), bias as unknown]);
  }
  const sampling = { ...DEFAULTS, ...given, stream } as Sampling;
  for (const name of ["max_tokens", "top_k"] as const) whole(name, sampling[name]);
  if (sampling.logprobs !== null) whole("logprobs", sampling.logprobs);
  for (const name of ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"] as const) {
    if (typeof sampling[name] !== "number" || !Number.isFinite(sampling[name])) throw wrong(name, "a number");
  }
  if (!Array.isArray(sampling.stop) || !sampling.stop.every((text) => typeof text === "string")) throw wrong("stop", "a string or strings");
  if (!Array.isArray(sampling.stop_token_ids)) throw wrong("stop_token_ids", "an array of token ids");
  sampling.stop_token_ids.forEach((id) => whole("stop_token_ids", id));
  sampling.logit_bias.forEach(([id, bias]) => {
    whole("logit_bias", id);
    if (typeof bias !== "number" || !Number.isFinite(bias)) throw wrong("logit_bias", "token ids and numbers");
  });
  return sampling;
}

function whole(field: string, value: unknown): bigint {
  if (!Number.isSafeInteger(value)) throw wrong(field, "an integer");
  return BigInt(value as number);
}

function wrong(field: string, wanted: string): InvalidRequestError {
  return new InvalidRequestError(`${field}: must be ${wanted}`, { field });
}
