// Pointing at marks and going from mark to mark with the arrow keys, the same in every plot.

const REACH = 18;

/** Redraw what lies above a plot's marks (the selected run, the mark pointed at), and the card of that mark. */
function drawOver(host, hit, selected) {
  host.querySelector(".card")?.remove();
  const over = host.querySelector("canvas.over");
  if (!over || !host.drawOver || (!hit && !selected && !host.dataset.over)) return;
  host.dataset.over = hit || selected ? "yes" : "";
  host.drawOver(cleared(over).context, hit, selected);
  over.style.cursor = hit?.run ? "pointer" : "";
  if (!hit) return;
  const lines = hit.lines().map((line) => element("span", {}, line));
  const card = element("div", { className: "card", role: "status" }, element("b", {}, hit.title), ...lines);
  host.append(card);
  const isBelow = hit.py + 14 + card.offsetHeight <= host.clientHeight;
  card.style.left = `${Math.max(4, Math.min(hit.px + 14, host.clientWidth - card.offsetWidth - 4))}px`;
  card.style.top = `${isBelow ? hit.py + 14 : Math.max(4, hit.py - card.offsetHeight - 14)}px`;
}

/** The mark nearest to a place, or null. */
function nearest(hits, x, y) {
  let best = null;
  let closest = REACH ** 2;
  for (const hit of hits ?? []) {
    const distance = (hit.px - x) ** 2 + (hit.py - y) ** 2;
    if (distance < closest) [best, closest] = [hit, distance];
  }
  return best;
}

/** Let a plot be pointed at. `selected` tells the selected run, `select` is called with the id of a run. */
function listenToPlot(host, selected, select) {
  host.tabIndex = 0;
  host.ariaRoleDescription = "plot; arrow keys go from mark to mark, Enter selects a run";
  let current = null;
  const show = (hit) => {
    if (hit !== current) drawOver(host, hit, selected());
    current = hit;
  };
  const at = (event) => {
    const box = host.getBoundingClientRect();
    return nearest(host.hits, event.clientX - box.left, event.clientY - box.top);
  };
  const choose = (hit) => {
    if (hit?.run) select(hit.run.id);
  };
  host.addEventListener("pointermove", (event) => show(at(event)));
  host.addEventListener("pointerleave", () => show(null));
  host.addEventListener("blur", () => show(null));
  host.addEventListener("click", (event) => choose(at(event)));
  host.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter") choose(current);
    if (event.key === "Escape") show(null);
    if (!move || !host.hits?.length) return;
    event.preventDefault();
    const ordered = [...host.hits].sort((a, b) => a.px - b.px || a.py - b.py);
    const isCurrent = (hit) => current && hit.px === current.px && hit.py === current.py && hit.run === current.run;
    show(ordered[(ordered.findIndex(isCurrent) + move + ordered.length) % ordered.length]);
  });
}
