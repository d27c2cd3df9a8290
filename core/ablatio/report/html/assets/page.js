"use strict";
// The page: its sections, its words, its two switches.  A section without data is not there.

let base, based;

// ---------------------------------------------------------------- head

function head() {
  const done = data.states.done || 0;
  const total = Object.values(data.states).reduce((a, b) => a + b, 0);
  const tokens = data.arms.map((a) => a.tokens).filter(known);
  const facts = [t("of_runs", { done, total })];
  if (data.seeds) facts.push(t("seeds", { n: data.seeds }));
  if (tokens.length && Math.max(...tokens) === Math.min(...tokens)) facts.push(t("tokens_each", { x: short(tokens[0]) }));
  if (data.cost.seconds) facts.push(duration(data.cost.seconds));
  facts.push(t("written", { x: data.written }));
  const running = ["running", "planned", "paused"].some((k) => data.states[k]);
  return h("header", {},
    h("p", { class: "over" }, `${t("report")} · ${data.study.name}`),
    h("h1", {}, data.study.question || fallback()),
    verdict(),
    running && h("p", { class: "alert" }, t("running_now"), ...data.running.map((r) => h("span", { class: "run" }, `${r.title} seed=${r.seed}`, h("progress", { value: r.step, max: r.steps || 1, "aria-label": r.title }), `${r.step} / ${r.steps || "?"}${known(r.loss) ? ` · train/loss ${fixed(r.loss, 3)}` : ""}`))),
    data.study.expected && h("p", { class: "facts" }, `${t("expected")}: ${data.study.expected}`),
    h("p", { class: "facts" }, facts.map((f) => h("span", {}, f))));
}

/** The question of a study that states none: what varies. */
function fallback() {
  const axes = data.study.axes;
  if (!axes.length || axes.length > 3) return t("no_question");
  return t(axes.length > 1 ? "question_axes" : "question_axis", { axes: listed(axes) });
}

/** Names as a sentence lists them: "a", "a and b", "a, b and c". */
function listed(names) {
  return [names.slice(0, -1).join(t("comma")), ...names.slice(-1)].filter((part) => part).join(t("and"));
}

const FIRST = 6;

/** The headline; the sentences behind it, unless it is the only one; what holds for all of them. */
function verdict() {
  const said = data.verdict[language];
  if (!said) return done() ? null : h("p", { class: "alert" }, t("nothing"));
  const alone = said.sentences.length === 1 && said.sentences[0].text === said.headline;
  const items = alone ? [] : said.sentences.map((x) => h("li", { class: x.kind }, whole(x.text)));
  const list = h("ul", { class: "verdict" }, items.slice(0, FIRST));
  const more = items.length > FIRST && h("button", { class: "more", on: { click: () => { list.append(...items.slice(FIRST)); more.remove(); } } }, t("show_all", { n: items.length }));
  const notes = said.notes.length ? h("p", { class: "facts" }, whole(said.notes.join(" "))) : null;
  return h("div", {}, h("p", { class: "headline" }, whole(said.headline)), list, more, notes);
}

/** A text, in the language of the page if it has several. */
const own = (text) => (text && typeof text === "object" ? text[language] : text);

/** `p = 0.003` and `38.3 %` stay on one line. */
const whole = (text) => text.replace(/ ([=<]) /g, "\u00a0$1\u00a0").replace(/ %/g, "\u00a0%");

const done = () => (data.states.done || 0) > 0;

// ---------------------------------------------------------------- differences

const FOREST = 30;
const starred = () => data.pairs.some((p) => p.together);

