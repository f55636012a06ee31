// For Node: a storage in a file, readable by its owner only.

import type { Storage } from "./storage.js";

/** Texts by name in one JSON file, whose replacement is atomic. One process may write it at a time. */
export class FileStorage implements Storage {
  constructor(readonly path: string) {}

  async getItem(name: string): Promise<string | null> {
    const items = await this.read();
    return Object.hasOwn(items, name) ? items[name]! : null;
  }

  async setItem(name: string, value: string): Promise<void> {
    const [{ mkdir, open, rename, unlink }, { dirname }] = await Promise.all([import("node:fs/promises"), import("node:path")]);
    const items = { ...(await this.read()), [name]: value };
    await mkdir(dirname(this.path), { recursive: true, mode: 0o700 });
    const fresh = `${this.path}.${crypto.randomUUID()}.new`;
    const file = await open(fresh, "wx", 0o600);
    try {
      await file.writeFile(JSON.stringify(items));
      await file.sync();
      await file.close();
      await rename(fresh, this.path);
    } catch (error) {
      await file.close().catch(() => undefined);
      await unlink(fresh).catch(() => undefined);
      throw error;
    }
  }

  private async read(): Promise<Record<string, string>> {
    const { readFile } = await import("node:fs/promises");
    let text: string;
    try {
      text = await readFile(this.path, "utf8");
    } catch (error) {
      if ((error as { code?: string }).code === "ENOENT") return {};
      throw error;
    }
    return JSON.parse(text) as Record<string, string>;
  }
}

