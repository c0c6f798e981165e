// The table of runs: sorted, in pages, with the selected run unfolded.

const PAGE_ROWS = 50;
const FIRST_SORT = "-learned";

/** The columns that are shown; the name always is. */
function chosenColumns({ columns, state }) {
  const isChosen = ({ key, isShown }) => (state.columns ? state.columns.has(key) || key === "name" : isShown);
  return columns.filter(isChosen);
}

/** The runs that are shown, in the table's order. */
function sortedRuns({ columns, shown, state }) {
  const wanted = state.sort ?? FIRST_SORT;
  const column = columns.find(({ key }) => key === wanted.replace(/^-/, "")) ?? columns[0];
  return sortRuns(shown, column, wanted.startsWith("-"));
}

/** Show the page of the table that the view is at; what had the focus has it again. */
function showTable(view) {
  const { runs, shown, state } = view;
  const visible = chosenColumns(view);
  for (const box of find("columns").querySelectorAll("input")) {
    box.checked = visible.some(({ key }) => key === box.value);
  }
  const pages = Math.ceil(shown.length / PAGE_ROWS);
  state.page = Math.max(0, Math.min(state.page, pages - 1));
  const focus = document.activeElement?.dataset ?? {};
  find("pager").replaceChildren(...(pages > 1 ? pager(state.page, pages) : []));
  if (!shown.length) {
    return find("table").replaceChildren(element("p", { className: "empty" }, "No run matches the filters."));
  }
  const head = visible.map((column) => headCell(column, state.sort ?? FIRST_SORT));
  const page = sortedRuns(view).slice(state.page * PAGE_ROWS, (state.page + 1) * PAGE_ROWS);
  const rows = page.flatMap((run) => tableRows(view, run, visible));
  find("table").replaceChildren(tableOf(head, rows));
  for (const key of ["sort", "run", "page"].filter((each) => each in focus)) {
    const again = `#table-title ~ * [data-${key}="${CSS.escape(focus[key])}"]`;
    document.querySelector(again)?.focus({ preventScroll: true });
  }
}

function pager(page, pages) {
  const button = (by, title, disabled) => element("button", { type: "button", "data-page": by, disabled }, title);
  return [button("-1", "Back", page === 0), `${page + 1} of ${pages}`, button("1", "Next", page === pages - 1)];
}

function headCell({ key, title, isText }, sort) {
  const order = sort === key ? "ascending" : sort === `-${key}` ? "descending" : null;
  const arrow = { ascending: " \u25b2", descending: " \u25bc" }[order] ?? "";
  const button = element("button", { type: "button", "data-sort": key }, title + arrow);
  return element("th", { scope: "col", className: isText ? "text" : "", "aria-sort": order }, button);
}

/** A run's row, and below the selected run's all that is known of it. */
function tableRows(view, run, visible) {
  const className = run.id === view.state.run ? "is-selected" : "";
  const cells = visible.map((column) => {
    const small = column.small?.(run);
    const shown = column.key === "name" ? runButton(view, run) : column.show(run);
    return element(
      "td",
      { className: column.isText ? "text" : "", title: column.tip?.(run) || null },
      shown,
      ...(small ? [element("small", {}, small)] : []),
    );
  });
  const row = element("tr", { className }, ...cells);
  if (!className) return [row];
  const unfolded = element("td", { className: "details", colSpan: visible.length }, ...details(run));
  return [row, element("tr", { className }, unfolded)];
}

/** Over which tasks the run's checkpoints are, where its end is over others. */
function stepsOver(run) {
  const point = run.points.find(({ step }) => step === run.final?.step);
  const differing = ["learned", "forgotten"].filter((key) => overTasks(point, key) !== overTasks(run.final, key));
  return differing.map((key) => `${key}: ${overTasks(point, key)}`).join("; ");
}

function details(run) {
  const facts = [
    ["folder", run.id],
    ["base", run.base],
    ["began with", run.parent ?? run.branch_from],
    ["started", when(run.started_at)],
    ["learned over", overTasks(run.final, "learned")],
    ["forgotten over", overTasks(run.final, "forgotten")],
    ["steps below over", stepsOver(run)],
  ].filter(([, value]) => value);
  const tasks = tasksOf(run.points).map(([task]) => task);
  const rows = run.points.map((point) => [
    text(point.step),
    count(point.tokens),
    isNumber(point.epochs) ? point.epochs.toPrecision(3) : UNKNOWN,
    ...["learned", "forgotten"].map((key) => {
      const cell = estimateCell(point[key], kindOfUnit(point[key]?.unit));
      cell.title = overTasks(point, key);
      return cell;
    }),
    ...tasks.map((task) => taskCell(point.tasks?.[task])),
  ]);
  const table = tableOf(["step", "tokens", "epochs", "learned", "forgotten", ...tasks], rows);
  return [
    element("div", {}, facts.map(([name, value]) => `${name}: ${value}`).join(" \u00b7 ")),
    ...(run.notes ?? []).map((note) => element("div", { className: "notice" }, note)),
    element("div", { className: "scroll" }, rows.length ? table : "Not scored yet."),
  ];
}
