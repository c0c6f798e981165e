// Learned against forgotten: points, their intervals, the front, the published curves. As every plot it leaves in
// `host.hits` what can be pointed at, and in `host.drawOver` how that then looks.

const MOST_WHISKERS = 60;
const BEFORE_TRAINING = { color: null, shape: "cross" };

/**
 * Draw learned against forgotten.
 *
 * `items` are the points as `placed` gives them, `front` those of them that are on it; `x` and `y` the axes; `backdrop`
 * the published curves, with `base` where they begin; `style(run)` the colour and shape of a run.
 */
function drawPareto(host, items, front, x, y, backdrop, base, style) {
  const byRun = Map.groupBy(items, (item) => item.run);
  const isCrowded = items.length > 1500;
  const radius = ({ weight }) => (isCrowded ? 1.6 + 2.2 * Math.sqrt(weight) : 2.4 + 4.2 * Math.sqrt(weight));
  const domain = paretoDomain(items, x, y, backdrop);
  const frame = axesFrame(
    host,
    { domain: domain.x, kind: x.kind, label: `${x.label}   ${x.better > 0 ? "better" : "worse"} \u2192` },
    { domain: domain.y, kind: y.kind, label: `\u2191 ${y.better > 0 ? "better" : "worse"}   ${y.label}` },
  );
  const { context, colors, box, sx, sy } = frame;
  const places = (own) => own.map((item) => [sx(item.x), sy(item.y)]);
  clipTo(context, box);
  if (KINDS[x.kind].signed) segment(context, sx(0), box.top, sx(0), box.bottom);
  if (KINDS[y.kind].signed) segment(context, box.left, sy(0), box.right, sy(0));
  const labels = drawBackdrop(context, backdrop, base, sx, sy, colors);
  context.lineWidth = 1;
  for (const [run, own] of byRun) {
    context.globalAlpha = byRun.size > 150 ? 0.08 : byRun.size > 40 ? 0.2 : 0.5;
    context.strokeStyle = style(run).color;
    polyline(context, places(own));
    context.globalAlpha = 0.55;
    if (items.length <= MOST_WHISKERS) for (const item of own) whiskers(context, item, sx, sy);
  }
  context.globalAlpha = items.length > 400 ? 0.6 : 0.9;
  for (const item of items) {
    const { color, shape } = item.point.step ? style(item.run) : BEFORE_TRAINING;
    context.fillStyle = color ?? colors.ink;
    mark(context, shape, sx(item.x), sy(item.y), item.point.step ? radius(item) : 3.4);
    context.fill();
  }
  context.globalAlpha = 1;
  context.strokeStyle = colors.ink;
  context.lineWidth = 1.6;
  polyline(context, staircase(front, sx, sy));
  for (const item of front) {
    mark(context, style(item.run).shape, sx(item.x), sy(item.y), radius(item) + 2);
    context.stroke();
  }
  writeLabels(context, labels, box, colors);
  host.hits = items.map((item) => ({
    px: sx(item.x),
    py: sy(item.y),
    run: item.run,
    item,
    title: item.run.name,
    lines: () => pointLines(item, x, y),
  }));
  host.drawOver = (over, hit, selected) => {
    const own = byRun.get(selected) ?? [];
    clipTo(over, box);
    over.lineWidth = 2.4;
    over.strokeStyle = selected ? style(selected).color : colors.ink;
    polyline(over, places(own));
    over.lineWidth = 1.2;
    over.strokeStyle = colors.ink;
    for (const item of hit ? [...own, hit.item] : own) {
      whiskers(over, item, sx, sy);
      over.fillStyle = style(item.run).color;
      mark(over, style(item.run).shape, sx(item.x), sy(item.y), radius(item) + 1.5);
      over.fill();
      over.stroke();
    }
  };
}

/** What both axes have to hold: points (with their intervals, where these are drawn), published curves, no change. */
function paretoDomain(items, x, y, backdrop) {
  const ends = (key) =>
    items.length > MOST_WHISKERS
      ? items.map((item) => item[key])
      : items.flatMap((item) => [item[key], item[`${key}s`].low, item[`${key}s`].high]);
  const zero = (axis) => (KINDS[axis.kind].signed ? [0] : []);
  const xs = [...ends("x"), ...zero(x), ...backdrop.flatMap((curve) => curve.forgetting)];
  const ys = [...ends("y"), ...zero(y), ...backdrop.flatMap((curve) => curve.learning)];
  return { x: padded(extent(xs), 0.06), y: padded(extent(ys), 0.07) };
}

/** What the card of a point says. */
function pointLines({ run, point, xs, ys }, x, y) {
  return [
    describe(run),
    point.step ? `step ${point.step}, ${count(point.tokens)} tokens` : "before training",
    `${y.short}: ${withInterval(ys, y.kind)}`,
    `${x.short}: ${withInterval(xs, x.kind)}`,
    ...[y, x].flatMap((axis) => (axis.over?.(point) ? [`${axis.short} over ${axis.over(point)}`] : [])),
  ];
}

/** The sets of tasks that the points are over, as text; one is all that compares. */
function kindsOf(items, x, y) {
  return new Set(items.map(({ point }) => [y, x].map((axis) => axis.over?.(point) ?? "").join(" / ")));
}

/** The corners of the line that bounds what no point of the front is beaten by. */
function staircase(front, sx, sy) {
  return front.flatMap((item, i) => [...(i ? [[sx(front[i - 1].x), sy(item.y)]] : []), [sx(item.x), sy(item.y)]]);
}

/** Draw the published curves and their base model; returns the labels to write when the marks are there. */
function drawBackdrop(context, curves, base, sx, sy, colors) {
  context.strokeStyle = context.fillStyle = colors.published;
  const labels = curves.map((curve) => {
    const places = curve.forgetting.map((value, i) => [sx(value), sy(curve.learning[i])]);
    context.setLineDash({ r16: [2, 3], r64: [5, 3], r256: [9, 3] }[curve.method] ?? []);
    context.lineWidth = 1.3;
    polyline(context, places);
    context.setLineDash([]);
    for (const [px, py] of places) {
      mark(context, "circle", px, py, 1.8);
      context.fill();
    }
    return { text: `${curve.experiment.split(" (")[0]} ${curve.method}`, at: places[places.length - 1] };
  });
  if (!base) return labels;
  const [px, py] = [sx(base.x), sy(base.y)];
  segment(context, px - 5, py, px + 5, py);
  segment(context, px, py - 5, px, py + 5);
  return [...labels, { text: "Llama-2-7B", at: [px, py] }];
}

/** Write labels beside their places, each where it covers no other and stays in the box. */
function writeLabels(context, labels, box, colors) {
  const taken = [];
  context.textAlign = "left";
  context.lineWidth = 3;
  context.strokeStyle = colors.card;
  context.fillStyle = colors.published;
  for (const {
    text: written,
    at: [px, py],
  } of labels) {
    const width = context.measureText(written).width;
    const places = [-7, 9, -21, 23, -35, 37].flatMap((dy) => [
      [px + 6, py + dy],
      [px - 6 - width, py + dy],
    ]);
    const isFree = ([x, y]) =>
      x >= box.left &&
      x + width <= box.right &&
      y - 7 >= box.top &&
      y + 7 <= box.bottom &&
      taken.every(([left, top, wide]) => x > left + wide || x + width < left || Math.abs(y - top) > 13);
    const [x, y] = places.find(isFree) ?? places[0];
    taken.push([x, y, width]);
    context.strokeText(written, x, y);
    context.fillText(written, x, y);
  }
}
