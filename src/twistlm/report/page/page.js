"use strict";
// Every text of a model reaches the page through textContent or `plain`, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const spelt = (numbers) => numbers.map((k) => data.vocabulary[k]);
for (const { samples, smc } of data.runs) {
  for (const row of samples.flatMap((sampler) => sampler.rows)) {
    row.pieces = spelt(row.pieces);
    // Draws of p₀ move both alike, and have one list.
    row.log_w ??= row.log_psi;
  }
  if (smc !== null) smc.pieces = smc.pieces.map(spelt);
}
const $ = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const shown = (number, digits = 3) => (number === null ? "−∞" : number.toFixed(digits).replace("-", "−"));

// --- Charts: twistlm.report.charts, drawn by plotly. Colours, markers and dashes in the order of twistlm.report.style.

const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x"];
const DASHES = ["solid", "dash", "dashdot", "dot", "5px,1px,1px,1px,1px,1px", "1px,2px", "8px,2px"];

// plotly reads labels as markup.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

function traces(series) {
  const k = series.look % data.colours.length;
  const color = data.colours[k] === "#000000" && dark.matches ? "#ffffff" : data.colours[k];
  const common = {
    x: series.x, y: series.y, name: plain(series.label), showlegend: series.label !== "", line: { color, dash: DASHES[k] },
    marker: { color, symbol: SYMBOLS[k], size: 8 }, mode: "lines+markers",
  };
  if (series.mark === "columns") return [{ ...common, type: "bar" }];
  if (series.mark === "line")
    return [{ ...common, mode: "lines", hoverinfo: "skip", line: { ...common.line, width: series.strong ? 1.5 : 0.6 } }];
  if (series.mark === "bars")
    return [{ ...common, error_y: {
      type: "data", symmetric: false, color, thickness: 1,
      array: series.high.map((high, i) => high - series.y[i]),
      arrayminus: series.low.map((low, i) => series.y[i] - low),
    } }];
  if (series.low.length === 0) return [common];
  return [{
    x: [...series.x, ...series.x.toReversed()], y: [...series.high, ...series.low.toReversed()],
    fill: "toself", fillcolor: color, opacity: 0.2, mode: "none", hoverinfo: "skip", showlegend: false,
  }, common];
}

const place = (chart) => document.querySelector(`[data-chart="${chart.name}"]`);
const isDrawn = (chart) => place(chart).data !== undefined;

function draw(chart) {
  const style = getComputedStyle(document.documentElement);
  const [text, line] = [style.getPropertyValue("--text"), style.getPropertyValue("--line")];
  const axis = (title) => ({ title: { text: plain(title) }, gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true });
  const layout = {
    margin: { t: 10, r: 10, l: 10, b: 10 }, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    font: { color: text }, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, bargap: 0, hovermode: "closest",
    xaxis: axis(chart.x_title), yaxis: axis(chart.y_title), shapes: here(chart), annotations: [],
  };
  if (chart.log_x)
    Object.assign(layout.xaxis, { type: "log", tickvals: chart.ticks, ticktext: chart.ticks.map(String) });
  if (chart.span !== null) {
    const [y0, y1, label] = chart.span;
    layout.shapes.push({ type: "rect", layer: "below", xref: "paper", x0: 0, x1: 1, y0, y1, line: { width: 0 }, fillcolor: text, opacity: 0.15 });
    layout.annotations.push({ xref: "paper", x: 1, y: y1, xanchor: "right", yanchor: "bottom", showarrow: false, text: plain(label) });
  }
  const buttons = [["toImage", "zoom2d", "resetScale2d"]];
  Plotly.react(place(chart), chart.series.flatMap(traces), layout, { responsive: true, displaylogo: false, modeBarButtons: buttons });
}

/** Do it when the node is about to be seen, or printed: what is far below need not delay the top. */
function whenSeen(node, action) {
  const once = () => {
    observer.disconnect();
    removeEventListener("beforeprint", once);
    action();
  };
  const observer = new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) once(); }, { rootMargin: "400px" });
  observer.observe(node);
  addEventListener("beforeprint", once);
}

// --- SMC, token by token

let run = data.runs.find((each) => each.smc !== null || each.samples.length > 0) ?? data.runs[0];
let step = 0;
let tree = null;

