"use strict";
// Draws one chart on a canvas: stacked areas, bands, lines and points over one x axis. No data leaves or enters here.
const MARGIN = { left: 70, right: 14, top: 10, bottom: 26 };
const LANE = 13; // height of a row above the plot

class Chart {
  // x: { from, to, ticks(from, to, most) }; layers are drawn in order; lanes: [name, spans] of rows above the plot.
  constructor(element, { onCursor, onSelect } = {}) {
    this.element = element;
    this.canvas = element.querySelector("canvas");
    this.model = null;
    this.cursor = null;
    this.dragged = null;
    new ResizeObserver(() => this.draw()).observe(element);
    document.addEventListener("theme", () => this.draw());
    this.canvas.addEventListener("pointermove", (event) => {
      const x = this.valueAt(event);
      if (this.dragged && onSelect) this.dragged.to = x;
      onCursor?.(x);
      this.draw();
    });
    this.canvas.addEventListener("pointerleave", () => onCursor?.(null));
    if (!onSelect) return;
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.pointerType === "touch") return;
      this.canvas.setPointerCapture(event.pointerId);
      this.dragged = { from: this.valueAt(event), to: this.valueAt(event), left: event.offsetX };
    });
    this.canvas.addEventListener("pointerup", (event) => {
      const drag = this.dragged;
      this.dragged = null;
      if (drag && Math.abs(event.offsetX - drag.left) > 4) onSelect(Math.min(drag.from, drag.to), Math.max(drag.from, drag.to));
      this.draw();
    });
    this.canvas.addEventListener("pointercancel", () => {
      this.dragged = null;
      this.draw();
    });
  }

  set(model) {
    this.model = model;
    this.draw();
  }

  get plot() {
    const { width, height } = this.element.getBoundingClientRect();
    const top = MARGIN.top + LANE * (this.model?.lanes?.length ?? 0);
    const inner = { width: width - MARGIN.left - MARGIN.right, height: height - top - MARGIN.bottom };
    return { left: MARGIN.left, top, ...inner, outerWidth: width, outerHeight: height };
  }

  valueAt(event) {
    if (!this.model) return 0;
    const { left, width } = this.plot;
    const { from, to } = this.model.x;
    return from + (Math.min(Math.max(event.offsetX - left, 0), width) / width) * (to - from);
  }

  draw() {
    const plot = this.plot;
    if (plot.width < 20) return;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(plot.outerWidth * ratio), Math.round(plot.outerHeight * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, plot.outerWidth, plot.outerHeight);
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    pen.font = `12px ${getComputedStyle(this.element).fontFamily}`;
    const model = this.model;
    if (!model || !model.layers.length) {
      pen.fillStyle = colour("quiet");
      pen.fillText(model?.empty ?? "", plot.left, plot.top + plot.height / 2);
      return;
    }
    const { from, to } = model.x;
    const [low, high] = model.y;
    const px = (x) => plot.left + ((x - from) / (to - from || 1)) * plot.width;
    const py = (y) => plot.top + plot.height - ((y - low) / (high - low || 1)) * plot.height;
    this.axes(pen, plot, model, px, py, colour);
    this.lanes(pen, plot, model.lanes ?? [], px, colour);
    pen.save();
    pen.beginPath();
    pen.rect(plot.left, plot.top, plot.width, plot.height);
    pen.clip();
    for (const layer of model.layers) LAYERS[layer.type](pen, layer, px, py, colour, plot);
    this.overlays(pen, plot, px, colour);
    pen.restore();
  }

  axes(pen, plot, model, px, py, colour) {
    pen.lineWidth = 1;
    pen.strokeStyle = colour("line");
    pen.fillStyle = colour("quiet");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const value of steps(model.y[0], model.y[1], Math.max(2, plot.height / 45))) {
      const y = Math.round(py(value)) + 0.5;
      stroke(pen, [[plot.left, y], [plot.left + plot.width, y]]);
      pen.fillText(short(value), plot.left - 8, y);
    }
    pen.textBaseline = "top";
    const ticks = model.x.ticks(model.x.from, model.x.to, Math.max(2, plot.width / 95));
    ticks.forEach(({ value, text }) => {
      const x = px(value);
      if (x < plot.left - 1 || x > plot.left + plot.width + 1) return;
      stroke(pen, [[x, plot.top + plot.height], [x, plot.top + plot.height + 4]]);
      const half = pen.measureText(text).width / 2;
      pen.textAlign = "center";
      pen.fillText(text, Math.min(Math.max(x, half), plot.outerWidth - half), plot.top + plot.height + 8);
    });
  }

  lanes(pen, plot, rows, px, colour) {
    pen.fillStyle = colour("quiet");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    pen.font = pen.font.replace("12px", "11px");
    rows.forEach(([name, spans], row) => {
      const y = MARGIN.top + LANE * row;
      pen.fillText(name, plot.left - 8, y + LANE / 2 - 1, plot.left - 10);
      for (const [a, b] of spans) {
        const [left, right] = [Math.max(px(a), plot.left), Math.min(px(b), plot.left + plot.width)];
        if (right >= left) pen.fillRect(left, y + 1, Math.max(1.5, right - left), LANE - 5);
      }
    });
    pen.font = pen.font.replace("11px", "12px");
  }

  overlays(pen, plot, px, colour) {
    if (this.dragged) {
      const [a, b] = [px(this.dragged.from), px(this.dragged.to)];
      pen.fillStyle = colour("select");
      pen.fillRect(Math.min(a, b), plot.top, Math.abs(b - a), plot.height);
    }
    if (this.cursor !== null) {
      const x = Math.round(px(this.cursor)) + 0.5;
      pen.strokeStyle = colour("ink");
      pen.setLineDash([2, 3]);
      stroke(pen, [[x, plot.top], [x, plot.top + plot.height]]);
      pen.setLineDash([]);
    }
  }
}

