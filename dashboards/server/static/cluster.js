"use strict";
// What the nodes draw is asked for again as long as the page is looked at.
const EVERY_MS = 2000;
const FAILED_MS = 5000;
const fleet = document.getElementById("fleet");
let shown = fleet.innerHTML;

function tell(message) {
  const place = document.getElementById("trouble");
  place.textContent = message;
  place.hidden = !message;
}

async function refresh() {
  const answer = await fetch(`${fleet.dataset.url}${location.search}`, { cache: "no-cache" });
  if (!answer.ok) throw new Error(String(answer.status));
  const html = await answer.text();
  tell("");
  if (html === shown) return;
  const focused = fleet.contains(document.activeElement) ? document.activeElement : null;
  const places = [...fleet.querySelectorAll("a, .scroll")];
  const [place, address] = [places.indexOf(focused), focused?.getAttribute("href")];
  const scrolled = [...fleet.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
  fleet.innerHTML = shown = html;
  [...fleet.querySelectorAll(".scroll")].forEach((each, k) => {
    each.scrollLeft = scrolled[k] ?? 0;
  });
  const same = address ? fleet.querySelector(`a[href="${CSS.escape(address)}"]`) : fleet.querySelectorAll("a, .scroll")[place];
  same?.focus({ preventScroll: true });
}

function turn(after) {
  setTimeout(async () => {
    let wait = EVERY_MS;
    if (document.visibilityState === "visible") {
      try {
        await refresh();
      } catch {
        tell("No answer from the dashboard: what is shown may be old. Trying again.");
        wait = FAILED_MS;
      }
    }
    turn(wait); // after the answer, so that a slow server is not asked again before it
  }, after);
}
turn(EVERY_MS);
