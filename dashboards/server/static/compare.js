"use strict";
// Loss of several runs on one chart: against what, how near, and which of them is in the address.
const section = document.getElementById("compare");
const axis = document.getElementById("axis");
const said = document.getElementById("loss-said");
const DASHES = [[], [7, 3], [2, 2], [9, 3, 2, 3], [4, 2], [12, 4], [2, 5], [7, 2, 2, 2, 2, 2]];
const SCALES = { energy_kwh: kilowattHours, tokens: (value) => `${short(value)} tokens`, compute_flop: (value) => `${short(value)}FLOP`, hours: (value) => (value < 0.5 ? `${short(value * 60)} min` : `${short(value)} h`) };
const WHAT = { energy_kwh: "IT energy in ", hours: "time in " };
const KEYS = { "+": "in", "=": "in", "-": "out", ArrowLeft: "left", ArrowRight: "right", 0: "all", Escape: "all" };
const query = new URLSearchParams(location.search);
query.delete("token"); // is passed on in no link
const hidden = new Set(query.getAll("hide"));
const number = (key) => (query.has(key) && Number.isFinite(Number(query.get(key))) ? Number(query.get(key)) : null);
const view = { from: number("from"), to: number("to") };
let runs_ = [];
if ([...axis.options].some((option) => option.value === query.get("x"))) axis.value = query.get("x");

const chart = new Chart(document.getElementById("loss"), {
  onCursor: (x) => {
    chart.cursor = x;
    chart.draw();
    say(x);
  },
  onSelect: (from, to) => look(from, to),
});

function kilowattHours(kwh) {
  if (kwh === 0) return "0 Wh";
  if (Math.abs(kwh) >= 1e4) return `${short(kwh / 1000)} MWh`;
  return Math.abs(kwh) < 0.1 ? `${short(kwh * 1000)} Wh` : `${short(kwh)} kWh`;
}

// [size of one unit, its name] of the axis, so that its ticks are short numbers.
function unitOf(most) {
  if (axis.value === "energy_kwh") return most < 0.1 ? [1e-3, "Wh"] : most < 1e4 ? [1, "kWh"] : [1e3, "MWh"];
  if (axis.value === "hours") return most < 0.5 ? [1 / 60, "min"] : [1, "h"];
  return [1, axis.value === "tokens" ? "tokens" : "FLOP"];
}

function writeView() {
  for (const key of ["x", "from", "to", "hide"]) query.delete(key);
  if (axis.value !== "energy_kwh") query.set("x", axis.value);
  if (view.from !== null) query.set("from", String(Number(view.from.toPrecision(6))));
  if (view.to !== null) query.set("to", String(Number(view.to.toPrecision(6))));
  for (const name of hidden) query.append("hide", name);
  history.replaceState(null, "", `?${query}`);
  keepInLinks();
}

// Another order, or one run less, is looked at in the same way.
function keepInLinks() {
  const seen = [...query].filter(([key]) => key !== "run");
  for (const link of document.querySelectorAll(".picks a")) {
    link.dataset.runs ??= link.getAttribute("href");
    link.href = link.dataset.runs + seen.map(([key, value]) => `&${key}=${encodeURIComponent(value)}`).join("");
  }
}

// Indices of what a run has of a kind, where both its loss and the axis are known.
function known(run, kind) {
  const xs = run[axis.value];
  return run.kind.flatMap((each, k) => (each === kind && xs[k] !== null && run.loss[k] !== null ? [k] : []));
}

function span() {
  const all = runs_.flatMap((run) => run[axis.value].filter((value, k) => value !== null && run.loss[k] !== null));
  return [0, Math.max(...all, 0) * 1.01 || 1];
}

function drawn() {
  return runs_.filter((run) => !hidden.has(run.name));
}

function layersOf(run, from, to, seen) {
  const place = runs_.indexOf(run);
  const xs = run[axis.value];
  const line = { type: "line", xs: [], ys: [], ink: `s${place}`, dash: DASHES[place], width: 1.4 };
  const steps_ = known(run, "step");
  steps_.forEach((k, i) => {
    if (i && run.attempt[k] !== run.attempt[steps_[i - 1]]) {
      line.xs.push(null);
      line.ys.push(null);
    }
    line.xs.push(xs[k]);
    line.ys.push(run.loss[k]);
    if (xs[k] >= from && xs[k] <= to) seen.push(run.loss[k]);
  });
  const dots = known(run, "evaluation");
  for (const k of dots) if (xs[k] >= from && xs[k] <= to) seen.push(run.loss[k]);
  return [line, { type: "points", xs: dots.map((k) => xs[k]), ys: dots.map((k) => run.loss[k]), ink: `s${place}` }];
}

