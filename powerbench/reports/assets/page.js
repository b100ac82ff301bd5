"use strict";
// Everything the page does beyond its words and tables: figures, legend, sorting, copying, the CSV file, printing.
(() => {
  const { figures, texts } = JSON.parse(document.getElementById("figures").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const drawn = (root = document) => all(".chart.js-plotly-plot", root);

  const draw = async (plot) => {
    const { data, layout } = figures[plot.id];
    for (const trace of data) if (trace.text) trace.text = trace.text.map((i) => texts[i]);
    if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false; // a finger scrolls the page
    await Plotly.newPlot(plot, data, layout, {
      responsive: true,
      displaylogo: false,
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], // by name: none that sends data anywhere
      toImageButtonOptions: { format: "png", scale: 2, filename: plot.id },
    });
  };

  // One after the other, so that the page answers while there is more to draw; closed settings when they are opened.
  const drawOpen = async (root) => {
    for (const plot of all(".chart", root)) {
      if (plot.dataset.drawn || !plot.closest("details").open) continue;
      plot.dataset.drawn = "yes";
      await draw(plot);
      await new Promise((resume) => setTimeout(resume));
    }
  };
  all("details.setting").forEach((setting) => setting.addEventListener("toggle", () => drawOpen(setting)));
  drawOpen(document);

  // The legend: a click hides or shows a contestant in all figures of its setting, a double click shows it alone.
  const apply = (setting) => {
    const shown = new Map(all(".legend button", setting).map((b) => [b.dataset.curve, b.ariaPressed === "true"]));
    for (const plot of drawn(setting)) {
      plot.data.forEach((trace, i) => {
        const visible = shown.get(trace.meta) ?? true;
        if ((trace.visible ?? true) !== visible) Plotly.restyle(plot, { visible }, [i]);
      });
    }
  };
  all(".legend button").forEach((button) => {
    const setting = button.closest("details");
    button.addEventListener("click", () => {
      button.ariaPressed = String(button.ariaPressed !== "true");
      apply(setting);
    });
    button.addEventListener("dblclick", () => {
      const others = all(".legend button", setting).filter((other) => other !== button);
      const alone = button.ariaPressed === "true" && others.every((other) => other.ariaPressed !== "true");
      others.forEach((other) => (other.ariaPressed = String(alone)));
      button.ariaPressed = "true";
      apply(setting);
    });
  });

  // Sorting: by number where a cell holds one (with its unit), by text otherwise; empty cells last.
  const units = { "": 1, M: 1e6, m: 1e6, G: 1e9, T: 1e12 };
  const number = (text, k) => {
    const found = /^(-?[\d.]+(?:e-?\d+)?)([kMmGT]?)( %)?$/.exec(text);
    return found ? Number(found[1]) * (found[2] === "k" ? k : units[found[2]]) : NaN;
  };
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
      const order = isNaN(a.value) || isNaN(b.value) ? a.text.localeCompare(b.text) : a.value - b.value;
      return sign * order;
    });
    body.append(...keyed.map(({ row }) => row));
    all("th", head.parentElement).forEach((other) => other.removeAttribute("aria-sort"));
    head.ariaSort = sign > 0 ? "ascending" : "descending";
  };
  all(".sortable thead th").forEach((head) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(head));
    head.replaceChildren(button);
  });

  const addButton = (place, label, act) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.addEventListener("click", () => act(button));
    place.append(button);
  };
  all("[data-copy]").forEach((place) => {
    addButton(place, "Copy", async (button) => {
      const source = document.getElementById(place.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source); // not allowed here: the reader presses Ctrl-C
        button.textContent = "Selected: press Ctrl-C";
      }
    });
  });
  all("[data-csv]").forEach((place) => {
    addButton(place, "Download as CSV", () => {
      const text = JSON.parse(document.getElementById(place.dataset.csv).textContent);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      link.download = place.dataset.name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  });

  // Paper has one column: a figure is as wide as its page while it is printed.
  addEventListener("beforeprint", () => drawn().forEach((plot) => Plotly.relayout(plot, { width: 660 })));
  addEventListener("afterprint", () => drawn().forEach((plot) => Plotly.relayout(plot, { width: null })));
})();
