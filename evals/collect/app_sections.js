// The sections above the table: each function shows one of them as the view now is (see `start` in app.js).

const FRONT_ROWS = 12;

/** How many runs match, and how many would with each value. */
function showFilters({ runs, shown, state }) {
  find("matching").textContent =
    shown.length === runs.length ? `${runs.length} runs` : `${shown.length} of ${runs.length} runs`;
  find("clear").disabled = !state.query && Object.values(state.filters).every((chosen) => !chosen.size);
  if (find("search").value !== state.query) find("search").value = state.query;
  for (const box of find("facets").querySelectorAll("input")) box.checked = state.filters[box.name].has(box.value);
  for (const { key } of FACETS) {
    const counts = countValues(matching(runs, state.filters, state.query, key), key);
    for (const output of find("facets").querySelectorAll(`[data-facet="${key}"] .count`)) {
      const n = counts.get(output.dataset.value) ?? 0;
      output.textContent = n;
      output.parentElement.classList.toggle("is-empty", n === 0);
    }
  }
}

/** The marks of the methods that are shown. */
function showLegend({ shown, methods, style }) {
  const present = countValues(shown, "method");
  const names = [...methods.keys()].filter((name) => present.has(name));
  const items = names.map((method) =>
    element("span", {}, markPicture(style({ method })), `${method} (${present.get(method)})`),
  );
  find("legend").replaceChildren(...items);
}

/** The bar that says which run is selected. */
function showSelected({ shown, state, byId }) {
  const run = byId.get(state.run);
  find("selected").hidden = !run;
  if (!run) return find("selected").replaceChildren();
  const isShown = shown.includes(run);
  find("selected").replaceChildren(
    element("b", {}, run.name),
    element("span", {}, describe(run) + (isShown ? "" : ` ${UNKNOWN} left out by the filters`)),
    ...(isShown ? [element("a", { href: "#table-title", "data-to-table": true }, "in the table")] : []),
    element("button", { type: "button", "data-run": run.id }, "Deselect"),
  );
}

/** Learned against forgotten, the published curves behind it, and the front as a table. */
function showPareto(view) {
  const { shown, state, published } = view;
  const [x, y] = [view.axis("x"), view.axis("y")];
  const host = find("pareto");
  find("x-axis").value = x?.key ?? "";
  find("y-axis").value = y?.key ?? "";
  find("front").replaceChildren();
  find("pareto-caption").textContent = "";
  const offered = comparable(published, x, y);
  showBackdrops(offered, state.hidden);
  if (!x || !y) return empty(host, "No run has been scored before and after training on new and on old text yet.");
  const items = shownItems(view, x, y);
  if (!items.length) return empty(host, `None of the ${shown.length} chosen runs has both of these scores.`);
  const trained = items.filter(({ point }) => point.step > 0);
  const front = frontOf(trained, x.better, y.better);
  const kinds = kindsOf(trained, x, y);
  const backdrop = offered.filter((curve) => !state.hidden.has(curve.experiment));
  const start = published.base[y.task];
  const base = backdrop.length && isNumber(start) ? { x: published.base.forgetting, y: start } : null;
  drawPareto(host, items, front, x, y, backdrop, base, view.style);
  host.firstChild.ariaLabel = `${items.length} points, ${front.length} on the front`;
  find("pareto-caption").textContent = [
    `${items.length} points of ${new Set(items.map(({ run }) => run)).size} runs, one per checkpoint;`,
    "the larger, the longer the training.",
    "Outlined and joined: the front, which no other shown point beats on both axes.",
    trained.length < items.length ? "A cross is a model before training." : "",
    items.length > MOST_WHISKERS ? "Point at a mark for its 95 % intervals." : "The bars are 95 % intervals.",
    kinds.size > 1 ? `These points are over ${kinds.size} different sets of tasks, as their cards say.` : "",
    backdrop.length ? `Grey: published, ${published.source}.` : "",
  ].join(" ");
  showFront(view, front, x, y);
}

/** The points of the runs that are shown; those of all runs are kept until the axes change. */
function shownItems(view, x, y) {
  if (view.items?.x !== x || view.items?.y !== y) view.items = { x, y, all: placed(view.runs, x, y) };
  const isShown = new Set(view.shown);
  return view.items.all.filter(({ run }) => isShown.has(run));
}