function draw() {
  for (const option of axis.options) option.disabled = !runs_.some((run) => run[option.value].some((value) => value !== null));
  if (axis.selectedOptions[0].disabled) axis.value = [...axis.options].find((option) => !option.disabled)?.value ?? "hours";
  const [first, last] = span();
  const [from, to] = [view.from ?? first, view.to ?? last];
  const seen = [];
  const [size, unit] = unitOf(last);
  document.getElementById("unit").textContent = `(nats per token, against ${WHAT[axis.value] ?? ""}${unit})`;
  const layers = drawn().flatMap((run) => layersOf(run, from, to, seen));
  const [low, high] = seen.length ? [Math.min(...seen), Math.max(...seen)] : [0, 1];
  const pad = (high - low || 1) * 0.05;
  chart.set({
    x: { from, to, ticks: (a, b, most) => steps(a / size, b / size, most).map((value) => ({ value: value * size, text: short(value) })) },
    y: [low - pad, high + pad],
    layers: seen.length ? layers : [],
    empty: drawn().length ? "not known against this" : "every run is switched off below",
  });
  say(chart.cursor);
}

function apartOf(run) {
  if (run.loss_apart) return "its loss does not compare";
  return axis.value === "energy_kwh" && run.energy_apart ? "its energy does not compare" : "";
}

function say(x) {
  said.replaceChildren();
  const parts = drawn().flatMap((run) => {
    const all = known(run, "step");
    const of = all.length ? all : known(run, "evaluation");
    if (!of.length) return [`${run.name}: not known against this`];
    const xs = run[axis.value];
    const near = x === null ? of[of.length - 1] : of.reduce((a, b) => (Math.abs(xs[b] - x) < Math.abs(xs[a] - x) ? b : a));
    if (x !== null && x > xs[of[of.length - 1]]) return [`${run.name}: ended at ${SCALES[axis.value](xs[of[of.length - 1]])}`];
    return [`${run.name}: ${run.loss[near].toFixed(3)}${x === null ? ` at ${SCALES[axis.value](xs[near])}` : ""}`];
  });
  said.textContent = x === null ? `Last training loss (dots: validation): ${parts.join(" · ")}` : `At ${SCALES[axis.value](x)}: ${parts.join(" · ")}`;
}

function legend() {
  const list = document.getElementById("legend");
  const focused = document.activeElement?.closest("#legend button")?.dataset.run;
  list.replaceChildren(
    ...runs_.map((run, place) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.run = run.name;
      button.className = `key k${place}`;
      button.setAttribute("aria-pressed", String(!hidden.has(run.name)));
      button.textContent = run.name;
      if (apartOf(run)) {
        const note = document.createElement("span");
        note.className = "quiet";
        note.textContent = ` (${apartOf(run)})`;
        button.append(note);
      }
      button.addEventListener("click", () => {
        if (!hidden.delete(run.name)) hidden.add(run.name);
        writeView();
        legend();
        draw();
      });
      item.append(button);
      return item;
    }),
  );
  if (focused) [...list.querySelectorAll("button")].find((button) => button.dataset.run === focused)?.focus();
}

function look(from, to) {
  const [first, last] = span();
  from = Math.max(first, from);
  to = Math.min(last, to);
  if (!(to - from > (last - first) * 1e-5)) return;
  const all = from <= first && to >= last;
  view.from = all ? null : from;
  view.to = all ? null : to;
  writeView();
  draw();
}

function move(what) {
  const [first, last] = span();
  const [from, to] = [view.from ?? first, view.to ?? last];
  const width = to - from;
  const centre = chart.cursor ?? (from + to) / 2;
  if (what === "all") look(first, last);
  if (what === "in") look(centre - width / 4, centre + width / 4);
  if (what === "out") look(centre - width, centre + width);
  const by = what === "left" ? Math.max(-width / 4, first - from) : Math.min(width / 4, last - to);
  if (what === "left" || what === "right") look(from + by, to + by);
}

axis.addEventListener("change", () => {
  chart.cursor = view.from = view.to = null; // another axis, another place
  writeView();
  legend();
  draw();
});
for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", () => move(button.dataset.do));
chart.element.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  event.preventDefault();
  move(KEYS[event.key]);
});
chart.element.addEventListener("dblclick", () => move("all"));

function tell(message) {
  const place = document.getElementById("trouble");
  place.textContent = message;
  place.hidden = !message;
}

// What follows from curves that were not read when the page was made.
function conclude(sentences) {
  const later = document.getElementById("later");
  if (!later) return;
  later.remove();
  document.getElementById("verdicts").replaceChildren(
    ...sentences.map((text) => {
      const sentence = document.createElement("p");
      sentence.className = "verdict";
      sentence.textContent = `${text}.`;
      return sentence;
    }),
  );
}

async function load() {
  let found;
  try {
    const answer = await fetch(section.dataset.url, { cache: "no-cache" });
    if (!answer.ok) throw new Error(await answer.text());
    found = await answer.json();
  } catch (error) {
    const why = error instanceof TypeError ? "no answer from the dashboard" : error.message;
    tell(`The curves cannot be drawn: ${why}. Reload the page to try again.`);
    document.getElementById("later")?.remove();
    return;
  }
  tell(found.left_out.length ? `Not drawn: ${found.left_out.join("; ")}` : "");
  runs_ = found.runs;
  conclude(found.sentences);
  legend();
  draw();
}
keepInLinks();
load();
