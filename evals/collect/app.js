// The page: one view of the document, whose state the address holds; every section is drawn anew on every change.

const PLOTS = ["pareto", "curves", "spread-learned", "spread-forgotten"];
const CHOICES = {
  "x-axis": "x",
  "y-axis": "y",
  curve: "curve",
  over: "over",
  by: "by",
  boxes: "boxes",
  "rank-scale": "scale",
};

/** All that the sections are drawn from: what never changes, and what `drawAll` renews. */
function makeView(runs, published) {
  const axes = axesOf(runs);
  const initial = defaultAxes(runs, axes, new Set(published.curves.map((curve) => curve.task)));
  const known = FACETS.map(({ key }) => [key, new Set(runs.flatMap((run) => run.values[key]))]);
  const view = {
    runs,
    published,
    axes,
    known: Object.fromEntries(known),
    byId: new Map(runs.map((run) => [run.id, run])),
    methods: new Map(methodsOf(runs).map((method) => [method.name, method])),
    curves: curvesOf(runs),
    columns: columnsOf(runs),
    withRank: runs.filter((run) => run.rank_change),
    state: null,
    shown: [],
    styles: new Map(),
    items: null,
  };
  view.style = ({ method }) => view.styles.get(method);
  view.selected = () => view.byId.get(view.state.run) ?? null;
  view.axis = (which) => axes[which].find(({ key }) => key === view.state[which]) ?? initial[which];
  return view;
}

/** Draw everything from the view's state, and write the state into the address. */
function drawAll(view) {
  const colors = theme();
  const methods = [...view.methods.values()];
  const look = ({ color, index }) => ({ color: colors[color], shape: SHAPES[index % SHAPES.length] });
  view.styles = new Map(methods.map((method) => [method.name, look(method)]));
  view.shown = matching(view.runs, view.state.filters, view.state.query);
  for (const show of [showFilters, showLegend, showPareto, showCurves, showSpread, showRank, showSelected, showTable]) {
    show(view);
  }
  for (const id of PLOTS) drawOver(find(id), null, view.selected());
  const hash = formatHash(view.state);
  if (hash === location.hash.slice(1)) return;
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

/** Draw with a changed state. */
function change(view, part) {
  view.state = { ...view.state, ...part };
  drawAll(view);
}

/** Select a run everywhere, or deselect it; the table turns to its page. */
function select(view, id) {
  const run = view.state.run === id ? null : id;
  const place = sortedRuns(view).findIndex((each) => each.id === run);
  change(view, place >= 0 ? { run, page: Math.floor(place / PAGE_ROWS) } : { run });
}

/** A set with a value more or less. */
function toggled(set, value) {
  const next = new Set(set);
  if (!next.delete(value)) next.add(value);
  return next;
}

/** Make what stays: the boxes of the filters, the choices of the selects. */
function build({ runs, axes, known, curves, columns, withRank }) {
  const box = (name, value) =>
    element(
      "label",
      {},
      element("input", { type: "checkbox", name, value }),
      element("span", {}, value),
      element("span", { className: "count", "data-value": value }),
    );
  const facets = FACETS.filter(({ key }) => known[key].size > 1).map(({ key, title }) =>
    element(
      "fieldset",
      { className: "facet", "data-facet": key },
      element("legend", {}, title),
      element("div", { className: "values" }, ...sortedValues(known[key]).map((value) => box(key, value))),
    ),
  );
  find("facets").replaceChildren(...facets);
  const options = (id, choices) =>
    find(id).replaceChildren(...choices.map(({ key, label }) => element("option", { value: key }, label)));
  const hasEpochs = runs.some((run) => run.points.some((point) => isNumber(point.epochs)));
  options("x-axis", axes.x);
  options("y-axis", axes.y);
  options("curve", curves);
  const overs = ["tokens", ...(hasEpochs ? ["epochs"] : []), "step"];
  options(
    "over",
    overs.map((key) => ({ key, label: key })),
  );
  options(
    "rank-run",
    withRank.map((run) => ({ key: run.id, label: `${run.name} (${run.method})` })),
  );
  const choices = columns
    .slice(1)
    .map(({ key, title }) => element("label", {}, element("input", { type: "checkbox", value: key }), title));
  find("columns").replaceChildren(...choices);
  if (window.matchMedia("(max-width: 54rem)").matches) find("filter-panel").open = false;
}

/** Let every control change the view. */
function listen(view) {
  const on = (id, event, respond) => find(id).addEventListener(event, ({ target }) => respond(target));
  for (const id of PLOTS) listenToPlot(find(id), view.selected, (run) => select(view, run));
  for (const [id, key] of Object.entries(CHOICES)) on(id, "change", ({ value }) => change(view, { [key]: value }));
  on("search", "input", ({ value }) => change(view, { query: value, page: 0 }));
  on("clear", "click", () => change(view, { query: "", page: 0, filters: parseHash("", {}).filters }));
  on("facets", "change", ({ name, value }) => {
    const filters = { ...view.state.filters, [name]: toggled(view.state.filters[name], value) };
    change(view, { filters, page: 0 });
  });
  on("backdrops", "change", ({ value }) => change(view, { hidden: toggled(view.state.hidden, value) }));
  on("rank-run", "change", ({ value }) => change(view, { heat: value, run: view.state.run && value }));
  on("columns", "change", ({ value }) => {
    const keys = new Set(chosenColumns(view).map(({ key }) => key));
    change(view, { columns: toggled(keys, value) });
  });
  on("csv", "click", () => {
    const url = URL.createObjectURL(new Blob([csvOf(sortedRuns(view), view.columns)], { type: "text/csv" }));
    element("a", { href: url, download: "runs.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });
  document.addEventListener("click", (event) => {
    const { run, sort, page, toTable } = event.target.dataset;
    if (run !== undefined) select(view, run);
    if (page !== undefined) change(view, { page: view.state.page + Number(page) });
    if (sort !== undefined) {
      const isDescending = (view.state.sort ?? FIRST_SORT) === `-${sort}`;
      change(view, { page: 0, sort: isDescending ? sort : `-${sort}` });
    }
    if (toTable !== undefined) {
      event.preventDefault();
      find("table-title").scrollIntoView();
    }
  });
  listenToWindow(view);
}

/** The address, light and dark, paper, and the width change from outside. */
function listenToWindow(view) {
  window.addEventListener("hashchange", () => {
    view.state = parseHash(location.hash, view.known);
    drawAll(view);
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll(view));
  const forPaper = (isPrinting) => {
    document.documentElement.toggleAttribute("data-print", isPrinting);
    drawAll(view);
  };
  window.addEventListener("beforeprint", () => forPaper(true));
  window.addEventListener("afterprint", () => forPaper(false));
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    // The height alone changes all the time on a phone.
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    drawAll(view);
  });
}

/** Read the document and show it. */
function start() {
  const read = (id) => JSON.parse(find(id).textContent);
  const runs = prepare(read("document").runs);
  if (!runs.length) return;
  const view = makeView(runs, read("published"));
  view.state = parseHash(location.hash, view.known);
  find("app").hidden = false;
  build(view);
  listen(view);
  drawAll(view);
}

start();
