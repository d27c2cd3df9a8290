"use strict";
// Charts of arms: differences, learning curves, ranks, costs, rates, positions, noise.  Each takes a width and gives an SVG.

const LINES = 7; // arms beside the baseline that one chart can tell apart by colour
const PANELS = 12;

/** The colour of an arm where lines are told apart: the baseline is ink, the others in the order of the table. */
function hue(arms, index) {
  if (arms[index].baseline) return "base";
  return "c" + (arms.slice(0, index).filter((a) => !a.baseline).length % 7);
}

/** Better, worse or open, of an arm against the baseline. */
function outcome(pair, name) {
  if (!pair || !pair.better) return "open";
  return pair.better === name ? "better" : "worse";
}

// ---------------------------------------------------------------- differences (a forest plot)

function drawForest(data, pairs, width, t) {
  const names = pairs.map((p) => (data.arms.some((a) => a.baseline) ? p.a : `${p.a} − ${p.b}`));
  const digits = digitsFor(Math.max(...pairs.map((p) => Math.abs(p.mean))));
  const wide = width > 640;
  const left = roomFor(names, width * 0.34);
  const right = wide ? 262 : 12;
  const row = 27;
  const top = 24;
  const f = frame(width, top + pairs.length * row + 44, { left, right, top, bottom: 44 }, t("forest"));
  const dots = new Map(data.arms.map((a) => [a.name, a.values.map((v) => v[2]).filter(known)]));
  const finite = pairs.flatMap((p) => [p.mean, p.low, p.high, ...(dots.get(p.a) || [])]).filter(known);
  const reach = robustReach(pairs, finite);
  const x = linear(...extent([0, ...finite.filter((v) => Math.abs(v) <= reach)]), f.box.left + 8, f.box.right - 8);
  const inside = (v) => Math.max(f.box.left, Math.min(f.box.right, x(v)));
  if (known(data.visible)) {
    const [a, b] = [inside(-data.visible), inside(data.visible)];
    f.root.append(s("rect", { class: "shade", x: a, y: top - 6, width: Math.max(0, b - a), height: pairs.length * row + 6 }));
  }
  axisX(f, x, { count: wide ? 6 : 4, title: data.metric });
  f.root.append(s("line", { class: "zero", x1: x(0), x2: x(0), y1: top - 6, y2: f.box.bottom }));
  sides(f, x, data, t);
  pairs.forEach((p, i) => f.root.append(forestRow(data, p, names[i], { f, x, inside, y: top + i * row + row / 2, left, row, wide, digits, dots, t })));
  return f.root;
}

/** One wild arm must not press all others into a line: the axis ends where the arms that can be compared end. */
function robustReach(pairs, values) {
  const size = values.map(Math.abs).sort((a, b) => a - b);
  const typical = size[Math.floor(size.length / 2)] || 1;
  const largest = Math.max(...pairs.map((p) => Math.abs(p.mean)));
  return Math.max(typical * 25, largest * 1.6);
}

function sides(f, x, data, t) {
  const low = data.better === "low";
  const y = f.box.top - 12;
  if (x(0) - f.box.left > 46) f.root.append(s("text", { class: "faint", x: x(0) - 8, y, "text-anchor": "end" }, `← ${t(low ? "better_side" : "worse_side")}`));
  if (f.box.right - x(0) > 46) f.root.append(s("text", { class: "faint", x: x(0) + 8, y }, `${t(low ? "worse_side" : "better_side")} →`));
}

