// The little of Node that the program uses, so that its type package is not needed.
declare module "node:util" {
  export function parseArgs(config: {
    options: Record<string, { type: "string" | "boolean"; default?: string | boolean }>;
  }): { values: Record<string, string | boolean | undefined> };
}
declare const process: {
  env: Record<string, string | undefined>;
  exitCode: number | undefined;
  stdin: AsyncIterable<Uint8Array>;
  stdout: { write(text: string): boolean };
  stderr: { write(text: string): boolean };
};
