"use strict";
// Tables of prompts: sorted by a column, and searched. Texts stay where the page has put them.

const number = (cell) => Number(cell.dataset.value);
const text = (cell) => cell.dataset.value;

for (const table of document.querySelectorAll("table.prompts")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") !== "descending";
      for (const each of headings) each.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows];
      const numeric = rows.every((row) => !Number.isNaN(number(row.cells[column])));
      const order = (a, b) => numeric
        ? number(a.cells[column]) - number(b.cells[column])
        : text(a.cells[column]).localeCompare(text(b.cells[column]));
      rows.sort((a, b) => (down ? order(b, a) : order(a, b)));
      body.append(...rows);
    });
  });
  const search = table.closest("section").querySelector("[data-search]");
  search?.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
