// The runs as the page needs them: methods, filters, columns; and the address that holds the view.
// Pure functions.

const RANDOM_WEIGHTS = "random weights";
const OWN_AXES = ["method", "adapter.rank", "optim.lr", "train.global_batch_rows", "run.seed"];

/** A task's name without shots and number of examples: "hellaswag:10@200" -> "hellaswag". */
const plainName = (task) => task.replace(/[:@].*$/, "");

/** Methods in the order of the page, each with the style variable of its colour. */
function methodsOf(runs) {
  const order = ["none", "lora", "monteclora"];
  const adapters = new Map();
  // A cell of a sweep that has not begun need not say which adapter it will have.
  for (const run of runs) adapters.set(run.method, adapters.get(run.method) ?? run.adapter);
  const place = (adapter) => (order.includes(adapter) ? order.indexOf(adapter) : order.length);
  const first = new Set();
  let spare = 0;
  // The colour of full finetuning is not for the base that it begins from.
  const isBase = (method) => runs.every((run) => run.method !== method || run.is_from_scratch);
  return [...adapters]
    .sort(([a, x], [b, y]) => place(x) - place(y) || isBase(a) - isBase(b) || a.length - b.length || a.localeCompare(b))
    .map(([name, adapter], index) => {
      const isFirst = order.includes(adapter) && !first.has(adapter);
      first.add(adapter);
      return { name, index, color: isFirst ? `--${adapter}` : `--other-${spare++ % 4}` };
    });
}

/** The point at the run's end, with the figures over the most complete tasks there. */
function finalPoint(run) {
  if (!run.final) return null;
  return { ...run.points.find(({ step }) => step === run.final.step), ...run.final };
}

/** What tells a run's base from others. */
const baseOf = (run) => (run.is_from_scratch ? RANDOM_WEIGHTS : (run.base_fingerprint ?? run.base ?? ""));

/** A base as people call it. */
const baseName = (run) => (run.is_from_scratch ? RANDOM_WEIGHTS : text(run.base));

/** What else than its method, rank, learning rate, batch and seed a run's sweep has varied: [axis, value]. */
const otherAxes = (run) => Object.entries(run.cell?.values ?? {}).filter(([axis]) => !OWN_AXES.includes(axis));

/** Over which tasks a figure of a point is, as text. */
const overTasks = (point, figure) => point?.over?.[figure]?.join(", ") ?? "";

/** All that is written of a run, for the text search. */
function searchText(run) {
  const cell = otherAxes(run).map(([axis, value]) => `${axis} ${value}`);
  return [run.name, run.id, run.method, run.status, run.base, run.cell?.sweep, ...cell, ...(run.notes ?? [])]
    .join(" ")
    .toLowerCase();
}

/** Seconds since 1970 to the minute, UTC; texts as they are. */
const when = (time) => (isNumber(time) ? new Date(1000 * time).toISOString().slice(0, 16).replace("T", " ") : time);

const text = (value) => (value === null || value === undefined || value === "" ? UNKNOWN : String(value));

const FACETS = [
  { key: "method", title: "Method", of: (run) => [text(run.method)] },
  { key: "rank", title: "Rank", of: (run) => [text(run.rank)] },
  { key: "lr", title: "Learning rate", of: (run) => [rate(run.lr)] },
  { key: "batch", title: "Rows per batch", of: (run) => [text(run.batch_rows)] },
  { key: "seed", title: "Seed", of: (run) => [text(run.seed)] },
  { key: "status", title: "Status", of: (run) => [text(run.status)] },
  { key: "base", title: "Base model", of: (run) => [baseName(run)] },
  { key: "sweep", title: "Sweep", of: (run) => [text(run.cell?.sweep)] },
  { key: "task", title: "Scored on", of: (run) => run.scoredOn },
];

