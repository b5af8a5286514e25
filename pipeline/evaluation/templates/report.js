"use strict";
const filters = [...document.querySelectorAll(".filters select")];

function applyFilters() {
  for (const element of document.querySelectorAll("[data-task]")) {
    element.hidden = filters.some(
      (filter) => filter.value !== "" && filter.name in element.dataset && element.dataset[filter.name] !== filter.value
    );
  }
  const errors = [...document.querySelectorAll("#errors tbody tr")];
  const visible = errors.filter((row) => !row.hidden);
  document.querySelector("#shown").textContent = `${visible.length} of ${errors.length} shown`;
}

filters.forEach((filter) => filter.addEventListener("change", applyFilters));
applyFilters();