function forest() {
  if (!data.pairs.length) return null;
  const side = t(data.better === "low" ? "lower_better" : "higher_better");
  const text = based ? t("forest_base", { base: base.name, metric: data.metric, better: side }) : t(data.best ? "forest_best" : "forest_pairs", { best: data.best, metric: data.metric, better: side });
  const pairs = [...data.pairs].sort((a, b) => (data.better === "low" ? a.mean - b.mean : b.mean - a.mean));
  const cutDown = pairs.length > FOREST ? [...pairs.slice(0, FOREST / 2), ...pairs.slice(-FOREST / 2)] : pairs;
  let shown = cutDown;
  const chart = figure((width) => drawForest(data, shown, width, t));
  const more = pairs.length > FOREST && h("button", { class: "more", on: { click: () => { shown = shown === pairs ? cutDown : pairs; more.textContent = shown === pairs ? t("show_less") : t("show_all", { n: pairs.length }); redraw(true); } } }, t("show_all", { n: pairs.length }));
  const n = Math.round(data.pairs.reduce((a, p) => a + p.n, 0) / data.pairs.length);
  return section("differences", t("forest"), [text, starred() && t("star"), known(data.visible) && n > 1 && t("forest_band", { n })], [chart, more]);
}

// ---------------------------------------------------------------- table of arms

const ROWS = 60;

/** Columns: title, what sorts it, what it shows; a column that no arm has a value for is not there. */
function columns() {
  const digits = digitsFor(Math.max(...data.arms.map((a) => a.sd || 0)) || 0.01);
  const size = (key, text) => [t(key), (a) => a[key], (a) => [text(a[key]), a.unmatched.includes(key) && h("span", { class: "mark", title: t("unmatched", { x: excess(a.residual[key]) }) }, ` ${excess(a.residual[key])}`)]];
  const all = [
    [t("n"), (a) => a.n, (a) => String(a.n)],
    [`${t("mean")} ${data.metric}`, (a) => a.mean, (a) => fixed(a.mean, digits)],
    [t("sd"), (a) => a.sd, (a) => fixed(a.sd, digits)],
    based && [t("difference"), (a) => a.pair?.mean, (a) => differenceCell(a, digits)],
    based && [t("p"), (a) => a.pair?.p, (a) => (a.pair ? pText(a.pair.p) : "")],
    size("parameters", short), size("trainable", short), size("non_embedding", short), size("flops_per_token", short), size("tokens", short),
    [rateTitle(), (a) => a.rate, (a) => rateCell(a)],
    [t("diverged_of"), (a) => a.states.diverged || 0, (a) => t("of", { k: a.states.diverged || 0, n: Object.values(a.states).reduce((x, y) => x + y, 0) })],
    [t("memory"), (a) => a.memory, (a) => bytes(a.memory)],
    [t("step_seconds"), (a) => a.step_seconds, (a) => duration(a.step_seconds)],
    [t("seconds"), (a) => a.seconds, (a) => duration(a.seconds)],
  ];
  return all.filter((c) => c && data.arms.some((a) => known(c[1](a))));
}

const percent = (x) => `${trim(x * 100)} %`;
const excess = (x) => (x < 0 ? "−" : "+") + percent(Math.abs(x));

function differenceCell(a, digits) {
  if (a.baseline) return h("span", { class: "tag" }, t("baseline"));
  if (!a.pair || !known(a.pair.mean)) return "–";
  const reach = known(a.pair.low) ? ` [${signed(a.pair.low, digits)}, ${signed(a.pair.high, digits)}]${a.pair.together ? "*" : ""}` : "";
  return h("span", { class: outcome(a.pair, a.name) }, h("span", { class: "tint" }, signed(a.pair.mean, digits)), reach);
}

const rateNote = (a) => (a.rate_is_free ? "" : t(Object.keys(a.tuned).length ? "tuned" : "untuned"));

/** What holds for the rate of every arm stands in the head, else beside each. */
function rateTitle() {
  const notes = new Set(data.arms.filter((a) => known(a.rate)).map(rateNote));
  return [t("rate"), notes.size === 1 && [...notes][0]].filter(Boolean).join(" ");
}

