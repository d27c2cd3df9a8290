"use strict";
// Keys of the page, for readers without a mouse.

/** j and k go to the next and the last section, l changes the language, d the theme. */
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  const step = { j: 1, k: -1 }[event.key];
  if (step) {
    const tops = [...document.querySelectorAll("main header, main section")];
    const edge = document.querySelector(".bar").offsetHeight + 12;
    const held = /^H[12]$/.test(document.activeElement.tagName) ? tops.indexOf(document.activeElement.closest("section, header")) : -1;
    const at = held >= 0 ? held : tops.filter((x) => x.getBoundingClientRect().top <= edge).length - 1;
    const next = tops[Math.max(0, Math.min(tops.length - 1, at + step))];
    next.scrollIntoView();
    next.querySelector("h1, h2").setAttribute("tabindex", "-1");
    next.querySelector("h1, h2").focus({ preventScroll: true });
  }
  if (event.key === "l") document.getElementById("language").click();
  if (event.key === "d") document.getElementById("theme").click();
}
addEventListener("keydown", onKey);
