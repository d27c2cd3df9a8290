"use strict";
// Charts of settings that vary together: main effects, interactions, the half-normal plot.

const MANY_CELLS = 10; // an interaction with more cells is a map, not lines

/** `all`: the main effects that stand beside it; they share their axis, so that panels can be read across. */
function drawEffect(term, all, domain, width) {
  const rows = term.effects;
  const names = rows.map((r) => r[0].join(" "));
  const left = roomFor(all.flatMap((x) => x.effects.map((r) => r[0].join(" "))), width * 0.42);
  const f = frame(width, 14 + rows.length * 24 + 26, { left, right: 10, top: 6, bottom: 24 }, term.factors.join(" × "));
  const x = linear(...domain, f.box.left, f.box.right);
  axisX(f, x, { count: 3, grid: true });
  f.root.append(s("line", { class: "zero", x1: x(0), x2: x(0), y1: f.box.top, y2: f.box.bottom }));
  rows.forEach(([, value, low, high], i) => {
    const y = f.box.top + 12 + i * 24;
    const sure = known(low) && (low > 0 || high < 0);
    const group = s("g", { class: `mark ${sure ? "c0" : "open"}` });
    group.append(s("text", { class: "strong", x: left - 9, y: y + 4, "text-anchor": "end" }, cut(names[i], Math.floor(left / LETTER))));
    if (known(low)) group.append(s("line", { class: "line", x1: x(low), x2: x(high), y1: y, y2: y, "stroke-width": 2.5 }));
    group.append(s("circle", { class: sure ? "dot" : "ring", cx: x(value), cy: y, r: 4.5 }));
    group.append(tip(s("rect", { class: "hit", x: 0, y: y - 12, width, height: 24 }), names[i], [["", signed(value) + (known(low) ? ` [${signed(low)}, ${signed(high)}]` : "")]]));
    f.root.append(group);
  });
  return f.root;
}

/** Predicted score of each cell: the mean, both main effects and what they do together. */
function cellMeans(factors, term) {
  const main = (name) => factors.terms.find((t) => t.factors.length === 1 && t.factors[0] === name);
  const effect = (name, level) => {
    const found = main(name);
    const row = found && found.effects.find((e) => e[0][0] === level);
    return row ? row[1] : 0;
  };
  const [a, b] = term.factors;
  return term.effects.map(([[u, v], value]) => ({ u, v, extra: value, mean: factors.mean + effect(a, u) + effect(b, v) + value }));
}

function drawInteraction(data, term, width, t) {
  const cells = cellMeans(data.factors, term);
  const us = [...new Set(cells.map((c) => c.u))];
  const vs = [...new Set(cells.map((c) => c.v))];
  return cells.length > MANY_CELLS ? drawHeat(data, term, cells, us, vs, width, t) : drawCross(data, term, cells, us, vs, width);
}

function drawCross(data, term, cells, us, vs, width) {
  const right = roomFor(vs, width * 0.38) + 8;
  const f = frame(width, 190, { left: 48, right, top: 22, bottom: 40 }, term.factors.join(" × "));
  const x = linear(-0.25, us.length - 0.75, f.box.left, f.box.right);
  x.ticks = () => us.map((_, i) => i);
  const y = linear(...extent(cells.map((c) => c.mean), 0.1), f.box.bottom, f.box.top);
  axisY(f, y, { count: 4, title: data.metric });
  const room = Math.floor((f.box.right - f.box.left) / us.length / LETTER);
  axisX(f, x, { format: (i) => cut(us[i], room), title: term.factors[0] });
  const labels = [];
  vs.forEach((v, k) => {
    const line = us.map((u) => cells.find((c) => c.u === u && c.v === v)).map((c) => (c ? c.mean : null));
    const group = s("g", { class: `mark c${k % 7}` });
    group.append(s("path", { class: "line", d: pathOf(us.map((_, i) => x(i)), line.map((m) => (known(m) ? y(m) : null))) }));
    line.forEach((m, i) => known(m) && group.append(tip(s("circle", { class: "dot", cx: x(i), cy: y(m), r: 4 }), `${us[i]} × ${v}`, [[data.metric, fixed(m)]])));
    f.root.append(group);
    labels.push({ y: y(line.filter(known).pop()), name: v, kind: `c${k % 7}` });
  });
  for (const l of spread(labels, 14, f.box.top, f.box.bottom)) f.root.append(s("text", { class: `tinted ${l.kind}`, x: f.box.right + 2, y: l.y + 4 }, cut(l.name, Math.floor(right / LETTER))));
  return f.root;
}

