export const TRAINED: readonly (readonly [number, string])[] = [];