/** Add what filters and plots ask for again and again; a name that two runs share becomes the folder. */
function prepare(runs) {
  const names = new Map();
  for (const run of runs) names.set(run.name, (names.get(run.name) ?? 0) + 1);
  return runs.map((run) => {
    const scored = new Set();
    for (const point of run.points ?? []) {
      for (const [task, entry] of Object.entries(point.tasks ?? {})) {
        if (entry.suite) scored.add(`suite ${entry.suite}`);
        scored.add(task);
      }
    }
    const name = run.name && names.get(run.name) === 1 ? run.name : run.id;
    const prepared = { ...run, name, points: run.points ?? [], scoredOn: [...scored], search: searchText(run) };
    prepared.final = finalPoint(prepared);
    prepared.values = Object.fromEntries(FACETS.map((facet) => [facet.key, facet.of(prepared)]));
    return prepared;
  });
}

/** The runs that have one of the chosen values of every facet (but `except`), and every word of the search. */
function matching(runs, filters, query, except = null) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const active = Object.entries(filters).filter(([key, chosen]) => key !== except && chosen.size);
  return runs.filter(
    (run) =>
      active.every(([key, chosen]) => run.values[key].some((value) => chosen.has(value))) &&
      words.every((word) => run.search.includes(word)),
  );
}

/** How many runs have each value of a facet. */
function countValues(runs, key) {
  const counts = new Map();
  for (const run of runs) for (const value of run.values[key]) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
}

/** Values of a facet in reading order: numbers by size, then words. */
function sortedValues(values) {
  const size = (value) => (value !== "" && !Number.isNaN(Number(value)) ? Number(value) : Infinity);
  return [...values].sort((a, b) => size(a) - size(b) || a.localeCompare(b));
}

/** A setting's value as a number or a text. */
function sortable(value) {
  if (value === null || value === undefined) return null;
  return isNumber(value) || typeof value === "string" ? value : JSON.stringify(value);
}

/** Columns of the table: {key, title, isShown, isText, value(run) for sorting and CSV, show(run)}. */
function columnsOf(runs) {
  const effect = (key) => ({
    key,
    title: key,
    isShown: true,
    value: (run) => run.final?.[key]?.value ?? null,
    show: (run) => (run.final?.[key] ? bare(run.final[key].value, kindOfUnit(run.final[key].unit)) : UNKNOWN),
    small: (run) => {
      const estimate = run.final?.[key];
      if (!estimate || !isNumber(estimate.low)) return "";
      const kind = kindOfUnit(estimate.unit);
      return `${bare(estimate.low, kind)} to ${bare(estimate.high, kind)}`;
    },
    tip: (run) => overTasks(run.final, key),
    csv: (run) => {
      const estimate = run.final?.[key];
      return {
        [key]: estimate?.value,
        [`${key}_low`]: estimate?.low,
        [`${key}_high`]: estimate?.high,
        [`${key}_unit`]: estimate?.unit,
        [`${key}_over`]: overTasks(run.final, key),
      };
    },
  });
  const plain = (key, title, show = text, options = {}) => ({
    key,
    title,
    show: (run) => show(run[key]),
    value: (run) => run[key] ?? null,
    ...options,
  });
  const shown = { isShown: true };
  const columns = [
    plain("name", "run", text, { isShown: true, isText: true, csv: (run) => ({ id: run.id, name: run.name }) }),
    plain("method", "method", text, { isShown: true, isText: true }),
    plain("rank", "rank", text, shown),
    plain("lr", "learning rate", rate, shown),
    plain("batch_rows", "batch rows"),
    plain("seed", "seed", text, shown),
    plain("status", "status", text, { isShown: true, isText: true }),
    {
      key: "step",
      title: "step",
      isShown: true,
      value: (run) => run.step ?? null,
      show: (run) => (run.step === run.steps ? text(run.step) : `${text(run.step)} / ${text(run.steps)}`),
      csv: (run) => ({ step: run.step, steps: run.steps }),
    },
    plain("tokens_seen", "tokens", count, shown),
    plain("trainable_parameters", "trained parameters", count),
    effect("learned"),
    effect("forgotten"),
    {
      key: "forgetting_average",
      title: "forgetting average",
      isShown: true,
      value: (run) => run.final?.forgetting_average ?? null,
      show: (run) => number(run.final?.forgetting_average, "share"),
    },
    { key: "base", title: "base model", isText: true, value: (run) => run.base ?? null, show: baseName },
  ];
  for (const axis of new Set(runs.flatMap((run) => otherAxes(run).map(([name]) => name)))) {
    columns.push({
      key: `cell/${axis}`,
      title: axis,
      isShown: true,
      value: (run) => sortable(run.cell?.values[axis]),
      show: (run) => text(sortable(run.cell?.values[axis])),
    });
  }
  for (const [task, entry] of tasksOf(runs.flatMap((run) => run.points))) {
    columns.push({
      key: `task/${task}`,
      title: task,
      isShown: entry.domain === "new",
      value: (run) => run.final?.tasks?.[task]?.score ?? null,
      show: (run) => number(run.final?.tasks?.[task]?.score, kindOfMetric(entry.metric)),
    });
  }
  return columns.filter(
    (column) => column.key !== "forgetting_average" || runs.some((run) => column.value(run) !== null),
  );
}

