// What the plots can show of a run: the axes of learned against forgotten, curves over the training. Pure functions.

/** A score with the 95 % interval of its standard error. */
function scoreEstimate(entry) {
  if (!entry || !isNumber(entry.score)) return null;
  const arm = isNumber(entry.stderr) ? Z_95 * entry.stderr : null;
  return {
    value: entry.score,
    low: arm === null ? null : entry.score - arm,
    high: arm === null ? null : entry.score + arm,
  };
}

/** The mean of independent scores, with an interval where all have one. */
function meanEstimate(entries) {
  if (!entries.length || !entries.every((entry) => isNumber(entry.score))) return null;
  const value = entries.reduce((sum, entry) => sum + entry.score, 0) / entries.length;
  const hasErrors = entries.every((entry) => isNumber(entry.stderr));
  const stderr = hasErrors ? Math.hypot(...entries.map((entry) => entry.stderr)) / entries.length : null;
  return scoreEstimate({ score: value, stderr });
}

/** The average of a point's forgetting tasks, as the document gives it; its interval from the tasks' errors. */
function keptEstimate(point) {
  if (!isNumber(point.forgetting_average)) return null;
  const mean = meanEstimate((point.over?.forgetting_average ?? []).map((task) => point.tasks?.[task] ?? {}));
  return { value: point.forgetting_average, low: mean?.low ?? null, high: mean?.high ?? null };
}

/**
 * What the two axes of the first plot can show: {key, label, short, kind, better, read(point)}; `task` where it is one
 * task's score.
 */
function axesOf(runs) {
  const points = runs.flatMap((run) => run.points);
  // A run that is scored in bits per byte can be scored in accuracy, too.
  const both = (point, key) => [point[key], point[`${key}_accuracy`]];
  const figure = (point, key, unit) => (point[key]?.unit === unit ? key : `${key}_accuracy`);
  const units = (key) => [
    ...new Set(points.flatMap((point) => both(point, key).map((estimate) => estimate?.unit)).filter(Boolean)),
  ];
  const effect = (key, better) => (unit) => ({
    key: `${key}/${unit}`,
    short: key,
    label: `${key} (${unit === "accuracy" ? "points of accuracy" : unit})`,
    kind: kindOfUnit(unit),
    better,
    read: (point) => both(point, key).find((estimate) => estimate?.unit === unit) ?? null,
    over: (point) => overTasks(point, figure(point, key, unit)),
  });
  const x = units("forgotten").map(effect("forgotten", -1));
  if (points.some((point) => isNumber(point.forgetting_average))) {
    x.unshift({
      key: "kept",
      short: "forgetting average",
      label: "forgetting average: mean accuracy on the old tasks (%)",
      kind: "share",
      better: 1,
      read: keptEstimate,
      over: (point) => overTasks(point, "forgetting_average"),
    });
  }
  const y = units("learned").map(effect("learned", 1));
  const suites = new Map();
  for (const [task, entry] of tasksOf(points)) {
    if (entry.domain !== "new") continue;
    const kind = kindOfMetric(entry.metric);
    const label = `${task} (${kind === "share" ? "accuracy, %" : "bits per byte"})`;
    y.push({
      key: `task/${task}`,
      short: task,
      task: plainName(task),
      label,
      kind,
      better: kind === "share" ? 1 : -1,
      read: (point) => scoreEstimate(point.tasks?.[task]),
    });
    // The first 50 examples of a suite's tasks are one mean, all of them another.
    const suite = entry.suite && entry.suite + (task.match(/@\d+$/)?.[0] ?? "");
    if (suite && kind === "share") suites.set(suite, [...(suites.get(suite) ?? []), task]);
  }
  for (const [suite, tasks] of suites) {
    if (tasks.length < 2) continue;
    y.push({
      key: `suite/${suite}`,
      short: suite,
      label: `${suite}: mean of ${tasks.length} tasks (%)`,
      kind: "share",
      better: 1,
      read: (point) => meanEstimate(tasks.map((task) => point.tasks?.[task] ?? {})),
    });
  }
  return { x, y };
}