function rateCell(a) {
  const tuned = Object.entries(a.tuned).map(([k, v]) => `${k}=${v}`).join(" ");
  const note = rateNote(a) && !rateTitle().endsWith(rateNote(a));
  return [rateText(a.rate), note && h("span", { class: "tag", title: tuned }, rateNote(a))];
}

function armTable() {
  const made = columns();
  const body = h("tbody");
  const order = { column: null, down: false, word: "", all: data.arms.length <= ROWS };
  const heads = made.map(([title, value], i) => {
    const node = h("th", { scope: "col" }, h("button", { on: { click: () => { order.down = order.column === value && !order.down; order.column = value; show(); heads.forEach((x, k) => x.setAttribute("aria-sort", k === i ? (order.down ? "descending" : "ascending") : "none")); } } }, title));
    return node;
  });
  const more = h("button", { class: "more", on: { click: () => { order.all = true; show(); } } });
  function show() {
    let arms = data.arms.filter((a) => a.label.toLowerCase().includes(order.word));
    if (order.column) arms = [...arms].sort((a, b) => compareKnown(order.column(a), order.column(b)) * (order.down ? -1 : 1));
    const shown = order.all ? arms : arms.slice(0, ROWS);
    body.replaceChildren(...shown.map((a) => armRow(a, made)));
    more.textContent = t("show_all", { n: arms.length });
    more.hidden = shown.length === arms.length;
  }
  show();
  const find = data.arms.length > 12 && h("input", { class: "find", type: "search", placeholder: t("filter"), "aria-label": t("filter"), on: { input: (e) => { order.word = e.target.value.toLowerCase(); show(); } } });
  const table = h("table", {}, h("thead", {}, h("tr", {}, h("th", { class: "text", scope: "col" }, t("arm")), h("th", { scope: "col", "aria-label": t("again") }), heads)), body);
  const caption = based ? t("arms_caption", { p: t(data.correction ? "p_after" : "p_plain", { correction: data.correction }) }) : t("arms_plain");
  return section("arms", t("arms"), [caption, based && starred() && t("star")], [find, h("div", { class: "box" }, table), more], true);
}

function compareKnown(a, b) {
  return !known(a) ? (known(b) ? 1 : 0) : !known(b) ? -1 : a - b;
}

function armRow(a, made) {
  const others = Object.entries(a.states).filter(([k]) => k !== "done").map(([k, n]) => `${n} ${t(k)}`).join(", ");
  const name = h("td", { class: "text name", title: a.label }, a.name, others && h("span", { class: "tag" }, others));
  return h("tr", { class: a.baseline ? "base" : null }, name, h("td", {}, copyButton(a.command)), made.map(([, , cell]) => h("td", {}, cell(a))));
}

