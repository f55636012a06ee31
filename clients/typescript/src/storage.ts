// Where records live: trust in servers and spent budgets.

/** A place for texts by name. `localStorage` of browsers and AsyncStorage of React Native are such places. */
export interface Storage {
  getItem(name: string): string | null | Promise<string | null>;
  setItem(name: string, value: string): unknown;
}

/** Records last as long as this object: trust begins anew with every start. */
export class MemoryStorage implements Storage {
  private readonly items = new Map<string, string>();

  getItem(name: string): string | null {
    return this.items.get(name) ?? null;
  }

  setItem(name: string, value: string): void {
    this.items.set(name, value);
  }
}

/** `localStorage` where the page may use it, else memory. */
export function defaultStorage(): Storage {
  try {
    const { localStorage } = globalThis as { localStorage?: Storage };
    if (typeof document !== "undefined" && localStorage) return localStorage;
  } catch {
    // A browser may forbid it.
  }
  return new MemoryStorage();
}

const queues = new WeakMap<Storage, Promise<unknown>>();

/** Runs changes of one storage one after the other, in browsers also among tabs. */
export function exclusively<T>(storage: Storage, name: string, work: () => Promise<T>): Promise<T> {
  const locks = (globalThis as { navigator?: { locks?: LockManager } }).navigator?.locks;
  const locked = async (): Promise<T> => (locks && typeof document !== "undefined" ? await locks.request(`del-serve ${name}`, work) : await work());
  const run = (queues.get(storage) ?? Promise.resolve()).then(locked, locked);
  queues.set(storage, run.catch(() => undefined));
  return run;
}
