// The little of Node that the programs of the tests use.
declare const process: {
  argv: string[];
  env: Record<string, string | undefined>;
  exitCode: number | undefined;
  stdin: AsyncIterable<Uint8Array>;
  stdout: { write(text: string): boolean };
  stderr: { write(text: string): boolean };
};
