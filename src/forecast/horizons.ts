/** The horizons that are forecast of their own, in samples; those between are read off them. */
export const HORIZONS = [
  { steps: 1, trees: 200 },
  { steps: 3, trees: 60 },
  { steps: 12, trees: 200 },
  { steps: 36, trees: 60 },
  { steps: 144, trees: 60 },
  { steps: 288, trees: 60 },
] as const;
