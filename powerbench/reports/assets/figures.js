// Figures: unpacked from the payload, drawn when they come near the screen, downloaded.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const drawn = (root = document) => all(".chart.js-plotly-plot", root);

const addButton = (place, label, act) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  button.addEventListener("click", () => act(button));
  place.append(button);
};

const download = (name, parts, type) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts, { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

const unpack = async (text) => {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(plain).json();
};
const { figures, about, facets, csv } = await unpack(document.getElementById("payload").textContent);

const escape = (text) => text.replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);
// A command in lines short enough for the box at the pointer; the panel of the selected point has it whole.
const folded = (command) => escape(command).replace(/(.{50,75}?) /g, "$1<br>&nbsp; ");
const boxText = (number) => {
  const found = about[number];
  if (!found?.command) return found?.says ?? "";
  return `${found.says}<br><br>${folded(found.command)}<br><i>click: keep this, to copy the command</i>`;
};

const complete = (trace) => {
  if (!trace.customdata || trace.hoverinfo === "skip") return;
  const isMap = trace.type === "heatmap";
  trace.hovertext = trace.customdata.map((number) => (isMap ? number.map(boxText) : boxText(number)));
  trace.hoverinfo = "text";
  if (trace.type === "scatter") trace.unselected = { marker: { opacity: 0.12 } };
};

const draw = async (plot) => {
  const { data, layout } = figures[plot.id];
  data.forEach(complete);
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false; // a finger scrolls the page
  plot.closest("figure").classList.add("live"); // plotly asks how wide its place is
  await Plotly.newPlot(plot, data, layout, { responsive: true, displayModeBar: false });
  showIn(plot);
  listenToPoints(plot);
};

const nearScreen = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting || target.dataset.drawn) continue;
      target.dataset.drawn = "yes";
      draw(all(".chart", target)[0]);
    }
  },
  { rootMargin: "400px" },
);

// The points of a figure as CSV, those that are hidden left out. A place on an axis of categories has its name.
const cell = (value) => {
  let text = String(value ?? "");
  if (/^\s*[=+\-@\uff1d\uff0b\uff0d\uff20]/.test(text) && isNaN(text)) text = `'${text}`; // no spreadsheet's formula
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
const unescape = (text) => new DOMParser().parseFromString(text, "text/html").documentElement.textContent;
const named = (axis, value) => (axis.showgrid === false ? unescape(axis.ticktext[value]) : value);
const mapLines = (trace, { xaxis, yaxis }) =>
  trace.customdata.flatMap((row, j) =>
    row.flatMap((number, i) =>
      number === null ? [] : [[trace.meta.name, named(xaxis, i), named(yaxis, j), trace.z[j][i], about[number].case]],
    ),
  );
const pointLines = (trace, { xaxis, yaxis }) =>
  trace.x.map((x, i) => {
    const [y, bars] = [trace.y[i], trace.error_y];
    const ends = bars ? [y - bars.arrayminus[i], y + bars.array[i]] : ["", ""];
    return [trace.meta.name, named(xaxis, x), named(yaxis, y), ...ends, about[trace.customdata?.[i]]?.case];
  });
const figureCsv = (plot) => {
  const { data, layout, columns } = figures[plot.id];
  const isMap = data.some((trace) => trace.type === "heatmap");
  const lines = data
    .filter((trace) => trace.meta.draw !== "links" && trace.visible !== false)
    .flatMap((trace) => (isMap ? mapLines : pointLines)(trace, layout));
  const heads = [...columns, ...(isMap ? ["slower than the best by"] : ["low", "high"]), "case"];
  return [heads, ...lines].map((line) => line.map(cell).join(",") + "\n").join("");
};

all("[data-figure]").forEach((place) => {
  const plot = document.getElementById(place.dataset.figure);
  const picture = (format) => () => {
    const { width, height } = plot.getBoundingClientRect();
    Plotly.downloadImage(plot, { format, width, height, scale: format === "png" ? 3 : 1, filename: plot.id });
  };
  addButton(place, "PNG", picture("png"));
  addButton(place, "SVG", picture("svg"));
  addButton(place, "CSV", () => download(`${plot.id}.csv`, [figureCsv(plot)], "text/csv"));
});
