/** `shadowvm doctor`: looks at this host in this process, as it is asked for most when no daemon starts. */
import type { Command } from 'commander';
import type { Finding } from '../host/doctor.js';
import { addVerb } from './session.js';
import * as show from './table.js';

export function addDoctorVerb(program: Command): void {
  addVerb<{ images?: string }>(
    program,
    'doctor',
    {
      summary: 'what this host can do, what it lacks, and what to do about it',
      description:
        'Looks at what this host can do, what it lacks, and what to do about it. The exit code is 1 when something is\n' +
        'missing without which no VM runs.',
      examples: ['doctor', 'doctor --json'],
    },
    (command) => command.option('--images <dir>', "folder of the images; default: the running daemon's"),
    async (session, _args, options) => {
      const { examineHost } = await import('../host/doctor.js');
      const imagesDir = await session.imagesDir(options.images);
      const findings = await session.withProgress((report) => {
        report({ message: 'looking at this host' });
        return examineHost({ imagesDir, stateDir: session.state.root });
      });
      const ok = findings.every((finding) => finding.status !== 'fail');
      session.result({ ok, findings }, findingsText(findings));
      if (!ok) process.exitCode = 1;
    },
  );
}

/** The table, and below it what to do, where there is something to do: long sentences would tear the table apart. */
function findingsText(findings: Finding[]): string {
  const overview = show.table(
    [
      { title: '', value: (finding: Finding) => finding.status },
      { title: 'WHAT', value: (finding) => finding.name },
      { title: 'FOUND', value: (finding) => finding.found },
    ],
    findings,
  );
  const remedies = findings
    .filter((finding) => finding.remedy !== null)
    .map((finding) => `\n${finding.name}: ${show.printable(finding.remedy!)}\n`);
  return overview + remedies.join('');
}