function showBackdrops(offered, hidden) {
  const host = find("backdrops");
  const tables = new Map(offered.map((curve) => [curve.experiment, curve.tables]));
  host.hidden = !tables.size;
  const wanted = [...tables.keys()].join("|");
  if (host.dataset.experiments !== wanted) {
    host.dataset.experiments = wanted;
    const boxes = [...tables].map(([value, name]) =>
      element("label", {}, element("input", { type: "checkbox", value }), ` ${value}, ${name}`),
    );
    host.replaceChildren(host.firstElementChild, ...boxes);
  }
  for (const box of host.querySelectorAll("input")) box.checked = !hidden.has(box.value);
}

function showFront(view, front, x, y) {
  if (!front.length) return;
  const rows = front
    .slice(0, FRONT_ROWS)
    .map((item) => [
      runButton(view, item.run),
      element("td", { className: "text" }, describe(item.run)),
      text(item.point.step),
      estimateCell(item.ys, y.kind),
      estimateCell(item.xs, x.kind),
    ]);
  const many = front.length === 1 ? "checkpoint" : "checkpoints";
  const title = `The ${front.length} ${many} on the front of ${y.short} and ${x.short}, of the runs shown`;
  const table = tableOf(["run", element("th", { className: "text" }, "method"), "step", y.short, x.short], rows);
  const more = front.length > FRONT_ROWS ? `and ${front.length - FRONT_ROWS} more, in the plot` : "";
  find("front").replaceChildren(
    element(
      "details",
      { open: !more },
      element("summary", {}, title),
      element("div", { className: "scroll" }, table),
      element("p", { className: "caption" }, more),
    ),
  );
}

/** A score or the loss over the training. */
function showCurves(view) {
  const { shown, state, curves } = view;
  const host = find("curves");
  find("curves-caption").textContent = "";
  const curve =
    [state.curve, view.axis("y")?.key].map((wanted) => curves.find(({ key }) => key === wanted)).find(Boolean) ??
    curves[0];
  if (!curve) return empty(host, "No run has logged a loss or a score yet.");
  const over = ["epochs", "step"].includes(state.over) ? state.over : "tokens";
  const byMethod = (state.by ?? (shown.length > 30 ? "method" : "run")) === "method";
  find("curve").value = curve.key;
  find("over").value = over;
  find("by").value = byMethod ? "method" : "run";
  const lines = shown.map((run) => ({ run, line: curve.line(run, over) })).filter(({ line }) => line.length);
  if (!lines.length) return empty(host, `None of the ${shown.length} chosen runs has ${curve.label} over ${over}.`);
  const label = { tokens: "tokens read", epochs: "epochs", step: "steps" }[over];
  const write = over === "tokens" ? count : (value) => String(Number(value.toPrecision(6)));
  const say = (value) => `at ${count(value)} ${over === "step" ? "steps" : over}`;
  drawCurves(host, lines, { label, write, say }, curve, byMethod, view.style, view.selected());
  host.firstChild.ariaLabel = `${curve.label} over ${label}, ${lines.length} runs`;
  find("curves-caption").textContent = byMethod
    ? `Lines: mean over a method's runs that came that far (${lines.length} in all). Bands: the middle 80 % of them.`
    : `${lines.length} runs, coloured by method. Point at a line for its run; click to select it.`;
}

/** The spread over settings and seeds of what is learned and forgotten at the end, as boxes and as a table. */
function showSpread(view) {
  const { shown, state } = view;
  const byRank = state.boxes === "rank";
  find("boxes").value = byRank ? "rank" : "method";
  const counted = shown.filter(
    (run) =>
      run.status === "done" && run.final && !run.is_diverged && !run.is_continuation && !run.is_from_scratch,
  );
  const groups = boxesOf(counted, byRank, view.methods);
  const [learned, forgotten] = [showBoxes(view, "learned", 1, groups), showBoxes(view, "forgotten", -1, groups)];
  showSpreadTable(
    groups.map(([group]) => group),
    learned,
    forgotten,
  );
  const diverged = shown.filter((run) => run.is_diverged).length;
  const reasons = `are not finished, not scored, from scratch, continue another run or diverged (${diverged})`;
  find("spread-caption").textContent = [
    "A mark per finished run, over learning rates, batch sizes and seeds;",
    "box: middle half; thick line: median; ends: worst and best run.",
    basesIn(counted),
    counted.length < shown.length
      ? `Left out: ${shown.length - counted.length} of the chosen runs, which ${reasons}.`
      : "",
  ].join(" ");
}

