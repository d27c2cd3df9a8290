"use strict";
// The page of a scaling law: the fit, its residuals, runs of equal cost, learning curves, and gains over the sizes.

function pointTip(node, p) {
  return tip(node, p.title, [[t("seed"), String(p.seed)], [t("parameters"), short(p.N)], [t("tokens"), short(p.D)], [data.metric, fixed(p.loss)], [t("residual"), `${signed(100 * p.residual, 2)} %`]]);
}

const lineName = (line) => Object.entries(line.of).map(([k, v]) => `${k} = ${short(v)}`).join(", ");

function drawFit(width) {
  const height = Math.max(300, Math.min(440, width * 0.55));
  const ys = [...data.points.map((p) => p.loss), ...data.lines.flatMap((l) => l.y)];
  const { f, x, y } = logFrame(width, height, data.points.map((p) => p[data.x]), ys, t(axisOf[data.x]), data.metric);
  data.lines.forEach((l, i) => {
    const path = s("path", { class: "line", d: pathOf(l.x.map(x), l.y.map(y)) });
    f.root.append(s("g", { class: `mark c${i % 7}` }, lineName(l) ? tip(path, lineName(l), []) : path));
  });
  for (const p of data.points) f.root.append(s("g", { class: "mark c0" }, pointTip(s("circle", { class: "ring", cx: x(p[data.x]), cy: y(p.loss), r: 3.5 }), p)));
  return f.root;
}

function drawResiduals(key, width) {
  const { f, x, y } = logFrame(width, 240, data.points.map((p) => p[key]), [0, ...data.points.map((p) => 100 * p.residual)], t(axisOf[key]), t("residual_percent"));
  f.root.append(s("line", { class: "zero", x1: f.box.left, x2: f.box.right, y1: y(0), y2: y(0) }));
  for (const p of data.points) f.root.append(s("g", { class: "mark c0" }, pointTip(s("circle", { class: "dot", cx: x(p[key]), cy: y(100 * p.residual), r: 3.5 }), p)));
  return f.root;
}

function drawBudget(b, width) {
  const [low, high] = b.sizes;
  const grid = Array.from({ length: 40 }, (_, i) => Math.exp(Math.log(low) + (Math.log(high / low) * i) / 39));
  const curve = grid.map((n) => b.curve[0] * Math.log(n) ** 2 + b.curve[1] * Math.log(n) + b.curve[2]);
  const { f, x, y } = logFrame(width, 220, [low, high, ...(b.inside ? [b.best] : [])], [...curve, ...b.points.map((p) => p[1])], t("parameters"), data.metric);
  f.root.append(s("g", { class: "mark c0" }, s("path", { class: "line", d: pathOf(grid.map(x), curve.map(y)) })));
  for (const [n, loss] of b.points) f.root.append(s("g", { class: "mark c0" }, tip(s("circle", { class: "ring", cx: x(n), cy: y(loss), r: 4 }), short(n), [[data.metric, fixed(loss)]])));
  if (b.inside) f.root.append(s("g", { class: "mark c1" }, tip(s("circle", { class: "dot", cx: x(b.best), cy: y(b.loss), r: 5 }), t("minimum"), [[t("parameters"), short(b.best)], [data.metric, fixed(b.loss)]])));
  return f.root;
}

function drawEnvelope(width) {
  const e = data.envelope;
  const f = frame(width, 260, { left: 62, right: 16, top: 28, bottom: 42 }, t("envelope"));
  const x = logarithmic(...spanOf(e.flops), f.box.left, f.box.right);
  const y = logarithmic(...spanOf(e.n), f.box.bottom, f.box.top);
  axisY(f, y, { title: t("best_size"), format: short });
  axisX(f, x, { title: t("flops"), format: short });
  f.root.append(s("g", { class: "mark c0" }, s("path", { class: "line", d: pathOf(e.flops.map(x), e.n.map(y)) })));
  return f.root;
}

