
"use strict";
// Charts as SVG, which are redrawn when the width or the selection in the legend changes.

const SVG = document.querySelector("svg")?.namespaceURI;
const MARKERS = {
  o: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", s: "M-3.5-3.5h7v7h-7z", "^": "M0-4.5L4.2 3.2h-8.4z",
  D: "M0-5L5 0L0 5L-5 0z", v: "M0 4.5L4.2-3.2h-8.4z",
  P: "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z", X: "M-4.2-2.1l2.1-2.1L0-2.1l2.1-2.1l2.1 2.1L2.1 0l2.1 2.1l-2.1 2.1L0 2.1l-2.1 2.1l-2.1-2.1L-2.1 0z",
};

function add(parent, name, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  parent.append(node);
  return node;
}

function format(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e-3 && size < 1e6) {
    const digits = Number(value.toPrecision(3));
    return (size >= 1000 ? Math.round(value) : digits).toLocaleString("en", { maximumFractionDigits: 6 });
  }
  return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
}

/** Maps values to pixels between `first` and `last`, and chooses the tick values. */
function makeScale(axis, values, first, last, spacing) {
  const to = axis.log ? Math.log10 : (v) => v;
  let [low, high] = (axis.range ?? [Math.min(...values), Math.max(...values)]).map(to);
  if (!(high > low)) [low, high] = [low - 0.5, low + 0.5];
  const margin = axis.range ? 0 : 0.04 * (high - low);
  [low, high] = [low - margin, high + margin];
  const count = Math.max(2, Math.abs(last - first) / spacing);
  const ticks = (axis.log ? logTicks : evenTicks)(low, high, count);
  return { ticks, at: (value) => first + ((to(value) - low) / (high - low)) * (last - first) };
}

