"use strict";
// What the charts of a run's page draw and say; run.js asks for it, and has `power`, `losses` and the charts.

// Time since the run's first reading.
function timeAxis(edges) {
  const start = power.run[0];
  return {
    from: edges[0],
    to: edges[edges.length - 1],
    ticks(a, b, most) {
      const step = TIME_STEPS.find((each) => (b - a) / each <= most) ?? 86400 * Math.ceil((b - a) / most / 86400);
      const found = [];
      for (let k = Math.ceil((a - start) / step - 1e-9); start + k * step <= b + 1e-6; k++) {
        found.push({ value: start + k * step, text: elapsed(k * step, step) });
      }
      return found;
    },
  };
}

function elapsed(seconds, step) {
  if (step >= 86400) return `${Math.round(seconds / 86400)} d`;
  if (step >= 3600) return `${Math.round(seconds / 3600)} h`;
  const tenths = Math.round(seconds * 10);
  const two = (value) => String(Math.floor(value)).padStart(2, "0");
  const minutes = `${Math.floor(tenths / 36000)}:${two((tenths % 36000) / 600)}`;
  if (step >= 60) return `${minutes} h`;
  return `${minutes}:${two((tenths % 600) / 10)}${step < 1 ? `.${tenths % 10}` : ""}`;
}

function drawPower() {
  const edges = power.edges_unix_s;
  if (edges.length < 2) {
    const model = { layers: [], empty: isLive() ? "no reading yet" : "nothing was metered" };
    powerChart.set(model);
    energyChart.set(model);
    document.getElementById("power-said").textContent = "";
    return;
  }
  const x = timeAxis(edges);
  const layers = [];
  let base = new Array(edges.length - 1).fill(null);
  Object.values(power.nodes).forEach((values, k) => {
    const top = values.map((value, i) => (value === null ? base[i] : (base[i] ?? 0) + value));
    layers.push({ type: "area", edges, base, top, fill: COLOURS[k % COLOURS.length] });
    base = top;
  });
  const modelled = (power.modelled_w ?? []).map((value, i) => (value > 0 && base[i] !== null ? base[i] - value : null));
  const under = modelled.map((value) => (value === null ? null : Math.max(0, value)));
  layers.push({ type: "hatch", edges, base: under, top: under.map((value, i) => (value === null ? null : base[i])) });
  layers.push({ type: "range", edges, low: base.map((b, i) => b ?? power.low_w[i]), high: power.high_w, fill: "peak" });
  layers.push({ type: "range", edges, low: power.low_w, high: power.low_w, fill: "peak" });
  const spans = power.unread.flatMap((count, k) => (count ? [[edges[k], edges[k + 1]]] : []));
  if (spans.length) layers.push({ type: "holes", spans, ink: "bad" });
  const times = power.events.map((event) => event.time_unix_s);
  layers.push({ type: "marks", xs: times, ink: "quiet" });
  layers.push({ type: "marks", xs: power.attempts.slice(1).map((each) => each.started_unix_s), ink: "bad" });
  const high = Math.max(...power.high_w.filter((value) => value !== null), ...base.filter((value) => value !== null), 1);
  powerChart.set({ x, y: [0, high * 1.06], layers, lanes: Object.entries(power.lanes ?? {}) });
  drawEnergy(x);
  drawGrid(x);
}

function drawGrid(x) {
  const grid = power.grid ?? [];
  document.getElementById("grid-section").hidden = !grid.length;
  if (!grid.length) return;
  const layers = grid.map(([from, to, g]) => ({ type: "area", edges: [from, to], base: [0], top: [g], fill: "s2" }));
  const values = grid.map(([, , g]) => g);
  gridChart.set({ x, y: [0, Math.max(...values) * 1.1 || 1], layers });
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const range = least === most ? short(least) : `${short(least)} to ${short(most)}`;
  document.getElementById("grid-said").textContent = `${range} g/kWh in what is shown`;
}