function drawHeat(data, term, cells, us, vs, width, t) {
  const left = roomFor(us, width * 0.36);
  const side = 26;
  const f = frame(width, 8 + us.length * side + 44, { left, right: 6, top: 6, bottom: 40 }, term.factors.join(" × "));
  const step = (f.box.right - f.box.left) / vs.length;
  const most = Math.max(...cells.map((c) => Math.abs(c.extra))) || 1;
  const digits = digitsFor(most);
  for (const c of cells) {
    const [i, j] = [us.indexOf(c.u), vs.indexOf(c.v)];
    const good = (c.extra < 0) === (data.better === "low");
    const cell = s("rect", { class: `dot mark ${good ? "better" : "worse"}`, x: f.box.left + j * step, y: f.box.top + i * side, width: step - 1, height: side - 1, "fill-opacity": (Math.abs(c.extra) / most) * 0.8 });
    f.root.append(tip(cell, `${c.u} × ${c.v}`, [[t("interactions"), signed(c.extra)], [data.metric, fixed(c.mean)]]));
    if (step > 44) f.root.append(s("text", { class: "strong", x: f.box.left + (j + 0.5) * step, y: f.box.top + i * side + 17, "text-anchor": "middle", "pointer-events": "none" }, signed(c.extra, Math.min(3, digits))));
  }
  us.forEach((u, i) => f.root.append(s("text", { class: "strong", x: left - 8, y: f.box.top + i * side + 17, "text-anchor": "end" }, cut(u, Math.floor(left / LETTER)))));
  vs.forEach((v, j) => f.root.append(s("text", { x: f.box.left + (j + 0.5) * step, y: f.box.bottom + 16, "text-anchor": "middle" }, cut(v, Math.max(3, Math.floor(step / LETTER))))));
  f.root.append(s("text", { class: "faint", x: (f.box.left + f.box.right) / 2, y: f.box.bottom + 33, "text-anchor": "middle" }, term.factors[1]));
  return f.root;
}

function drawHalfNormal(data, width, t) {
  const { names, sizes, quantiles, margin, error } = data.factors.half_normal;
  const f = frame(width, Math.max(280, Math.min(380, width * 0.5)), { left: 56, right: width > 480 ? 130 : 30, top: 26, bottom: 42 }, t("half_normal"));
  const x = linear(0, Math.max(...quantiles) * 1.08, f.box.left, f.box.right);
  const y = linear(0, Math.max(...sizes, known(margin) ? margin : 0) * 1.08, f.box.bottom, f.box.top);
  axisY(f, y, { count: 5, title: t("size") });
  axisX(f, x, { count: 4, title: t("quantile") });
  if (known(margin)) {
    f.root.append(s("line", { class: "dash", x1: f.box.left, x2: f.box.right, y1: y(margin), y2: y(margin) }));
    f.root.append(s("text", { class: "faint", x: f.box.left + 6, y: y(margin) - 6 }, t("margin")));
    const slope = error; // through the origin: where effects that are chance alone lie
    const end = Math.min(x.domain[1], y.domain[1] / slope);
    f.root.append(s("line", { class: "ghost", x1: x(0), y1: y(0), x2: x(end), y2: y(end * slope) }));
  }
  const labels = [];
  names.forEach((name, i) => {
    const large = known(margin) && sizes[i] > margin;
    const mark = s("circle", { class: `mark ${large ? "dot c0" : "ring open"}`, cx: x(quantiles[i]), cy: y(sizes[i]), r: 4.5 });
    f.root.append(tip(mark, name, [[t("size"), fixed(sizes[i])]]));
    if (large || i >= names.length - 3) labels.push({ x: x(quantiles[i]) + 9, y: y(sizes[i]), name, strong: large });
  });
  for (const l of spread(labels, 14, f.box.top, f.box.bottom)) f.root.append(s("text", { class: l.strong ? "strong" : "", x: l.x, y: l.y + 4 }, cut(l.name, 22)));
  return f.root;
}
