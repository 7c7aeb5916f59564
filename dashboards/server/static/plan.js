"use strict";
// Opens an experiment as it is chosen, and tells of a form that is on its way. All else is the server's.
const choose = document.getElementById("choose");
if (choose) {
  choose.querySelector("button").hidden = true; // for those without scripts
  document.getElementById("spec").addEventListener("change", () => {
    // What was typed beside it goes along, the spec itself not: another one was chosen.
    const query = new URLSearchParams();
    const name = document.getElementById("spec").value;
    if (name) query.set("spec", name);
    for (const line of document.getElementById("set").value.split("\n")) if (line.trim()) query.append("set", line.trim());
    const budget = document.getElementById("budget").value.trim();
    if (budget) query.set("budget", budget);
    location.assign(`${choose.action}?${query}`);
  });
  const ask = document.getElementById("ask");
  ask.addEventListener("submit", () => {
    const button = ask.querySelector("[type=submit]");
    button.disabled = true;
    button.textContent = "Planning…";
  });
  ask.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask.requestSubmit();
  });
  addEventListener("pageshow", () => {
    const button = ask.querySelector("[type=submit]");
    button.disabled = false; // also when one comes back to it
    button.textContent = "Plan it";
  });
}
