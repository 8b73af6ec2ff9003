const options = {
  ast: true, // the expression interpreter: the page's policy forbids eval
  renderer: "svg",
  actions: false,
  defaultStyle: false,
  tooltip: { disableDefaultStyle: true },
};
// What the charts draw travels deflated: it is repetitive, and there may be hundreds of charts.
const inflate = (text) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Response(stream).json();
};
// Data sets travel as columns, which are smaller; Vega wants rows.
const read = (column, row) => (column.words ? column.words[column.places[row]] : column[row]);
const toRows = ({ length, columns }) =>
  Array.from({ length }, (_, row) =>
    Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, read(column, row)])),
  );
const giveUp = (box) => (error) => {
  box.classList.add("broken");
  box.textContent = "This chart could not be drawn: " + error.message;
};
const boxes = document.querySelectorAll(".chart");
const draw = ({ config, charts }) =>
  boxes.forEach((box, index) => {
    const datasets = charts[index].datasets;
    Object.keys(datasets).forEach((name) => (datasets[name] = toRows(datasets[name])));
    vegaEmbed(box, charts[index], { ...options, config }).catch(giveUp(box));
  });
Promise.resolve()
  .then(() => inflate(document.getElementById("content").textContent))
  .then(draw)
  .catch((error) => boxes.forEach((box) => giveUp(box)(error)));
// A chart in a closed box has no width to fit into; it learns it when the box opens.
document.querySelectorAll("details").forEach((box) => {
  box.addEventListener("toggle", () => window.dispatchEvent(new Event("resize")));
});
