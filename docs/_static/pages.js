// Boxes that are scrolled sideways fade out where they go on: code, tables, figures.
const edge = box =>
  box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 2);
const sized = new ResizeObserver(
  all => all.forEach(({ target }) => edge(target.closest("pre, .table-wrapper, .doc-figure"))));
addEventListener("DOMContentLoaded", () => {
  for (const cell of document.querySelectorAll(":is(.table-wrapper, .doc-figure) :is(td, th)")) {
    const { length } = cell.textContent.trim();
    if (length > 8) cell.classList.add(length > 50 ? "sentence" : length > 24 ? "longer" : "long");
  }
  for (const printed of document.querySelectorAll(".highlight-text pre"))
    printed.classList.toggle("prose", !/\S {2,}\S/.test(printed.textContent));
  for (const box of document.querySelectorAll(".highlight pre, .table-wrapper, .doc-figure")) {
    sized.observe(box);
    for (const inside of box.children) sized.observe(inside);
    box.addEventListener("scroll", () => edge(box));
  }
});