function forestRow(data, p, name, { f, x, inside, y, left, row, wide, digits, dots, t }) {
  const kind = outcome(p, p.a);
  const group = s("g", { class: `${kind} mark` });
  group.append(s("text", { class: "strong", x: left - 10, y: y + 4, "text-anchor": "end" }, cut(name, Math.floor(left / LETTER))));
  const based = data.arms.some((a) => a.baseline);
  if (based) for (const v of dots.get(p.a) || []) if (inside(v) === x(v)) group.append(s("circle", { class: "speck", cx: x(v), cy: y, r: 2.5 }));
  if (known(p.low)) group.append(s("line", { class: "line", x1: inside(p.low), x2: inside(p.high), y1: y, y2: y, "stroke-width": 2.5 }));
  if (known(p.mean)) group.append(s("circle", { class: kind === "open" ? "ring" : "dot", cx: inside(p.mean), cy: y, r: 5 }));
  const interval = known(p.low) ? ` [${signed(p.low, digits)}, ${signed(p.high, digits)}]${p.together ? "*" : ""}` : "";
  if (wide) {
    group.append(s("text", { class: "strong", x: f.box.right + 16, y: y + 4 }, signed(p.mean, digits) + interval));
    group.append(s("text", { x: f.width, y: y + 4, "text-anchor": "end" }, known(p.p) ? `p ${pText(p.p)}` : `n ${p.n}`));
  }
  const rows = [[t("difference"), signed(p.mean, digits) + interval], ...(p.together ? [[t("together"), `[${signed(p.together[0], digits)}, ${signed(p.together[1], digits)}]`]] : []), [t("p"), pText(p.p)], [t("n"), String(p.n)], ["", t(kind === "better" ? "best" : kind === "worse" ? "worse" : "unresolved")]];
  group.append(tip(s("rect", { class: "hit", x: 0, y: y - row / 2, width: f.width, height: row }), name, rows));
  return group;
}

// ---------------------------------------------------------------- curves

/** Which arms are drawn when there are too many: the baseline, the best, the worst. */
function chosenArms(arms, most) {
  const all = arms.map((_, i) => i);
  if (all.length <= most) return all;
  const base = all.filter((i) => arms[i].baseline);
  const rest = all.filter((i) => !arms[i].baseline && known(arms[i].mean));
  const worst = Math.min(3, Math.floor(most / 4));
  return [...new Set([...rest.slice(0, most - worst - base.length), ...base, ...rest.slice(-worst)])].sort((a, b) => a - b);
}

function curveScales(f, bands, set) {
  const steps = bands.flatMap((b) => [b.steps[0], b.steps[b.steps.length - 1]]);
  const x = linear(Math.min(...steps), Math.max(...steps), f.box.left, f.box.right);
  // The fall from the first loss would hide what differs later: the axis begins where a fifth of the way is gone.
  const from = set.setting ? 0 : set.difference ? 0.3 : 0.22;
  const late = bands.flatMap((b) => {
    const last = b.steps[b.steps.length - 1];
    return b.steps.flatMap((step, i) => (step >= from * last ? [b.low[i], b.high[i]] : []));
  });
  const y = linear(...extent(set.difference ? [0, ...late] : late, 0.05), f.box.bottom, f.box.top);
  return { x, y };
}

let clips = 0;

function clipped(f) {
  const id = `clip${++clips}`;
  const rect = s("rect", { x: f.box.left, y: f.box.top - 2, width: f.box.right - f.box.left + 2, height: f.box.bottom - f.box.top + 4 });
  f.root.append(s("clipPath", { id }, rect));
  const group = s("g", { "clip-path": `url(#${id})` });
  f.root.append(group);
  return group;
}

function drawBand(group, b, x, y, kind, area = true) {
  const xs = b.steps.map(x);
  if (area) group.append(s("path", { class: `area ${kind}`, d: areaOf(xs, b.low.map(y), b.high.map(y)) }));
  group.append(s("path", { class: `line mark ${kind}`, d: pathOf(xs, b.mean.map(y)) }));
}

function drawCurves(data, set, width, t) {
  const bands = set.arms.filter((b) => b.steps.length > 1);
  const names = bands.map((b) => data.arms[b.arm].name);
  const right = width > 480 ? roomFor(names, width * 0.3) + 8 : 12;
  const height = set.difference ? Math.max(210, Math.min(270, width * 0.36)) : Math.max(240, Math.min(340, width * 0.45));
  const f = frame(width, height, { left: 52, right, top: 24, bottom: 42 }, set.name);
  const { x, y } = curveScales(f, bands, set);
  axisY(f, y, { count: 5, title: set.name + (set.difference ? ` ${t("curves_difference")}` : "") });
  axisX(f, x, { count: width > 500 ? 6 : 3, title: t("step"), format: short });
  if (set.difference) f.root.append(s("line", { class: "zero", x1: f.box.left, x2: f.box.right, y1: y(0), y2: y(0) }));
  const group = clipped(f);
  for (const b of bands) drawBand(group, b, x, y, hue(data.arms, b.arm));
  for (const b of set.broken || []) drawBroken(f, group, b, x, y, hue(data.arms, b.arm));
  if (width > 480) endLabels(f, bands, data, y, names, right, (arm) => hue(data.arms, arm));
  hoverCurves(f, bands, data, x, y, t);
  return f.root;
}

