// Sorts the layouts by the column whose head is pressed: by the numbers in the cells' data-key, unknown ones last.
"use strict";

const table = document.querySelector("table.layouts");
if (table) {
  const heads = Array.from(table.tHead.rows[0].cells);
  const body = table.tBodies[0];
  const key = (row, column) => {
    const text = row.cells[column].dataset.key;
    return text === "" ? null : Number(text);
  };
  const sort = (column) => {
    const head = heads[column];
    const opposite = { ascending: "descending", descending: "ascending" };
    const order = opposite[head.getAttribute("aria-sort")] || head.dataset.first;
    const sign = order === "ascending" ? 1 : -1;
    const rows = Array.from(body.rows).sort((a, b) => {
      const x = key(a, column);
      const y = key(b, column);
      if (x === null || y === null) return (x === null) - (y === null);
      // Of rows that are alike here, the better layout stands first.
      return sign * (x - y) || key(a, 0) - key(b, 0);
    });
    body.append(...rows);
    for (const other of heads) other.setAttribute("aria-sort", other === head ? order : "none");
    document.getElementById("sorted").textContent = "sorted by " + head.textContent.trim() + ", " + order;
  };
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sort(column)));
}