const LAYERS = {
  // values between edges, from base to top; null is a hole
  area(pen, { edges, base, top, fill }, px, py, colour) {
    pen.fillStyle = colour(fill);
    runs(top).forEach(([first, after]) => {
      pen.beginPath();
      for (let k = first; k < after; k++) {
        pen.lineTo(px(edges[k]), py(top[k]));
        pen.lineTo(px(edges[k + 1]), py(top[k]));
      }
      for (let k = after - 1; k >= first; k--) {
        pen.lineTo(px(edges[k + 1]), py(base[k] ?? 0));
        pen.lineTo(px(edges[k]), py(base[k] ?? 0));
      }
      pen.fill();
    });
  },
  // the same, in lines of the paper's colour: what lies beneath is seen
  hatch(pen, { edges, base, top }, px, py, colour) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 9;
    const lines = tile.getContext("2d");
    lines.strokeStyle = colour("paper");
    lines.lineWidth = 1.6;
    for (const at of [-9, 0, 9]) stroke(lines, [[at - 1, 10], [at + 10, -1]]);
    pen.save();
    LAYERS.area(pen, { edges, base, top, fill: "paper" }, px, py, () => pen.createPattern(tile, "repeat"));
    pen.restore();
  },
  // the lowest and the highest of each stretch, at least a pixel wide so that the shortest spike is seen
  range(pen, { edges, low, high, fill }, px, py, colour) {
    pen.fillStyle = colour(fill);
    for (let k = 0; k < high.length; k++) {
      if (high[k] === null || low[k] === null) continue;
      const [x, y] = [px(edges[k]), py(high[k])];
      pen.fillRect(x, y, Math.max(1, px(edges[k + 1]) - x), Math.max(1, py(low[k]) - y));
    }
  },
  line(pen, { xs, ys, ink, dash, width }, px, py, colour) {
    pen.strokeStyle = colour(ink);
    pen.lineWidth = width ?? 1.5;
    pen.setLineDash(dash ?? []);
    pen.beginPath();
    let open = false;
    xs.forEach((x, k) => {
      if (x === null || ys[k] === null) open = false;
      else if (open) pen.lineTo(px(x), py(ys[k]));
      else {
        pen.moveTo(px(x), py(ys[k]));
        open = true;
      }
    });
    pen.stroke();
    pen.setLineDash([]);
  },
  points(pen, { xs, ys, ink }, px, py, colour) {
    pen.fillStyle = colour(ink);
    pen.strokeStyle = colour("paper");
    pen.lineWidth = 1;
    xs.forEach((x, k) => {
      if (x === null || ys[k] === null) return;
      pen.beginPath();
      pen.arc(px(x), py(ys[k]), 4, 0, 2 * Math.PI);
      pen.fill();
      pen.stroke();
    });
  },
  level(pen, { y, text, ink }, px, py, colour, plot) {
    pen.strokeStyle = pen.fillStyle = colour(ink);
    pen.lineWidth = 1.5;
    pen.setLineDash([6, 4]);
    stroke(pen, [[plot.left, py(y)], [plot.left + plot.width, py(y)]]);
    pen.setLineDash([]);
    pen.textAlign = "left";
    const above = py(y) - 20 > plot.top; // else there is no room for it
    pen.textBaseline = above ? "bottom" : "top";
    pen.fillText(text, plot.left + 6, py(y) + (above ? -3 : 4));
  },
  // where something could not be read, along the lower edge
  holes(pen, { spans, ink }, px, py, colour, plot) {
    pen.fillStyle = colour(ink);
    for (const [a, b] of spans) pen.fillRect(px(a), plot.top + plot.height - 5, Math.max(1, px(b) - px(a)), 5);
  },
  marks(pen, { xs, ink }, px, py, colour, plot) {
    pen.strokeStyle = colour(ink);
    pen.lineWidth = 1;
    pen.setLineDash([3, 3]);
    for (const x of xs) stroke(pen, [[Math.round(px(x)) + 0.5, plot.top], [Math.round(px(x)) + 0.5, plot.top + plot.height]]);
    pen.setLineDash([]);
  },
};

function stroke(pen, points) {
  pen.beginPath();
  points.forEach(([x, y]) => pen.lineTo(x, y));
  pen.stroke();
}

function runs(values) {
  const found = [];
  let first = -1;
  for (let k = 0; k <= values.length; k++) {
    const known = k < values.length && values[k] !== null;
    if (known && first < 0) first = k;
    if (!known && first >= 0) {
      found.push([first, k]);
      first = -1;
    }
  }
  return found;
}

// Round numbers between two, at most about `most` of them.
function steps(from, to, most) {
  const raw = (to - from) / most;
  if (!(raw > 0)) return [from];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((each) => each * power >= raw * 0.999) * power;
  const found = [];
  for (let k = Math.ceil(from / step - 1e-9); k * step <= to + step * 1e-9; k++) found.push(k * step);
  return found;
}

const PREFIXES = [[1e24, "Y"], [1e21, "Z"], [1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e4) {
    const [unit, letter] = PREFIXES.find(([each]) => size >= each * 0.9995);
    return `${Number((value / unit).toPrecision(4))} ${letter}`;
  }
  if (size > 0 && size < 1e-4) return value.toExponential(1);
  return String(Number(value.toPrecision(4)));
}
