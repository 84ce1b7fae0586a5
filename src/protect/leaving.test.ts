import { expect, it } from 'vitest';
import { mayHaveLeft } from './leaving.js';
import { HELD_MS_MAX } from './output-hold.js';

const untold = { holds: 0b0110, told: false };
const told = { holds: 0b0110, told: true };

it('takes an epoch with which nothing leaves for one that has let everything out', () => {
  expect(mayHaveLeft({ holds: 0, told: false }, 0b1111, 0b1111, 5)).toBe(true);
});

it('knows that what QEMU was not told to let go is there still', () => {
  expect(mayHaveLeft(untold, 0b1110, 0, 5)).toBe(false);
});

it('takes what was let go for another reason for gone, unless QEMU has not begun', () => {
  expect(mayHaveLeft(untold, 0b1000, 0, 5)).toBe(true);
  expect(mayHaveLeft(untold, 0b1010, 0, 5)).toBe(true);
  expect(mayHaveLeft(untold, 0b1000, 0b0110, 5)).toBe(false);
});

it('knows by QEMU whether it has begun when it was told', () => {
  expect(mayHaveLeft(told, 0b1110, 0b0110, 5)).toBe(false);
  expect(mayHaveLeft(told, 0b1110, 0b0100, 5)).toBe(true);
  expect(mayHaveLeft(told, 0b1110, 0, 5)).toBe(true);
});

it('trusts nothing that is as old as what QEMU lets go by itself', () => {
  expect(mayHaveLeft(untold, 0b1110, 0, HELD_MS_MAX + 1)).toBe(true);
  expect(mayHaveLeft(told, 0b1110, 0b0110, HELD_MS_MAX + 1)).toBe(true);
});
