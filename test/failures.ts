/** What failures of the addon look like, and how to get hold of them. */
import { expect } from 'vitest';

/** Every failure of the addon carries both. */
export const failure = (code: string | RegExp) => ({
  code: typeof code === 'string' ? code : expect.stringMatching(code),
  syscall: expect.stringMatching(/./),
});

export function thrownBy(act: () => unknown): unknown {
  try {
    act();
  } catch (error) {
    return error;
  }
  throw new Error('nothing was thrown');
}

export const rejection = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => {
      throw new Error('it did not reject');
    },
    (error: unknown) => error,
  );
