// Points: what is said of one stays in a panel with the command that measures it again; it may stand alone.
const panel = document.getElementById("point");
let alone = null; // the case whose points are shown brighter than all others

const numberOf = (plot, point) => {
  const { customdata } = plot.data[point.curveNumber];
  const index = point.pointNumber ?? point.pointIndex;
  return Array.isArray(index) ? customdata?.[index[0]]?.[index[1]] : customdata?.[index];
};

const select = (number) => {
  const found = about[number];
  if (!found) return;
  all(".says", panel)[0].innerHTML = found.says; // escaped where it was made
  document.getElementById("point-command").textContent = found.command;
  for (const part of all("pre, [data-copy]", panel)) part.hidden = !found.command;
  panel.hidden = false;
  isolate(found.case && alone !== found.case ? found.case : null);
};

const unselect = () => {
  panel.hidden = true;
  isolate(null);
};

// In figures made of single points (the roofline, time against state) all but one case step back. A line between an
// operator and its phases is drawn for the case that stands alone, or for all.
const isolate = (name) => {
  alone = name;
  all(".chart.js-plotly-plot").forEach(standAlone);
};
const standAlone = (plot) => {
  const { data } = plot;
  if (data.some((trace) => trace.type !== "scatter" || trace.meta.draw === "line")) return;
  const caseOf = (number) => about[number]?.case;
  const here = alone && data.some((trace) => trace.customdata?.some((number) => caseOf(number) === alone));
  data.forEach((trace, i) => {
    if (!trace.customdata) return;
    const mine = (_, j) => !here || caseOf(trace.customdata[j]) === alone;
    if (trace.meta.draw === "links") {
      trace.all ??= trace.x;
      Plotly.restyle(plot, { x: [trace.all.map((x, j) => (mine(x, j) ? x : null))] }, [i]);
    } else {
      const chosen = here ? [trace.customdata.map((_, j) => j).filter((j) => mine(null, j))] : [null];
      Plotly.restyle(plot, { selectedpoints: chosen }, [i]);
    }
  });
};

const listenToPoints = (plot) => {
  plot.on("plotly_click", ({ points }) => select(numberOf(plot, points[0])));
  standAlone(plot);
};

// By keyboard: left and right along a contestant's points, up and down from one to the next, Enter selects.
const at = new WeakMap();
const move = (plot, key) => {
  const curves = plot.data.flatMap((trace, i) =>
    trace.customdata && trace.visible !== false && trace.hoverinfo !== "skip" && trace.type !== "heatmap" ? [i] : [],
  );
  if (!curves.length) return;
  const held = at.get(plot) ?? { curve: 0, point: -1 };
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[key];
  const curve = (held.curve + step[0] + curves.length) % curves.length;
  const count = plot.data[curves[curve]].x.length;
  const point = Math.max(0, Math.min(count - 1, held.point + step[1]));
  at.set(plot, { curve, point });
  Plotly.Fx.hover(plot, [{ curveNumber: curves[curve], pointNumber: point }]);
  plot.dataset.at = String(plot.data[curves[curve]].customdata[point]);
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") unselect();
  const plot = event.target.closest?.(".chart.js-plotly-plot");
  if (!plot) return;
  if (event.key.startsWith("Arrow")) {
    event.preventDefault();
    move(plot, event.key);
  } else if (event.key === "Enter" && plot.dataset.at) select(Number(plot.dataset.at));
});
all(".close", panel)[0].addEventListener("click", unselect);
