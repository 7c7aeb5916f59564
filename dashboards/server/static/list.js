"use strict";
// Filters as one types and shows new runs by itself. The server selects and sorts; the address holds the state. Runs
// that are picked to be compared stay picked over filter, order and page, as long as the tab is open.
const EVERY_MS = 2000;
const READING_MS = 500; // while the server still reads the folder
const list = document.getElementById("list");
const box = document.getElementById("q");
const base = document.body.dataset.base;
let shown = list.innerHTML;
let asked = 0;

async function load() {
  const number = ++asked;
  let html;
  try {
    const answer = await fetch(`${base}/list${location.search}`, { cache: "no-cache" });
    if (!answer.ok) throw new Error(String(answer.status));
    html = await answer.text();
  } catch {
    tell("No answer from the dashboard: what is shown may be old. Trying again.");
    return;
  }
  if (number !== asked) return; // a later question is on its way
  tell("");
  if (html === shown) return;
  const before = document.activeElement?.closest("#list") ? document.activeElement : null;
  const [address, ticked] = [before?.getAttribute("href"), before?.matches("[name=run]") ? before.value : null];
  const open = list.querySelector("details")?.open;
  list.innerHTML = shown = html;
  if (open && list.querySelector("details")) list.querySelector("details").open = true;
  if (address) list.querySelector(`a[href="${CSS.escape(address)}"]`)?.focus();
  if (ticked !== null) list.querySelector(`[name=run][value="${CSS.escape(ticked)}"]`)?.focus();
  showPicked();
}

function tell(message) {
  const place = document.getElementById("trouble");
  place.textContent = message;
  place.hidden = !message;
}

const PICKED = `hoofprint-picked ${base}`;
const [FEWEST, MOST] = [2, 8];
const bar = document.getElementById("pick");
const picked = new Set(storedPicks());

function storedPicks() {
  try {
    const stored = JSON.parse(sessionStorage.getItem(PICKED) ?? "[]");
    return Array.isArray(stored) ? stored.filter((name) => typeof name === "string") : [];
  } catch {
    return []; // storage is switched off, or holds something else: nothing is picked
  }
}

function keepPicks() {
  try {
    sessionStorage.setItem(PICKED, JSON.stringify([...picked]));
  } catch {
    // storage is switched off: what is picked holds until one leaves this page
  }
  showPicked();
}

function showPicked() {
  for (const tick of list.querySelectorAll("[name=run]")) tick.checked = picked.has(tick.value);
  const count = picked.size;
  bar.hidden = !count;
  bar.querySelector("[type=submit]").disabled = count < FEWEST || count > MOST;
  const names = [...picked].slice(0, MOST).join(", ");
  const more = count > MOST ? ` and ${count - MOST} more: at most ${MOST} can be told apart` : "";
  document.getElementById("picked").textContent = `${names}${more}${count < FEWEST ? ": pick another to compare it with" : ""}`;
}

list.addEventListener("change", (event) => {
  if (event.target.name !== "run") return;
  if (event.target.checked) picked.add(event.target.value);
  else picked.delete(event.target.value);
  keepPicks();
});
bar.querySelector("[type=reset]").hidden = false;
bar.addEventListener("submit", (event) => {
  event.preventDefault(); // some may be on another page of the list
  location.assign(`${bar.action}?${new URLSearchParams([...picked].map((name) => ["run", name]))}`);
});
bar.addEventListener("reset", () => {
  picked.clear();
  keepPicks();
});
showPicked();

let waiting;
box.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    const query = new URLSearchParams(location.search);
    query.delete("page");
    if (box.value.trim()) query.set("q", box.value.trim());
    else query.delete("q");
    const search = query.toString();
    history.replaceState(null, "", search ? `?${search}` : location.pathname);
    load();
  }, 120);
});
const form = document.getElementById("filter");
form.addEventListener("submit", (event) => event.preventDefault());
form.querySelector("button").hidden = true; // for those without scripts
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = document.activeElement === box;
  const links = [...list.querySelectorAll("tbody th a")];
  const at = links.indexOf(document.activeElement);
  if (event.key === "/" && !typing) box.focus();
  else if (event.key === "Escape" && typing && box.value) {
    box.value = "";
    box.dispatchEvent(new Event("input"));
  } else if ((event.key === "j" && !typing) || (event.key === "ArrowDown" && (typing || at >= 0))) links[at + 1]?.focus();
  else if (event.key === "x" && at >= 0) links[at].closest("tr").querySelector("[name=run]").click();
  else if ((event.key === "k" && !typing) || (event.key === "ArrowUp" && at >= 0)) (links[at - 1] ?? box).focus();
  else return;
  event.preventDefault();
});
async function again() {
  if (document.visibilityState === "visible") await load();
  setTimeout(again, list.querySelector(".reading") ? READING_MS : EVERY_MS);
}
setTimeout(again, list.querySelector(".reading") ? READING_MS : EVERY_MS);