/** Runs by a column, unknown values last in both directions. */
function sortRuns(runs, column, isDescending) {
  const sign = isDescending ? -1 : 1;
  return runs
    .map((run, index) => [column.value(run), index, run])
    .sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      const order =
        typeof a === "string" && typeof b === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
      return sign * order || i - j;
    })
    .map(([, , run]) => run);
}

/** Comma-separated values (RFC 4180) of all columns, numbers unrounded. */
function csvOf(runs, columns) {
  const cell = (value) => {
    const written = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(written) ? `"${written.replaceAll('"', '""')}"` : written;
  };
  const cells = (run) =>
    Object.assign({}, ...columns.map((column) => column.csv?.(run) ?? { [column.key]: column.value(run) }));
  const header = Object.keys(runs.length ? cells(runs[0]) : {});
  const lines = [header, ...runs.map((run) => Object.values(cells(run)))];
  return lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
}

const SETTINGS = ["x", "y", "curve", "over", "by", "boxes", "run", "sort", "heat", "scale"];

/** The state that an address asks for; values that no run has are dropped, lest an old one hides everything. */
function parseHash(hash, known) {
  const parameters = new URLSearchParams(hash.replace(/^#/, ""));
  const state = {
    filters: {},
    query: parameters.get("q") ?? "",
    hidden: new Set(parameters.getAll("hide")),
    columns: null,
    page: 0,
  };
  for (const facet of FACETS) {
    state.filters[facet.key] = new Set(parameters.getAll(facet.key).filter((value) => known[facet.key]?.has(value)));
  }
  for (const key of SETTINGS) state[key] = parameters.get(key);
  if (parameters.has("columns")) state.columns = new Set(parameters.getAll("columns"));
  return state;
}

/** The address of a state; what is as at the start is left out. */
function formatHash(state) {
  const parameters = new URLSearchParams();
  for (const facet of FACETS) for (const value of state.filters[facet.key]) parameters.append(facet.key, value);
  if (state.query) parameters.set("q", state.query);
  for (const key of SETTINGS) if (state[key]) parameters.set(key, state[key]);
  for (const value of state.hidden) parameters.append("hide", value);
  for (const value of state.columns ?? []) parameters.append("columns", value);
  return parameters.toString();
}

/** A run in a few words. */
function describe(run) {
  const parts = [
    run.method,
    run.rank ? `rank ${run.rank}` : "",
    run.lr ? `lr ${rate(run.lr)}` : "",
    isNumber(run.seed) ? `seed ${run.seed}` : "",
    ...otherAxes(run).map(([axis, value]) => `${axis} ${value}`),
  ];
  return parts.filter(Boolean).join(", ") + (run.status === "done" ? "" : ` (${run.status})`);
}
