"use strict";
// In the head, so that a page never flashes in the wrong colours. Without a choice the system's holds.
const CHOICE = "hoofprint-theme";

function storedTheme() {
  try {
    const stored = localStorage.getItem(CHOICE);
    return stored === "dark" || stored === "light" ? stored : null;
  } catch {
    return null; // storage is switched off: the system's colours hold
  }
}

function systemIsDark() {
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function showTheme() {
  const stored = storedTheme();
  if (stored) document.documentElement.dataset.theme = stored;
  const dark = stored ? stored === "dark" : systemIsDark();
  const button = document.getElementById("theme");
  if (button) {
    button.hidden = false;
    button.textContent = dark ? "Light" : "Dark";
    button.setAttribute("aria-label", dark ? "Light colours" : "Dark colours");
  }
  document.dispatchEvent(new Event("theme"));
}

showTheme();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
document.addEventListener("DOMContentLoaded", () => {
  showTheme();
  document.getElementById("theme").addEventListener("click", () => {
    const dark = storedTheme() ? storedTheme() === "dark" : systemIsDark();
    try {
      localStorage.setItem(CHOICE, dark ? "light" : "dark");
    } catch {
      document.documentElement.dataset.theme = dark ? "light" : "dark";
    }
    showTheme();
  });
});
