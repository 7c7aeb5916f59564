"use strict";
// Filters as one types and shows new runs by itself. The server selects and sorts; the address holds the state.
const EVERY_MS = 2000;
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
  const address = document.activeElement?.closest("#list") ? document.activeElement.getAttribute("href") : null;
  const open = list.querySelector("details")?.open;
  list.innerHTML = shown = html;
  if (open && list.querySelector("details")) list.querySelector("details").open = true;
  if (address) list.querySelector(`a[href="${CSS.escape(address)}"]`)?.focus();
}

function tell(message) {
  const place = document.getElementById("trouble");
  place.textContent = message;
  place.hidden = !message;
}

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
  else if ((event.key === "k" && !typing) || (event.key === "ArrowUp" && at >= 0)) (links[at - 1] ?? box).focus();
  else return;
  event.preventDefault();
});
setInterval(() => {
  if (document.visibilityState === "visible") load();
}, EVERY_MS);
