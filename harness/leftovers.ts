/** What a manager may leave on the host, so that demo and tests can show that it leaves nothing. */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { stateTag } from '../src/network/address.js';

/** QEMU processes, interfaces, cgroups and nftables rules of the manager with this state directory that exist now. */
export function leftovers(stateDir: string): string[] {
  return [
    ...qemusOf(stateDir).map((pid) => `QEMU ${pid}`),
    ...interfaces(stateTag(stateDir)),
    ...cgroups(stateTag(stateDir)),
    ...rules(stateTag(stateDir)),
  ];
}

/** Process numbers of its QEMUs. */
export function qemusOf(stateDir: string): number[] {
  return readdirSync('/proc')
    .filter((pid) => /^\d+$/.test(pid))
    .filter((pid) => {
      const words = readText(`/proc/${pid}/cmdline`);
      return words.includes('qemu-system') && words.includes(`${stateDir}/`);
    })
    .map(Number);
}

function interfaces(tag: string): string[] {
  return readdirSync('/sys/class/net')
    .filter((name) => readText(`/sys/class/net/${name}/ifalias`).includes(tag))
    .map((name) => `interface ${name}`);
}

function cgroups(tag: string): string[] {
  const root = '/sys/fs/cgroup';
  const hierarchies = [root, ...(existsSync(root) ? readdirSync(root).map((name) => join(root, name)) : [])];
  return hierarchies.map((dir) => join(dir, `shadowvm-${tag}`)).filter((dir) => existsSync(dir));
}

/** Empty too where nft is not installed: then nobody made rules. */
function rules(tag: string): string[] {
  const { stdout } = spawnSync('nft', ['list', 'tables'], { encoding: 'utf8' });
  return (stdout ?? '').split('\n').filter((table) => table.includes(tag));
}

/** Empty when it went away between listing and reading. */
export function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