function copyButton(text) {
  if (!text) return "";
  const node = h("button", { class: "copy", title: text, on: { click: async () => { await copy(text); node.textContent = t("copied"); setTimeout(() => (node.textContent = t("copy")), 1200); } } }, t("copy"));
  return node;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page from a file may have no clipboard: the old way
    const area = h("textarea", { readonly: true }, text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

// ---------------------------------------------------------------- curves

function curves() {
  const sets = data.curves.filter((x) => !x.difference);
  if (!sets.length) return null;
  const place = h("div");
  const many = data.arms.filter((a) => !a.baseline).length > LINES;
  const shown = chosenArms(data.arms, PANELS + 1).filter((i) => !data.arms[i].baseline).length;
  const draw = (set) => (many ? h("div", { class: "panels" }, curvePanels(data, set, t)) : figure((width) => drawCurves(data, set, width, t)));
  const buttons = sets.map((set) => h("button", { on: { click: () => choose(set) } }, set.name));
  function choose(set) {
    buttons.forEach((b, i) => b.setAttribute("aria-pressed", String(sets[i] === set)));
    const apart = data.curves.find((x) => x.difference && x.name === set.name);
    place.replaceChildren(draw(set), ...(apart && !many ? [draw(apart)] : []));
    redraw();
  }
  choose(sets[0]);
  const captions = [t(base ? "curves_caption" : "curves_plain"), many && shown < data.arms.length - 1 && t("curves_many", { shown, n: data.arms.length })];
  return section("curves", t("curves"), captions, [sets.length > 1 && h("div", { class: "tabs" }, buttons), place]);
}

// ---------------------------------------------------------------- settings

function effectsSection() {
  if (!data.factors) return null;
  const main = data.factors.terms.filter((x) => x.factors.length === 1);
  if (!main.length) return null;
  const domain = extent([0, ...main.flatMap((x) => x.effects.flatMap((e) => [e[1], e[2], e[3]]))]);
  const panels = main.map((x) => h("div", { class: "panel" }, h("h3", {}, x.factors[0]), figure((width) => drawEffect(x, main, domain, width)), h("p", {}, known(x.p) ? `p ${pText(x.p)}` : "", x.aliases.length ? ` = ${x.aliases.join(" = ")}` : "")));
  return section("effects", t("effects"), [t("effects_caption"), data.metric + ": " + t(data.better === "low" ? "lower" : "higher") + "."], h("div", { class: "panels" }, panels));
}

const CROSSES = 6;

function interactions() {
  const pairs = (data.factors?.terms || []).filter((x) => x.factors.length === 2);
  if (!pairs.length) return null;
  const found = [...pairs].sort((a, b) => (known(a.p) && known(b.p) ? a.p - b.p : Math.abs(b.size) - Math.abs(a.size))).slice(0, CROSSES);
  const panels = found.map((x) => h("div", { class: "panel" }, h("h3", {}, x.factors.join(" × ")), figure((width) => drawInteraction(data, x, width, t)), h("p", {}, known(x.p) ? `p ${pText(x.p)}` : "", x.aliases.length ? ` = ${x.aliases.join(" = ")}` : "")));
  return section("interactions", t("interactions"), [t("interactions_caption")], h("div", { class: "panels two" }, panels));
}

function halfNormal() {
  if (!data.factors?.half_normal) return null;
  return section("half-normal", t("half_normal"), [t("half_normal_caption")], figure((width) => drawHalfNormal(data, width, t)));
}

function aliases() {
  const lines = data.factors?.aliases || [];
  if (!lines.length) return null;
  return section("aliases", t("aliases"), [t("aliases_caption")], h("ul", { class: "plain-list code" }, lines.map((x) => h("li", {}, x))));
}

// ---------------------------------------------------------------- ranks, costs, rates, positions, noise

function ranksSection() {
  if (!data.ranks) return null;
  const friedman = known(data.ranks.p) ? t("friedman", { p: pText(data.ranks.p), critical: fixed(data.ranks.critical, 1) }) : "";
  return section("ranks", t("ranks"), [t("ranks_caption", { n: data.ranks.blocks, friedman })], figure((width) => drawRanks(data, width, t)));
}

/** What the shaded band of a chart is. */
const band = () => (data.noise ? t("noise_band", { name: data.noise.name, n: data.noise.n }) : null);

function costs() {
  const kinds = [["parameters", short], ["flops_per_token", short], ["step_seconds", duration], ["seconds", duration], ["memory", bytes]];
  const differ = ([key]) => { const v = data.arms.filter((a) => known(a.mean)).map((a) => a[key]).filter(known); return v.length > 1 && Math.max(...v) > Math.min(...v); };
  const shown = kinds.filter(differ).filter(([key], _, all) => key !== "seconds" || !all.some(([k]) => k === "step_seconds") || tokensDiffer());
  if (!shown.length) return null;
  const panels = shown.map(([key, format]) => h("div", { class: "panel" }, figure((width) => drawTrade(data, key, t(key), format, width))));
  return section("costs", t("costs"), [t("costs_caption"), band()], h("div", { class: "panels two" }, panels));
}

function tokensDiffer() {
  return new Set(data.arms.map((a) => a.tokens).filter(known)).size > 1;
}

function rates() {
  if (!data.rates.length) return null;
  const costs = data.rates.filter((r) => known(r.sensitivity)).map((r) => `${r.name}: ${t("sensitivity", { x: fixed(r.sensitivity, 3) })}`);
  return section("rates", t("rates"), [t("rates_caption"), band(), ...costs.slice(0, 8)], figure((width) => drawRates(data, width, t)));
}

function frontierSection() {
  if (!data.frontier) return null;
  const { equal, gold } = data.frontier;
  const said = equal && t("frontier_equal", { kl: trim(equal.kl), what: t(gold ? "frontier_gold" : "frontier_reward"), list: equal.methods.map(([name, mean, sd]) => `${name} ${fixed(mean, 2)}${known(sd) ? ` ± ${fixed(sd, 2)}` : ""}`).join(", ") });
  const words = [said, t("frontier_caption"), gold && t("frontier_gold_caption")];
  return section("frontier", t("frontier"), words, figure((width) => drawFrontier(data, width, t)));
}

function positions() {
  if (!data.positions.length) return null;
  return section("positions", t("positions"), [t("positions_caption")], figure((width) => drawPositions(data, width, t)));
}

/** What the model answered before and after, prompt by prompt; of several arms one at a time. */
function samplesSection() {
  if (!data.samples.length) return null;
  const place = h("div");
  const buttons = data.samples.map((x) => h("button", { on: { click: () => choose(x) } }, data.arms[x.arm].name));
  function choose(x) {
    buttons.forEach((b, i) => b.setAttribute("aria-pressed", String(data.samples[i] === x)));
    place.replaceChildren(...x.rows.map(sampleCard));
  }
  choose(data.samples[0]);
  return section("samples", t("samples"), [t("samples_caption")], [buttons.length > 1 && h("div", { class: "tabs" }, buttons), place]);
}

function sampleCard(row) {
  const word = (key) => words[language][`sample_${key}`] || key;
  const box = (key) => h("div", {}, h("h3", {}, word(key)), h("p", { class: "said" }, row[key] || "–"));
  const rest = Object.keys(row).filter((k) => !["prompt", "before", "after"].includes(k));
  return h("article", { class: "sample" }, h("p", { class: "said asked" }, row.prompt), h("div", { class: "panels two" }, box("before"), box("after")), rest.map(box));
}

function noiseSection() {
  const n = data.noise;
  if (!n) return null;
  const digits = digitsFor(n.sd);
  const first = t("noise_caption", { name: n.name, n: n.n, sd: fixed(n.sd, digits), low: fixed(n.low, digits), high: fixed(n.high, digits) });
  const second = t("noise_curve", { how: t(n.paired ? "noise_paired" : "noise_free") });
  const panels = [figure((width) => drawStrip(data, width, t)), figure((width) => drawNoise(n, width, t))].map((x) => h("div", { class: "panel" }, x));
  return section("noise", t("noise"), [first, second], h("div", { class: "panels two" }, panels));
}

/** Whether gains shrink, hold or grow with the size and length of the runs. */
function scalesSection() {
  if (!data.trends.length) return null;
  const said = h("ul", { class: "plain-list" }, data.trends_said[language].map((x) => h("li", {}, x)));
  const panels = data.trends.slice(0, 12).map((x) => h("div", { class: "panel" }, h("h3", {}, t("scale_over", x)), figure((width) => drawTrend(x, width, t))));
  return section("scales", t("scales"), [t("scales_caption")], [said, h("div", { class: panels.length > 1 ? "panels two" : "" }, panels)]);
}

function cellsSection(name, left, named) {
  const rows = (data[name] || []).slice(named ? 1 : 0);
  if (!rows.length) return null;
  const heads = [...t(`${name}_heads`).split("|"), ...(named ? data[name][0].slice(named) : [])].map((text, i) => h("th", { scope: "col", class: i < left ? "text" : null }, text));
  const body = rows.map((row) => h("tr", {}, row.map((text, i) => h("td", { class: i < left ? "text name" : null }, (i >= left && words[language][`cell_${text}`]) || text || "–"))));
  return section(name, t(name), [t(`${name}_caption`)], h("div", { class: "box" }, h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, body))), true);
}

