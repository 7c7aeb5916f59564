"use strict";
// The page of a run: what goes on is asked for again, charts fetch what their width and zoom need.
const STATE_MS = 1000;
const CHART_MS = 1000;
const SKETCH_MS = 3000;
const ENDED_MS = 10000;
const FAILED_MS = 5000;
const url = document.getElementById("charts").dataset.url;
const COLOURS = ["s0", "s1", "s2", "s3", "s4", "s5", "s6"];
const TIME_STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
const LEAST_KWH = 1e-3;
let view = readView();
let power = null;
let losses = null;
let shownState = null;
let askedPower = 0;

const cursors = [];
const timeOptions = {
  onCursor: (x) => {
    for (const chart of cursors) {
      chart.cursor = x;
      chart.draw();
    }
    sayPower(x);
  },
  onSelect: (from, to) => look(from, to),
};
const powerChart = new Chart(document.getElementById("power"), timeOptions);
const energyChart = new Chart(document.getElementById("energy"), timeOptions);
const gridChart = new Chart(document.getElementById("grid"), timeOptions);
cursors.push(powerChart, energyChart, gridChart);
const lossChart = new Chart(document.getElementById("loss"), {
  onCursor: (x) => {
    lossChart.cursor = x;
    lossChart.draw();
    sayLoss(x);
  },
});

function readView() {
  const query = new URLSearchParams(location.search);
  const number = (key) => (query.has(key) && Number.isFinite(Number(query.get(key))) ? Number(query.get(key)) : null);
  const axis = document.getElementById("axis");
  if ([...axis.options].some((option) => option.value === query.get("x"))) axis.value = query.get("x");
  return { from: number("from"), to: number("to") };
}

function writeView() {
  const query = new URLSearchParams();
  if (view.from !== null) query.set("from", view.from.toFixed(1));
  if (view.to !== null) query.set("to", view.to.toFixed(1));
  const axis = document.getElementById("axis").value;
  if (axis !== "energy_kwh") query.set("x", axis);
  const search = query.toString();
  history.replaceState(null, "", search ? `?${search}` : location.pathname);
  const csv = document.getElementById("power-csv");
  query.delete("x");
  csv.href = `${url}power.csv${query.size ? `?${query}` : ""}`;
}

function isLive() {
  return document.getElementById("now").dataset.live === "1";
}

async function get(what) {
  const answer = await fetch(url + what, { cache: "no-cache" });
  if (!answer.ok) throw new Error(answer.status === 404 ? "gone" : String(answer.status));
  return answer;
}

function tell(message, id = "trouble") {
  const place = document.getElementById(id);
  place.textContent = message;
  place.hidden = !message;
}

function trouble(error) {
  const known = {
    gone: "This run's folder is gone, or cannot be read any more. What is shown is the last that was known.",
    403: "Some files of this run cannot be read: what is shown lacks them. Trying again.",
    503: "The runs folder cannot be read now: what is shown may be old. Trying again.",
    422: "Some files of this run are not understood: what is shown lacks them. Trying again.",
  };
  tell(known[error.message] ?? "No answer from the dashboard: what is shown may be old. Trying again.");
}

async function refreshState() {
  const html = await (await get("state")).text();
  tell("");
  if (html === shownState) return;
  shownState = html;
  const before = isLive();
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  for (const id of ["now", "more"]) {
    const [old, part] = [document.getElementById(id), fresh.content.getElementById(id)];
    if (part && !old.isEqualNode(part)) old.replaceWith(part);
  }
  if (before !== isLive()) location.reload(); // it ended or began: the whole page says something else
}

async function refreshPower() {
  const number = ++askedPower;
  const width = Math.round(powerChart.plot.width * Math.min(2, window.devicePixelRatio || 1));
  const query = new URLSearchParams({ points: String(Math.max(100, Math.round(width / 2))) });
  if (view.from !== null) query.set("from", String(view.from));
  if (view.to !== null) query.set("to", String(view.to));
  const found = await (await get(`power.json?${query}`)).json();
  if (number !== askedPower) return; // a later question is on its way
  tell("");
  power = found;
  drawPower();
  sayPower(powerChart.cursor);
  tell((found.notes ?? []).slice(0, 3).join("; "), "power-notes");
  document.getElementById("power-notes").className = found.by === "sketch" ? "quiet" : "warning";
  tell((found.remarks ?? []).map((text) => `${text[0].toUpperCase()}${text.slice(1)}.`).join(" "), "power-remarks");
}

async function refreshLoss() {
  const first = losses === null;
  losses = await (await get(first ? "steps.json?quick" : "steps.json")).json(); // weeks of steps take seconds to read
  drawLoss();
  if (!first) return;
  await refreshLoss();
  if (power?.lanes === null) await refreshPower(); // what it did when was read with its steps
}

function look(from, to) {
  if (!power?.run) return;
  const [first, last] = power.run;
  const least = 2;
  if (to - from < least) [from, to] = [(from + to - least) / 2, (from + to + least) / 2];
  from = Math.max(first, from);
  to = Math.min(last, to);
  const all = from <= first && to >= last;
  view = { from: all ? null : from, to: all || (to >= last && isLive()) ? null : to };
  writeView();
  refreshPower().catch(trouble);
}

function move(what) {
  if (!power?.run) return;
  const [from, to] = [view.from ?? power.run[0], view.to ?? power.run[1]];
  const width = to - from;
  const centre = powerChart.cursor ?? (from + to) / 2;
  if (what === "all") look(power.run[0], power.run[1]);
  if (what === "in") look(centre - width / 4, centre + width / 4);
  if (what === "out") look(centre - width, centre + width);
  const by = what === "left" ? Math.max(-width / 4, power.run[0] - from) : Math.min(width / 4, power.run[1] - to);
  if (what === "left" || what === "right") look(from + by, to + by);
}

document.getElementById("axis").addEventListener("change", () => {
  lossChart.cursor = null;
  writeView();
  drawLoss();
});
for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", () => move(button.dataset.do));
const KEYS = { "+": "in", "=": "in", "-": "out", ArrowLeft: "left", ArrowRight: "right", 0: "all", Escape: "all" };
for (const chart of cursors) {
  chart.element.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
    event.preventDefault();
    move(KEYS[event.key]);
  });
  chart.element.addEventListener("dblclick", () => move("all"));
}

// Each waits for its own answer, so that a slow server is not asked again before it has answered.
function repeat(task, period) {
  const turn = async () => {
    let wait = period;
    if (document.visibilityState === "visible") {
      try {
        await task();
      } catch (error) {
        trouble(error);
        wait = () => Math.max(FAILED_MS, period());
      }
    }
    setTimeout(turn, wait());
  };
  turn();
}

writeView();
repeat(refreshState, () => (isLive() ? STATE_MS : ENDED_MS));
let once = false;
repeat(
  async () => {
    if (once && !isLive() && power?.by !== "sketch") return; // a sketch becomes a drawing once all was read
    await refreshPower();
    await refreshLoss();
    once = true;
  },
  () => (power?.by === "sketch" ? SKETCH_MS : CHART_MS),
);
