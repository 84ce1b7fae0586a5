/**
 * Turns usage into an allocation that is held: for an hour at least, and changed about twice a day.
 *
 * What an hour may need is taken from what followed past hours, moved by how far the forecast has moved since and
 * weighted by age, by nearness of the time of day and by how alike the forecast and the unrest of the samples were. Among
 * candidate limits the cheapest wins: what it allocates, plus a price for each sample that it would not cover. It comes
 * into force once it has been worth the price of a change, which rises for a VM that changes often. The price per sample
 * is one for all VMs, in units of the VM's own allocation: so samples are left uncovered where covering them is dear and
 * not where it is cheap, and the share asked for is met on average over VMs. Feedback brings a VM that is further off than
 * {@link SHORT_BAND} or {@link EXCESS_BAND} back.
 * Lost: a quantile of the residuals per hour (1 point more unused at the same coverage, and 24 changes a day); feedback
 * after each hour (3 points more: it swings); changes that are saved up and spent (2 points more: none is left when a
 * limit has to be raised); raising a limit within the hour in which it was exceeded (nothing but changes); a decision at
 * any sample that is an hour after the last change (2 points more: it follows bursts that are over); several half-lives,
 * mixed or chosen by what they cost lately (2 to 5 points more); past hours moved by a ratio (1 to 3 points more) or
 * stretched by the unrest (1 point more); a cost that counts more hours ahead (0.3 points more). Without effect: several
 * outlooks weighted by how true they were, the bounds of the forecast, the same weekday, a price per VM by how often what
 * was expected came, raising that is dearer or cheaper than lowering.
 */
import { Recent } from './recent.js';
import { Smoothed, SortedWindow } from './window.js';

/** A limit is changed at most once in so many samples. */
export const SAMPLES_PER_DECISION = 12;

const BLOCKS_KEPT = 240;
const BLOCKS_PER_DAY = 24;
const CANDIDATES = 64;
/** Hours that a new limit is judged by. */
const AHEAD = 2;
/** What the next sample counts beside the mean of the hour, in the forecast that past hours are compared by. */
const NEXT_SAMPLE = 1 / 3;
const SAME_HOUR = 4;
const NEXT_HOUR = 3;
const HALF_LIFE_BLOCKS = 24;
/** What is left of the weight of an hour of long ago. */
const AGED_WEIGHT = 0.02;
/** An hour whose forecast was so far from the one of now, in units of the mean distance, counts half. */
const ALIKE = 0.7;
/** So does one whose unrest (how far samples are from the mean of their hour) was so many times that of now; a logarithm. */
const UNREST_ALIKE = 0.67;
const UNREST_ALPHA = 0.15;
/** Less, as a share of the highest sample, is none. */
const UNREST_MIN = 0.001;
/** Of what is used and allocated: a week. */
const MEAN_BLOCKS = 168;
const USED_SHARE_MIN = 0.02;
/** What a change has to be worth, as a share of the limit; from so many changes a day on it has to be more. */
const CHANGE_WORTH = 0.07;
const CHANGES_FREE = 2.5;
const CHANGES_POWER = 4;
/** How much what it was worth an hour ago counts: no limit is changed for what passes. */
const WORTH_KEEP = 0.5;
/**
 * How far a VM's coverage, over {@link FEEDBACK_BLOCKS}, may be off before its price moves, and how fast it moves. Too
 * little is mostly a burst, which no price would have covered; too much is a load that is easier to tell than those that
 * the prices are for, as daily seasons are, and lasts.
 */
const SHORT_BAND = 0.007;
const EXCESS_BAND = 0.002;
const FEEDBACK_BLOCKS = 480;
const FEEDBACK_RATE = 0.1;
/** The logarithm of the highest factor of the price. */
const FACTOR_MAX = 4;

/**
 * Per share asked for, the price of an uncovered sample that meets it on the development VMs, and the lowest that feedback
 * makes of it. Were that less, a load that rises after a quiet week would stay uncovered for days; the dearer the samples,
 * the further it may fall before that happens.
 */
const PRICES: readonly (readonly [number, number, number])[] = [
  [0.9, 1.3, 0.8],
  [0.95, 2.1, 1.2],
  [0.98, 5.5, 1.9],
  [0.99, 10.5, 3.5],
];

export class Limits {
  /** The allocation in force per safety; NaN before the first decision. */
  readonly limits: Float64Array;
  private readonly keepers: Keeper[];
  private readonly samples = new Recent(BLOCKS_KEPT * SAMPLES_PER_DECISION);
  /** What was expected when an hour began, and how unrestful those before it were. */
  private readonly anchors = new Recent(BLOCKS_KEPT);
  private readonly unrests = new Recent(BLOCKS_KEPT);
  private readonly sorted = new SortedWindow(BLOCKS_KEPT * SAMPLES_PER_DECISION);
  private block: number[] = [];
  private blocks = 0;
  private readonly used = new Smoothed(1 / MEAN_BLOCKS);
  private readonly unrest = new Smoothed(UNREST_ALPHA);