/** A run that diverged: a thin line to where it ended, and a cross there. */
function drawBroken(f, group, b, x, y, kind) {
  const end = [x(b.steps[b.steps.length - 1]), Math.max(f.box.top + 4, Math.min(f.box.bottom - 4, y(b.mean[b.mean.length - 1])))];
  group.append(s("path", { class: `broken ${kind}`, d: pathOf(b.steps.map(x), b.mean.map(y)) }));
  group.append(s("path", { class: `cross ${kind}`, d: `M${end[0] - 4} ${end[1] - 4}l8 8m0 -8l-8 8` }));
}

function endLabels(f, bands, data, y, names, right, colour) {
  const labels = bands.map((b, i) => ({ y: y(b.mean[b.mean.length - 1]), name: names[i], kind: colour(b.arm) }));
  for (const l of spread(labels, 14, f.box.top + 4, f.box.bottom))
    f.root.append(s("text", { class: `tinted ${l.kind}`, x: f.box.right + 7, y: l.y + 4 }, cut(l.name, Math.floor(right / LETTER))));
}

function hoverCurves(f, bands, data, x, y, t) {
  const guide = s("line", { class: "guide", y1: f.box.top, y2: f.box.bottom, visibility: "hidden" });
  const hit = s("rect", { class: "hit", x: f.box.left, y: f.box.top, width: f.box.right - f.box.left, height: f.box.bottom - f.box.top });
  hit.addEventListener("pointermove", (event) => {
    const box = f.root.getBoundingClientRect();
    const step = x.invert(((event.clientX - box.left) / box.width) * f.width);
    const rows = bands.map((b) => [data.arms[b.arm].name, at(b, step)]).filter((r) => known(r[1]));
    rows.sort((a, b) => a[1] - b[1]);
    guide.setAttribute("x1", x(step));
    guide.setAttribute("x2", x(step));
    guide.setAttribute("visibility", "visible");
    showTip(event, `${t("step")} ${short(Math.round(step))}`, rows.map(([name, v]) => [name, fixed(v)]));
  });
  hit.addEventListener("pointerleave", () => { guide.setAttribute("visibility", "hidden"); hideTip(); });
  f.root.append(guide, hit);
}

function at(b, step) {
  if (step < b.steps[0] || step > b.steps[b.steps.length - 1]) return null;
  let i = b.steps.findIndex((v) => v >= step);
  if (i <= 0) return b.mean[0];
  const share = (step - b.steps[i - 1]) / (b.steps[i] - b.steps[i - 1]);
  return b.mean[i - 1] + share * (b.mean[i] - b.mean[i - 1]);
}

/** One small chart per arm: it in colour, the baseline in grey, all others as ghosts. */
function curvePanels(data, set, t) {
  const shown = chosenArms(data.arms, PANELS + 1).filter((i) => !data.arms[i].baseline);
  const bands = new Map(set.arms.filter((b) => b.steps.length > 1).map((b) => [b.arm, b]));
  const inSight = [...bands.keys()].filter((i) => shown.includes(i) || data.arms[i].baseline).map((i) => bands.get(i));
  const base = [...bands.values()].find((b) => data.arms[b.arm].baseline);
  return shown.filter((i) => bands.has(i)).map((i) => h("div", { class: "panel" }, h("h3", {}, data.arms[i].name), figure((width) => {
    const f = frame(width, 150, { left: 42, right: 14, top: 8, bottom: 22 }, data.arms[i].name);
    const { x, y } = curveScales(f, inSight, set);
    axisY(f, y, { count: 3 });
    axisX(f, x, { count: 3, format: short });
    const group = clipped(f);
    for (const b of inSight) if (b !== base && b.arm !== i) group.append(s("path", { class: "ghost", d: pathOf(b.steps.map(x), b.mean.map(y)) }));
    if (base) drawBand(group, base, x, y, "base");
    const kind = base ? outcome(data.arms[i].pair, data.arms[i].name) : "c0";
    drawBand(group, bands.get(i), x, y, kind);
    for (const b of set.broken || []) if (b.arm === i) drawBroken(f, group, b, x, y, kind);
    hoverCurves(f, base ? [base, bands.get(i)] : [bands.get(i)], data, x, y, t);
    return f.root;
  })));
}

