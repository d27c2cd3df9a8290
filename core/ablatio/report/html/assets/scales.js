"use strict";
// Charts over a logarithmic scale, which the report and the page of scaling laws share.

const axisOf = { N: "parameters", D: "tokens", C: "flops" };
const spanOf = (values) => [Math.min(...values) / 1.15, Math.max(...values) * 1.15];

/** Frame with a logarithmic x axis and a linear y axis. */
function logFrame(width, height, xs, ys, xTitle, yTitle) {
  const f = frame(width, height, { left: 62, right: 16, top: 28, bottom: 42 }, `${yTitle}, ${xTitle}`);
  const x = logarithmic(...spanOf(xs), f.box.left, f.box.right);
  const y = linear(...extent(ys), f.box.bottom, f.box.top);
  axisY(f, y, { count: 5, title: yTitle });
  axisX(f, x, { title: xTitle, format: short });
  return { f, x, y };
}

/** Gains of one arm over the sizes: single seeds, and the line with its intervals at the ends. */
function drawTrend(trend, width, t) {
  const ys = [0, ...trend.points.map((p) => p[1]), ...trend.ends.flatMap((e) => e.slice(1))];
  const { f, x, y } = logFrame(width, 280, trend.points.map((p) => p[0]), ys, t(axisOf[trend.over]), t("gain"));
  f.root.append(s("line", { class: "zero", x1: f.box.left, x2: f.box.right, y1: y(0), y2: y(0) }));
  const [a, b] = trend.ends;
  const sure = !["open", "not testable"].includes(trend.kind);
  const group = s("g", { class: `mark ${sure ? "c0" : "open"}` }, s("path", { class: "line", d: pathOf([x(a[0]), x(b[0])], [y(a[1]), y(b[1])]) }));
  for (const [at, , low, high] of trend.ends) if (known(low)) group.append(s("line", { class: "line", x1: x(at), x2: x(at), y1: y(low), y2: y(high) }));
  for (const [at, gain] of trend.points) group.append(tip(s("circle", { class: "ring", cx: x(at), cy: y(gain), r: 3.5 }), short(at), [[t("gain"), signed(gain)]]));
  f.root.append(group);
  return f.root;
}
