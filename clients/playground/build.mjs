// Builds the page's program: node build.mjs [FILE], by default the one that is committed and shipped with delctl.

import { build } from "esbuild";
import { fileURLToPath } from "node:url";

const at = (path) => fileURLToPath(new URL(path, import.meta.url));

await build({
  entryPoints: [at("src/app.ts")],
  outfile: process.argv[2] ?? at("../../delctl/playground/page/app.js"),
  alias: { "del-serve": at("../typescript/src/index.ts"), "del-serve/reading": at("../typescript/src/reading.ts") },
  bundle: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  // Readable: who runs the page may want to see what draws the noise.
  minify: false,
  absWorkingDir: at("."),
  banner: { js: "// Built from clients/playground and clients/typescript: (cd clients/playground && node build.mjs)" },
});
