"use strict";
// The table of prompts, which stands in the page as it is read without scripts: sorting, searching, opening.
// What it uses of page.js is there when it is called.

const sectionOf = (each) => [...document.querySelectorAll(".prompts")].find((found) => found.dataset.run === each.name);
const collator = new Intl.Collator(undefined, { numeric: true });
// By the row of the table: the prompt's chart, and what shows its samples again.
const opened = new Map();

function preparePrompts(each, number) {
  const section = sectionOf(each);
  if (section === undefined) return;
  const [headings, body] = [section.querySelectorAll("thead th"), section.querySelector("tbody")];
  const rows = [...body.rows].map((row, k) => ({ row, prompt: each.prompts[k], id: `prompt-${number}-${k}` }));
  headings.forEach((made, column) => {
    // Names and texts from the beginning, numbers from the worst.
    const first = column < 2 ? "ascending" : "descending";
    made.querySelector("button").onclick = () => {
      const order = made.ariaSort === "none" ? first : made.ariaSort === "descending" ? "ascending" : "descending";
      headings.forEach((other) => { other.ariaSort = "none"; });
      made.ariaSort = order;
      body.append(...sortedPrompts(rows, column, order === "ascending").flatMap(({ row }) =>
        row.nextOpened === undefined ? [row] : [row, row.nextOpened]));
    };
  });
  const [search, state] = [section.querySelector("input"), section.querySelector("[role=status]")];
  search.disabled = false;
  search.oninput = () => {
    const wanted = search.value.trim().toLowerCase();
    let count = 0;
    for (const { row, prompt } of rows) {
      row.hidden = !`${prompt.name}\n${prompt.text}`.toLowerCase().includes(wanted);
      if (row.nextOpened !== undefined) row.nextOpened.hidden = row.hidden || !isOpen(row);
      count += row.hidden ? 0 : 1;
    }
    state.textContent = `${count} of ${rows.length} prompts`;
  };
  search.oninput();
  rows.forEach((entry) => { opener(entry.row).onclick = () => togglePrompt(entry); });
}

const opener = (row) => row.querySelector("button");
const isOpen = (row) => opener(row).ariaExpanded === "true";

/** By a column; what is unknown or infinite comes last either way. */
function sortedPrompts(rows, column, ascending) {
  const value = ({ prompt }) => [prompt.name, prompt.text, ...prompt.values][column];
  const way = ascending ? 1 : -1;
  return [...rows].sort((a, b) => {
    const [left, right] = [value(a), value(b)];
    if (left === null || right === null) return (left === null) - (right === null);
    return way * (column < 2 ? collator.compare(left, right) : left - right);
  });
}

function togglePrompt({ row, prompt, id }) {
  const open = !isOpen(row);
  opener(row).ariaExpanded = String(open);
  if (open && row.nextOpened === undefined) {
    const inside = element("td", { colSpan: row.cells.length });
    row.nextOpened = element("tr", { id, className: "opened" }, inside);
    opener(row).setAttribute("aria-controls", id);
    row.after(row.nextOpened);
    fillPrompt(inside, prompt, id);
    opened.set(row, { chart: prompt.chart, refresh: () => showPromptSamples(inside, prompt) });
  }
  row.nextOpened.hidden = !open;
}

/** What was said, the whole certificate, its sandwiches, its samples. */
function fillPrompt(inside, prompt, id) {
  if (prompt.said.length > 0) {
    const lines = [...prompt.said, ["user", prompt.text]];
    inside.append(element("dl", {}, ...lines.flatMap(([role, content]) =>
      [element("dt", { textContent: role }), element("dd", { textContent: content })])));
  }
  const head = element("tr", {}, element("td"), ...prompt.samplers.map((name) => heading(name)));
  const lines = prompt.table.map(([name, cells]) =>
    element("tr", {}, element("th", { scope: "row", textContent: name }), ...cells.map((text) => cell(text))));
  const caption = element("caption", { textContent: `Certificate at prompt ${prompt.name}` });
  const numbers = element("table", {}, caption, element("thead", {}, head), element("tbody", {}, ...lines));
  const { chart } = prompt;
  chart.name = `${chart.name}-${id}`;
  const box = element("div", { className: "chart", role: "img", ariaLabel: `${chart.title}. ${chart.caption}` });
  box.dataset.chart = chart.name;
  const figure = element("figure", {}, element("h3", { textContent: chart.title }), box,
    element("figcaption", { textContent: chart.caption }));
  const samples = element("div", { className: "prompt-samples" });
  inside.append(element("div", { className: "scroll", tabIndex: 0 }, numbers), figure, samples);
  showPromptSamples(inside, prompt);
  draw(chart);
}

function showPromptSamples(inside, prompt) {
  const place = inside.querySelector(".prompt-samples");
  if (prompt.samples.length > 0) place.replaceChildren(...prompt.samples.map(table));
  else place.textContent = "No samples of this prompt; `twistlm sample` draws some.";
}

const refreshPromptSamples = () => opened.forEach(({ refresh }) => refresh());
const openedCharts = () => [...opened.values()].map(({ chart }) => chart);

/** The table of the run that is chosen. */
function showPrompts() {
  document.querySelectorAll(".prompts").forEach((section) => { section.hidden = section.dataset.run !== run.name; });
}
