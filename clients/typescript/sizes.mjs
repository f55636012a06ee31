// The size of the package in an application, bundled and minified: npm run sizes -- [--write]
// With --write, the table in README.md is replaced.

import { build } from "esbuild";
import { readFile, writeFile } from "node:fs/promises";
import { gzipSync } from "node:zlib";

const PARTS = [
  ["everything", 'export * from "./src/index.ts";'],
  ["`DelClient` alone", 'export { DelClient } from "./src/index.ts";'],
  ["`del-serve/reading`", 'export * from "./src/reading.ts";'],
];

const rows = [];
for (const [name, contents] of PARTS) {
  const stdin = { contents, resolveDir: import.meta.dirname, loader: "ts" };
  const made = await build({ stdin, bundle: true, minify: true, format: "esm", target: "es2022", write: false, treeShaking: true });
  const { contents: data } = made.outputFiles[0];
  const kilo = (bytes) => `${(bytes / 1000).toFixed(1)} kB`;
  rows.push(`| ${name} | ${kilo(data.length)} | ${kilo(gzipSync(data, { level: 9 }).length)} |`);
}
const table = ["| import | minified | and gzipped |", "| --- | ---: | ---: |", ...rows].join("\n");
console.log(table);
if (process.argv.includes("--write")) {
  const readme = new URL("README.md", import.meta.url);
  const text = await readFile(readme, "utf8");
  await writeFile(readme, text.replace(/(<!-- sizes -->\n)[^]*?(<!-- end -->)/, `$1\n${table}\n\n$2`));
}