// ---------------------------------------------------------------- ranks

function drawRanks(data, width, t) {
  const rows = [...data.ranks.arms].sort((a, b) => a.mean - b.mean).slice(0, 40);
  const names = rows.map((r) => data.arms[r.arm].name);
  const left = roomFor(names, width * 0.36);
  const row = 25;
  const f = frame(width, 30 + rows.length * row + 24, { left, right: 46, top: 8, bottom: 40 }, t("ranks"));
  const x = linear(0.6, data.ranks.arms.length + 0.4, f.box.left, f.box.right);
  const whole = Math.ceil(data.ranks.arms.length / 12);
  x.ticks = () => Array.from({ length: data.ranks.arms.length }, (_, i) => i + 1).filter((n) => (n - 1) % whole === 0);
  axisX(f, x, { title: t("rank"), grid: true, format: String });
  rows.forEach((r, i) => {
    const y = f.box.top + row / 2 + i * row;
    const group = s("g", { class: `mark ${data.arms[r.arm].baseline ? "base" : outcome(data.arms[r.arm].pair, names[i])}` });
    group.append(s("text", { class: "strong", x: left - 10, y: y + 4, "text-anchor": "end" }, cut(names[i], Math.floor(left / LETTER))));
    group.append(s("line", { class: "ghost", x1: x(Math.min(...r.each)), x2: x(Math.max(...r.each)), y1: y, y2: y }));
    const seen = {};
    for (const place of r.each) { // equal places are stacked, so that each seed is one dot
      const k = (seen[place] = (seen[place] || 0) + 1) - 1;
      group.append(s("circle", { class: "speck", cx: x(place), cy: y - k * 2.2, r: 3 }));
    }
    group.append(s("circle", { class: "ring", cx: x(r.mean), cy: y, r: 5.5, "fill-opacity": 0 }));
    group.append(s("text", { x: f.box.right + 10, y: y + 4 }, r.mean.toFixed(1)));
    f.root.append(group);
  });
  return f.root;
}

// ---------------------------------------------------------------- costs

/** How far chance moves the reference, behind everything else: what lies in it is no difference yet. */
function noiseBand(f, y, data) {
  if (!data.noise) return;
  const inside = (v) => Math.max(f.box.top, Math.min(f.box.bottom, y(v)));
  const [top, bottom] = [inside(data.noise.mean + data.noise.sd), inside(data.noise.mean - data.noise.sd)];
  f.root.append(s("rect", { class: "shade", x: f.box.left, y: top, width: f.box.right - f.box.left, height: Math.max(0, bottom - top) }));
}

function drawTrade(data, key, title, format, width) {
  const arms = data.arms.map((a, i) => ({ ...a, i })).filter((a) => known(a[key]) && known(a.mean));
  const f = frame(width, 240, { left: 52, right: 14, top: 24, bottom: 40 }, title);
  const x = linear(...extent(arms.map((a) => a[key]), 0.12), f.box.left, f.box.right);
  const y = linear(...extent(arms.flatMap((a) => [a.mean - (a.sd || 0), a.mean + (a.sd || 0)]), 0.08), f.box.bottom, f.box.top);
  noiseBand(f, y, data);
  axisY(f, y, { title: data.metric });
  axisX(f, x, { count: 3, format, title });
  const front = paretoFront(arms, key, data.better);
  if (front.length > 1) f.root.append(s("path", { class: "front", d: stairs(front, key, x, y) }));
  for (const a of arms) {
    const kind = a.baseline ? "base" : outcome(a.pair, a.name);
    const group = s("g", { class: `mark ${kind}` });
    if (known(a.sd)) group.append(s("line", { class: "line", x1: x(a[key]), x2: x(a[key]), y1: y(a.mean - a.sd), y2: y(a.mean + a.sd), "stroke-opacity": 0.35 }));
    group.append(tip(s("circle", { class: "dot", cx: x(a[key]), cy: y(a.mean), r: arms.length > 60 ? 3 : 4.5 }), a.name, [[data.metric, fixed(a.mean)], [title, format(a[key])]]));
    f.root.append(group);
  }
  labelPoints(f, arms.length <= 9 ? arms : front, key, x, y);
  return f.root;
}