function drawEnergy(x) {
  const { edges_unix_s: edges, energy_kwh: used, forecast, limits } = power;
  if (used[0] === null) {
    energyChart.set({ layers: [], empty: "not known" });
    document.getElementById("energy-said").textContent = "";
    return;
  }
  const whole = view.from === null && view.to === null;
  const layers = [{ type: "line", xs: edges, ys: used, ink: "s0", width: 2 }];
  let [low, high] = [whole ? 0 : used[0], used[used.length - 1]];
  let axis = x;
  if (whole && forecast?.energy_it_kwh && forecast.ends_unix_s > edges[edges.length - 1]) {
    layers.push({
      type: "line",
      xs: [edges[edges.length - 1], forecast.ends_unix_s],
      ys: [high, forecast.energy_it_kwh],
      ink: "s0",
      dash: [5, 4],
    });
    axis = { ...x, to: forecast.ends_unix_s };
    high = Math.max(high, forecast.energy_it_kwh);
  }
  for (const limit of whole ? limits : []) {
    if (limit.kwh > 20 * high) continue; // far away: the bars below say how far
    layers.push({ type: "level", y: limit.kwh, text: limit.text, ink: "bad" });
    high = Math.max(high, limit.kwh);
  }
  if (high - low <= 0) high = low + LEAST_KWH;
  const [unit, per] = energyUnit(high);
  for (const layer of layers) {
    if (layer.type === "level") layer.y *= per;
    else layer.ys = layer.ys.map((value) => (value === null ? null : value * per));
  }
  document.getElementById("energy-unit").textContent = `(${unit})`;
  energyChart.set({ x: axis, y: [low * per, (low + (high - low) * 1.06) * per], layers });
  const text = knownPower().seconds ? `${readable(used[used.length - 1] - used[0])} in what is shown` : "not known in what is shown";
  document.getElementById("energy-said").textContent = whole && forecast?.energy_it_kwh
    ? `${text}; about ${readable(forecast.energy_it_kwh)} at the end (dashed)`
    : text;
}

// One unit for a whole axis, by its end.
function energyUnit(kwh) {
  return [["MWh", 1e-3], ["kWh", 1], ["Wh", 1e3]].find(([, each]) => kwh * each >= 1) ?? ["Wh", 1e3];
}

function readable(kwh) {
  if (kwh >= 1000) return `${Number((kwh / 1000).toPrecision(3))} MWh`;
  if (kwh >= 0.1) return `${Number(kwh.toPrecision(3))} kWh`;
  if (kwh >= 1e-5) return `${Number((kwh * 1e3).toPrecision(3))} Wh`;
  return `${Number((kwh * 3.6e6).toPrecision(3))} J`;
}

// Of what is shown: the seconds of which power is known, its energy in J then, and what of that was modelled.
function knownPower() {
  const { edges_unix_s: edges, nodes, modelled_w: modelled } = power;
  const found = { seconds: 0, joules: 0, modelled: 0 };
  for (let k = 0; k + 1 < edges.length; k++) {
    const width = edges[k + 1] - edges[k];
    const known = Object.values(nodes).filter((values) => values[k] !== null);
    if (known.length) found.seconds += width;
    for (const values of known) found.joules += values[k] * width;
    found.modelled += (modelled?.[k] ?? 0) * width;
  }
  return found;
}

function watts(value) {
  return value === null || value === undefined ? "not known" : `${short(Number(value.toPrecision(3)))} W`.replace(/ ([kMG]) W$/, " $1W");
}

function sayPower(x) {
  if (!power || power.edges_unix_s.length < 2) return;
  const { edges_unix_s: edges, nodes } = power;
  const place = document.getElementById("power-said");
  const sum = (k) => Object.values(nodes).reduce((a, each) => (each[k] === null ? a : (a ?? 0) + each[k]), null);
  place.replaceChildren();
  if (x === null) {
    const known = power.high_w.filter((value) => value !== null);
    const unread = Math.max(0, ...power.unread);
    const kind = power.by === "minute" ? "highest of any minute (each device's own, at most)" : `highest ${power.step_s < 1 ? "reading" : "second"}`;
    const { seconds, joules, modelled } = knownPower();
    place.append(`mean ${watts(seconds ? joules / seconds : null)}`);
    if (power.by !== "sketch") place.append(`, ${kind} ${known.length ? watts(Math.max(...known)) : "not known"}`);
    const share = joules > 0 ? modelled / joules : 0;
    if (share > 0) place.append(`, ${share > 0.9995 ? "all" : `${(100 * share).toPrecision(2)} %`} of it modelled (hatched)`);
    const lanes = Object.keys(power.lanes ?? {});
    if (lanes.length) place.append(`; above it ${lanes.join(", ")}`);
    if (unread) place.append(`; up to ${unread} of ${power.devices} devices were not read (marked below)`);
  } else {
    let k = edges.findIndex((edge) => edge > x) - 1;
    if (k < 0) k = x < edges[0] ? 0 : edges.length - 2;
    const when = new Date(edges[k] * 1000).toISOString().slice(0, 19).replace("T", " ");
    place.append(`${when} UTC: ${watts(sum(k))}`);
    if (power.high_w[k] !== null) place.append(` (${watts(power.low_w[k])} to ${watts(power.high_w[k])})`);
    const during = Object.entries(power.lanes ?? {}).filter(([, spans]) => spans.some(([a, b]) => b >= edges[k] && a <= edges[k + 1]));
    if (during.length) place.append(`, ${during.map(([name]) => name).join(", ")}`);
  }
  Object.keys(nodes).forEach((name, k) => {
    const key = document.createElement("span");
    key.className = `key k${k % COLOURS.length}`;
    key.textContent = name;
    place.append(" ", key);
  });
  if (power.by === "sketch") return;
  const key = document.createElement("span");
  key.className = "key peak";
  key.textContent = "lowest and highest";
  place.append(" ", key);
}