  constructor(safety: readonly number[]) {
    this.keepers = safety.map((share) => new Keeper(share));
    this.limits = new Float64Array(safety.length).fill(Number.NaN);
  }

  /** Takes a sample, NaN where none came, and decides once an hour. `forecast` tells what is expected so many samples ahead. */
  observe(value: number, forecast: (steps: number) => number): void {
    this.block.push(value);
    if (this.block.length < SAMPLES_PER_DECISION) return;
    for (const keeper of this.keepers) keeper.account(this.block);
    this.takeBlock();
    if (this.blocks === 0) return;
    const expected = comingHour(forecast);
    this.anchors.push(expected);
    this.unrests.push(this.unrest.value);
    const { candidates, exceeding } = this.outlook(expected);
    // In the first day nothing that was seen is left uncovered.
    const floor = this.blocks < BLOCKS_PER_DAY ? this.sorted.max * 1.1 : 0;
    this.keepers.forEach((keeper, i) => {
      keeper.choose(candidates, exceeding, this.used.value, floor);
      this.limits[i] = keeper.limit;
    });
  }

  /** Blocks have a fixed length: what did not come is filled with the newest that did. */
  private takeBlock(): void {
    const known = this.block.filter((value) => !Number.isNaN(value));
    this.block = [];
    if (known.length === 0) return;
    for (let i = 0; i < SAMPLES_PER_DECISION; i++) {
      const value = known[Math.min(i, known.length - 1)]!;
      this.samples.push(value);
      this.sorted.push(value);
    }
    const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
    this.used.push(mean);
    this.unrest.push(Math.sqrt(known.reduce((sum, value) => sum + (value - mean) ** 2, 0) / known.length));
    this.blocks++;
  }

  /** How far the forecast is from those of the hours before, on average; above 0. */
  private meanMove(forecast: number, kept: number): number {
    let [sum, count] = [0, 0];
    for (let ago = 1; ago < kept; ago++) {
      const move = Math.abs(forecast - this.anchors.at(ago));
      if (Number.isNaN(move)) continue;
      sum += move;
      count++;
    }
    return count === 0 ? 1 : Math.max(sum / count, 1e-9);
  }

  /** Candidate limits, rising, and the share of the coming samples that is expected above each. */
  private outlook(forecast: number): { candidates: Float64Array; exceeding: Float64Array } {
    const candidates = new Float64Array(CANDIDATES);
    for (let c = 0; c < CANDIDATES; c++) {
      const share = 0.3 + 0.7 * (1 - (1 - c / (CANDIDATES - 1)) ** 2.5);
      candidates[c] = this.sorted.quantile(share) * 1.005 + 1e-6;
    }
    const mass = new Float64Array(CANDIDATES + 1);
    let whole = 0;
    const kept = Math.min(this.anchors.count, BLOCKS_KEPT);
    const alike = ALIKE * this.meanMove(forecast, kept);
    const unrest = (ago: number) => Math.log(this.unrests.at(ago) + UNREST_MIN * candidates[CANDIDATES - 1]!);
    for (let ago = 1; ago < kept; ago++) {
      const away = Math.min(ago % BLOCKS_PER_DAY, BLOCKS_PER_DAY - (ago % BLOCKS_PER_DAY));
      const near = away === 0 ? SAME_HOUR : away === 1 ? NEXT_HOUR : 1;
      const move = forecast - this.anchors.at(ago);
      // Without a forecast (samples do not come) nothing has moved.
      const shift = Number.isNaN(move) ? 0 : move;
      const unlike = (shift / alike) ** 2 + ((unrest(0) - unrest(ago)) / UNREST_ALIKE) ** 2;
      const weight = (near * (0.5 ** (ago / HALF_LIFE_BLOCKS) + AGED_WEIGHT)) / (1 + unlike);
      for (let ahead = 0; ahead < AHEAD && ahead < ago; ahead++) {
        whole += weight * SAMPLES_PER_DECISION;
        // The block that began when the anchor was taken is the one after it.
        const oldest = (ago - ahead) * SAMPLES_PER_DECISION - 1;
        for (let k = 0; k < SAMPLES_PER_DECISION; k++) {
          const at = below(candidates, this.samples.at(oldest - k) + shift);
          mass[at] = mass[at]! + weight;
        }
      }
    }
    const exceeding = new Float64Array(CANDIDATES);
    let above = 0;
    for (let c = CANDIDATES - 1; c >= 0; c--) {
      above += mass[c + 1]!;
      exceeding[c] = whole > 0 ? above / whole : 1;
    }
    return { candidates, exceeding };
  }
}

