const { config, charts } = JSON.parse(document.getElementById("content").textContent);
const options = {
  config,
  ast: true, // the expression interpreter: the page's policy forbids eval
  renderer: "svg",
  actions: false,
  defaultStyle: false,
  tooltip: { disableDefaultStyle: true },
};
// Data sets travel as columns, which are smaller; Vega wants rows.
const read = (column, row) => (column.words ? column.words[column.places[row]] : column[row]);
const toRows = ({ length, columns }) =>
  Array.from({ length }, (_, row) =>
    Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, read(column, row)])),
  );
document.querySelectorAll(".chart").forEach((box, index) => {
  const datasets = charts[index].datasets;
  Object.keys(datasets).forEach((name) => (datasets[name] = toRows(datasets[name])));
  vegaEmbed(box, charts[index], options).catch((error) => {
    box.classList.add("broken");
    box.textContent = "This chart could not be drawn: " + error.message;
  });
});
// A chart in a closed box has no width to fit into; it learns it when the box opens.
document.querySelectorAll("details").forEach((box) => {
  box.addEventListener("toggle", () => window.dispatchEvent(new Event("resize")));
});