function paretoFront(arms, key, better) {
  const sign = better === "low" ? 1 : -1;
  let best = Infinity;
  return [...arms].sort((a, b) => a[key] - b[key] || sign * (a.mean - b.mean)).filter((a) => {
    if (sign * a.mean >= best) return false;
    best = sign * a.mean;
    return true;
  });
}

function stairs(front, key, x, y) {
  return front.map((a, i) => (i ? `H${x(a[key]).toFixed(1)}V${y(a.mean).toFixed(1)}` : `M${x(a[key]).toFixed(1)} ${y(a.mean).toFixed(1)}`)).join("");
}

/** Names beside points, where there is room for them; a name that would cover another is left to the tooltip. */
function labelPoints(f, arms, key, x, y) {
  const taken = arms.map((a) => [x(a[key]) - 5, y(a.mean) - 6, x(a[key]) + 5, y(a.mean) + 6]);
  const free = (b) => b[0] >= f.box.left && b[2] <= f.width && b[1] >= 0 && !taken.some((o) => b[0] < o[2] && b[2] > o[0] && b[1] < o[3] && b[3] > o[1]);
  for (const a of arms) {
    const name = cut(a.name, 18);
    const w = widthOf(name);
    const [px, py] = [x(a[key]), y(a.mean)];
    const places = [[px + 8, py + 4, "start", px + 8, px + 8 + w], [px - 8, py + 4, "end", px - 8 - w, px - 8], [px, py - 10, "middle", px - w / 2, px + w / 2], [px, py + 19, "middle", px - w / 2, px + w / 2]];
    for (const [lx, ly, anchor, from, to] of places) {
      const box = [from, ly - 11, to, ly + 3];
      if (!free(box)) continue;
      taken.push(box);
      f.root.append(s("text", { class: "strong", x: lx, y: ly, "text-anchor": anchor }, name));
      break;
    }
  }
}

// ---------------------------------------------------------------- learning rates, positions, noise

function drawRates(data, width, t) {
  const lines = data.rates;
  const names = lines.map((l) => l.name);
  const right = width > 480 ? roomFor(names, width * 0.3) + 8 : 12;
  const f = frame(width, Math.max(260, Math.min(360, width * 0.46)), { left: 52, right, top: 30, bottom: 42 }, t("rates"));
  const rates = lines.flatMap((l) => l.points.map((p) => p[0]));
  const x = logarithmic(Math.min(...rates) / 1.15, Math.max(...rates) * 1.15, f.box.left, f.box.right);
  const y = linear(...extent(lines.flatMap((l) => l.points.map((p) => p[1]))), f.box.bottom, f.box.top);
  noiseBand(f, y, data);
  axisY(f, y, { count: 5, title: data.metric });
  axisX(f, x, { title: t("learning_rate"), format: rateText });
  lines.forEach((l, i) => {
    const group = s("g", { class: `mark c${i % 7}` });
    const line = l.line.filter((p) => known(p[1]));
    group.append(s("path", { class: "line", d: pathOf(line.map((p) => x(p[0])), line.map((p) => y(p[1]))) }));
    for (const [rate, value, role] of l.points) {
      const [px, py] = [x(rate), known(value) ? y(value) : f.box.top - 4];
      const rows = [[t("learning_rate"), rateText(rate)], [data.metric, known(value) ? fixed(value) : t("diverged")]];
      const mark = known(value) ? s("circle", { class: role === "run" ? "dot" : "speck", cx: px, cy: py, r: 3.5 }) : s("path", { class: "cross", d: `M${px - 4} ${py - 4}l8 8m0 -8l-8 8` });
      group.append(tip(mark, l.name, rows));
    }
    f.root.append(group);
  });
  if (width > 480) {
    const labels = lines.map((l, i) => ({ y: y((l.line.filter((p) => known(p[1])).pop() || [0, y.domain[0]])[1]), name: l.name, kind: `c${i % 7}` }));
    for (const l of spread(labels, 14, f.box.top, f.box.bottom)) f.root.append(s("text", { class: `tinted ${l.kind}`, x: f.box.right + 7, y: l.y + 4 }, cut(l.name, Math.floor(right / LETTER))));
  }
  return f.root;
}