class Keeper {
  limit = Number.NaN;
  private readonly price: number;
  private logFactor = 0;
  private readonly logFactorMin: number;
  /** Discounted sum of what was covered more or less than asked. */
  private surplus = 0;
  private readonly allocated = new Smoothed(1 / MEAN_BLOCKS);
  private changesPerDay = 0;
  /** What a change was worth in the last hours, on average. */
  private gain = 0;

  constructor(private readonly safety: number) {
    this.price = priceOf(safety, 1);
    this.logFactorMin = Math.log(priceOf(safety, 2) / this.price);
  }

  /** Feedback from the hour that ended. */
  account(block: readonly number[]): void {
    const known = block.filter((value) => !Number.isNaN(value));
    this.changesPerDay *= 1 - 1 / MEAN_BLOCKS;
    if (known.length === 0 || Number.isNaN(this.limit)) return;
    this.allocated.push(this.limit);
    const covered = known.filter((value) => value <= this.limit).length / known.length;
    this.surplus += (covered - this.safety - this.surplus) / FEEDBACK_BLOCKS;

    const off = this.surplus > 0 ? Math.max(0, this.surplus - EXCESS_BAND) : Math.min(0, this.surplus + SHORT_BAND);
    this.logFactor -= (FEEDBACK_RATE * off) / (1 - this.safety);
    this.logFactor = Math.max(this.logFactorMin, Math.min(FACTOR_MAX, this.logFactor * (off === 0 ? 0.98 : 1)));
  }

  /** @param used mean of what is used */
  choose(candidates: Float64Array, exceeding: Float64Array, used: number, floor: number): void {
    if (floor > 0) {
      this.limit = Math.max(this.limit || 0, floor);
      return;
    }
    const reference = Math.max(this.allocated.value, 1e-9);
    // The unused share's slope, 1 − used / allocated, is what one more unit of limit costs.
    const unit = Math.max(used, USED_SHARE_MIN * reference) / reference ** 2;
    const price = this.price * Math.exp(this.logFactor);
    let [best, bestCost] = [this.limit, Number.POSITIVE_INFINITY];
    for (let c = 0; c < candidates.length; c++) {
      const cost = candidates[c]! * unit + price * exceeding[c]!;
      if (cost < bestCost) [best, bestCost] = [candidates[c]!, cost];
    }
    const kept = this.limit * unit + price * interpolate(this.limit, candidates, exceeding);
    const worth = CHANGE_WORTH * Math.max(1, this.changesPerDay / CHANGES_FREE) ** CHANGES_POWER;
    this.gain = best === this.limit ? 0 : WORTH_KEEP * this.gain + (1 - WORTH_KEEP) * (kept - bestCost);
    if (best === this.limit || this.gain <= worth * unit * this.limit) return;
    this.limit = best;
    this.gain = 0;
    this.changesPerDay += BLOCKS_PER_DAY / MEAN_BLOCKS;
  }
}

/** One figure for what is expected of the coming hour. */
function comingHour(forecast: (steps: number) => number): number {
  let sum = 0;
  for (let steps = 1; steps <= SAMPLES_PER_DECISION; steps++) sum += forecast(steps);
  return NEXT_SAMPLE * forecast(1) + (1 - NEXT_SAMPLE) * (sum / SAMPLES_PER_DECISION);
}

/** Between the shares of {@link PRICES}, a column of it. */
function priceOf(safety: number, column: 1 | 2): number {
  const odds = (share: number) => Math.log(1 / (1 - share));
  let [lower, upper] = [PRICES[0]!, PRICES[1]!];
  for (let i = 1; i < PRICES.length && PRICES[i - 1]![0] <= safety; i++) [lower, upper] = [PRICES[i - 1]!, PRICES[i]!];
  const part = (odds(safety) - odds(lower[0])) / (odds(upper[0]) - odds(lower[0]));
  return Math.exp(Math.log(lower[column]) + part * (Math.log(upper[column]) - Math.log(lower[column])));
}

/** How many of the rising values are below. */
function below(rising: Float64Array, value: number): number {
  let [low, high] = [0, rising.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rising[middle]! < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function interpolate(x: number, xs: Float64Array, ys: Float64Array): number {
  const at = below(xs, x);
  if (at === 0) return ys[0]!;
  if (at === xs.length) return 0;
  const width = xs[at]! - xs[at - 1]!;
  return width > 0 ? ys[at - 1]! + ((ys[at]! - ys[at - 1]!) * (x - xs[at - 1]!)) / width : ys[at]!;
}
