// Signatures of bundles: Ed25519 by the Web Crypto API (docs/reference/bundle-format.md, "Signature").

import { isDate, type Manifest } from "./bundle.js";
import { fromHex } from "./digest.js";
import { BundleError, BundleRejectedError } from "./errors.js";

const FILE = "signature";
const HEADER = /^key=([0-9a-f]{64}); signed=([0-9-]{10}); signature=([0-9a-f]{128})$/;

/**
 * The key that signed the bundle, verified; null if nobody did. Where there are trusted keys, one of them must have.
 * Without trusted keys, a signature counts as none on a platform that cannot verify it.
 */
export async function verifiedKey(manifest: Manifest, header: string | null, trusted: readonly string[]): Promise<string | null> {
  const found = header === null ? null : HEADER.exec(header);
  if (header !== null && (found === null || !isDate(found[2]!))) throw new BundleError(FILE, "the header has another form");
  const [, key, signed, signature] = found ?? [];
  if (trusted.length && (key === undefined || !trusted.includes(key))) {
    const change = { field: "the signing key", accepted: `one of ${trusted.join(", ")}`, offered: key ?? "no signature" };
    throw new BundleRejectedError(`bundle ${manifest.fingerprint}: the signing key must be ${change.accepted}, got ${change.offered}`, manifest.fingerprint, [change]);
  }
  if (key === undefined) return null;
  let imported: CryptoKey;
  try {
    imported = await crypto.subtle.importKey("raw", fromHex(key) as Uint8Array<ArrayBuffer>, { name: "Ed25519" }, false, ["verify"]);
  } catch (cause) {
    if (cause instanceof Error && cause.name !== "NotSupportedError" && cause.name !== "SyntaxError") {
      throw new BundleError(FILE, "the key is none of Ed25519");
    }
    if (trusted.length) throw new BundleError(FILE, "this platform's Web Crypto API has no Ed25519, so trustedKeys cannot be used");
    return null;
  }
  const message = manifest.signedMessage(signed!) as Uint8Array<ArrayBuffer>;
  if (!(await crypto.subtle.verify("Ed25519", imported, fromHex(signature!) as Uint8Array<ArrayBuffer>, message))) {
    throw new BundleError(FILE, `is not the signature of this bundle by ${key}`);
  }
  return key;
}