function drawPositions(data, width, t) {
  const wanted = new Set(chosenArms(data.arms, LINES + Number(data.arms.some((a) => a.baseline))));
  const bands = data.positions.filter((b) => wanted.has(b.arm));
  const names = bands.map((b) => data.arms[b.arm].name);
  const right = width > 480 ? roomFor(names, width * 0.3) + 8 : 12;
  const f = frame(width, Math.max(240, Math.min(340, width * 0.44)), { left: 52, right, top: 24, bottom: 42 }, t("positions"));
  const x = linear(0, bands[0].steps.length - 1, f.box.left, f.box.right);
  const y = linear(...extent(bands.flatMap((b) => [...b.low, ...b.high])), f.box.bottom, f.box.top);
  axisY(f, y, { count: 5, title: data.metric });
  x.ticks = () => bands[0].steps.filter((i) => i % (width > 500 ? 3 : 5) === 0);
  axisX(f, x, { title: t("position"), format: (i) => `${i + 1}/${bands[0].steps.length}` });
  const group = clipped(f);
  const colours = bands.filter((b) => !data.arms[b.arm].baseline).map((b) => b.arm); // of those that are shown
  const colour = (arm) => (data.arms[arm].baseline ? "base" : `c${colours.indexOf(arm) % 7}`);
  for (const b of bands) drawBand(group, b, x, y, colour(b.arm));
  if (width > 480) endLabels(f, bands, data, y, names, right, colour);
  hoverCurves(f, bands, data, x, y, (word) => t(word === "step" ? "position" : word));
  return f.root;
}

function drawNoise(noise, width, t) {
  const f = frame(width, 230, { left: 52, right: 14, top: 24, bottom: 42 }, t("noise"));
  const x = linear(1.5, 20.5, f.box.left, f.box.right);
  const values = noise.smallest.map((p) => p[1]);
  const here = noise.smallest.find((p) => p[0] === noise.n);
  const y = linear(0, Math.max(Math.min(values[0], values[1] * 1.9), here ? here[1] : 0) * 1.05, f.box.bottom, f.box.top);
  axisY(f, y, { title: t("smallest") });
  x.ticks = () => [2, 5, 10, 15, 20];
  axisX(f, x, { title: t("seeds_axis"), format: String });
  const group = clipped(f);
  group.append(s("path", { class: "line mark c0", d: pathOf(noise.smallest.map((p) => x(p[0])), values.map(y)) }));
  for (const [n, value] of noise.smallest)
    group.append(tip(s("circle", { class: n === noise.n ? "dot c1" : "dot c0", cx: x(n), cy: y(value), r: n === noise.n ? 5 : 3 }), t("seeds", { n }), [[t("smallest"), fixed(value)]]));
  if (here) f.root.append(s("text", { class: "strong", x: x(here[0]) + 9, y: Math.max(f.box.top + 10, y(here[1]) - 7) }, fixed(here[1])));
  return f.root;
}

function drawStrip(data, width, t) {
  const noise = data.noise;
  const f = frame(width, 96, { left: 10, right: 10, top: 20, bottom: 30 }, t("noise"));
  const x = linear(...extent([...noise.values, noise.mean - noise.sd, noise.mean + noise.sd], 0.12), f.box.left, f.box.right);
  const middle = (f.box.top + f.box.bottom) / 2;
  f.root.append(s("rect", { class: "shade", x: x(noise.mean - noise.sd), y: f.box.top, width: x(noise.mean + noise.sd) - x(noise.mean - noise.sd), height: f.box.bottom - f.box.top }));
  axisX(f, x, { count: 4 });
  f.root.append(s("line", { class: "zero", x1: x(noise.mean), x2: x(noise.mean), y1: f.box.top, y2: f.box.bottom }));
  for (const v of noise.values) f.root.append(tip(s("circle", { class: "dot base mark", cx: x(v), cy: middle, r: 4.5 }), noise.name, [[data.metric, fixed(v)]]));
  f.root.append(s("text", { class: "faint", x: x(noise.mean), y: f.box.top - 7, "text-anchor": "middle" }, "± 1 sd"));
  return f.root;
}
