"use strict";
// Numbers as people read them, the same as in evals/formatting.py, and arithmetic on many of them.

const UNKNOWN = "\u2013";
const MINUS = "\u2212";
const Z_95 = 1.959963984540054;

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** 2600000 -> "2.6 M"; counts below a thousand as they are. */
function count(value) {
  if (!isNumber(value)) return UNKNOWN;
  for (const [size, suffix] of [
    [1e12, "T"],
    [1e9, "B"],
    [1e6, "M"],
    [1e3, "k"],
  ]) {
    if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))} ${suffix}`;
  }
  return String(Number(value.toPrecision(6)));
}

/** A learning rate: 0.0001 -> "1e-4". */
function rate(value) {
  return isNumber(value) ? Number(value.toPrecision(4)).toExponential().replace("e+", "e") : UNKNOWN;
}

/**
 * Kinds of quantity. `share`: a score in [0, 1], shown in percent; `points`: a difference of shares, in percentage
 * points; `bits`: a difference in bits per byte; `plain`: a loss or bits per byte.
 */
const KINDS = {
  share: { scale: 100, digits: 1, unit: "%", signed: false },
  points: { scale: 100, digits: 1, unit: "points", signed: true },
  bits: { scale: 1, digits: 3, unit: "bits per byte", signed: true },
  plain: { scale: 1, digits: 3, unit: "", signed: false },
};

/** The bare number of a kind of quantity, without its unit: 0.0312 points -> "+3.1". */
function bare(value, kind, digits = KINDS[kind].digits) {
  if (!isNumber(value)) return UNKNOWN;
  const text = (KINDS[kind].scale * value).toFixed(digits);
  return (KINDS[kind].signed && !text.startsWith("-") ? `+${text}` : text).replace("-", MINUS);
}

/** With its unit: "+3.1 points", "31.0 %", "0.912". */
function number(value, kind) {
  if (!isNumber(value)) return UNKNOWN;
  const unit = kind === "bits" ? "" : KINDS[kind].unit;
  return unit ? `${bare(value, kind)} ${unit}` : bare(value, kind);
}

/** A quantity and its interval: "+3.1 points (+2.7 to +3.5)". */
function withInterval(estimate, kind) {
  if (!estimate) return UNKNOWN;
  const { value, low, high } = estimate;
  const range = isNumber(low) && isNumber(high) ? ` (${bare(low, kind)} to ${bare(high, kind)})` : "";
  return number(value, kind) + range;
}

const kindOfUnit = (unit) => (unit === "accuracy" ? "points" : "bits");
const kindOfMetric = (metric) => (metric === "accuracy" ? "share" : "plain");

/** A tick's number with as many digits as the step needs. */
function tickText(value, step, kind) {
  const digits = Math.max(
    0,
    -Math.floor(Math.log10(step) + 1e-9) + (Math.abs(step / 10 ** Math.floor(Math.log10(step)) - 2.5) < 1e-6 ? 1 : 0),
  );
  const written = (Math.abs(value) < step * 1e-6 ? 0 : value).toFixed(digits);
  return (KINDS[kind].signed && value > step * 1e-6 ? `+${written}` : written).replace("-", MINUS);
}

/** The q-quantile of sorted numbers, linear between neighbours. */
function quantile(sorted, q) {
  const position = (sorted.length - 1) * q;
  const below = Math.floor(position);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (position - below);
}

/** [lowest, highest] of the finite values, or null. */
function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (!isNumber(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}

/** An interval made wider by a share on both sides; one of length 0 gets a length. */
function padded([low, high], share) {
  const room = high > low ? (high - low) * share : Math.abs(high) * 0.05 || 0.01;
  return [low - room, high + room];
}

/** Round numbers between low and high, about `wanted` of them, and the step between them. */
function ticks(low, high, wanted) {
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const values = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) values.push(i * step);
  return { values, step };
}

/** The items that no other beats in both coordinates; `xBetter` and `yBetter` are +1 where high is good, else -1. */
function frontOf(items, xBetter, yBetter) {
  const sorted = [...items].sort((a, b) => xBetter * (b.x - a.x) || yBetter * (b.y - a.y));
  const front = [];
  for (const item of sorted) {
    const last = front[front.length - 1];
    if (!last || yBetter * (item.y - last.y) > 0 || (item.x === last.x && item.y === last.y)) front.push(item);
  }
  return front;
}

/** Value at x of a line through [x, y] pairs sorted by x; null outside of it. */
function interpolate(line, x) {
  if (!line.length || x < line[0][0] || x > line[line.length - 1][0]) return null;
  let low = 0;
  let high = line.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (line[middle][0] <= x) low = middle;
    else high = middle;
  }
  const [[x0, y0], [x1, y1]] = [line[low], line[high]];
  return x1 === x0 ? y1 : y0 + ((y1 - y0) * (x - x0)) / (x1 - x0);
}

/** Mean and 10th and 90th percentile of several lines, at the places where they have points (or 60 even ones). */
function meanLine(lines) {
  let places = [...new Set(lines.flatMap((line) => line.map(([x]) => x)))].sort((a, b) => a - b);
  if (places.length > 60) {
    const [low, high] = [places[0], places[places.length - 1]];
    places = Array.from({ length: 60 }, (_, i) => low + ((high - low) * i) / 59);
  }
  return places.flatMap((x) => {
    const values = lines
      .map((line) => interpolate(line, x))
      .filter(isNumber)
      .sort((a, b) => a - b);
    if (!values.length) return [];
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    return [{ x, mean, low: quantile(values, 0.1), high: quantile(values, 0.9), n: values.length }];
  });
}

/** The value that occurs most often, or null. */
function mostFrequent(values) {
  return [...Map.groupBy(values, (value) => value)].sort(([, a], [, b]) => b.length - a.length)[0]?.[0] ?? null;
}

/** Best, median and worst of some values; `better` is +1 where high is good. */
function spreadOf(values, better) {
  const sorted = [...values].sort((a, b) => a - b);
  if (!sorted.length) return null;
  const [low, high] = [sorted[0], sorted[sorted.length - 1]];
  return {
    n: sorted.length,
    median: quantile(sorted, 0.5),
    lower: quantile(sorted, 0.25),
    upper: quantile(sorted, 0.75),
    best: better > 0 ? high : low,
    worst: better > 0 ? low : high,
    spread: high - low,
  };
}
