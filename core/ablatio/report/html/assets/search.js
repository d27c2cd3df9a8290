"use strict";
// Charts of a search: score against each knob, parallel coordinates, importance.

const TOP = 5; // trials that are told from the others by color

/** The axis reaches three times as far from the best trial as the median: bad trials must not press the others into a line. */
function scoreDomain(search) {
  const sorted = search.trials.map((x) => x.score).filter(known); // the best first
  const [best, median, worst] = [sorted[0], sorted[Math.floor(sorted.length / 2)], sorted[sorted.length - 1]];
  const far = best + 3 * (median - best);
  return extent([best, Math.abs(worst - best) < Math.abs(far - best) ? worst : far], 0.08);
}

/** Scale of one knob: words are evenly spaced, numbers linear or logarithmic, as they were drawn. */
function knobScale(search, k, from, to) {
  const knob = search.knobs[k];
  if (knob.scale === "words") {
    const scale = linear(-0.5, knob.values.length - 0.5, from, to);
    scale.ticks = () => knob.values.map((_, i) => i);
    scale.text = (i) => knob.values[i];
    return scale;
  }
  const xs = search.trials.map((x) => x.at[k]).filter(known);
  const [low, high] = [Math.min(...xs), Math.max(...xs)];
  if (knob.scale === "log" && low > 0 && high > low) {
    const room = (high / low) ** 0.05;
    return Object.assign(logarithmic(low / room, high * room, from, to), { text: rateText });
  }
  return Object.assign(linear(...extent(xs, 0.05), from, to), { text: null });
}

const trialTip = (search, x, metric) => [[metric, known(x.score) ? fixed(x.score) : "–"], ...search.knobs.map((k, i) => [k.name, x.text[i]]), ...(known(x.final) ? [[`${metric}, n = ${x.runs}`, fixed(x.final)]] : [])];

/** Score of every trial against one knob: dots; a ring at the edge lies beyond it, a cross has no score. */
function drawKnob(data, k, width, t) {
  const search = data.search;
  const f = frame(width, 200, { left: 52, right: 12, top: 22, bottom: 40 }, search.knobs[k].name);
  const x = knobScale(search, k, f.box.left, f.box.right);
  const y = linear(...scoreDomain(search), f.box.bottom, f.box.top);
  axisY(f, y, { count: 4, title: data.metric });
  const room = Math.floor((f.box.right - f.box.left) / Math.max(1, search.knobs[k].values.length) / LETTER);
  axisX(f, x, { count: 4, title: search.knobs[k].name, format: x.text && (search.knobs[k].scale === "words" ? (v) => cut(x.text(v), Math.max(3, room)) : x.text) });
  const worst = data.better === "low" ? f.box.top : f.box.bottom;
  [...search.trials].reverse().forEach((trial, back) => {
    if (!known(trial.at[k])) return;
    const place = search.trials.length - 1 - back;
    const jitter = search.knobs[k].scale === "words" ? ((place * 0.618) % 1 - 0.5) * 16 : 0;
    const cx = x(trial.at[k]) + jitter;
    const raw = known(trial.score) ? y(trial.score) : worst;
    const cy = Math.max(f.box.top, Math.min(f.box.bottom, raw));
    const kind = place < TOP && known(trial.score) ? "c0" : "open";
    const shape = !known(trial.score) ? s("path", { class: "cross", d: `M${cx - 4} ${cy - 4}l8 8m0 -8l-8 8` }) : s("circle", { class: cy === raw ? "dot" : "ring", cx, cy, r: place < TOP ? 5 : 3.5 });
    f.root.append(tip(s("g", { class: `mark ${kind}` }, shape), t("trial", { k: place + 1 }), trialTip(search, trial, data.metric)));
  });
  return f.root;
}

/** One line per trial through all knobs, the most important first, to its score; the best are colored. */
function drawParallel(data, width, t) {
  const search = data.search;
  const rank = new Map(search.importance.map(([key], i) => [key, i]));
  const order = search.knobs.map((_, i) => i).sort((a, b) => (rank.get(search.knobs[a].key) ?? 99) - (rank.get(search.knobs[b].key) ?? 99));
  const count = order.length + 1;
  const whole = Math.max(width, count * 110);
  const f = frame(whole, 300, { left: 46, right: 62, top: 34, bottom: 16 }, t("parallel"));
  const at = (i) => f.box.left + ((f.box.right - f.box.left) * i) / (count - 1);
  const scales = order.map((k) => knobScale(search, k, f.box.bottom, f.box.top));
  const domain = scoreDomain(search);
  const score = data.better === "low" ? linear(...domain, f.box.top, f.box.bottom) : linear(...domain, f.box.bottom, f.box.top);
  const axes = [...scales, Object.assign(score, { text: null })];
  axes.forEach((scale, i) => {
    const ticks = ticksOf(scale, 4);
    const text = scale.text || tickText(ticks);
    const group = s("g", {}, s("line", { class: "axis", x1: at(i), x2: at(i), y1: f.box.top, y2: f.box.bottom }));
    const name = i < order.length ? search.knobs[order[i]].name : data.metric;
    group.append(s("text", { class: "strong", x: at(i), y: f.box.top - 16, "text-anchor": i === 0 ? "start" : i === count - 1 ? "end" : "middle" }, cut(name, Math.floor((at(1) - at(0)) / LETTER))));
    const right = i === count - 1;
    f.root.append(group);
    scale.labels = () => { for (const v of ticks) f.root.append(s("text", { class: "strong", x: at(i) + (right ? 6 : -6), y: scale(v) + 4, "text-anchor": right ? "start" : "end", "pointer-events": "none" }, cut(String(text(v)), 9))); };
  });
  const inside = (y) => Math.max(f.box.top, Math.min(f.box.bottom, y));
  [...search.trials].reverse().forEach((trial, back) => {
    const place = search.trials.length - 1 - back;
    const ys = [...order.map((k, i) => (known(trial.at[k]) ? scales[i](trial.at[k]) : null)), known(trial.score) ? inside(score(trial.score)) : f.box.bottom];
    const best = place < TOP && known(trial.score);
    const line = s("path", { class: best ? "line" : known(trial.score) ? "ghost" : "broken", d: pathOf(ys.map((_, i) => at(i)), ys) });
    const hit = s("path", { class: "hit-line", d: pathOf(ys.map((_, i) => at(i)), ys) });
    f.root.append(tip(s("g", { class: `mark ${best ? "c0" : known(trial.score) ? "open" : "worse"}` }, line, hit), t("trial", { k: place + 1 }), trialTip(search, trial, data.metric)));
  });
  axes.forEach((scale) => scale.labels());
  if (whole > width) {
    f.root.setAttribute("width", whole);
    f.root.setAttribute("class", "scrolled");
  }
  return f.root;
}

