/** What Debian's package records say, and which packages a request amounts to. Pure: looking them up is apt.ts's work. */
import { ShadowVmError } from '../errors.js';

export interface PackageRecord {
  name: string;
  version: string;
  /** Each dependency is a list of alternatives, the preferred one first. */
  depends: string[][];
  /** Part of every Debian system, so that packages may use it without saying so. */
  base: boolean;
  /** SHA-256 of the .deb, hex; undefined when no archive offers this version. */
  sha256: string | undefined;
}

/** Debian policy 5.6.1; also what makes a name safe as an argument of apt. */
export const PACKAGE_NAME = /^[a-z0-9][a-z0-9+.-]+$/;

/** Parses what `apt-cache show` prints: paragraphs of "Field: value", continued by indented lines. */
export function parseRecords(text: string): PackageRecord[] {
  return text
    .split(/\n{2,}/)
    .map((paragraph) => {
      const fields = new Map<string, string>();
      for (const [, key, value] of paragraph.replace(/\n[ \t]+/g, ' ').matchAll(/^([A-Za-z0-9-]+):[ \t]*(.*)$/gm))
        fields.set(key!.toLowerCase(), value!.trim());
      return fields;
    })
    .filter((fields) => fields.has('package') && fields.has('version'))
    .map((fields) => ({
      name: fields.get('package')!,
      version: fields.get('version')!,
      depends: [...parseDepends(fields.get('pre-depends') ?? ''), ...parseDepends(fields.get('depends') ?? '')],
      base: fields.get('essential') === 'yes' || fields.get('priority') === 'required',
      sha256: fields.has('filename') ? fields.get('sha256')?.toLowerCase() : undefined,
    }));
}

/** "libc6 (>= 2.34), debconf:any | debconf-2.0" → [["libc6"], ["debconf", "debconf-2.0"]]. Versions are the archive's care. */
export function parseDepends(field: string): string[][] {
  return field
    .split(',')
    .map((group) =>
      group
        .split('|')
        .map((alternative) => /^\s*([a-z0-9][a-z0-9+.-]+)/.exec(alternative)?.[1])
        .filter((name) => name !== undefined),
    )
    .filter((group) => group.length > 0);
}

/** Parses what `apt-cache policy NAME...` prints. What is only installed, and in no archive any more, is no candidate. */
export function parsePolicy(text: string): Map<string, string> {
  const candidates = new Map<string, string>();
  for (const [, name, body] of text.matchAll(/^(\S+):\n((?: .*\n?)*)/gm)) {
    const candidate = /^ {2}Candidate: (\S+)$/m.exec(body!)?.[1];
    // " *** version priority" or "     version priority", then a line "        priority source" for each source.
    const [, , sources] =
      [...body!.matchAll(/^ (?:\*{3}| {3}) (\S+) .*\n((?: {8}.*\n?)*)/gm)].find(
        ([, version]) => version === candidate,
      ) ?? [];
    if (sources?.split('\n').some((line) => line.trim() !== '' && !line.endsWith('/var/lib/dpkg/status')))
      candidates.set(name!, candidate!);
  }
  return candidates;
}

/** What packages depend on for the scripts that dpkg runs at installation. We unpack and never run them. */
const INSTALLATION_TOOLS = new Set([
  'adduser',
  'debconf',
  'dpkg',
  'init-system-helpers',
  'install-info',
  'lsb-base',
  'passwd',
  'sysvinit-utils',
  'ucf',
]);

export interface PackageLookup {
  /** Candidate versions of those names that have one. */
  show(names: readonly string[]): Promise<Map<string, PackageRecord>>;
  /** Names of packages that provide a virtual one, e.g. mail-transport-agent. */
  providers(virtualName: string): Promise<string[]>;
}

/** How much of a package goes into an image: all of it, or only the shared libraries that something there needs. */
export interface SelectedPackage {
  record: PackageRecord;
  use: 'whole' | 'libraries';
}

/**
 * The requested packages and what they depend on, recursively, without recommendations and without what every Debian
 * system has anyway (busybox stands for that). A package asked for by name is taken whole whatever it is.
 * @throws PACKAGE_MISSING
 */
export async function selectPackages(requested: readonly string[], lookup: PackageLookup): Promise<SelectedPackage[]> {
  const selected = new Map<string, SelectedPackage>();
  let wanted: { group: string[]; by: string | null }[] = requested.map((name) => ({ group: [name], by: null }));
  while (wanted.length > 0) {
    // One look-up for a whole level: each call of apt-cache costs far more than the names in it.
    const records = await lookup.show([...new Set(wanted.flatMap((w) => w.group))]);
    const next: typeof wanted = [];
    for (const { group, by } of wanted) {
      const record = await choose(group, by, records, selected, lookup);
      if (selected.has(record.name)) continue;
      const whole = by === null || !record.name.startsWith('lib');
      if (by !== null && whole && (record.base || INSTALLATION_TOOLS.has(record.name))) continue;
      selected.set(record.name, { record, use: whole ? 'whole' : 'libraries' });
      next.push(...record.depends.map((alternatives) => ({ group: alternatives, by: record.name })));
    }
    wanted = next;
  }
  return [...selected.values()].sort((a, b) => (a.record.name < b.record.name ? -1 : 1));
}

async function choose(
  group: readonly string[],
  by: string | null,
  records: ReadonlyMap<string, PackageRecord>,
  selected: ReadonlyMap<string, SelectedPackage>,
  lookup: PackageLookup,
): Promise<PackageRecord> {
  // What is in the image already will do, even where it is not the first choice.
  const name = group.find((n) => selected.has(n)) ?? group.find((n) => records.has(n));
  if (name !== undefined) return selected.get(name)?.record ?? records.get(name)!;
  for (const name of group) {
    const providers = await lookup.providers(name);
    const chosen = providers.find((provider) => selected.has(provider)) ?? providers[0];
    const record = chosen === undefined ? undefined : (await lookup.show([chosen])).get(chosen);
    if (record !== undefined) return record;
  }
  throw new ShadowVmError('PACKAGE_MISSING', {
    attempted: 'find a Debian package',
    subject: group.join(' | '),
    reason: by === null ? 'the package lists of this host do not have it' : `${by} depends on it and no archive has it`,
    remedy: 'Check the spelling, or run `apt-get update`',
  });
}
