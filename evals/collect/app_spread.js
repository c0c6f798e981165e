// How much the settings matter: a box per group of runs, a mark per run.

const HALF_BOX = 11;
const FEWEST_FOR_A_BOX = 3;
const GOLDEN = 0.618034;

/**
 * Draw `groups`, {name, runs: [{run, value}], spread, color, shape}: whiskers to the worst and best run, box of the
 * middle half, line at the median.
 */
function drawSpread(host, groups, kind, title) {
  const values = groups.flatMap(({ runs }) => runs.map(({ value }) => value));
  const { context, colors, sx, sy } = axesFrame(
    host,
    { domain: padded(extent([...values, 0]), 0.05), kind, label: title },
    { domain: [groups.length - 0.5, -0.5], names: groups.map(({ name }) => name), kind: "plain", label: "" },
  );
  context.strokeStyle = colors.soft;
  segment(context, sx(0), sy(-0.5), sx(0), sy(groups.length - 0.5));
  host.hits = groups.flatMap((group, row) => {
    const at = sy(row);
    const hasBox = group.runs.length >= FEWEST_FOR_A_BOX;
    const spread = Object.fromEntries(Object.entries(group.spread).map(([key, value]) => [key, sx(value)]));
    if (hasBox) drawWhiskers(context, spread, at, colors);
    const hits = drawRuns(context, group, at, hasBox, sx, (value) => `${title}: ${number(value, kind)}`);
    if (hasBox) drawBox(context, spread, at);
    return hits;
  });
  const places = new Map(host.hits.map(({ run, px, py }) => [run, [px, py]]));
  host.drawOver = (over, hit, selected) => {
    over.strokeStyle = colors.ink;
    over.lineWidth = 1.8;
    for (const run of new Set([selected, hit?.run].filter((each) => places.has(each)))) {
      mark(over, "circle", ...places.get(run), 6);
      over.stroke();
    }
  };
}

function drawWhiskers(context, { worst, best, lower, upper }, at, colors) {
  context.strokeStyle = colors.ink;
  context.lineWidth = 1.2;
  segment(context, worst, at, best, at);
  for (const end of [worst, best]) segment(context, end, at - 5, end, at + 5);
  context.fillStyle = colors.card;
  context.fillRect(lower, at - HALF_BOX, upper - lower, 2 * HALF_BOX);
}

function drawBox(context, { lower, upper, median }, at) {
  context.strokeRect(lower, at - HALF_BOX, upper - lower, 2 * HALF_BOX);
  context.lineWidth = 3;
  segment(context, median, at - HALF_BOX, median, at + HALF_BOX);
}

/** A mark per run, spread evenly over the height of the box; returns them as hits. */
function drawRuns(context, { runs, color, shape }, at, hasBox, sx, say) {
  context.globalAlpha = runs.length > 100 ? 0.35 : 0.65;
  context.fillStyle = color;
  const hits = runs.map(({ run, value }, i) => {
    const off = hasBox ? (((i * GOLDEN) % 1) - 0.5) * 2 * (HALF_BOX - 2) : 0;
    return { px: sx(value), py: at + off, run, title: run.name, lines: () => [describe(run), say(value)] };
  });
  for (const { px, py } of hits) {
    mark(context, shape, px, py, runs.length > 100 ? 2 : hasBox ? 3 : 5);
    context.fill();
  }
  context.globalAlpha = 1;
  return hits;
}

/** Which base each number in the names of boxes stands for; nothing where all runs began with the same. */
function basesIn(runs) {
  const bases = [...new Map(runs.map((run) => [baseOf(run), run]))];
  const named = bases.map(([print, run], i) => `${i + 1}: ${baseName(run)} (${print.slice(0, 15)})`);
  return bases.length > 1 ? `Bases, ${named.join("; ")}.` : "";
}

/** [name, runs] of each box: runs of a method (and rank) that began with the same base. */
function boxesOf(runs, byRank, methods) {
  const bases = [...new Set(runs.map(baseOf))];
  const name = (run) => {
    const method = byRank && run.rank ? `${run.method} r${run.rank}` : run.method;
    return bases.length > 1 ? `${method}, base ${bases.indexOf(baseOf(run)) + 1}` : method;
  };
  const place = ([run]) => methods.get(run.method).index;
  const order = ([, a], [, b]) =>
    bases.indexOf(baseOf(a[0])) - bases.indexOf(baseOf(b[0])) || place(a) - place(b) || a[0].rank - b[0].rank;
  return [...Map.groupBy(runs, name)].sort(order);
}
