// Tables: sorted by a click on a heading; a click on a row or cell that is a case selects it, as on its point.
const units = { "": 1, M: 1e6, m: 1e6, G: 1e9, T: 1e12 };
const number = (text, k) => {
  const found = /^(-?[\d.]+(?:e-?\d+)?)([kMmGT]?)( %)?$/.exec(text);
  return found ? Number(found[1]) * (found[2] === "k" ? k : units[found[2]]) : NaN;
};

// By number where a cell holds one (with its unit), by text otherwise; empty cells last.
const sort = (head) => {
  const column = head.cellIndex;
  const sign = head.ariaSort === "ascending" ? -1 : 1;
  const k = Number(head.dataset.k ?? 1000);
  const body = head.closest("table").tBodies[0];
  const keyed = [...body.rows].map((row) => {
    const text = row.cells[column]?.textContent ?? ""; // a reason may span the rest of its row
    return { row, text, value: number(text, k) };
  });
  keyed.sort((a, b) => {
    if (!a.text || !b.text) return Number(!a.text) - Number(!b.text);
    const words = () => a.text.localeCompare(b.text, "en", { numeric: true }); // 32 / 4 before 32 / 32
    const order = isNaN(a.value) || isNaN(b.value) ? words() : a.value - b.value;
    return sign * order;
  });
  body.append(...keyed.map(({ row }) => row));
  all("th", head.parentElement).forEach((other) => other.removeAttribute("aria-sort"));
  head.ariaSort = sign > 0 ? "ascending" : "descending";
};
all(".sortable thead th").forEach((head) => {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(head));
  head.append(button);
});
all(".sortable tbody").forEach((body) =>
  body.addEventListener("click", ({ target }) => {
    const of = target.closest("[data-a]");
    if (of && getSelection().isCollapsed) select(Number(of.dataset.a)); // not while text is being marked
  }),
);
