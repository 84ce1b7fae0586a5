/** The routes about disks: what they ask of the manager. */
import type { DiskPort } from '../manager/disk-port.js';
import { routes } from './routes.js';
import type { Serve } from './server.js';

export function serveDisks(serve: Serve, disks: DiskPort): void {
  serve(routes.listDisks, () => ({ disks: disks.list() }));
  serve(routes.diskHeat, ({ name }) => ({ disks: disks.heat(name) }));
  serve(routes.resizeDisk, ({ name, body }, progress) => disks.resize(name, body, progress));
  serve(routes.exportDisk, ({ name, body }, progress) =>
    disks.export(name, { disk: body.disk, path: body.path, epoch: body.epoch ?? null }, progress),
  );
}
