"use strict";
// The fragment of the address holds the open tab and the filters: #tab=task-x&market=de
const tabList = document.querySelector("#tabs");
const tabs = [...tabList.querySelectorAll("a")];
const panels = tabs.map((tab) => document.getElementById(tab.hash.slice(1)));
const form = document.querySelector("#filters");
const filters = [...form.querySelectorAll("select")];

tabList.setAttribute("role", "tablist");
tabs.forEach((tab, number) => {
  const panel = panels[number];
  tab.id = `tab-${panel.id}`;
  tab.setAttribute("role", "tab");
  tab.setAttribute("aria-controls", panel.id);
  panel.setAttribute("role", "tabpanel");
  panel.setAttribute("aria-labelledby", tab.id);
  panel.tabIndex = 0;
});
form.hidden = false;

function readAddress() {
  const fragment = location.hash.slice(1);
  const state = new URLSearchParams(fragment);
  const isLink = panels.some((panel) => panel.id === fragment);
  const open = panels.findIndex((panel) => panel.id === (isLink ? fragment : state.get("tab")));
  if (!isLink) {
    for (const filter of filters) {
      const value = state.get(filter.name) ?? "";
      filter.value = [...filter.options].some((option) => option.value === value) ? value : "";
    }
  }
  show(Math.max(0, open));
  if (isLink) {
    writeAddress(open);
    tabList.scrollIntoView();
    tabs[open].focus({ preventScroll: true });
  }
}

function writeAddress(open) {
  const state = new URLSearchParams({ tab: panels[open].id });
  filters.filter((filter) => filter.value !== "").forEach((filter) => state.set(filter.name, filter.value));
  location.replace(`#${state}`);
}

function show(open) {
  tabs.forEach((tab, number) => {
    tab.setAttribute("aria-selected", String(number === open));
    tab.tabIndex = number === open ? 0 : -1;
    panels[number].hidden = number !== open;
  });
  for (const element of document.querySelectorAll("[data-market], [data-label]")) {
    element.hidden = filters.some(
      ({ name, value }) => value !== "" && name in element.dataset && element.dataset[name] !== value
    );
  }
  const rows = [...panels[open].querySelectorAll(".errors li")];
  const visible = rows.filter((row) => !row.hidden);
  form.classList.toggle("unused", rows.length === 0);
  document.querySelector("#shown").textContent = `${visible.length} of ${rows.length} errors shown`;
}

function open() {
  return tabs.findIndex((tab) => tab.getAttribute("aria-selected") === "true");
}

tabList.addEventListener("click", (event) => {
  const number = tabs.indexOf(event.target.closest("a"));
  if (number >= 0) {
    event.preventDefault();
    writeAddress(number);
  }
});
tabList.addEventListener("keydown", (event) => {
  const last = tabs.length - 1;
  const here = open();
  const steps = { ArrowRight: here === last ? 0 : here + 1, ArrowLeft: here === 0 ? last : here - 1, Home: 0, End: last };
  if (event.key in steps) {
    event.preventDefault();
    tabs[steps[event.key]].focus();
    writeAddress(steps[event.key]);
  }
});
form.addEventListener("change", () => writeAddress(open()));
addEventListener("hashchange", readAddress);
readAddress();
