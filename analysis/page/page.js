// Nothing on the page needs this script: it shows titles of marks at once, sorts tables,
// and folds the sections on a phone.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
document.addEventListener("pointerover", ({ target }) => {
  const title = target.querySelector?.(":scope > title");
  if (title && target.closest(".chart")) {
    target.tip = title.textContent; // the browser would show it too, a second later
    title.remove();
  }
  tip.hidden = !target.tip;
  if (target.tip) {
    const box = target.getBoundingClientRect();
    tip.textContent = target.tip;
    tip.style.left = Math.max(8, Math.min(box.right + 8, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = Math.max(8, box.top - tip.offsetHeight - 8) + "px";
  }
});

const numberIn = (cell) => {
  const text = cell.textContent.replace(/[\u2212,]/g, (sign) => (sign === "," ? "" : "-"));
  const value = parseFloat(text.replace(/^[^\d.-]+/, ""));
  return Number.isNaN(value) ? -Infinity : value;
};
const sort = (table, head) => {
  const isRising = head.getAttribute("aria-sort") !== "ascending";
  const place = head.cellIndex;
  const rows = [...table.tBodies[0].rows];
  const isWords = place < table.dataset.words;
  const compare = isWords
    ? (a, b) => a.textContent.localeCompare(b.textContent, undefined, { numeric: true })
    : (a, b) => numberIn(a) - numberIn(b);
  rows.sort((a, b) => (isRising ? 1 : -1) * compare(a.cells[place], b.cells[place]));
  [...head.parentNode.cells].forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", isRising ? "ascending" : "descending");
  table.tBodies[0].append(...rows);
};
document.querySelectorAll("table[data-words]").forEach((table) => {
  if (table.tBodies[0].rows.length < 2) return;
  table.tHead.querySelectorAll("th").forEach((head) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head));
    head.append(button);
  });
});

if (matchMedia("(max-width: 600px)").matches) {
  document.querySelectorAll(".fold").forEach((fold) => (fold.open = false));
}
const unfold = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const fold = target?.querySelector(".fold") ?? target?.closest(".fold");
  if (fold && !fold.open) {
    fold.open = true;
    target.scrollIntoView();
  }
};
addEventListener("hashchange", unfold);
unfold();