function axisTicks(from, to, most) {
  const axis = document.getElementById("axis").value;
  const [unit, per] = energyUnit(to);
  const text = { energy_kwh: (value) => `${short(value * per)} ${unit}`, tokens: short }[axis] ?? AXIS_UNITS[axis];
  return steps(from, to, most).map((value) => ({ value, text: value ? text(value) : "0" }));
}

function drawLoss() {
  const section = document.getElementById("loss-section");
  section.hidden = !losses || losses.loss.length === 0;
  if (section.hidden) return;
  const axis = document.getElementById("axis");
  for (const option of axis.options) option.disabled = !losses[option.value].some((value) => value !== null);
  if (axis.selectedOptions[0].disabled) axis.value = [...axis.options].find((option) => !option.disabled)?.value ?? "hours";
  const xs = losses[axis.value];
  const of = (kind) => losses.kind.flatMap((each, k) => (each === kind && xs[k] !== null ? [k] : []));
  const [trained, evaluated] = [of("step"), of("evaluation")];
  const line = { type: "line", xs: [], ys: [], ink: "s0" };
  trained.forEach((k, i) => {
    if (i && losses.attempt[k] !== losses.attempt[trained[i - 1]]) {
      line.xs.push(null);
      line.ys.push(null);
    }
    line.xs.push(xs[k]);
    line.ys.push(losses.loss[k]);
  });
  const points = { type: "points", xs: evaluated.map((k) => xs[k]), ys: evaluated.map((k) => losses.loss[k]), ink: "s1" };
  const known = xs.filter((value) => value !== null);
  const [low, high] = [Math.min(...losses.loss), Math.max(...losses.loss)];
  const pad = (high - low || 1) * 0.05;
  lossChart.set({
    x: { from: 0, to: Math.max(...known, 0) * 1.01 || 1, ticks: axisTicks },
    y: [low - pad, high + pad],
    layers: known.length ? [line, points] : [],
    empty: "not known against this",
  });
  sayLoss(null);
}

const AXIS_UNITS = { energy_kwh: readable, tokens: (value) => `${short(value)} tokens`, compute_flop: (value) => `${short(value)}FLOP`, hours: (value) => `${short(value)} h` };

function sayLoss(x) {
  if (!losses || !losses.loss.length) return;
  const axis = document.getElementById("axis").value;
  const of = (kind) => losses.kind.flatMap((each, k) => (each === kind && losses[axis][k] !== null ? [k] : []));
  const steps = of("step");
  if (!steps.length) return;
  const near = x === null ? steps[steps.length - 1] : steps.reduce((a, b) => (Math.abs(losses[axis][b] - x) < Math.abs(losses[axis][a] - x) ? b : a));
  const last = of("evaluation").pop();
  let text = `step ${losses.step[near]}: training loss ${losses.loss[near].toFixed(3)} at ${AXIS_UNITS[axis](losses[axis][near])}`;
  if (x === null && last !== undefined) text += `; last validation loss ${losses.loss[last].toFixed(3)} (dots)`;
  if (x === null && losses.without_loss) text += `; ${losses.without_loss} steps had no finite loss`;
  document.getElementById("loss-said").textContent = text;
}
