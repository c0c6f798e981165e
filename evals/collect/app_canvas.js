// What all plots are drawn with: canvases in the page's colours, axes, marks.

const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
const SHAPES = ["circle", "square", "triangle", "diamond", "cross"];

/** The page's colours as they are now, light or dark. */
function theme() {
  const style = getComputedStyle(document.documentElement);
  return new Proxy({}, { get: (_, name) => style.getPropertyValue(name.startsWith("--") ? name : `--${name}`).trim() });
}

/** A canvas of the host's size, cleared; on paper with twice the dots. */
function cleared(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas.parentElement;
  const density = Math.max(window.devicePixelRatio || 1, "print" in document.documentElement.dataset ? 2 : 1);
  const size = [Math.round(width * density), Math.round(height * density)];
  const context = canvas.getContext("2d");
  // A new size makes a new, empty canvas, which takes longer than to clear the old one.
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  else context.reset();
  context.scale(density, density);
  context.font = FONT;
  return { context, width, height };
}

/** Say in a plot's place why there is none. */
function empty(host, message) {
  host.hits = [];
  host.drawOver = null;
  host.classList.add("is-empty");
  host.replaceChildren(element("p", { className: "empty" }, message));
}

/** The two canvases of a plot: marks, and above them what follows the pointer. */
function canvases(host) {
  host.classList.remove("is-empty");
  if (!host.querySelector("canvas")) {
    host.replaceChildren(element("canvas", { className: "marks" }), element("canvas", { className: "over" }));
  }
  return [...host.querySelectorAll("canvas")];
}

/** Axes, grid and labels; returns the context and the scales. `x` and `y` are {domain, kind, label, names?}. */
function axesFrame(host, x, y) {
  const [marks] = canvases(host);
  const { context, width, height } = cleared(marks);
  const colors = theme();
  const widest = Math.max(...(y.names ?? []).map((name) => context.measureText(name).width), 34);
  const box = {
    left: Math.min(widest, width * 0.34) + 22,
    right: width - 16,
    top: y.names ? 12 : 34,
    bottom: height - 46,
  };
  const place = (domain, from, to) => (value) => from + ((value - domain[0]) / (domain[1] - domain[0])) * (to - from);
  const sx = place(x.domain, box.left, box.right);
  const sy = place(y.domain, box.bottom, box.top);
  context.strokeStyle = colors.line;
  context.fillStyle = colors.soft;
  context.lineWidth = 1;
  context.textBaseline = "middle";
  const across = ticks(
    ...x.domain.map((v) => v * KINDS[x.kind].scale),
    Math.max(2, Math.min(8, (box.right - box.left) / 75)),
  );
  context.textAlign = "center";
  for (const value of across.values) {
    const at = Math.round(sx(value / KINDS[x.kind].scale)) + 0.5;
    segment(context, at, box.top, at, box.bottom);
    context.fillText(x.write ? x.write(value) : tickText(value, across.step, x.kind), at, box.bottom + 14);
  }
  if (y.names) {
    context.textAlign = "right";
    y.names.forEach((name, index) => {
      context.fillStyle = colors.ink;
      context.fillText(name, box.left - 10, sy(index), box.left - 14);
    });
  } else {
    const up = ticks(
      ...y.domain.map((v) => v * KINDS[y.kind].scale),
      Math.max(2, Math.min(8, (box.bottom - box.top) / 45)),
    );
    context.textAlign = "right";
    for (const value of up.values) {
      const at = Math.round(sy(value / KINDS[y.kind].scale)) + 0.5;
      segment(context, box.left, at, box.right, at);
      context.fillText(tickText(value, up.step, y.kind), box.left - 7, at);
    }
    context.textAlign = "left";
    context.fillStyle = colors.ink;
    context.fillText(y.label, 10, 16, width - 20);
  }
  context.textAlign = "right";
  context.fillStyle = colors.ink;
  context.fillText(x.label, box.right, height - 14, width - 20);
  return { context, colors, box, sx, sy };
}

/** A method's mark, so that methods are told apart without colour, too. */
function mark(context, shape, x, y, radius) {
  context.beginPath();
  if (shape === "circle") context.arc(x, y, radius, 0, 7);
  else if (shape === "square") context.rect(x - radius * 0.88, y - radius * 0.88, radius * 1.76, radius * 1.76);
  else {
    const corners = {
      triangle: [
        [0, -1.25],
        [1.12, 0.8],
        [-1.12, 0.8],
      ],
      diamond: [
        [0, -1.3],
        [1.15, 0],
        [0, 1.3],
        [-1.15, 0],
      ],
      cross: [
        [-1, -0.4],
        [-0.4, -1],
        [0, -0.5],
        [0.4, -1],
        [1, -0.4],
        [0.5, 0],
        [1, 0.4],
        [0.4, 1],
        [0, 0.5],
        [-0.4, 1],
        [-1, 0.4],
        [-0.5, 0],
      ],
    }[shape];
    corners.forEach(([dx, dy], i) =>
      i ? context.lineTo(x + dx * radius, y + dy * radius) : context.moveTo(x + dx * radius, y + dy * radius),
    );
    context.closePath();
  }
}

/** The bars of a point's two intervals. */
function whiskers(context, item, sx, sy) {
  context.beginPath();
  if (isNumber(item.xs.low) && isNumber(item.xs.high)) {
    context.moveTo(sx(item.xs.low), sy(item.y));
    context.lineTo(sx(item.xs.high), sy(item.y));
  }
  if (isNumber(item.ys.low) && isNumber(item.ys.high)) {
    context.moveTo(sx(item.x), sy(item.ys.low));
    context.lineTo(sx(item.x), sy(item.ys.high));
  }
  context.stroke();
}

/** Draw nothing outside of a box from here on. */
function clipTo(context, box) {
  context.beginPath();
  context.rect(box.left, box.top, box.right - box.left, box.bottom - box.top);
  context.clip();
}

/** A straight line. */
function segment(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

/** A line through pixel places. */
function polyline(context, places) {
  context.beginPath();
  places.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
}
