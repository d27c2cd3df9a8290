"use strict";
// What both pages begin with: their data, the words of the chosen language, and the frame of a section.

const read = (id) => JSON.parse(document.getElementById(id).textContent);
let data = read("data"); // a served page gets new data
const words = read("words");
let language = (navigator.language || "en").startsWith("zh") ? "zh" : "en";

function t(key, values = {}) {
  const text = words[language][key] ?? words.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => (values[name] === undefined ? "" : String(values[name])));
}

function section(id, title, captions, body, wide = false) {
  const texts = captions.filter(Boolean).map((c) => h("p", {}, c));
  return h("section", { id, class: wide ? "wide" : null }, h("div", { class: "side" }, h("h2", {}, title), ...texts), h("div", {}, body));
}
