"use strict";
// A served page: it asks for new data every few seconds and rebuilds itself when they have changed.

const REFRESH = 3000; // milliseconds
let version = null;
let shownAt = "";
let trouble = "";

function liveText() {
  return trouble || t("live", { x: shownAt });
}

function say() {
  const place = document.getElementById("live");
  if (place) place.textContent = liveText();
}

async function refresh() {
  try {
    const answer = await fetch("/data", { cache: "no-store" });
    const found = await answer.json();
    shownAt = new Date().toLocaleTimeString();
    trouble = found.trouble;
    if (found.version !== version && document.activeElement?.tagName !== "INPUT") {
      const first = version === null;
      version = found.version;
      if (!first) rebuild(found.data);
    }
  } catch {
    trouble = t("live_gone");
  }
  say();
  setTimeout(refresh, document.hidden ? REFRESH * 5 : REFRESH);
}

/** New data in the old place: the reader keeps the position, the language and the theme. */
function rebuild(found) {
  const y = scrollY;
  const focus = document.activeElement?.id || document.activeElement?.closest?.("section")?.id;
  data = found;
  build();
  scrollTo({ top: y, behavior: "instant" });
  const place = focus && document.getElementById(focus);
  const target = place?.tagName === "SECTION" ? place.querySelector("h2") : place;
  if (target?.tagName === "H2") target.setAttribute("tabindex", "-1");
  target?.focus({ preventScroll: true });
}

refresh();