function evenTicks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((s) => s * power >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function logTicks(low, high, count) {
  if (high - low < 0.7) return evenTicks(10 ** low, 10 ** high, count);
  const within = (digits, stride) => {
    const ticks = [];
    for (let p = Math.floor(low); p <= high; p++)
      for (const d of digits) if (p % stride === 0 && Math.log10(d) + p >= low && Math.log10(d) + p <= high) ticks.push(Number(`${d}e${p}`));
    return ticks;
  };
  const fine = within([1, 2, 5], 1);
  return fine.length <= count ? fine : within([1], Math.ceil((high - low) / count));
}

/** Draws a chart in the width of its box, and returns its points in pixels. */
function drawChart(svg, chart, hidden) {
  const width = svg.parentElement.clientWidth, height = Math.round(Math.min(430, Math.max(270, 0.56 * width)));
  const left = 62, right = width - 12, top = 10, bottom = height - 44;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const shown = chart.series.filter((series) => !series.keys.some((key) => hidden.has(key)));
  const points = (shown.length ? shown : chart.series).flatMap((series) => series.points);
  if (!points.length) return [];
  const levels = chart.levels.filter((level) => !level.band).map((level) => level.y);
  const x = makeScale(chart.x, points.map((p) => p[0]), left, right, 60);
  const y = makeScale(chart.y, [...points.map((p) => p[1]), ...levels], bottom, top, 34);
  for (const tick of x.ticks) {
    add(svg, "line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: top, y2: bottom });
    add(svg, "text", { x: x.at(tick), y: bottom + 17, "text-anchor": "middle" }, format(tick));
  }
  for (const tick of y.ticks) {
    add(svg, "line", { class: "grid", x1: left, x2: right, y1: y.at(tick), y2: y.at(tick) });
    add(svg, "text", { x: left - 7, y: y.at(tick) + 4, "text-anchor": "end" }, format(tick));
  }
  add(svg, "text", { class: "title", x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, chart.x.label);
  const middle = (top + bottom) / 2;
  add(svg, "text", { class: "title", x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, chart.y.label);
  drawLevels(svg, chart.levels, y, { left, right, top, bottom });
  return shown.flatMap((series) => {
    const group = add(svg, "g", { class: `series ${series.family}`, "data-series": series.name });
    group.style.setProperty("--hue", series.color);
    const places = series.points.map((point) => ({ x: x.at(point[0]), y: y.at(point[1]), point, series, group }));
    add(group, "path", { d: (series.stairs ? stairs : line)(places, left) });
    for (const p of series.marker ? places : [])
      add(group, "path", { d: MARKERS[series.marker], class: markerClass(series), transform: `translate(${p.x.toFixed(1)} ${p.y.toFixed(1)})` });
    return places;
  });
}

const line = (places) => places.map((p, i) => `${i ? "L" : "M"}${p.x.toFixed(1)} ${p.y.toFixed(1)}`).join("");

/** Horizontal segments that end at the points; the first one begins at `left`. */
const stairs = (places, left) => `M${left} ${places[0].y.toFixed(1)}` + places.map((p) => `V${p.y.toFixed(1)}H${p.x.toFixed(1)}`).join("");

const markerClass = (look) => (look.family === "fixed" ? "hollow" : "filled");

function drawLevels(svg, levels, y, box) {
  const drawn = levels.map((level) => ({ ...level, at: y.at(level.y) })).filter((level) => level.at <= box.bottom && level.at >= box.top);
  drawn.sort((a, b) => a.at - b.at);
  drawn.forEach((level, i) => {
    if (level.band) add(svg, "rect", { class: "band", x: box.left, y: level.at, width: box.right - box.left, height: box.bottom - level.at });
    else add(svg, "line", { class: "level", x1: box.left, x2: box.right, y1: level.at, y2: level.at });
    // Labels alternate between both ends, so that those of close levels do not overlap.
    const end = i % 2 ? { x: box.right - 5, "text-anchor": "end" } : { x: box.left + 5 };
    add(svg, "text", { class: "name", ...end, y: level.at < box.top + 14 ? level.at + 14 : level.at - 5 }, level.label);
  });
}

/** Makes a chart interactive: shows values at the pointer, on touch, and by the arrow keys. */
function makeChart(box, chart, hidden) {
  const svg = box.querySelector("svg"), tip = box.querySelector(".tip");
  let places = [], picked = null;

  function pick(place) {
    picked?.group.classList.remove("picked");
    picked = place;
    svg.classList.toggle("picking", Boolean(place));
    svg.querySelector(".dot")?.remove();
    tip.hidden = !place;
    if (!place) return;
    place.group.classList.add("picked");
    add(svg, "circle", { class: "dot", cx: place.x, cy: place.y, r: 4 });
    const [x, y, note] = place.point;
    const same = places.filter((p) => p.series !== place.series && Math.hypot(p.x - place.x, p.y - place.y) < 2);
    const others = same.slice(0, 3).map((p) => p.series.name).join(", ") + (same.length > 3 ? ", ..." : "");
    tip.textContent = `${place.series.name}${note ? `, ${note}` : ""}${others && `\nand ${others}`}\n${chart.x.label}: ${format(x)}\n${chart.y.label}: ${format(y)}`;
    const left = Math.min(Math.max(0, place.x - tip.offsetWidth / 2), box.clientWidth - tip.offsetWidth);
    const above = place.y - tip.offsetHeight - 12;
    tip.style.transform = `translate(${left}px, ${above >= 0 ? above : place.y + 14}px)`;
  }
  function nearest(event) {
    const frame = svg.getBoundingClientRect();
    const away = (p) => Math.hypot(p.x - event.clientX + frame.left, p.y - event.clientY + frame.top);
    return places.reduce((best, p) => (!best || away(p) < away(best) ? p : best), null);
  }
  function step(key) {
    const names = [...new Set(places.map((p) => p.series.name))];
    const pointsOf = (name) => places.filter((p) => p.series.name === name);
    if (!picked) return pick(places[0] ?? null);
    const curve = pointsOf(picked.series.name), i = curve.indexOf(picked), n = names.indexOf(picked.series.name);
    if (key === "ArrowLeft" || key === "ArrowRight") return pick(curve[i + (key === "ArrowRight" ? 1 : -1)] ?? picked);
    const next = pointsOf(names[(n + (key === "ArrowDown" ? 1 : names.length - 1)) % names.length]);
    pick(next[Math.min(i, next.length - 1)]);
  }
  svg.addEventListener("pointermove", (event) => pick(nearest(event)));
  svg.addEventListener("pointerdown", (event) => pick(nearest(event)));
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && pick(null));
  svg.addEventListener("blur", () => pick(null));
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") pick(null);
    if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    step(event.key);
  });
  const draw = () => { pick(null); places = drawChart(svg, chart, hidden); };
  let width = 0;
  new ResizeObserver(() => { if (box.clientWidth !== width) { width = box.clientWidth; draw(); } }).observe(box);
  return draw;
}
