// Elements of the page. Run names and notes are other people's text: they get into the page as text nodes only.

const find = (id) => document.getElementById(id);

/** An element with attributes (own properties where there are such) and children; strings become text nodes. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key in made && !key.includes("-")) made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** A table of header cells (or texts) and rows of cells (or texts). */
function tableOf(titles, rows, attributes = {}) {
  const cells = (tag, values) =>
    values.map((value) => (value instanceof HTMLTableCellElement ? value : element(tag, {}, value)));
  const lines = (tag, each) =>
    each.map((row) => (row instanceof HTMLTableRowElement ? row : element("tr", {}, ...cells(tag, row))));
  const heads = Array.isArray(titles[0]) ? titles : [titles];
  return element(
    "table",
    attributes,
    element("thead", {}, ...lines("th", heads)),
    element("tbody", {}, ...lines("td", rows)),
  );
}

/** A quantity with its interval below. */
function estimateCell(estimate, kind) {
  const cell = element("td", {}, number(estimate?.value, kind));
  if (isNumber(estimate?.low)) {
    cell.append(element("small", {}, `${bare(estimate.low, kind)} to ${bare(estimate.high, kind)}`));
  }
  return cell;
}

/** A task's score with its interval, and below it what else was measured. */
function taskCell(entry) {
  if (!entry) return element("td", {}, UNKNOWN);
  const kind = kindOfMetric(entry.metric);
  const passed = Object.entries(entry.pass_at_k ?? {}).filter(([k]) => k !== "1");
  const more = [
    isNumber(entry.nll) ? `NLL ${entry.nll.toFixed(3)}` : "",
    isNumber(entry.ece) ? `ECE ${number(entry.ece, "share")}` : "",
    ...passed.map(([k, value]) => `pass@${k} ${number(value, "share")}`),
    isNumber(entry.unique?.all) ? `${Number(entry.unique.all.toPrecision(3))} unique` : "",
  ].filter(Boolean);
  const arm = isNumber(entry.stderr) ? ` \u00b1 ${bare(Z_95 * entry.stderr, kind)}` : "";
  return element("td", {}, number(entry.score, kind) + arm, ...more.map((line) => element("small", {}, line)));
}

/** A run's name, which selects it. */
function runButton(view, run) {
  const dot = element("span", { className: "swatch" });
  dot.style.background = view.style(run).color;
  const isSelected = String(run.id === view.state.run);
  const attributes = { type: "button", className: "link", "aria-pressed": isSelected, "data-run": run.id };
  return element("span", { className: "named" }, dot, element("button", attributes, run.name));
}

/** A method's mark as a small picture. */
function markPicture({ color, shape }) {
  const canvas = element("canvas", { width: 28, height: 28 });
  canvas.style.width = canvas.style.height = "14px";
  const context = canvas.getContext("2d");
  context.fillStyle = color;
  mark(context, shape, 14, 14, 10);
  context.fill();
  return canvas;
}