// ---------------------------------------------------------------- sections

function head() {
  const list = (lines) => h("ul", { class: "plain-list" }, lines.map((x) => h("li", {}, x.trim())));
  return h("header", {},
    h("p", { class: "over" }, `${t("report")} · ${data.title}`),
    h("h1", {}, data.law),
    list(data.trends_said[language]), list(data.said[language]),
    h("p", { class: "facts" }, [t("of_runs", { n: data.runs }), data.paper, t("written", { x: data.written })].filter(Boolean).map((x) => h("span", {}, x))));
}

function fitSection() {
  const rows = data.coefficients.map(([name, value, low, high]) => h("tr", {}, h("td", { class: "text name" }, name), h("td", {}, number(value)), h("td", {}, known(low) ? `[${number(low)}, ${number(high)}]` : "–")));
  const heads = h("tr", {}, h("th", { class: "text", scope: "col" }, t("coefficient")), h("th", { scope: "col" }, t("fitted")), h("th", { scope: "col" }, t("interval")));
  const table = h("div", { class: "box" }, h("table", {}, h("thead", {}, heads), h("tbody", {}, rows)));
  const keys = data.lines.length > 1 && t("fit_lines", { list: data.lines.map(lineName).join("; ") });
  return section("fit", t("fit"), [data.formula, t("fit_caption"), keys], [figure(drawFit), table]);
}

const number = (x) => (known(x) ? minus(Math.abs(x) >= 1e5 || Math.abs(x) < 1e-3 ? x.toExponential(3) : trim(x, 4)) : "–");

function residualSection() {
  const keys = Object.keys(axisOf).filter((k) => new Set(data.points.map((p) => p[k])).size > 1);
  return section("residuals", t("residuals"), [t("residuals_caption")], h("div", { class: "panels two" }, keys.map((k) => h("div", { class: "panel" }, figure((width) => drawResiduals(k, width))))));
}

function budgetSection() {
  if (!data.budgets.length) return null;
  const panels = data.budgets.slice(0, 12).map((b) => h("div", { class: "panel" }, h("h3", {}, `${b.flops.toExponential(2)} FLOPs`), figure((width) => drawBudget(b, width))));
  return section("budgets", t("budgets"), [t("budgets_caption")], h("div", { class: "panels two" }, panels));
}

function envelopeSection() {
  return data.envelope && section("envelope", t("envelope"), [t("envelope_caption")], figure(drawEnvelope));
}

function trendSection() {
  if (!data.trends.length) return null;
  const panels = data.trends.slice(0, 12).map((x) => h("div", { class: "panel" }, h("h3", {}, t("over", x)), figure((width) => drawTrend(x, width, t))));
  return section("trends", t("trends"), [t("trends_caption")], h("div", { class: data.trends.length > 1 ? "panels two" : "" }, panels));
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
}

function build() {
  figures.length = 0;
  document.documentElement.lang = language;
  const made = [trendSection, fitSection, residualSection, budgetSection, envelopeSection].map((f) => f()).filter(Boolean);
  const links = made.map((x) => h("a", { href: `#${x.id}` }, x.querySelector("h2").textContent));
  const switches = [
    h("button", { id: "language", on: { click: () => { language = language === "en" ? "zh" : "en"; build(); } } }, t("language")),
    h("button", { id: "theme", title: t("theme"), "aria-label": t("theme"), on: { click: () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark") } }, "◐"),
  ];
  const bar = h("div", { class: "bar" }, h("div", {}, h("nav", {}, links), switches));
  document.getElementById("page").replaceChildren(bar, h("main", {}, head(), made, h("footer", {}, `ablatio · ${data.written}`)), tipBox);
  redraw();
}

setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
addEventListener("beforeprint", () => { setTheme("light"); printing = true; redraw(true); });
addEventListener("afterprint", () => { printing = false; redraw(true); });
build();
new ResizeObserver(() => redraw()).observe(document.getElementById("page"));
