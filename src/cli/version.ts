/** `shadowvm version` */
import type { Command } from 'commander';
import { VERSION } from './package.js';
import { addVerb, isNotRunning } from './session.js';
import * as show from './table.js';

export function addVersionVerb(program: Command): void {
  addVerb(
    program,
    'version',
    {
      summary: 'print the versions of this program and of the running daemon',
      examples: ['version', 'version --json'],
    },
    (command) => command,
    async (session) => {
      const daemon = await session.client.version().catch((error: unknown) => {
        if (isNotRunning(error)) return null;
        throw error;
      });
      session.result(
        { version: VERSION, daemon },
        show.details([
          ['shadowvm', VERSION],
          ['daemon', daemon === null ? 'not running' : `${daemon.version}, process ${daemon.pid}`],
          ['since', daemon === null ? null : show.time(daemon.startedAt)],
          ['state', session.state.root],
          ['images', daemon?.imagesDir ?? null],
        ]),
      );
    },
  );
}