/** One of the two plots; returns its boxes {name, runs, spread} and their kind of quantity. */
function showBoxes({ style }, key, better, groups) {
  const host = find(`spread-${key}`);
  const unit = mostFrequent(groups.flatMap(([, own]) => own.map((run) => run.final[key]?.unit).filter(Boolean)));
  const boxes = groups.flatMap(([name, own]) => {
    const measured = own.filter((run) => run.final[key]?.unit === unit && isNumber(run.final[key]?.value));
    const runs = measured.map((run) => ({ run, value: run.final[key].value }));
    const values = runs.map(({ value }) => value);
    return runs.length ? [{ name, runs, spread: spreadOf(values, better), ...style(own[0]) }] : [];
  });
  const kind = unit && kindOfUnit(unit);
  host.style.height = `${boxes.length * 46 + 66}px`;
  if (boxes.length) {
    const title = `${key} (${unit === "accuracy" ? "points" : unit}), ${better > 0 ? "better" : "worse"} \u2192`;
    drawSpread(host, boxes, kind, title);
    host.firstChild.ariaLabel = `What is ${key}, a box per group; the numbers are in the table below`;
  } else {
    empty(host, `No finished run among the chosen has something ${key} yet.`);
  }
  return { boxes, kind };
}

function showSpreadTable(names, learned, forgotten) {
  const found = ({ boxes }, name) => boxes.find((box) => box.name === name);
  const figures = ["best", "median", "worst", "spread"];
  const numbers = (side, name) =>
    figures.map((key) => {
      const value = found(side, name)?.spread[key];
      return isNumber(value) ? bare(value, side.kind).replace(key === "spread" ? "+" : "", "") : UNKNOWN;
    });
  const rows = names.map((name) => {
    const most = Math.max(...[learned, forgotten].map((side) => found(side, name)?.runs.length ?? 0));
    return [name, text(most), ...numbers(learned, name), ...numbers(forgotten, name)];
  });
  const group = (title) => element("th", { className: "group", colSpan: figures.length }, title);
  const titles = [
    ["", "", group("learned"), group("forgotten")],
    ["method", "runs", ...figures, ...figures],
  ];
  find("spread-table").replaceChildren(...(rows.length ? [tableOf(titles, rows)] : []));
}

/** The rank of a run's weight change, layers by modules. */
function showRank(view) {
  const { shown, state, byId, withRank } = view;
  find("rank-controls").hidden = !withRank.length;
  find("rank-caption").textContent = "";
  if (!withRank.length) {
    const message = "No run has a rank of the weight change yet: python -m training.checkpoint rank RUN";
    return find("rank").replaceChildren(element("p", { className: "empty" }, message));
  }
  const wanted = [view.selected(), byId.get(state.heat), ...shown, ...withRank];
  const run = wanted.find((each) => each?.rank_change);
  const isRelative = state.scale === "run";
  find("rank-run").value = run.id;
  find("rank-scale").value = isRelative ? "run" : "full";
  const { modules, layers, rank, max_rank: largest, full_rank: each, share, step } = run.rank_change;
  const full = (i, j) => each?.[i]?.[j] ?? largest;
  const shares = rank.map((row, i) => row.map((k, j) => (isNumber(k) ? k / full(i, j) : null)));
  const top = isRelative ? extent(shares.flat())?.[1] || 1 : 1;
  const cell = (k, i, j) => {
    if (!isNumber(k)) return element("td", { title: "not there" }, UNKNOWN);
    const title = `${modules[j]}, layer ${layers[i]}: ${k} of ${full(i, j)}, ${number(shares[i][j], "share")}`;
    const made = element("td", { title }, String(k));
    made.style.background = `color-mix(in srgb, var(--heat) ${(100 * shares[i][j]) / top}%, var(--card))`;
    return made;
  };
  const rows = rank.map((row, i) => [
    element("th", { scope: "row" }, text(layers[i])),
    ...row.map((k, j) => cell(k, i, j)),
  ]);
  find("rank").replaceChildren(tableOf(["layer", ...modules], rows, { className: "heat" }));
  find("rank-caption").textContent = [
    `${run.name}${isNumber(step) ? `, step ${step}` : ""} (${describe(run)}):`,
    `the smallest number of directions that hold ${number(share, "share")} of the squared change of a matrix,`,
    `of ${largest} at most.`,
    `Colour: share of full rank, strongest at ${number(top, "share")}${isRelative ? ", the highest of this run" : ""}.`,
  ].join(" ");
}
