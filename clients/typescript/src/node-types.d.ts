// The little of Node that `node.ts` uses, so that its type package is not needed.
declare module "node:fs/promises" {
  export function readFile(path: string): Promise<Uint8Array<ArrayBuffer>>;
  export function readFile(path: string, encoding: "utf8"): Promise<string>;
  export function readdir(path: string): Promise<string[]>;
  export function mkdir(path: string, options: { recursive: boolean; mode: number }): Promise<unknown>;
  export function rename(from: string, to: string): Promise<void>;
  export function unlink(path: string): Promise<void>;
  export function open(path: string, flags: string, mode: number): Promise<{
    writeFile(text: string): Promise<void>;
    sync(): Promise<void>;
    close(): Promise<void>;
  }>;
}
declare module "node:path" {
  export function dirname(path: string): string;
}
