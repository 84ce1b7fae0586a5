/** Runs the programs of the host that a build needs. */
import { execFile } from 'node:child_process';
import { ShadowVmError } from '../errors.js';

/** The Debian package that has a program which may be missing. */
const PACKAGE_OF: Record<string, string> = {
  'apt-cache': 'apt',
  'apt-get': 'apt',
  'dpkg-deb': 'dpkg',
  gcc: 'gcc',
  lz4: 'lz4',
  xz: 'xz-utils',
  zstd: 'zstd',
};
const OUTPUT_BYTES_MAX = 512 * 1024 * 1024;
const TIMEOUT_MS = 15 * 60_000;
const STDERR_CHARS_SHOWN = 600;

export interface ToolOptions {
  /** Infinitive phrase for the error: "unpack a package". */
  attempted: string;
  cwd?: string;
  input?: Buffer;
  /** Exit codes that mean success; 0 unless told. */
  okCodes?: readonly number[];
}

/** Standard output. @throws PACKAGE_MISSING when the program is not installed, IMAGE_BUILD_FAILED when it fails */
export function runTool(program: string, args: readonly string[], options: ToolOptions): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const child = execFile(
      program,
      args,
      {
        cwd: options.cwd,
        env: { ...process.env, LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive' },
        encoding: 'buffer',
        maxBuffer: OUTPUT_BYTES_MAX,
        timeout: TIMEOUT_MS,
      },
      (error, stdout, stderr) => {
        const code: unknown = error?.code ?? 0;
        if (error === null || (typeof code === 'number' && options.okCodes?.includes(code))) {
          resolve(stdout);
        } else if (code === 'ENOENT') {
          reject(
            new ShadowVmError('PACKAGE_MISSING', {
              attempted: options.attempted,
              subject: program,
              reason: 'the program is not installed',
              remedy: `Run \`apt-get install ${PACKAGE_OF[program] ?? program}\``,
              cause: error,
            }),
          );
        } else {
          const words = stderr.toString('utf8').trim().slice(-STDERR_CHARS_SHOWN);
          const ending = error.killed
            ? `was stopped after ${TIMEOUT_MS / 60_000} minutes`
            : error.signal
              ? `was ended by ${error.signal}`
              : `ended with ${String(code)}`;
          reject(
            new ShadowVmError('IMAGE_BUILD_FAILED', {
              attempted: options.attempted,
              subject: [program, ...args].join(' ').slice(0, 200),
              reason: `it ${ending}${words === '' ? '' : `: ${words}`}`,
              cause: error,
            }),
          );
        }
      },
    );
    // A program that ends without reading all of its input says why itself.
    child.stdin?.on('error', () => {});
    child.stdin?.end(options.input);
  });
}