/** A section with a table of text, and the same text as its heads in both languages; null without rows. */
function textTable(id, rows, left) {
  if (!rows.length) return null;
  const kind = (i) => (i < left || i === rows[0].length - 1 ? "text" : null);
  const heads = t(`${id}_heads`).split("|").map((text, i) => h("th", { scope: "col", class: kind(i) }, text));
  const body = rows.map((row) => h("tr", {}, row.map((text, i) => h("td", { class: i ? kind(i) : "text name" }, own(text) || "–"))));
  return section(id, t(id), [t(`${id}_caption`)], h("div", { class: "box" }, h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, body))));
}

const tokenizersSection = () => textTable("tokenizers", data.data.tokenizers, 2);
const filtersSection = () => textTable("filters", data.data.filters, 3);
const droppedSection = () => textTable("dropped", data.data.examples, 5);
const sourcesSection = () => textTable("sources", data.data.sources, 2);

// ---------------------------------------------------------------- what went wrong, what it took, what it was made of

function stagesTable() {
  if (!data.stages.length) return null;
  const heads = [["stage", true], ["arm", true], ["task", true], ["takes", true], ["score", true], ["before"], ["after"], ["runs"]].map(([k, text]) => h("th", { scope: "col", class: text ? "text" : null }, t(k)));
  const cell = (text, kind) => h("td", { class: kind }, text);
  const body = data.stages.slice(0, 400).map((s) => h("tr", {}, cell(s.name, "text name"), cell(s.arm || t("all_arms"), "text"), cell(s.task, "text"), cell(s.takes.join(", "), "text"), cell(s.score + (s.better ? ` (${t(s.better)})` : ""), "text"), cell(known(s.before) ? fixed(s.before, 4) : ""), cell(known(s.after) ? fixed(s.after, 4) : ""), cell(s.done === s.runs ? String(s.runs) : `${s.done} / ${s.runs}`)));
  return section("stages", t("stages"), [t("stages_caption")], h("div", { class: "box" }, h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, body))));
}

