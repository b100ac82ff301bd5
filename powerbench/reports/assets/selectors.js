// Selectors and legend: which settings, contestants and rows are shown, everywhere on the page at once.
const form = all(".selectors")[0];
const hidden = new Set(); // labels of contestants that the legend switched off

const wanted = () =>
  Object.fromEntries(all("select", form).flatMap((one) => (one.value ? [[one.dataset.key, one.value]] : [])));
// What does not have a selector's property is shown: softmax attention has no p, and is what p = 2 is compared with.
const fits = (own, asked) =>
  !hidden.has(own.curve) && Object.entries(asked).every(([key, value]) => !(key in own) || own[key] === value);

const showIn = (plot) => {
  const asked = wanted();
  for (const visible of [true, false]) {
    const changed = plot.data.flatMap((trace, i) =>
      fits(trace.meta, asked) === visible && (trace.visible ?? true) !== visible ? [i] : [],
    );
    if (changed.length) Plotly.restyle(plot, { visible }, changed);
  }
};

const apply = () => {
  const asked = wanted();
  for (const setting of all("details.setting")) {
    const fit = fits(facets[setting.dataset.f], asked);
    if (fit && setting.hidden) setting.open = true; // who asked for it wants to see it
    setting.hidden = !fit;
  }
  for (const part of all("tr[data-f], th[data-f], td[data-f]")) part.hidden = !fits(facets[part.dataset.f], asked);
  const rows = all("tr[data-f]");
  const shown = rows.filter((row) => !row.hidden).length;
  all(".count", form)[0].textContent = shown < rows.length ? `${shown} of ${rows.length} rows` : "";
  for (const button of all(".legend button")) button.ariaPressed = String(!hidden.has(button.dataset.curve));
  drawn().forEach(showIn);
};

// The legend: a click hides or shows a contestant, a double click shows it alone, or all again.
all(".legend button").forEach((button) => {
  const label = button.dataset.curve;
  button.addEventListener("click", () => {
    if (!hidden.delete(label)) hidden.add(label);
    apply();
  });
  button.addEventListener("dblclick", () => {
    const beside = all(".legend").map((legend) => all("button", legend).map((other) => other.dataset.curve));
    const others = beside.filter((labels) => labels.includes(label)).flat().filter((other) => other !== label);
    const isAlone = !hidden.has(label) && others.every((other) => hidden.has(other));
    hidden.clear();
    if (!isAlone) others.forEach((other) => hidden.add(other));
    apply();
  });
});
form.addEventListener("change", apply);
form.addEventListener("reset", () => {
  hidden.clear();
  setTimeout(apply); // when the selectors are back
});