/** Every task of some points with an entry of it, by name. */
function tasksOf(points) {
  const tasks = new Map();
  for (const point of points) {
    for (const [task, entry] of Object.entries(point.tasks ?? {})) if (!tasks.has(task)) tasks.set(task, entry);
  }
  return [...tasks].sort(([a], [b]) => a.localeCompare(b));
}

/** The pair of axes that most runs have at their end; scores that can be compared with the published ones first. */
function defaultAxes(runs, axes, publishedTasks) {
  const points = runs.flatMap((run) => run.final ?? []);
  const has = (x, y) => points.reduce((sum, point) => sum + (x.read(point) && y.read(point) ? 1 : 0), 0);
  let best = { x: axes.x[0] ?? null, y: axes.y[0] ?? null, score: -1 };
  for (const x of axes.x) {
    for (const y of axes.y) {
      const n = has(x, y);
      const bonus =
        x.key === "kept" && publishedTasks.has(y.task) ? 3 : x.key !== "kept" && y.key.startsWith("learned") ? 2 : 0;
      const score = n ? bonus * 0.25 * points.length + n : 0;
      if (score > best.score) best = { x, y, score };
    }
  }
  return best;
}

/** The published curves that belong behind a pair of axes: the same scores, in the same unit. */
function comparable(published, x, y) {
  if (x?.key !== "kept" || y?.kind !== "share" || !y.task) return [];
  return published.curves.filter((curve) => curve.task === y.task);
}

/** The points of the first plot: {run, point, x, y, xs, ys (estimates), weight in [0, 1] by duration}. */
function placed(runs, x, y) {
  if (!x || !y) return [];
  const items = [];
  let longest = 0;
  for (const run of runs) for (const point of run.points) longest = Math.max(longest, point.tokens ?? point.step ?? 0);
  for (const run of runs) {
    for (const point of run.points) {
      const [xs, ys] = [x.read(point), y.read(point)];
      if (!isNumber(xs?.value) || !isNumber(ys?.value)) continue;
      items.push({
        run,
        point,
        x: xs.value,
        y: ys.value,
        xs,
        ys,
        weight: longest ? (point.tokens ?? point.step ?? 0) / longest : 1,
      });
    }
  }
  return items;
}

/** What the second plot can show over the training: {key, label, kind, line(run, over)}. */
function curvesOf(runs) {
  const points = runs.flatMap((run) => run.points);
  const fromPoints = (key, label, kind, read) => ({
    key,
    label,
    kind,
    line: (run, over) =>
      run.points.map((point) => [abscissa(run, point, over), read(point)]).filter((pair) => pair.every(isNumber)),
  });
  const curves = tasksOf(points).map(([task, entry]) => ({
    ...fromPoints(
      `task/${task}`,
      `${task} (${kindOfMetric(entry.metric) === "share" ? "accuracy, %" : "bits per byte"})`,
      kindOfMetric(entry.metric),
      (point) => point.tasks?.[task]?.score,
    ),
    chance: entry.metric === "accuracy" ? entry.chance : null,
  }));
  if (points.some((point) => isNumber(point.forgetting_average))) {
    curves.unshift(
      fromPoints("kept", "forgetting average (accuracy, %)", "share", (point) => point.forgetting_average),
    );
  }
  if (runs.some((run) => run.loss?.length)) {
    curves.push({
      key: "loss",
      label: "training loss (nats per token)",
      kind: "plain",
      line: (run, over) => {
        const factor =
          over === "tokens" ? 1 : over === "epochs" ? 1 / run.tokens_per_epoch : run.step / run.tokens_seen;
        return (run.loss ?? []).map(([tokens, loss]) => [tokens * factor, loss]).filter((pair) => pair.every(isNumber));
      },
    });
  }
  return curves;
}

/** A point's place on the horizontal axis of the second plot. */
function abscissa(run, point, over) {
  return over === "tokens" ? point.tokens : over === "epochs" ? point.epochs : point.step;
}
