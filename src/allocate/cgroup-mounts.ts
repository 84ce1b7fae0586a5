/** Where the cgroup hierarchies of this host are and where in them this process is: pure readings of two /proc files. */

export interface CgroupMount {
  version: 1 | 2;
  mountPoint: string;
  /** Which cgroup appears at the mount point: "/" but in containers. */
  root: string;
  /** v1: the controllers of this hierarchy. v2: empty, since they are told by cgroup.controllers. */
  controllers: string[];
}

/** Of /proc/self/mountinfo (proc_pid_mountinfo(5)), the cgroup mounts in its order. */
export function parseCgroupMounts(mountinfo: string): CgroupMount[] {
  const mounts: CgroupMount[] = [];
  for (const line of mountinfo.split('\n')) {
    // "36 35 98:0 ROOT MOUNT_POINT options optional-fields... - TYPE SOURCE SUPER_OPTIONS"
    const [front = '', back = ''] = line.split(' - ');
    const [, , , root = '', mountPoint = ''] = front.split(' ');
    const [type, , superOptions = ''] = back.split(' ');
    if (type !== 'cgroup' && type !== 'cgroup2') continue;
    mounts.push({
      version: type === 'cgroup2' ? 2 : 1,
      mountPoint: unescapeOctal(mountPoint),
      root: unescapeOctal(root),
      controllers: type === 'cgroup2' ? [] : superOptions.split(','),
    });
  }
  return mounts;
}

/** Spaces and the like are written as \040. */
function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));
}

/**
 * Of /proc/self/cgroup: the path of this process's own cgroup in the hierarchy of `controller` (v2: null), or null.
 * Lines are "4:memory:/path" and "0::/path".
 */
export function parseOwnCgroup(text: string, controller: string | null): string | null {
  for (const line of text.split('\n')) {
    const [, controllers = '', path] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    if (path === undefined) continue;
    if (controller === null ? controllers === '' : controllers.split(',').includes(controller)) return path;
  }
  return null;
}

/** The folder of cgroup `path` under a mount; null when the mount does not show it. */
export function folderOf(mount: CgroupMount, path: string): string | null {
  if (mount.root === '/') return path === '/' ? mount.mountPoint : `${mount.mountPoint}${path}`;
  if (path === mount.root) return mount.mountPoint;
  return path.startsWith(`${mount.root}/`) ? `${mount.mountPoint}${path.slice(mount.root.length)}` : null;
}