/** Texts so far and descendants at the end, for every particle at every step. */
function grown(smc) {
  const texts = [], last = smc.pieces.length - 1;
  const parent = (t, n) => (smc.parents[t] === null ? n : smc.parents[t][n]);
  smc.pieces.forEach((pieces, t) => texts.push(pieces.map((piece, n) => (t === 0 ? "" : texts[t - 1][parent(t, n)]) + piece)));
  const descendants = smc.pieces.map((pieces) => pieces.map(() => 0));
  descendants[last].fill(1);
  for (let t = last; t > 0; t--) descendants[t].forEach((count, n) => { descendants[t - 1][parent(t, n)] += count; });
  return { texts, descendants };
}

/** Particles with the same text, heaviest first. */
function grouped(t) {
  const groups = new Map();
  tree.texts[t].forEach((text, n) => {
    const group = groups.get(text) ?? { text, piece: run.smc.pieces[t][n], weight: 0, particles: 0, descendants: 0 };
    group.weight += run.smc.weights[t][n];
    group.particles += 1;
    group.descendants += tree.descendants[t][n];
    groups.set(text, group);
  });
  return [...groups.values()].sort((a, b) => b.weight - a.weight || b.particles - a.particles);
}

const MOST_PREFIXES = 12;

function goTo(t) {
  const smc = run.smc, count = smc.pieces.length;
  step = Math.min(Math.max(t, 0), count - 1);
  $("step").value = step;
  const [n, ess] = [smc.num_particles, smc.ess[step]];
  $("state").textContent = `Token ${step + 1} of ${count}: ESS ${shown(ess, 1)} of ${n}` +
    ` (${shown(100 * ess / n, 0)} %), ${smc.resampled[step] ? "resampled" : "not resampled"} before it. ` +
    `The particles at the end descend from ${smc.num_ancestors[step]} of these ${n}.`;
  const groups = grouped(step);
  const rows = groups.slice(0, MOST_PREFIXES).map((group) => element("tr", {},
    element("td", { textContent: `${shown(100 * group.weight, 1)} %` }),
    element("td", { textContent: group.particles }),
    element("td", { textContent: group.descendants }),
    element("td", { className: "text" }, group.text.slice(0, group.text.length - group.piece.length), element("mark", { textContent: group.piece }))));
  const rest = groups.length - rows.length;
  if (rest > 0) rows.push(element("tr", {}, element("td", { colSpan: 4, className: "text", textContent: `and ${rest} more texts, of less weight` })));
  $("prefixes").tBodies[0].replaceChildren(...rows);
  run.charts.filter(isDrawn).forEach((chart) => Plotly.relayout(place(chart), { shapes: here(chart) }));
}

/** A line where we are, in the charts over tokens. */
function here(chart) {
  if (chart.x_title !== "token") return [];
  return [{ type: "line", yref: "paper", x0: step + 1, x1: step + 1, y0: 0, y1: 1, line: { dash: "dot", width: 2, color: "#888" } }];
}

function showSmc() {
  $("smc").hidden = run.smc === null;
  if (run.smc === null) return;
  tree = grown(run.smc);
  $("step").max = run.smc.pieces.length - 1;
  $("smc-charts").replaceChildren(...run.charts.map((chart) => {
    const box = element("div", { className: "chart", role: "img", ariaLabel: `${chart.title}. ${chart.caption}` });
    box.dataset.chart = chart.name;
    return element("figure", {}, element("h3", { textContent: chart.title }), box, element("figcaption", { textContent: chart.caption }));
  }));
  goTo(0);
  run.charts.forEach((chart) => whenSeen(place(chart), () => draw(chart)));
}

// --- Samples

// More are made when they are asked for.
const FIRST_ROWS = 50;
const SORTS = [["weight", "weight"], ["log_phi", "log φ"], ["log_p", "log p₀"]];

/** A sample's text, every token marked by its move; `largest` is as much as any moves. */
function marked(row, by, largest) {
  return row.pieces.map((piece, t) => {
    const move = row[by][t];
    if (move === undefined) return piece;
    const much = move === null ? 1 : Math.min(1, Math.abs(move) / largest);
    const span = element("span", { className: move === null || move < 0 ? "down" : "up", textContent: piece, title: `${by === "log_psi" ? "log ψ" : "log w"} ${move > 0 ? "+" : ""}${shown(move)}` });
    span.style.setProperty("--much", much.toFixed(2));
    return span;
  });
}

