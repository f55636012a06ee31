// A request of Oblivious HTTP (RFC 9458) by @hpke/core: asks a gateway for the list of models.
// Prints the binary response in hexadecimal digits.
import { Aes128Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256 } from "@hpke/core";

const [gateway, configuration, message] = process.argv.slice(2);
const key = Buffer.from(configuration, "hex");
const bytes = (text) => new TextEncoder().encode(text);
const joined = (...parts) => new Uint8Array(Buffer.concat(parts.map((part) => Buffer.from(part))));

const suite = new CipherSuite({
  kem: new DhkemX25519HkdfSha256(),
  kdf: new HkdfSha256(),
  aead: new Aes128Gcm(),
});
// The key's id, the KEM, HKDF-SHA256 and AES-128-GCM.
const head = joined(key.subarray(0, 3), [0, 1, 0, 1]);
const recipientPublicKey = await suite.kem.deserializePublicKey(key.subarray(3, 35));
const sender = await suite.createSenderContext({
  recipientPublicKey,
  info: joined(bytes("message/bhttp request"), [0], head),
});
const sealed = await sender.seal(Buffer.from(message, "hex"));
const answer = await fetch(gateway, {
  method: "POST",
  headers: { "content-type": "message/ohttp-req" },
  body: joined(head, new Uint8Array(sender.enc), new Uint8Array(sealed)),
});
if (answer.status !== 200) throw new Error(`HTTP ${answer.status}`);

const content = new Uint8Array(await answer.arrayBuffer());
const nonce = content.subarray(0, 16);
const secret = await sender.export(bytes("message/bhttp response"), 16);
const hkdf = await crypto.subtle.importKey("raw", secret, "HKDF", false, ["deriveBits"]);
const salt = joined(new Uint8Array(sender.enc), nonce);
const derived = (info, length) =>
  crypto.subtle.deriveBits({ name: "HKDF", hash: "SHA-256", salt, info: bytes(info) }, hkdf, 8 * length);
const aead = await crypto.subtle.importKey("raw", await derived("key", 16), "AES-GCM", false, ["decrypt"]);
const iv = new Uint8Array(await derived("nonce", 12));
const opened = await crypto.subtle.decrypt({ name: "AES-GCM", iv }, aead, content.subarray(16));
process.stdout.write(Buffer.from(opened).toString("hex"));
