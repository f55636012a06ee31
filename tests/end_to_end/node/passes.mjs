// Cloudflare's package gets passes from a server and spends one. Prints what it saw as JSON.
import {
  AuthorizationHeader,
  MediaType,
  PRIVATE_TOKEN_ISSUER_DIRECTORY,
  WWWAuthenticateHeader,
  genericBatched,
  publicVerif,
  util,
} from "@cloudflare/privacypass-ts";

const [server, apiKey] = process.argv.slice(2);
const { BlindRSAMode, Client, Origin, TokenResponse } = publicVerif;
const frames = `${server}/v1/private/completions`;

// A request without a pass is refused with the challenge and the issuer's key.
const refused = await fetch(frames, { method: "POST", body: "" });
const [asked] = WWWAuthenticateHeader.parse(refused.headers.get("www-authenticate"));

const directory = await (await fetch(server + PRIVATE_TOKEN_ISSUER_DIRECTORY)).json();
const listed = Buffer.from(directory["token-keys"][0]["token-key"], "base64url");
if (Buffer.compare(listed, Buffer.from(asked.tokenKey))) throw new Error("directory and challenge differ");

async function issue(type, body) {
  const headers = { authorization: `Bearer ${apiKey}`, "content-type": type };
  const answer = await fetch(server + directory["issuer-request-uri"], { method: "POST", headers, body });
  if (answer.status !== 200) throw new Error(await answer.text());
  return new Uint8Array(await answer.arrayBuffer());
}

const client = new Client(BlindRSAMode.PSS);
const request = await client.createTokenRequest(asked.challenge, asked.tokenKey);
const response = TokenResponse.deserialize(await issue(MediaType.PRIVATE_TOKEN_REQUEST, request.serialize()));
const token = await client.finalize(response);

const key = await crypto.subtle.importKey(
  "spki",
  util.convertRSASSAPSSToEnc(asked.tokenKey),
  { name: "RSA-PSS", hash: "SHA-384" },
  true,
  ["verify"],
);
const verified = await new Origin(BlindRSAMode.PSS).verify(token, key);

const clients = [1, 2, 3].map(() => new Client(BlindRSAMode.PSS));
const requests = [];
for (const one of clients) requests.push(await one.createTokenRequest(asked.challenge, asked.tokenKey));
const batch = new genericBatched.BatchedTokenRequest(
  requests.map((one) => new genericBatched.TokenRequest(one)),
);
const answer = await issue(MediaType.ARBITRARY_BATCHED_TOKEN_REQUEST, batch.serialize());
const made = [];
for (const [number, one] of genericBatched.GenericBatchTokenResponse.deserialize(answer).tokenResponses.entries()) {
  const last = await clients[number].finalize(one.tokenResponse);
  made.push(await new Origin(BlindRSAMode.PSS).verify(last, key));
}

const header = new AuthorizationHeader(token).toString();
const frame = { method: "POST", headers: { authorization: header, "content-type": "application/vnd.del.frame" }, body: "x" };
const redeemed = (await (await fetch(frames, frame)).json()).error.code;

process.stdout.write(
  JSON.stringify({ verified, token: Buffer.from(token.serialize()).toString("base64"), batch: made, redeemed }),
);
