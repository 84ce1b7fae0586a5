import { expect, test } from 'vitest';
import { parseDisk } from './disk-text.js';
import { MIB } from './spec.js';

test.each([
  ['data=64M', { name: 'data', sizeBytes: 64 * MIB, path: null, readOnly: false }],
  ['db=/srv/db.img', { name: 'db', sizeBytes: null, path: '/srv/db.img', readOnly: false }],
  ['base=./debian.img,ro', { name: 'base', sizeBytes: null, path: './debian.img', readOnly: true }],
  ['odd=/srv/a=b,c', { name: 'odd', sizeBytes: null, path: '/srv/a=b,c', readOnly: false }],
])('%s', (text, disk) => expect(parseDisk(text)).toEqual(disk));

test.each(['data', 'data=', '=1G', 'data=big', 'data=1', 'data=1G,ro', 'data=100K', 'Data=1G', 'data=2048G'])(
  '%s is refused',
  (text) => expect(() => parseDisk(text)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' })),
);
