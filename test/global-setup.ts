import { sweepKilledRuns } from '../harness/killed-runs.js';

export default async function setup(): Promise<void> {
  await sweepKilledRuns();
}
