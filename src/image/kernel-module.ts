/** Kernel modules: what a module says of itself, and the order in which a set of them must be loaded. */
import { ShadowVmError } from '../errors.js';

/** "kernel/drivers/char/hw_random/virtio-rng.ko.xz" → "virtio_rng": the kernel takes "-" and "_" for the same. */
export function moduleName(path: string): string {
  return path
    .slice(path.lastIndexOf('/') + 1)
    .replace(/\.ko(\.[a-z0-9]+)?$/, '')
    .replaceAll('-', '_');
}

/**
 * The `depends=` entry of an (uncompressed) module's .modinfo. That section is a run of NUL-terminated "key=value"
 * strings; the key is looked for at a string's beginning, which no other section of a module has.
 */
export function moduleDepends(module: Buffer): string[] {
  const key = '\0depends=';
  const at = module.indexOf(key, 0, 'latin1');
  if (at < 0) return [];
  const end = module.indexOf(0, at + key.length);
  return module
    .toString('latin1', at + key.length, end < 0 ? undefined : end)
    .split(',')
    .filter((name) => name !== '')
    .map((name) => name.replaceAll('-', '_'));
}

/**
 * The wanted modules and all that they depend on, every module after its dependencies, else in the order wanted.
 * @param dependsOf dependencies of a module; null when it is built into the kernel and needs no loading
 * @throws IMAGE_BUILD_FAILED on a circle, which no kernel could load either
 */
export function loadOrder(wanted: readonly string[], dependsOf: (name: string) => readonly string[] | null): string[] {
  const order: string[] = [];
  const state = new Map<string, 'open' | 'done'>();
  const visit = (name: string): void => {
    if (state.get(name) === 'done') return;
    if (state.get(name) === 'open')
      throw new ShadowVmError('IMAGE_BUILD_FAILED', {
        attempted: 'order the kernel modules',
        subject: name,
        reason: 'it depends on itself through others',
        remedy: 'Build with another kernel package',
      });
    state.set(name, 'open');
    const depends = dependsOf(name);
    for (const dependency of depends ?? []) visit(dependency);
    state.set(name, 'done');
    if (depends !== null) order.push(name);
  };
  for (const name of wanted) visit(name);
  return order;
}
