"use strict";
// Asks for the sums again as long as the server still reads the folder, or cannot.
const EVERY_MS = 700;
const sums = document.getElementById("sums");
const base = document.body.dataset.base;

function tell(message) {
  const place = document.getElementById("trouble");
  place.textContent = message;
  place.hidden = !message;
}

async function again() {
  if (document.visibilityState === "visible") {
    try {
      const answer = await fetch(`${base}/total/now`, { cache: "no-cache" });
      if (!answer.ok) throw new Error(String(answer.status));
      const html = await answer.text();
      const focused = document.activeElement?.closest("#sums a")?.getAttribute("href");
      sums.innerHTML = html;
      if (focused) sums.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
      tell("");
    } catch {
      tell("No answer from the dashboard: what is shown may be old. Trying again.");
    }
  }
  if (sums.querySelector(".reading, [data-again]")) setTimeout(again, EVERY_MS);
}
if (sums.querySelector(".reading, [data-again]")) setTimeout(again, EVERY_MS);
