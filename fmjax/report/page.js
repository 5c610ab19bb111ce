// Interactive parts of the page other than charts: legends, budgets, sortable tables, and the theme.

function makeButton(parent, text, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", act);
  parent.append(button);
  return button;
}

function makeLegend(place, groups, hidden, changed) {
  const buttons = [];
  for (const { title, entries } of groups) {
    const row = document.createElement("div");
    row.role = "group";
    row.ariaLabel = title || "Curves";
    place.append(row);
    if (title) {
      const head = document.createElement("span");
      head.className = "title";
      head.textContent = title;
      row.append(head);
      if (entries.length > 1) {
        makeButton(head, "all", () => { entries.forEach((entry) => hidden.delete(entry.key)); changed(); });
        makeButton(head, "none", () => { entries.forEach((entry) => hidden.add(entry.key)); changed(); });
      }
    }
    for (const entry of entries) {
      const button = makeButton(row, "", () => { hidden.delete(entry.key) || hidden.add(entry.key); changed(); });
      drawEntry(button, entry);
      buttons.push([button, entry.key]);
    }
  }
  return () => { for (const [button, key] of buttons) button.ariaPressed = String(!hidden.has(key)); };
}

function drawEntry(button, entry) {
  const svg = add(button, "svg", { viewBox: "0 0 28 12", "aria-hidden": "true" });
  const group = add(svg, "g", { class: `series ${entry.family}` });
  group.style.setProperty("--hue", entry.color);
  add(group, "path", { d: "M4 6H24", class: entry.family ? "" : "swatch" });
  if (entry.marker) add(group, "path", { d: MARKERS[entry.marker], class: markerClass(entry), transform: "translate(14 6)" });
  button.append(entry.name);
}

/** Shows, for each solver, the most expensive row within the chosen budget of evaluations. */
function makeBudgets(place) {
  const strips = document.querySelectorAll(".strip"), budgets = JSON.parse(place.dataset.budgets);
  const buttons = budgets.map((budget) => makeButton(place, budget.toLocaleString("en"), () => choose(budget)));
  function choose(chosen) {
    buttons.forEach((button, i) => { button.ariaPressed = String(budgets[i] === chosen); });
    for (const strip of strips) strip.hidden = !(strip.dataset.lowest <= chosen && chosen < (strip.dataset.below === "inf" ? Infinity : strip.dataset.below));
  }
  choose(budgets[Math.floor(budgets.length / 2)]);
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const valueOf = (row, column) => {
    const { value } = row.cells[column].dataset, text = row.cells[column].textContent;
    return value === undefined ? text : value === "nan" ? NaN : value === "inf" ? Infinity : Number(value);
  };
  function compare(a, b, sign) {
    if (typeof a === "string" || typeof b === "string") return sign * String(a).localeCompare(String(b), "en", { numeric: true });
    // Missing values come last in both orders.
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return a === b ? 0 : a < b ? -sign : sign;
  }
  heads.forEach((head, column) => {
    const name = head.textContent;
    head.textContent = "";
    makeButton(head, name, () => {
      const rising = head.ariaSort !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.ariaSort = rising ? "ascending" : "descending";
      const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
      body.append(...rows.sort(([a], [b]) => compare(a, b, rising ? 1 : -1)).map(([, row]) => row));
    });
  });
}

/** Adds the theme button. "auto" follows the system; the choice also selects the pictures. */
function makeTheme(place) {
  const themes = ["auto", "light", "dark"], media = { auto: "(prefers-color-scheme: dark)", light: "not all", dark: "all" };
  let chosen = 0;
  const button = makeButton(place, "theme: auto", () => {
    chosen = (chosen + 1) % themes.length;
    const theme = themes[chosen];
    button.textContent = `theme: ${theme}`;
    document.documentElement.dataset.theme = theme;
    for (const source of document.querySelectorAll("picture source")) source.media = media[theme];
  });
}

function start() {
  const { legends, charts } = JSON.parse(document.getElementById("data").textContent);
  const hidden = new Set(), update = [];
  const changed = () => update.forEach((act) => act());
  for (const box of document.querySelectorAll("[data-chart]")) update.push(makeChart(box, charts[box.dataset.chart], hidden));
  for (const place of document.querySelectorAll("[data-legend]")) {
    const sync = makeLegend(place, legends[place.dataset.legend], hidden, changed);
    sync();
    update.push(sync);
  }
  const keyed = [...document.querySelectorAll("[data-keys]")].map((node) => [node, JSON.parse(node.dataset.keys)]);
  update.push(() => keyed.forEach(([node, keys]) => node.classList.toggle("off", keys.some((key) => hidden.has(key)))));
  document.querySelectorAll(".budgets").forEach(makeBudgets);
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  makeTheme(document.getElementById("theme"));
}

start();
