// The little of Node that the two command line programs use, so that its type package is not needed.
declare module "node:fs/promises" {
  export function readFile(path: string): Promise<Uint8Array>;
  export function readdir(path: string): Promise<string[]>;
}
declare module "node:util" {
  export function parseArgs(config: {
    options: Record<string, { type: "string" | "boolean"; default?: string | boolean }>;
  }): { values: Record<string, string | boolean | undefined> };
}
declare const process: {
  argv: string[];
  env: Record<string, string | undefined>;
  exitCode: number | undefined;
  stdin: AsyncIterable<Uint8Array>;
  stdout: { write(text: string): boolean };
  stderr: { write(text: string): boolean };
};
