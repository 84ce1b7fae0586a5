/** Runs nft, and finds out what it and the kernel can do. It costs some 20 ms and is never on a failover's path. */
import { execFile } from 'node:child_process';
import { ShadowVmError } from '../errors.js';

const TIMEOUT_MS = 10_000;
const PATH = `${process.env.PATH ?? ''}:/usr/sbin:/sbin`;

/** One transaction: all of it or nothing. @throws PACKAGE_MISSING, NOT_ROOT, NETWORK_FAILED */
export function runNft(script: string, attempted: string, subject: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const options = { env: { PATH, LC_ALL: 'C' }, timeout: TIMEOUT_MS };
    // The variable is for a nft at another place, and for tests of a host without one.
    const child = execFile(process.env.SHADOWVM_NFT ?? 'nft', ['-f', '-'], options, (error, _stdout, stderr) => {
      if (error === null) resolve();
      else reject(nftError(error, stderr, attempted, subject));
    });
    // One that ends without reading says why itself.
    child.stdin?.on('error', () => {});
    child.stdin?.end(script);
  });
}

function nftError(
  error: Error & { code?: unknown; killed?: boolean },
  stderr: string,
  attempted: string,
  subject: string,
) {
  const detail = { attempted, subject, cause: error };
  if (error.code === 'ENOENT')
    return new ShadowVmError('PACKAGE_MISSING', {
      ...detail,
      reason: 'the program nft is not installed',
      remedy: 'Run `apt-get install nftables`',
    });
  const words = stderr.trim().replace(/\s+/g, ' ').slice(0, 300);
  if (/Operation not permitted/.test(words))
    return new ShadowVmError('NOT_ROOT', {
      ...detail,
      reason: `nft says: ${words}`,
      remedy: 'Start the manager as root (CAP_NET_ADMIN)',
    });
  return new ShadowVmError('NETWORK_FAILED', {
    ...detail,
    reason: error.killed ? `nft did not end within ${TIMEOUT_MS} ms` : `nft says: ${words}`,
    remedy: 'See `shadowvm doctor` for what this host offers',
  });
}

/** What nftables can do here: null, or why it can not. */
export interface NftSupport {
  /** Rules at the ingress of a tap: what a guest may send. */
  guard: ShadowVmError | null;
  /** NAT, published ports and isolation. */
  translate: ShadowVmError | null;
}

let answer: Promise<NftSupport> | undefined;

/**
 * Found out by doing, as neither versions nor modules tell: each script makes a table and deletes it, so that the kernel
 * sees and checks all of it and nothing of it ever is. The answer holds for the life of the process.
 */
export function nftSupport(): Promise<NftSupport> {
  answer ??= Promise.all([tryScript(tryGuard()), tryScript(tryTranslate())]).then(([guard, translate]) => ({
    guard,
    translate,
  }));
  return answer;
}

async function tryScript(script: string): Promise<ShadowVmError | null> {
  try {
    await runNft(script, 'use nftables', 'a table that is deleted at once');
    return null;
  } catch (error) {
    return error as ShadowVmError;
  }
}

function tryGuard(): string {
  const table = `netdev svtry${process.pid}`;
  return `add table ${table}
add chain ${table} c { type filter hook ingress device "lo" priority filter; }
add rule ${table} c ether saddr 52:54:00:00:00:00 limit rate over 1000 bytes/second burst 1000 bytes accept
delete table ${table}
`;
}

function tryTranslate(): string {
  const table = `inet svtry${process.pid}`;
  return `add table ${table}
add chain ${table} c { type nat hook prerouting priority dstnat; }
add rule ${table} c fib daddr type local dnat ip to tcp dport map { 1 : 192.0.2.1 . 1 }
add chain ${table} d { type nat hook postrouting priority srcnat; }
add rule ${table} d oifname "svtry" masquerade
add chain ${table} e { type filter hook forward priority filter; }
add rule ${table} e ct status dnat ct state established accept
delete table ${table}
`;
}
