"use strict";
// The pencil: elements, scales, axes, tooltips.  All text enters as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

// ---------------------------------------------------------------- numbers

const known = (x) => typeof x === "number" && Number.isFinite(x);
const minus = (text) => text.replace("-", "−");

function fixed(x, digits = 4) {
  return known(x) ? minus(x.toFixed(digits)) : "–";
}

function signed(x, digits = 4) {
  return known(x) ? (x > 0 ? "+" : "") + fixed(x, digits) : "–";
}

/** Digits after the point that tell `spread` apart: differences of hundredths need four, of units two. */
function digitsFor(spread) {
  return known(spread) && spread > 0 ? Math.max(0, Math.min(6, 2 - Math.floor(Math.log10(spread)))) : 4;
}

function short(x, digits = 3) {
  if (!known(x)) return "–";
  for (const [factor, unit] of [[1e15, " P"], [1e12, " T"], [1e9, " G"], [1e6, " M"], [1e3, " k"]])
    if (Math.abs(x) >= factor) return minus(trim(x / factor, digits)) + unit;
  return minus(trim(x, digits));
}

const trim = (x, digits = 3) => String(Number(x.toPrecision(digits)));

function duration(x, digits = 3) {
  if (!known(x)) return "–";
  for (const [limit, factor, unit] of [[1, 1e-3, " ms"], [120, 1, " s"], [7200, 60, " min"], [172800, 3600, " h"]])
    if (x < limit) return trim(x / factor, digits) + unit;
  return trim(x / 86400, digits) + " d";
}

const bytes = (x, digits = 3) => (known(x) ? short(x, digits) + "B" : "–");
const pText = (p) => (!known(p) ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(3));
const rateText = (x) => (!known(x) ? "–" : minus(x >= 0.001 ? trim(x) : x.toExponential()));

// ---------------------------------------------------------------- scales

function linear(low, high, from, to) {
  const span = high - low || 1;
  const scale = (x) => from + ((x - low) / span) * (to - from);
  scale.invert = (y) => low + ((y - from) / (to - from)) * span;
  scale.ticks = (count) => niceTicks(low, high, count);
  scale.domain = [low, high];
  return scale;
}

function logarithmic(low, high, from, to) {
  const inner = linear(Math.log10(low), Math.log10(high), from, to);
  const scale = (x) => inner(Math.log10(x));
  scale.invert = (y) => 10 ** inner.invert(y);
  scale.domain = [low, high];
  scale.ticks = () => {
    const found = [];
    const decades = Math.log10(high / low);
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const m of decades > 3 ? [1] : decades > 1.2 ? [1, 3] : [1, 2, 5]) {
        const tick = Number(`${m}e${e}`);
        if (tick >= low * 0.999 && tick <= high * 1.001) found.push(tick);
      }
    return found;
  };
  return scale;
}

