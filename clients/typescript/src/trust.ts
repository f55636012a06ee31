// Trust on first use: what was accepted from each server, and when another offer is refused (docs/privacy/trust.md). A record is
// the same JSON as in trust.json of the Python client.

import { DEFAULT_DELTA, epsilon } from "./accounting.js";
import { isDate, type Manifest } from "./bundle.js";
import { BundleRejectedError, TrustUnavailableError, type Change } from "./errors.js";
import { exclusively, type Storage } from "./storage.js";

const NAME = "del-serve.trust";
const VERSION = 1;
const TABLE = "table.safetensors";
const TOKENIZER = "tokenizer.json";
// Where the epsilons of two mechanisms are compared: the guarantee's tail and the typical loss.
const DELTAS = [DEFAULT_DELTA, 1e-3, 1e-1];
const TOLERANCE = 1e-9; // versions of the accounting may round differently

interface VariantRecord {
  readonly table: string;
  readonly mechanism: string;
  readonly kind: string;
  readonly epsilons: readonly (number | null)[];
  readonly audit_date: string | null;
}

/** What was accepted from a server. */
export interface TrustRecord {
  readonly fingerprint: string;
  readonly table: string;
  readonly tokenizer: string;
  readonly max_level: number;
  readonly variants: Readonly<Record<string, VariantRecord>>;
  readonly signing_key: string | null;
  readonly transport: string;
  readonly accepted_at: string;
}

/** A bundle that a server offers, before anything but its manifest was read. */
export interface Offer {
  readonly url: string;
  readonly manifest: Manifest;
  readonly signingKey: string | null;
  readonly trustedKeys: readonly string[];
  /** Variants that the caller chose by name. */
  readonly named: readonly string[];
  /** Whether the caller named this fingerprint. */
  readonly onPurpose: boolean;
}

/** Compares offers with what a storage holds. */
export class Trust {
  constructor(readonly storage: Storage) {}

  /** Throws BundleRejectedError for an offer that is different from, or weaker than, what was accepted. */
  async check(offer: Offer): Promise<void> {
    judge((await this.read()).get(serverName(offer.url)), offer);
  }

  /** Checks an offer and remembers it. */
  async admit(offer: Offer): Promise<void> {
    await exclusively(this.storage, NAME, async () => {
      const records = await this.read();
      const name = serverName(offer.url);
      const before = records.get(name);
      const after = judge(before, offer);
      // Nothing is written for an offer that changes nothing.
      if (before !== undefined && JSON.stringify({ ...after, accepted_at: before.accepted_at }) === JSON.stringify(before)) return;
      await this.write(records.set(name, after));
    });
  }

  /** Forgets a server: its next offer is a first one again. */
  async forget(url: string): Promise<void> {
    await exclusively(this.storage, NAME, async () => {
      const records = await this.read();
      if (records.delete(serverName(url))) await this.write(records);
    });
  }

  /** What was accepted from each server, by host, port and base path. */
  async records(): Promise<ReadonlyMap<string, TrustRecord>> {
    return this.read();
  }

  private async read(): Promise<Map<string, TrustRecord>> {
    let text: string | null;
    try {
      text = await this.storage.getItem(NAME);
    } catch (cause) {
      throw new TrustUnavailableError("trust: the storage cannot be read", { cause });
    }
    if (text === null) return new Map();
    try {
      const value: unknown = JSON.parse(text);
      const { version, servers } = value as { version: unknown; servers: Record<string, TrustRecord> };
      if (version === VERSION && Object.values(servers).every(isRecord)) return new Map(Object.entries(servers));
    } catch {
      // told below
    }
    // A damaged record never counts as empty.
    throw new TrustUnavailableError(`trust: ${NAME} is damaged; restore it, or delete it to trust every server's next offer`);
  }

  private async write(records: ReadonlyMap<string, TrustRecord>): Promise<void> {
    try {
      await this.storage.setItem(NAME, JSON.stringify({ version: VERSION, servers: Object.fromEntries(records) }));
    } catch (cause) {
      throw new TrustUnavailableError("trust: the storage cannot be written", { cause });
    }
  }
}

/** Host, port and base path, so that a change from https to http is one of the same server. */
function serverName(url: string): string {
  return url.slice(url.indexOf("://") + 3);
}

