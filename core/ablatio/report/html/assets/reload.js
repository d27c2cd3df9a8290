"use strict";
// The page of `report --follow`, whose file is written again while runs go on: it loads itself anew.

const RELOAD = 5000; // milliseconds
const KEPT = "ablatio report";

function liveText() {
  return t("going_on", { x: data.written });
}

/** Language, theme and place that the reader has chosen outlive the reload. */
function keep() {
  const kept = { language, theme: theme(), y: scrollY };
  try { sessionStorage.setItem(KEPT, JSON.stringify(kept)); } catch { /* a browser without storage for files */ }
}

function kept() {
  try { return JSON.parse(sessionStorage.getItem(KEPT)) ?? {}; } catch { return {}; }
}

function reload() {
  const busy = document.hidden || document.activeElement?.tagName === "INPUT" || String(getSelection());
  if (busy) return void setTimeout(reload, RELOAD);
  keep();
  location.reload();
}

language = kept().language in words ? kept().language : language;
addEventListener("load", () => {
  if (kept().theme) setTheme(kept().theme);
  scrollTo({ top: kept().y ?? 0, behavior: "instant" });
  setTimeout(reload, RELOAD);
});
