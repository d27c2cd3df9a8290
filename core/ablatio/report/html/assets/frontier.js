"use strict";
// Reward against KL: a line for each method, a point for each run, thin lines for the way that training took.

/** Square roots of nats: the distance in which best-of-n and over-optimisation are nearly straight. */
function rooted(high, from, to) {
  const inner = linear(0, Math.sqrt(high), from, to);
  const scale = (x) => inner(Math.sqrt(Math.max(0, x)));
  scale.domain = [0, high];
  scale.ticks = (count) => inner.ticks(count * 2).map((r) => Number((r * r).toPrecision(2))).filter((v, i, all) => v <= high && all.indexOf(v) === i && (!i || scale(v) - scale(all[i - 1]) > 34));
  return scale;
}

function drawFrontier(data, width, t) {
  const { lines, gold } = data.frontier;
  const names = lines.map((l) => l.name);
  const right = width > 480 ? roomFor(names, width * 0.3) + 8 : 12;
  const f = frame(width, Math.max(280, Math.min(400, width * 0.52)), { left: 52, right, top: 30, bottom: 42 }, t("frontier"));
  const arms = lines.flatMap((l) => l.arms);
  const every = arms.flatMap((a) => [...a.points, ...a.path]);
  const x = rooted(Math.max(0.01, ...every.map((p) => p[0])) * 1.04, f.box.left, f.box.right);
  const y = linear(...extent(every.flatMap((p) => (gold ? [p[1], p[2]] : [p[1]]))), f.box.bottom, f.box.top);
  axisY(f, y, { count: 5, title: t(gold ? "frontier_gold" : "frontier_reward") });
  axisX(f, x, { count: width > 500 ? 6 : 3, title: t("frontier_kl"), format: short });
  lines.forEach((l, i) => f.root.append(frontierLine(data, l, `c${i % 7}`, { x, y, gold, t })));
  if (width > 480) {
    const last = (l) => l.arms[l.arms.length - 1].mean;
    const labels = lines.map((l, i) => ({ y: y(last(l)[gold ? 2 : 1]), name: l.name, kind: `c${i % 7}` }));
    for (const l of spread(labels, 14, f.box.top + 4, f.box.bottom))
      f.root.append(s("text", { class: `tinted ${l.kind}`, x: f.box.right + 7, y: l.y + 4 }, cut(l.name, Math.floor(right / LETTER))));
  }
  return f.root;
}

function frontierLine(data, line, kind, { x, y, gold, t }) {
  const group = s("g", { class: `mark ${kind}` });
  const along = (points, place, name) => s("path", { class: name, d: pathOf(points.map((p) => x(p[0])), points.map((p) => y(p[place]))) });
  const judge = gold ? 2 : 1;
  for (const a of line.arms) if (a.path.length > 2) group.append(along(a.path, judge, "broken"), ...(gold ? [along(a.path, 1, "broken learned")] : []));
  const means = line.arms.map((a) => a.mean);
  if (means.length > 1) group.append(along(means, judge, "line"), ...(gold ? [along(means, 1, "line learned")] : []));
  for (const a of line.arms)
    for (const p of a.points) {
      const rows = [[t("frontier_kl"), fixed(p[0], 2)], [t("frontier_reward"), fixed(p[1], 3)], ...(gold ? [[t("frontier_gold"), fixed(p[2], 3)]] : [])];
      group.append(tip(s("circle", { class: "dot", cx: x(p[0]), cy: y(p[judge]), r: 4 }), data.arms[a.arm].name, rows));
      if (gold) group.append(tip(s("circle", { class: "ring", cx: x(p[0]), cy: y(p[1]), r: 3 }), data.arms[a.arm].name, rows));
    }
  return group;
}