function lost() {
  const rows = [...data.lost.map((r) => [r.label, String(r.seed), t(r.state) + (known(r.steps) ? ` · ${t("at_step", { x: short(r.steps) })}` : ""), own(r.why), r.command]), ...data.refused.map((r) => [r.label, "", t("refused"), r.why, ""])];
  if (!rows.length) return null;
  const heads = [["arm", true], ["seed"], ["state", true], ["why", true], ["again"]].map(([k, text]) => h("th", { scope: "col", class: text ? "text" : null }, t(k)));
  const body = rows.slice(0, 200).map(([label, seed, state, why, command]) => h("tr", {}, h("td", { class: "text name" }, label), h("td", {}, seed), h("td", { class: "text" }, state), h("td", { class: "text long" }, why), h("td", {}, copyButton(command))));
  return section("lost", t("lost"), [t("lost_caption")], h("div", { class: "box" }, h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, body))));
}

function bill() {
  const c = data.cost;
  const cells = [[String(c.runs), t("runs")], c.trials && [String(c.trials), t("trials")], c.seconds && [duration(c.seconds), t("training_time")], c.tokens && [short(c.tokens), t("tokens")], c.flops && [`${short(c.flops)}FLOP`, t("training_flops")], known(c.memory) && [bytes(c.memory), t("largest_memory")]];
  return section("bill", t("bill"), [t("bill_caption")], h("div", { class: "card" }, cells.filter(Boolean).map(([value, name]) => h("div", {}, h("b", {}, value), h("span", {}, name)))));
}