/** Bars: the share of the variance of the ranks that each knob explains by itself. */
function drawImportance(data, width, t) {
  const rows = data.search.importance.map(([key, share, p]) => [data.search.knobs.find((k) => k.key === key).name, share, p]);
  const left = roomFor(rows.map((r) => r[0]), width * 0.4);
  const f = frame(width, 8 + rows.length * 26 + 40, { left, right: 56, top: 4, bottom: 38 }, t("importance"));
  const x = linear(0, Math.max(0.1, ...rows.map((r) => r[1])), f.box.left, f.box.right);
  axisX(f, x, { count: 4, title: t("importance_axis"), format: (v) => `${trim(v * 100)} %`, grid: true });
  rows.forEach(([name, share, p], i) => {
    const y = f.box.top + i * 26 + 4;
    const group = s("g", { class: `mark ${known(p) && p > 0.05 ? "open" : "c0"}` });
    group.append(s("text", { class: "strong", x: left - 9, y: y + 13, "text-anchor": "end" }, cut(name, Math.floor(left / LETTER))));
    group.append(s("rect", { class: "dot", x: f.box.left, y, width: Math.max(1, x(share) - f.box.left), height: 17 }));
    group.append(s("text", { x: x(share) + 6, y: y + 13 }, `${trim(share * 100, 2)} %`));
    group.append(tip(s("rect", { class: "hit", x: 0, y: y - 4, width, height: 26 }), name, [[t("importance_axis"), `${trim(share * 100)} %`], ...(known(p) ? [["p", pText(p)]] : [])]));
    f.root.append(group);
  });
  return f.root;
}

const TRIALS = 10;

function searchSection() {
  const search = data.search;
  if (!search) return null;
  const finals = search.trials.some((x) => known(x.final));
  const heads = [h("th", { scope: "col" }, "#"), h("th", { scope: "col" }, data.metric), ...search.knobs.map((k) => h("th", { scope: "col", class: k.scale === "words" ? "text" : null, title: k.key }, k.name)), ...(finals ? [h("th", { scope: "col" }, t("final_mean"))] : []), h("th", { scope: "col", "aria-label": t("again") })];
  const row = (x, i) => h("tr", {}, h("td", {}, String(i + 1)), h("td", {}, known(x.score) ? fixed(x.score) : t("diverged")), ...search.knobs.map((k, j) => h("td", { class: k.scale === "words" ? "text" : null }, x.text[j])), ...(finals ? [h("td", {}, known(x.final) ? `${fixed(x.final)} (n = ${x.runs})` : "")] : []), h("td", {}, copyButton(x.command)));
  const body = h("tbody", {}, search.trials.slice(0, TRIALS).map(row));
  const more = search.trials.length > TRIALS && h("button", { class: "more", on: { click: () => { body.replaceChildren(...search.trials.map(row)); more.remove(); } } }, t("show_all", { n: search.trials.length }));
  const said = h("ul", { class: "plain-list" }, search.said[language].map((x) => h("li", {}, x)));
  return section("search", t("search"), [t("search_caption")], [said, h("div", { class: "box" }, h("table", {}, h("thead", {}, h("tr", {}, heads)), body)), more], true);
}

function knobsSection() {
  if (!data.search) return null;
  const panels = data.search.knobs.map((_, k) => h("div", { class: "panel" }, figure((width) => drawKnob(data, k, width, t))));
  return section("knobs", t("knobs"), [t("knobs_caption", { n: TOP })], h("div", { class: "panels two" }, panels));
}

function parallelSection() {
  if (!data.search || data.search.knobs.length < 2) return null;
  return section("parallel", t("parallel"), [t("parallel_caption", { n: TOP })], h("div", { class: "box" }, figure((width) => drawParallel(data, width, t))), true);
}

function importanceSection() {
  if (!data.search || !data.search.importance.length) return null;
  return section("importance", t("importance"), [t("importance_caption"), t(data.search.sampled ? "importance_sampled" : "importance_searched")], figure((width) => drawImportance(data, width, t)));
}
