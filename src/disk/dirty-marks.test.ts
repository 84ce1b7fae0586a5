import { expect, test } from 'vitest';
import { markName, usableMarks } from './dirty-marks.js';

const OWN = 'a'.repeat(32);
const BASE = 'b'.repeat(32);
const own = (epoch: number) => markName({ imageId: OWN, epoch });
const base = (epoch: number) => markName({ imageId: BASE, epoch });
const image = (headEpoch: number, baseId = BASE) => ({ id: OWN, baseId, headEpoch });

test.each([
  ['that of the head', [own(7)], image(7), [own(7)]],
  ['one that is older marks more', [own(5)], image(7), [own(5)]],
  ['two of an epoch that was being cut', [own(8), own(7)], image(7), [own(7), own(8)]],
  ['one of an epoch that the image has lost', [own(8)], image(7), null],
  ['one since the base', [base(1)], image(0), [base(1)]],
  ['one since the base, and the first epoch was being cut', [own(1), base(9)], image(0), [base(9), own(1)]],
  ['one of another image', [own(3), markName({ imageId: 'c'.repeat(32), epoch: 2 })], image(7), null],
  ['none of ours', ['backup'], image(7), null],
  ['of an image without base', [own(7)], image(7, ''), [own(7)]],
] as const)('%s', (_what, names, description, usable) => expect(usableMarks(names, description)).toEqual(usable));