/** The record after the offer, or an error. */
function judge(record: TrustRecord | undefined, offer: Offer): TrustRecord {
  const offered = recordOf(offer);
  if (record === undefined) return offered;
  const trusted = offer.signingKey !== null && offer.trustedKeys.includes(offer.signingKey);
  const accepted = trusted ? { ...record, signing_key: offer.signingKey } : record;
  const found = offer.onPurpose ? [] : changes(accepted, offered, offer.named);
  // Variants that the offer lacks are kept, so that they cannot come back weaker.
  if (!found.length) return { ...offered, variants: { ...record.variants, ...offered.variants } };
  const said = found.map((change) => `${change.field} must be ${change.accepted}, got ${change.offered}`).join("; ");
  const message =
    `${offer.url} offers the bundle ${offered.fingerprint}, which differs from what was accepted on ${record.accepted_at}: ` +
    `${said}. If this is intended, accept it by its fingerprint with the option accept`;
  throw new BundleRejectedError(message, offered.fingerprint, found);
}

function recordOf({ url, manifest, signingKey }: Offer): TrustRecord {
  const variants = manifest.variants.map((variant): [string, VariantRecord] => [
    variant.name,
    {
      table: variant.tableSha256,
      mechanism: variant.spec,
      kind: "noiseNumerators" in variant.mechanism ? "categorical" : "binomial",
      epsilons: DELTAS.map((delta) => epsilon(variant.mechanism, delta)).map((value) => (value === Infinity ? null : value)),
      audit_date: variant.auditDate,
    },
  ]);
  return {
    fingerprint: manifest.fingerprint,
    table: manifest.files.get(TABLE)!,
    tokenizer: manifest.files.get(TOKENIZER)!,
    max_level: manifest.maxLevel,
    variants: Object.fromEntries(variants),
    signing_key: signingKey,
    transport: url.slice(0, url.indexOf("://")),
    accepted_at: new Date().toISOString().slice(0, 10),
  };
}

function changes(record: TrustRecord, offer: TrustRecord, named: readonly string[]): Change[] {
  const found: Change[] = [];
  const differs = (field: string, accepted: string, offered: string): void => {
    found.push({ field, accepted, offered });
  };
  if (record.table !== offer.table) differs("the SHA-256 of the table", record.table, offer.table);
  if (record.tokenizer !== offer.tokenizer) differs("the SHA-256 of the tokenizer", record.tokenizer, offer.tokenizer);
  if (offer.max_level < record.max_level) differs("max_level", `at least ${record.max_level}`, `${offer.max_level}, which is less noise`);
  if (record.signing_key !== null && offer.signing_key !== record.signing_key) {
    differs("the signing key", record.signing_key, offer.signing_key ?? "no signature");
  }
  if (record.transport === "https" && offer.transport !== "https") differs("the transport", "https", offer.transport);
  for (const [name, accepted] of Object.entries(record.variants)) {
    const offered = Object.hasOwn(offer.variants, name) ? offer.variants[name] : undefined;
    if (offered === undefined) {
      if (named.includes(name)) differs(`variant ${name}`, "offered", "a bundle without it");
      continue;
    }
    // A variant that reads the bundle's table follows it.
    const follows = accepted.table === record.table && offered.table === offer.table;
    if (accepted.table !== offered.table && !follows) differs(`the SHA-256 of the table of ${name}`, accepted.table, offered.table);
    if (accepted.kind !== offered.kind) {
      differs(`the mechanism of ${name}`, accepted.mechanism, offered.mechanism);
      continue;
    }
    const weaker = DELTAS.findIndex((_, i) => (offered.epsilons[i] ?? Infinity) > (accepted.epsilons[i] ?? Infinity) * (1 + TOLERANCE));
    if (accepted.mechanism !== offered.mechanism && weaker >= 0) {
      const shown = (value: number | null | undefined) => value?.toPrecision(6) ?? "beyond the range of the accounting";
      differs(`the epsilon of ${name} at delta ${DELTAS[weaker]}`, `at most ${shown(accepted.epsilons[weaker])}`, shown(offered.epsilons[weaker]));
    }
    if (accepted.audit_date !== null && (offered.audit_date ?? "") < accepted.audit_date) {
      differs(`the audit date of ${name}`, `${accepted.audit_date} or later`, offered.audit_date ?? "no date");
    }
  }
  return found;
}

function isRecord(value: TrustRecord): boolean {
  const texts = [value.fingerprint, value.table, value.tokenizer, value.transport, value.accepted_at];
  const key = value.signing_key === null || typeof value.signing_key === "string";
  return texts.every((text) => typeof text === "string") && key && Number.isInteger(value.max_level) && Object.values(value.variants).every(isVariant);
}

function isVariant(value: VariantRecord): boolean {
  const texts = [value.table, value.mechanism, value.kind].every((text) => typeof text === "string");
  const date = value.audit_date === null || isDate(value.audit_date);
  return texts && date && value.epsilons.length === DELTAS.length && value.epsilons.every((one) => one === null || typeof one === "number");
}
