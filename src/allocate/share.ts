/** Divides what is short: pure. */

export interface Claim {
  /** What it gets in any case, also where that is more than there is. */
  least: number;
  wanted: number;
  /** Of what is short, its part grows with this. */
  weight: number;
}

const ROUNDS_MAX = 64;

/**
 * What each claim gets of the whole: all it wants where that is enough for all; else what it gets in any case, and of the
 * rest a part by weight, up to what it wants.
 */
export function divide(claims: readonly Claim[], whole: number): number[] {
  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
  const given = claims.map(({ least, wanted }) => Math.min(least, wanted));
  let left = whole - sum(given);
  // Who has what it wants leaves its part to the others: at least one does so in each round.
  for (let round = 0; round < ROUNDS_MAX && left > 1e-9; round++) {
    const open = claims.map(({ wanted, weight }, i) => (given[i]! < wanted ? weight : 0));
    const weights = sum(open);
    if (weights === 0) break;
    let taken = 0;
    claims.forEach(({ wanted }, i) => {
      const part = Math.min((left * open[i]!) / weights, wanted - given[i]!);
      given[i] = given[i]! + part;
      taken += part;
    });
    left -= taken;
  }
  return given;
}
