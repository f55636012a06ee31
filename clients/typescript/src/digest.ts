// Keyed digests by which memories name what was sent, without keeping it: HMAC-SHA-256 of length-prefixed texts.

export const KEY_BYTES = 32;

export class KeyedDigest {
  private constructor(
    readonly key: Uint8Array,
    private readonly imported: CryptoKey,
  ) {}

  static async create(key: Uint8Array = randomBytes(KEY_BYTES)): Promise<KeyedDigest> {
    const imported = await crypto.subtle.importKey("raw", key as Uint8Array<ArrayBuffer>, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
    return new KeyedDigest(key, imported);
  }

  /** The digest of the texts, in hexadecimal. */
  async of(...fields: readonly string[]): Promise<string> {
    const encoded = fields.map((field) => new TextEncoder().encode(field));
    const data = new Uint8Array(encoded.reduce((sum, field) => sum + 8 + field.length, 0));
    const view = new DataView(data.buffer);
    let at = 0;
    for (const field of encoded) {
      view.setBigUint64(at, BigInt(field.length), true);
      data.set(field, at + 8);
      at += 8 + field.length;
    }
    return toHex(new Uint8Array(await crypto.subtle.sign("HMAC", this.imported, data)));
  }
}

export function randomBytes(count: number): Uint8Array {
  return crypto.getRandomValues(new Uint8Array(count));
}

export function toHex(data: Uint8Array): string {
  return Array.from(data, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function fromHex(text: string): Uint8Array {
  return Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}