function provenance() {
  const pairs = [[t("design"), data.study.design], [t("settings"), Object.entries(data.study.settings).map(([k, v]) => `${k}=${typeof v === "object" ? JSON.stringify(v) : v}`).join(" ")], [t("matched"), data.arms.filter((a) => a.matched).map((a) => `${a.name}: ${own(a.matched)}`).join("; ")], [t("asked"), data.study.overrides], [t("folders"), data.study.folders.join(" ")]].filter((p) => p[1]);
  const most = data.provenance.reduce((a, p) => Math.max(a, p[2]), 0);
  const rows = data.provenance.map(([what, value, n]) => [words[language][what] || what, /^[0-9a-f]{40,}$/.test(value) ? value.slice(0, 16) : value, n]);
  const list = [...pairs, ...rows].map(([what, value, n]) => [h("dt", {}, what), h("dd", {}, h("code", {}, value), n && n < most ? h("span", {}, ` ${t("in_runs", { n })}`) : null)]);
  const commands = data.arms.filter((a) => a.command).slice(0, 400).map((a) => h("li", {}, h("code", {}, a.command)));
  const again = commands.length > 0 && h("details", {}, h("summary", {}, t("again")), h("ul", {}, commands));
  const notes = data.notes.length > 0 && h("div", {}, h("h3", {}, t("notes")), h("ul", { class: "plain-list" }, data.notes.map((x) => h("li", {}, own(x)))));
  return section("provenance", t("provenance"), [t("provenance_caption")], [h("dl", {}, list.flat()), again, notes]);
}

// ---------------------------------------------------------------- the whole

const SECTIONS = [searchSection, knobsSection, parallelSection, importanceSection, effectsSection, interactions, forest, scalesSection, armTable, stagesTable, frontierSection, curves, halfNormal, aliases, ranksSection, costs, rates, positions, tokenizersSection, sourcesSection, filtersSection, droppedSection, samplesSection, noiseSection, () => cellsSection("evaluations", 2), () => cellsSection("answers", 9, 3), () => cellsSection("signal", 1), lost, bill, provenance];

function theme() {
  return document.documentElement.dataset.theme;
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
}

function build() {
  figures.length = 0;
  base = data.arms.find((a) => a.baseline);
  based = Boolean(base) && data.pairs.length > 0;
  document.documentElement.lang = language;
  const made = SECTIONS.map((f) => f()).filter(Boolean);
  const links = made.map((x) => h("a", { href: `#${x.id}` }, x.querySelector("h2").textContent));
  const switches = [
    typeof liveText === "function" && h("span", { id: "live", role: "status" }, liveText()),
    h("button", { id: "language", on: { click: () => { language = language === "en" ? "zh" : "en"; build(); } } }, t("language")),
    h("button", { id: "theme", title: t("theme"), "aria-label": t("theme"), on: { click: () => setTheme(theme() === "dark" ? "light" : "dark") } }, "◐"),
  ];
  const bar = h("div", { class: "bar" }, h("div", {}, h("nav", {}, links), switches));
  const foot = h("footer", {}, `ablatio · ${data.study.folders.join(" ")} · ${data.written} · ${t("keys")}`);
  document.getElementById("page").replaceChildren(bar, h("main", {}, head(), made, foot), tipBox);
  redraw();
}

const dark = matchMedia("(prefers-color-scheme: dark)");
setTheme(dark.matches ? "dark" : "light");
dark.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
let screenTheme = "light";
addEventListener("beforeprint", () => { screenTheme = theme(); setTheme("light"); printing = true; redraw(true); });
addEventListener("afterprint", () => { setTheme(screenTheme); printing = false; redraw(true); });
build();
new ResizeObserver(() => redraw()).observe(document.getElementById("page"));
