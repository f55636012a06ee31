// Limits on what is sent, which hold whatever a server states.

import { DEFAULT_DELTA, epsilon, largestLoss, MAX_EPSILON_PER_TOKEN } from "./accounting.js";
import { isDate, type Bundle } from "./bundle.js";
import { PolicyViolationError } from "./errors.js";
import { CLEAR, invalid } from "./spans.js";

/** Limits on prompts; a member that is absent is no limit, except for `maxEpsilonPerToken`. */
export interface PrivacyPolicy {
  /** Largest worst-case epsilon of one private token, in nats; 350 unless given. Infinity permits every bundle. */
  readonly maxEpsilonPerToken?: number;
  /** The same for all private tokens of a prompt together. */
  readonly maxEpsilonPerPrompt?: number;
  /** The delta of both, above 0 and below 1; 1e-6 unless given. */
  readonly delta?: number;
  /** Largest epsilon of one private token at delta 0: pure differential privacy. */
  readonly maxPureEpsilonPerToken?: number;
  /** Oldest accepted date of the variant's audit, as the bundle states it: against a stale bundle, not a dishonest server. */
  readonly minAuditDate?: string;
  /** Accepted variants; `clear` must be listed to be used. */
  readonly variants?: readonly string[];
  /** Accepted bundles, 64 hexadecimal digits each. */
  readonly fingerprints?: readonly string[];
}

export function checkPolicy(policy: PrivacyPolicy): void {
  for (const name of ["maxEpsilonPerToken", "maxEpsilonPerPrompt", "maxPureEpsilonPerToken"] as const) {
    const value = policy[name];
    if (value !== undefined && !(value > 0)) throw invalid(`policy.${name}`, "a number above 0");
  }
  if (policy.delta !== undefined && !(policy.delta > 0 && policy.delta < 1)) throw invalid("policy.delta", "a number above 0 and below 1");
  if (policy.minAuditDate !== undefined && !isDate(policy.minAuditDate)) throw invalid("policy.minAuditDate", "an ISO date");
  for (const one of policy.fingerprints ?? []) checkHex("policy.fingerprints", one);
}

export function checkHex(field: string, value: string): void {
  if (!/^[0-9a-f]{64}$/.test(value)) throw invalid(field, "64 hexadecimal digits");
}

/** Throws PolicyViolationError unless that many private tokens may be sent under the variant. */
export function enforce(policy: PrivacyPolicy, bundle: Bundle, variant: string, privateTokens: number): void {
  const fail = (message: string): never => {
    throw new PolicyViolationError(message, { field: "variant" });
  };
  if (policy.fingerprints && !policy.fingerprints.includes(bundle.fingerprint)) {
    throw new PolicyViolationError(`fingerprint: the policy does not list ${bundle.fingerprint}`, { field: "fingerprint" });
  }
  if (policy.variants && !policy.variants.includes(variant)) fail(`variant: the policy does not list ${variant}`);
  if (variant === CLEAR) {
    if (privateTokens) fail("variant: clear adds no noise to private spans");
    return;
  }
  const { mechanism, auditDate } = bundle.variants.get(variant)!;
  const delta = policy.delta ?? DEFAULT_DELTA;
  const within = (limit: number | undefined, value: () => number, what: string): void => {
    if (limit === undefined || limit === Infinity) return;
    const found = value();
    if (!(found <= limit)) fail(`the epsilon of ${variant} at delta ${what}: must be at most ${limit}, got ${found.toPrecision(6)}`);
  };
  within(policy.maxEpsilonPerToken ?? MAX_EPSILON_PER_TOKEN, () => epsilon(mechanism, delta, 1), `${delta} for a private token`);
  within(policy.maxPureEpsilonPerToken, () => largestLoss(mechanism), "0 for a private token");
  // A prompt has at least one token, so a limit that refuses every prompt is found early.
  const tokens = Math.max(1, privateTokens);
  within(policy.maxEpsilonPerPrompt, () => epsilon(mechanism, delta, tokens), `${delta} for ${tokens} private tokens`);
  if (policy.minAuditDate !== undefined && (auditDate ?? "") < policy.minAuditDate) {
    fail(`the audit date of ${variant}: must be ${policy.minAuditDate} or later, got ${auditDate ?? "no date"}`);
  }
}
