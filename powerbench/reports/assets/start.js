// What is left: copying, the files to download, printing; then the page is ready.
all("[data-copy]").forEach((place) => {
  const label = place.dataset.label;
  addButton(place, label, async (button) => {
    const source = document.getElementById(place.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source); // not allowed here: the reader presses Ctrl-C
      button.textContent = "Selected: press Ctrl-C";
    }
    setTimeout(() => (button.textContent = label), 4000);
  });
});
all("[data-csv]").forEach((place) => {
  addButton(place, "Download as CSV", () => download(place.dataset.name, [csv[place.dataset.csv]], "text/csv"));
});

// Paper has one column and the stills; a figure without one is as wide as the page while it is printed.
addEventListener("beforeprint", () => {
  all("details.setting:not([hidden]), details.many").forEach((setting) => (setting.open = true));
  for (const plot of drawn()) if (!all(".still", plot.parentElement).length) Plotly.relayout(plot, { width: 660 });
});
addEventListener("afterprint", () => {
  for (const plot of drawn()) if (!all(".still", plot.parentElement).length) Plotly.relayout(plot, { width: null });
});

document.documentElement.classList.add("scripts");
all("figure").filter((figure) => all(".chart", figure).length).forEach((figure) => nearScreen.observe(figure));
document.documentElement.dataset.ready = "yes";