function niceTicks(low, high, count = 5) {
  const raw = (high - low) / Math.max(1, count);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

function extent(values, pad = 0.06) {
  const kept = values.filter(known);
  if (!kept.length) return [0, 1];
  let low = Infinity, high = -Infinity;
  for (const v of kept) { low = Math.min(low, v); high = Math.max(high, v); }
  const room = (high - low || Math.abs(high) * 0.02 || 1) * pad;
  return [low - room, high + room];
}

/** As few digits as tell neighbouring ticks apart. */
function tickText(ticks) {
  const step = ticks.length > 1 ? Math.abs(ticks[1] - ticks[0]) : Math.abs(ticks[0]) || 1;
  if (Math.max(...ticks.map(Math.abs)) >= 10000) return short;
  let digits = 0;
  while (digits < 7 && ticks.some((t) => Math.abs(t * 10 ** digits - Math.round(t * 10 ** digits)) > 1e-6 * Math.max(1, step * 10 ** digits))) digits++;
  return (x) => minus(x.toFixed(digits));
}

/** At least two ticks: one alone tells no distance. */
function ticksOf(scale, count) {
  const ticks = scale.ticks(count);
  return ticks.length > 1 ? ticks : scale.ticks(count * 2);
}

/** `format` with as many digits as tell all ticks apart. */
function distinct(format, ticks) {
  for (let digits = 3; digits < 8; digits++) {
    const text = (x) => format(x, digits);
    if (new Set(ticks.map(text)).size === ticks.length) return text;
  }
  return (x) => format(x, 8);
}

// ---------------------------------------------------------------- a chart's frame

/** An SVG with axes: x and y are scales that are made from the inner size; returns what a chart draws into. */
function frame(width, height, margin, label) {
  const root = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const box = { left: margin.left, right: width - margin.right, top: margin.top, bottom: height - margin.bottom };
  return { root, box, width, height };
}

function axisX(f, scale, { title = "", count = 5, format = null, grid = false } = {}) {
  const ticks = ticksOf(scale, count);
  const text = format ? distinct(format, ticks) : tickText(ticks);
  const group = s("g");
  for (const t of ticks) {
    const x = scale(t);
    if (grid) group.append(s("line", { class: "grid", x1: x, x2: x, y1: f.box.top, y2: f.box.bottom }));
    group.append(s("text", { x, y: f.box.bottom + 16, "text-anchor": "middle" }, text(t)));
  }
  group.append(s("line", { class: "axis", x1: f.box.left, x2: f.box.right, y1: f.box.bottom, y2: f.box.bottom }));
  if (title) group.append(s("text", { class: "faint", x: (f.box.left + f.box.right) / 2, y: f.box.bottom + 33, "text-anchor": "middle" }, title));
  f.root.append(group);
}

function axisY(f, scale, { title = "", count = 4, format = null } = {}) {
  const ticks = ticksOf(scale, count);
  const text = format ? distinct(format, ticks) : tickText(ticks);
  const group = s("g");
  for (const t of ticks) {
    const y = scale(t);
    group.append(s("line", { class: "grid", x1: f.box.left, x2: f.box.right, y1: y, y2: y }));
    group.append(s("text", { x: f.box.left - 7, y: y + 4, "text-anchor": "end" }, text(t)));
  }
  if (title) group.append(s("text", { class: "faint", x: f.box.left, y: f.box.top - 9, "text-anchor": "start" }, title));
  f.root.append(group);
}

function pathOf(xs, ys) {
  let text = "", pen = "M";
  for (let i = 0; i < xs.length; i++) {
    if (!known(xs[i]) || !known(ys[i])) { pen = "M"; continue; }
    text += `${pen}${xs[i].toFixed(1)} ${ys[i].toFixed(1)}`;
    pen = "L";
  }
  return text;
}

function areaOf(xs, low, high) {
  const up = pathOf(xs, high);
  const down = pathOf([...xs].reverse(), [...low].reverse()).replace("M", "L");
  return up && down ? `${up}${down}Z` : "";
}

/** Labels at the ends of lines, pushed apart until none covers another, and kept between `low` and `high`. */
function spread(labels, gap, low, high) {
  const sorted = [...labels].sort((a, b) => a.y - b.y);
  for (let round = 0; round < 60; round++)
    for (let i = 1; i < sorted.length; i++) {
      const missing = gap - (sorted[i].y - sorted[i - 1].y);
      if (missing > 0) { sorted[i - 1].y -= missing / 2; sorted[i].y += missing / 2; }
    }
  let floor = high;
  for (const l of [...sorted].reverse()) { l.y = Math.min(l.y, floor); floor = l.y - gap; }
  let ceiling = low;
  for (const l of sorted) { l.y = Math.max(l.y, ceiling); ceiling = l.y + gap; }
  return sorted;
}

function cut(text, letters) {
  return text.length > letters ? text.slice(0, Math.max(1, letters - 1)) + "…" : text;
}

/** Room in pixels for the longest of these labels at 12 px. */
function roomFor(labels, most) {
  return Math.min(most, 10 + Math.max(0, ...labels.map(widthOf)));
}

const LETTER = 7.3; // pixels of a letter at 12 px, in a wide face

function widthOf(text) {
  let w = 0;
  for (const c of text) w += c.charCodeAt(0) > 0x2e80 ? 12.2 : LETTER;
  return w;
}

// ---------------------------------------------------------------- tooltip

const tipBox = h("div", { class: "tip", role: "status" });

function showTip(event, title, rows) {
  tipBox.replaceChildren(h("b", {}, title), ...rows.map(([k, v]) => h("div", {}, h("i", {}, k), h("span", {}, v))));
  tipBox.classList.add("on");
  const box = tipBox.getBoundingClientRect();
  const x = Math.min(event.clientX + 14, window.innerWidth - box.width - 8);
  const y = event.clientY + 16 + box.height > window.innerHeight ? event.clientY - box.height - 12 : event.clientY + 16;
  tipBox.style.left = `${Math.max(8, x)}px`;
  tipBox.style.top = `${Math.max(8, y)}px`;
}

function hideTip() {
  tipBox.classList.remove("on");
}

function tip(node, title, rows) {
  node.addEventListener("pointermove", (event) => showTip(event, title, rows));
  node.addEventListener("pointerdown", (event) => showTip(event, title, rows)); // a finger does not hover
  node.addEventListener("pointerleave", hideTip);
  return node;
}

// ---------------------------------------------------------------- figures that follow the width

const figures = [];
let printing = false;

/** A box that `draw(width)` fills, again whenever its width changes. */
function figure(draw) {
  const node = h("div", { class: "figure" });
  const entry = { node, draw, width: 0 };
  figures.push(entry);
  return node;
}

function redraw(force = false) {
  for (const f of figures) {
    if (!f.node.isConnected) continue;
    const width = printing ? Math.min(f.node.clientWidth || 660, 660) : f.node.clientWidth;
    if (!width || (!force && Math.abs(width - f.width) < 4)) continue;
    f.width = width;
    f.node.replaceChildren(f.draw(width));
  }
}
