/** Made-up strongly seasonal server loads: daily and weekly shapes, noise with memory, hourly jobs, rare spikes. */
import { randomFrom } from './boost.js';

const SEASON = 288;
const DAYS = 28;

export function syntheticLoad(seed: number): number[] {
  const random = randomFrom(seed * 7919 + 17);
  const between = (low: number, high: number) => low + (high - low) * random();
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const waves = Array.from({ length: 1 + Math.floor(random() * 5) }, (_, k) => ({
    times: k + 1,
    height: normal() / (k + 1),
    phase: between(0, 2 * Math.PI),
  }));
  const day = Array.from({ length: SEASON }, (_, t) =>
    waves.reduce(
      (sum, { times, height, phase }) => sum + height * Math.cos((2 * Math.PI * times * t) / SEASON + phase),
      0,
    ),
  );
  const [low, high] = [Math.min(...day), Math.max(...day)];
  const sharpness = random() < 0.5 ? between(1, 3) : 1;
  const [idle, height, weekend] = [between(2, 20), between(10, 60), between(0.3, 1)];
  const [memory, noise, jitter] = [between(0.6, 0.97), between(0.02, 0.2), between(0.01, 0.1)];
  const dayChange = between(0.02, 0.15);
  const job =
    random() < 0.4
      ? {
          every: [12, 72, 144, 288][Math.floor(random() * 4)]!,
          long: 1 + Math.floor(random() * 3),
          height: between(2, 20),
          at: Math.floor(random() * 288),
        }
      : null;
  const spikes = random() < 0.4 ? 0.004 : 0;
  const firstDay = Math.floor(random() * 7);
  let [error, dayFactor] = [0, 1];
  return Array.from({ length: DAYS * SEASON }, (_, t) => {
    if (t % SEASON === 0) dayFactor = Math.exp(normal() * dayChange);
    error = memory * error + Math.sqrt(1 - memory * memory) * normal();
    const shape = ((day[t % SEASON]! - low) / (high - low)) ** sharpness;
    const week = (Math.floor(t / SEASON) + firstDay) % 7 >= 5 ? weekend : 1;
    let value = (idle + height * shape * week * dayFactor) * Math.exp(noise * error + jitter * normal());
    if (job !== null && (t + job.at) % job.every < job.long) value += job.height;
    if (random() < spikes) value += -20 * Math.log(1 - random());
    return Math.min(100, value);
  });
}