/** The numbers of every token, made when they are asked for. */
function numbers(row) {
  const details = element("details", {}, element("summary", { textContent: "tokens" }));
  details.addEventListener("toggle", () => {
    if (details.children.length > 1) return;
    details.append(element("table", {}, element("thead", {}, element("tr", {}, ...["log ψ", "log w", "token"].map((name) => element("th", { scope: "col", textContent: name })))),
      element("tbody", {}, ...row.pieces.map((piece, t) => element("tr", {}, element("td", { textContent: shown(row.log_psi[t]) }), element("td", { textContent: shown(row.log_w[t]) }), element("td", { className: "text", textContent: piece }))))));
  });
  return details;
}

function table({ sampler, rows }) {
  const by = document.querySelector("input[name=by]:checked").value;
  const moves = rows.flatMap((row) => row[by].filter((move) => move !== null).map(Math.abs)).sort((a, b) => a - b);
  // One huge move must not hide all others.
  const largest = moves[Math.floor(0.98 * (moves.length - 1))] || 1;
  const body = element("tbody");
  const made = new Map();
  const line = (row) => {
    if (!made.has(row))
      made.set(row, element("tr", {}, ...SORTS.map(([key]) => element("td", { textContent: shown(row[key], key === "weight" ? 4 : 2) })),
        element("td", { className: "text" }, ...marked(row, by, largest), ...(row.log_psi.length > 0 ? [numbers(row)] : []))));
    return made.get(row);
  };
  const headings = SORTS.map(([key, name]) => {
    const heading = element("th", { scope: "col", ariaSort: "none" });
    heading.append(element("button", { type: "button", textContent: name, onclick: () => sort(key, heading) }));
    return heading;
  });
  let most = FIRST_ROWS;
  function sort(key, heading, up = heading.ariaSort === "descending") {
    headings.forEach((each) => { each.ariaSort = "none"; });
    heading.ariaSort = up ? "ascending" : "descending";
    const value = (row) => row[key] ?? -Infinity;
    const order = [...rows].sort((a, b) => (up ? 1 : -1) * (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0));
    body.replaceChildren(...order.slice(0, most).map(line));
  }
  sort("weight", headings[0]);
  const all = element("button", { type: "button", textContent: `Show all ${rows.length}`, hidden: rows.length <= most, onclick: () => {
    const k = headings.findIndex((each) => each.ariaSort !== "none");
    most = rows.length;
    all.hidden = true;
    sort(SORTS[k][0], headings[k], headings[k].ariaSort === "ascending");
  } });
  return element("div", { className: "scroll" }, element("table", {}, element("caption", { textContent: `${sampler}: ${rows.length}` }),
    element("thead", {}, element("tr", {}, ...headings, element("th", { scope: "col", className: "text", textContent: "text" }))), body), all);
}

function showSamples() {
  $("tables").replaceChildren(...run.samples.map(table));
}

// --- Events

function showRun() {
  showSmc();
  $("samples").hidden = run.samples.length === 0;
  $("tables").replaceChildren();
  whenSeen($("tables"), showSamples);
}

$("previous").onclick = () => goTo(step - 1);
$("next").onclick = () => goTo(step + 1);
$("step").oninput = () => goTo(Number($("step").value));
document.addEventListener("keydown", (event) => {
  const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  // Where a key has a meaning of its own, it keeps it.
  if (move === undefined || run.smc === null || event.target.closest("input, select") || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  goTo(step + move);
});
document.querySelectorAll("input[name=by]").forEach((input) => { input.onchange = showSamples; });
$("download").onclick = () => {
  const url = URL.createObjectURL(new Blob([$("data").textContent], { type: "application/json" }));
  element("a", { href: url, download: "twistlm-report.json" }).click();
  URL.revokeObjectURL(url);
};
dark.addEventListener("change", () => [...data.charts, ...run.charts].filter(isDrawn).forEach(draw));
$("run").append(...data.runs.map((each, k) => element("option", { value: k, textContent: each.name })));
$("run").value = data.runs.indexOf(run);
$("run").onchange = () => { run = data.runs[$("run").value]; showRun(); };
$("choice").hidden = data.runs.length === 1;

data.charts.forEach((chart) => whenSeen(place(chart), () => draw(chart)));
showRun();
