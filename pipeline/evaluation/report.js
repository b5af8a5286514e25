"use strict";
const filters = [...document.querySelectorAll(".filters select")];
function choose() {
  for (const row of document.querySelectorAll("[data-task]")) {
    row.hidden = filters.some(one => one.value !== "" && one.name in row.dataset && row.dataset[one.name] !== one.value);
  }
  const errors = [...document.querySelectorAll("#errors tbody tr")];
  document.querySelector("#shown").textContent = `${errors.filter(row => !row.hidden).length} of ${errors.length} shown`;
}
filters.forEach(one => one.addEventListener("change", choose));
choose();
