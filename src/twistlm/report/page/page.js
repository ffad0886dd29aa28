"use strict";
// Every text of a model reaches the page through textContent or `plain`, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const spelt = (numbers) => numbers.map((k) => data.vocabulary[k]);
for (const { samples, prompts, smc } of data.runs) {
  for (const row of [...samples, ...prompts.flatMap((prompt) => prompt.samples)].flatMap((sampler) => sampler.rows)) {
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

const cell = (text, className = "") => element("td", { textContent: text, className });
const heading = (text, className = "") => element("th", { scope: "col", textContent: text, className });
// A log weight of −∞ is null: JSON has no infinity.
const shown = (number, digits = 2) => (number === null ? "−∞" : number.toFixed(digits).replace("-", "−"));

/** Do it when the node is about to be seen, or printed: what is far below need not delay the top. */
function whenSeen(node, action) {
  const once = () => {
    observer.disconnect();
    removeEventListener("beforeprint", once);
    action();
  };
  const seen = (entries) => entries.some((entry) => entry.isIntersecting) && once();
  const observer = new IntersectionObserver(seen, { rootMargin: "400px" });
  observer.observe(node);
  addEventListener("beforeprint", once);
}

// --- Charts: those of twistlm.report.charts, drawn by plotly

// In the order of twistlm.report.charts.
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x"];
const DASHES = ["solid", "dash", "dashdot", "dot", "5px,1px,1px,1px,1px,1px", "1px,2px", "8px,2px"];

// plotly reads labels as markup.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const place = (chart) => document.querySelector(`[data-chart="${chart.name}"]`);
const isDrawn = (chart) => place(chart).data !== undefined;

function traces(series) {
  const k = series.look % data.colours.length;
  const color = data.colours[k] === "#000000" && dark.matches ? "#ffffff" : data.colours[k];
  const { x, y, low, high } = series;
  const common = {
    x, y, name: plain(series.label), showlegend: series.side !== "upper", mode: "lines+markers",
    line: { color, dash: DASHES[k] }, marker: { color, symbol: SYMBOLS[k], size: 8 },
  };
  if (series.mark === "columns") return [{ ...common, type: "bar" }];
  if (series.mark === "line") {
    const line = { ...common.line, width: series.strong ? 1.5 : 0.6 };
    return [{ ...common, mode: "lines", hoverinfo: "skip", line }];
  }
  if (series.mark === "bars") {
    const [array, arrayminus] = [high.map((end, i) => end - y[i]), low.map((end, i) => y[i] - end)];
    return [{ ...common, error_y: { type: "data", symmetric: false, color, thickness: 1, array, arrayminus } }];
  }
  if (low.length === 0) return [common];
  const band = {
    x: [...x, ...x.toReversed()], y: [...high, ...low.toReversed()], fill: "toself", fillcolor: color,
    opacity: 0.2, mode: "none", hoverinfo: "skip", showlegend: false,
  };
  return [band, common];
}

function draw(chart) {
  const style = getComputedStyle(document.documentElement);
  const [text, line] = [style.getPropertyValue("--text"), style.getPropertyValue("--line")];
  const axis = (title) => ({ title: { text: plain(title) }, gridcolor: line, zerolinecolor: line, linecolor: line });
  const layout = {
    margin: { t: 10, r: 10, l: 65, b: 50 }, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    font: { color: text }, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, bargap: 0, hovermode: "closest",
    xaxis: axis(chart.x_title), yaxis: axis(chart.y_title), shapes: here(chart), annotations: [],
  };
  if (chart.log_x)
    Object.assign(layout.xaxis, { type: "log", tickvals: chart.ticks, ticktext: chart.ticks.map(String) });
  if (chart.span !== null) {
    const [y0, y1, label] = chart.span;
    const across = { xref: "paper", x0: 0, x1: 1, y0, y1, line: { width: 0 }, layer: "below" };
    layout.shapes.push({ type: "rect", fillcolor: text, opacity: 0.15, ...across });
    const right = { xref: "paper", x: 1, y: y1, xanchor: "right", yanchor: "bottom", showarrow: false };
    layout.annotations.push({ text: plain(label), ...right });
  }
  const modeBarButtons = [["toImage", "zoom2d", "resetScale2d"]];
  Plotly.react(place(chart), chart.series.flatMap(traces), layout, { responsive: true, displaylogo: false, modeBarButtons });
}

/** A line at the token where we are, in charts over tokens. */
function here(chart) {
  if (chart.x_title !== "token") return [];
  const line = { dash: "dot", width: 2, color: "#888" };
  return [{ type: "line", yref: "paper", x0: step + 1, x1: step + 1, y0: 0, y1: 1, line }];
}

// --- SMC, token by token

const MOST_PREFIXES = 12;

let run = data.runs[0];
let step = 0;
let tree = null;

/** Texts so far and descendants at the end, of every particle at every step. */
function grown(smc) {
  const parent = (t, n) => (smc.parents[t] === null ? n : smc.parents[t][n]);
  const texts = [];
  smc.pieces.forEach((pieces, t) => {
    texts.push(pieces.map((piece, n) => (t === 0 ? "" : texts[t - 1][parent(t, n)]) + piece));
  });
  const last = smc.pieces.length - 1;
  const descendants = smc.pieces.map((pieces, t) => pieces.map(() => (t === last ? 1 : 0)));
  for (let t = last; t > 0; t--)
    descendants[t].forEach((count, n) => { descendants[t - 1][parent(t, n)] += count; });
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

function goTo(t) {
  const { smc } = run;
  const count = smc.pieces.length;
  step = Math.min(Math.max(t, 0), count - 1);
  $("step").value = step;
  const [n, ess] = [smc.num_particles, smc.ess[step]];
  $("state").textContent =
    `Token ${step + 1} of ${count}: ESS ${shown(ess, 1)} of ${n} (${shown((100 * ess) / n, 0)} %), ` +
    `${smc.resampled[step] ? "resampled" : "not resampled"} before it. ` +
    `The particles at the end descend from ${smc.num_ancestors[step]} of these ${n}.`;
  const groups = grouped(step);
  const rows = groups.slice(0, MOST_PREFIXES).map(({ text, piece, weight, particles, descendants }) => {
    const written = cell(text.slice(0, text.length - piece.length), "text");
    written.append(element("mark", { textContent: piece }));
    return element("tr", {}, cell(`${shown(100 * weight, 1)} %`), cell(particles), cell(descendants), written);
  });
  const rest = groups.length - rows.length;
  if (rest > 0)
    rows.push(element("tr", {}, Object.assign(cell(`and ${rest} more texts, of less weight`, "text"), { colSpan: 4 })));
  $("prefixes").tBodies[0].replaceChildren(...rows);
  run.charts.filter(isDrawn).forEach((chart) => Plotly.relayout(place(chart), { shapes: here(chart) }));
}

function showSmc() {
  $("smc").hidden = run.smc === null;
  if (run.smc === null) return;
  tree = grown(run.smc);
  $("step").max = run.smc.pieces.length - 1;
  $("smc-charts").replaceChildren(...run.charts.map((chart) => {
    const box = element("div", { className: "chart", role: "img", ariaLabel: `${chart.title}. ${chart.caption}` });
    box.dataset.chart = chart.name;
    const caption = element("figcaption", { textContent: chart.caption });
    return element("figure", {}, element("h3", { textContent: chart.title }), box, caption);
  }));
  goTo(0);
  run.charts.forEach((chart) => whenSeen(place(chart), () => draw(chart)));
}

// --- Samples

const SORTS = [["weight", "weight"], ["log_phi", "log φ"], ["log_p", "log p₀"]];
const MOVES = { log_psi: "log ψ", log_w: "log w" };
// More are made when they are asked for.
const FIRST_ROWS = 50;

/** A sample's text, every token marked by its move; `largest` is as much as is told apart. */
function marked(row, by, largest) {
  return row.pieces.map((piece, t) => {
    const move = row[by][t];
    // Nothing was written and nothing moved: what follows the end of a text.
    if (move === undefined || (piece === "" && move === 0)) return piece;
    const up = move !== null && move >= 0;
    const title = `${MOVES[by]} ${up ? "+" : ""}${shown(move)}`;
    const span = element("span", { className: up ? "up" : "down", textContent: piece, title });
    span.style.setProperty("--much", move === null ? 1 : Math.min(1, Math.abs(move) / largest).toFixed(2));
    return span;
  });
}

/** The numbers of every token, made when they are asked for. */
function numbers(row) {
  const details = element("details", {}, element("summary", { textContent: "tokens" }));
  details.addEventListener("toggle", () => {
    const head = element("tr", {}, ...Object.values(MOVES).map((name) => heading(name)), heading("token", "text"));
    const rows = row.pieces.map((piece, t) =>
      element("tr", {}, ...Object.keys(MOVES).map((by) => cell(shown(row[by][t]))), cell(piece, "text")));
    details.append(element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
  }, { once: true });
  return details;
}

function table({ sampler, rows }) {
  const by = document.querySelector("input[name=by]:checked").value;
  const moves = rows.flatMap((row) => row[by].filter((move) => move !== null).map(Math.abs)).sort((a, b) => a - b);
  // One huge move must not hide all others.
  const largest = moves[Math.floor(0.98 * (moves.length - 1))] || 1;
  const lines = new Map();
  const line = (row) => {
    if (!lines.has(row)) {
      const scores = SORTS.map(([key]) => cell(row[key] === undefined ? "" : shown(row[key], key === "weight" ? 4 : 2)));
      const text = element("td", { className: "text" }, ...marked(row, by, largest));
      if (row.log_psi.length > 0) text.append(numbers(row));
      lines.set(row, element("tr", {}, ...scores, text));
    }
    return lines.get(row);
  };
  const body = element("tbody");
  const headings = SORTS.map(([key, name]) => {
    const button = element("button", { type: "button", textContent: name });
    const made = element("th", { scope: "col", ariaSort: "none" }, button);
    button.onclick = () => sort(key, made, made.ariaSort === "descending");
    return made;
  });
  let most = FIRST_ROWS;
  let again;
  function sort(key, by, ascending) {
    headings.forEach((each) => { each.ariaSort = "none"; });
    by.ariaSort = ascending ? "ascending" : "descending";
    again = () => sort(key, by, ascending);
    const value = (row) => row[key] ?? -Infinity;
    const order = [...rows].sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0));
    body.replaceChildren(...(ascending ? order : order.reverse()).slice(0, most).map(line));
  }
  sort("weight", headings[0], false);
  const all = element("button", { type: "button", textContent: `Show all ${rows.length}`, hidden: rows.length <= most });
  all.onclick = () => {
    most = rows.length;
    all.hidden = true;
    again();
  };
  const different = new Set(rows.map((row) => row.pieces.join(""))).size;
  const caption = element("caption", { textContent: `${sampler}: ${rows.length} samples, ${different} of them different` });
  const head = element("thead", {}, element("tr", {}, ...headings, heading("text", "text")));
  return element("div", { className: "scroll", tabIndex: 0 }, element("table", {}, caption, head, body), all);
}

function showSamples() {
  $("tables").replaceChildren(...run.samples.map(table));
}

// --- Events

function showRun() {
  showSmc();
  showPrompts();
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
  const taken = event.target.closest("input, select, .scroll") || event.altKey || event.ctrlKey || event.metaKey;
  if (move === undefined || run.smc === null || taken) return;
  event.preventDefault();
  goTo(step + move);
});
document.querySelectorAll("input[name=by]").forEach((input) => {
  input.onchange = () => {
    showSamples();
    refreshPromptSamples();
  };
});
$("download").onclick = () => {
  const url = URL.createObjectURL(new Blob([$("data").textContent], { type: "application/json" }));
  element("a", { href: url, download: "twistlm-report.json" }).click();
  URL.revokeObjectURL(url);
};
dark.addEventListener("change", () => [...data.charts, ...run.charts, ...openedCharts()].filter(isDrawn).forEach(draw));
$("run").append(...data.runs.map((each, k) => element("option", { value: k, textContent: each.name })));
$("run").onchange = () => {
  run = data.runs[$("run").value];
  showRun();
};
$("choice").hidden = data.runs.length === 1;

data.charts.forEach((chart) => whenSeen(place(chart), () => draw(chart)));
data.runs.forEach(preparePrompts);
showRun();
