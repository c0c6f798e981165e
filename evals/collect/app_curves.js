// A score or the loss over the training: of every run, or the mean and the middle 80 % of each method.

/**
 * Draw `lines`, {run, line: [[x, y], ...]}. `xAxis` has a label, how to write a tick and how to say a place;
 * `curve` is what is shown; `style(run)` the colour of a run.
 */
function drawCurves(host, lines, xAxis, curve, byMethod, style, selected) {
  const groups = byMethod ? meansOf(lines) : [];
  const drawn = byMethod ? lines.filter(({ run }) => run === selected) : lines;
  const ys = [
    ...drawn.flatMap(({ line }) => line.map(([, y]) => y)),
    ...groups.flatMap(({ mean }) => mean.flatMap((m) => [m.low, m.high, m.mean])),
    curve.chance,
  ];
  const xs = lines.flatMap(({ line }) => line.map(([x]) => x));
  const frame = axesFrame(
    host,
    { domain: padded(extent(xs), 0.02), kind: "plain", label: xAxis.label, write: xAxis.write },
    { domain: padded(extent(ys), 0.06), kind: curve.kind, label: curve.label },
  );
  const { context, colors, box, sx, sy } = frame;
  if (isNumber(curve.chance)) drawChance(context, box, sy(curve.chance), colors.soft);
  if (byMethod) drawMeans(frame, groups, style);
  else drawLines(frame, lines, style);
  host.hits = byMethod ? meanHits(frame, groups, xAxis, curve) : lineHits(frame, lines, xAxis, curve);
  const lineOf = new Map(lines.map(({ run, line }) => [run, line]));
  host.drawOver = (over, hit, chosen) => {
    over.lineWidth = 2.8;
    for (const run of new Set([chosen, hit?.run].filter((each) => lineOf.has(each)))) {
      over.strokeStyle = style(run).color;
      polyline(over, placesOf(frame, lineOf.get(run)));
    }
    if (!hit) return;
    over.fillStyle = colors.ink;
    mark(over, "circle", hit.px, hit.py, 3.5);
    over.fill();
  };
}

const placesOf = ({ sx, sy }, line) => line.map(([x, y]) => [sx(x), sy(y)]);

/** A mean line per method, with one of its runs, which has its colour. */
function meansOf(lines) {
  const methods = Map.groupBy(lines, ({ run }) => run.method).values();
  return [...methods].map((own) => ({
    run: own[0].run,
    runs: own.length,
    mean: meanLine(own.map(({ line }) => line)),
  }));
}

function drawChance(context, box, at, color) {
  context.strokeStyle = context.fillStyle = color;
  context.setLineDash([3, 4]);
  segment(context, box.left, at, box.right, at);
  context.setLineDash([]);
  context.textAlign = "right";
  context.fillText("guessing", box.right - 4, at - 8);
}

/** Bands first, so that all lines are above them. */
function drawMeans({ context, sx, sy }, groups, style) {
  context.globalAlpha = 0.14;
  for (const { run, mean } of groups) {
    context.fillStyle = style(run).color;
    context.beginPath();
    for (const m of mean) context.lineTo(sx(m.x), sy(m.high));
    for (const m of mean.toReversed()) context.lineTo(sx(m.x), sy(m.low));
    context.fill();
  }
  context.globalAlpha = 1;
  context.lineWidth = 2;
  for (const { run, mean } of groups) {
    const places = mean.map((m) => [sx(m.x), sy(m.mean)]);
    context.strokeStyle = style(run).color;
    polyline(context, places);
  }
}

function drawLines(frame, lines, style) {
  const { context } = frame;
  context.globalAlpha = lines.length > 200 ? 0.25 : lines.length > 40 ? 0.45 : 0.9;
  context.lineWidth = lines.length > 40 ? 1 : 1.7;
  for (const { run, line } of lines) {
    const places = placesOf(frame, line);
    context.strokeStyle = context.fillStyle = style(run).color;
    polyline(context, places);
    if (places.length > 1) continue;
    mark(context, "circle", ...places[0], 2.5);
    context.fill();
  }
  context.globalAlpha = 1;
}

function meanHits({ sx, sy }, groups, xAxis, { kind }) {
  return groups.flatMap(({ run, runs, mean }) =>
    mean.map((m) => ({
      px: sx(m.x),
      py: sy(m.mean),
      run: null,
      title: run.method,
      lines: () => [
        `mean of ${m.n} of ${runs} runs: ${number(m.mean, kind)}`,
        `middle 80 %: ${bare(m.low, kind)} to ${bare(m.high, kind)}`,
        xAxis.say(m.x),
      ],
    })),
  );
}

function lineHits({ sx, sy }, lines, xAxis, { kind, label }) {
  return lines.flatMap(({ run, line }) =>
    line.map(([x, y]) => ({
      px: sx(x),
      py: sy(y),
      run,
      title: run.name,
      lines: () => [describe(run), `${label}: ${number(y, kind)}`, xAxis.say(x)],
    })),
  );
}
