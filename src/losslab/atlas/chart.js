// Line charts as SVG, drawn at the width they have, so that their text stays readable on a phone.
const DASHES = ["", "7 3", "2 2.5", "9 3 2 3", "4 2 1 2", "12 3"];
const MARGIN = { left: 44, right: 10, top: 8, bottom: 34 };
let clips = 0;

const number = x => Math.abs(x) >= 1e4 || (x !== 0 && Math.abs(x) < 1e-3) ? x.toExponential(2).replaceAll("-", "−") : String(Number(x.toPrecision(4))).replaceAll("-", "−");

// Round numbers between two ends, about so many.
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(m => m * power >= rough);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

// Draws into a box. series: [{slot, x, y}] lines; bars: [{from, to, y}]; cursor: an x, or null.
// Returns the function from a place in the box to an x.
function draw(box, { series, bars = [], xRange, yRange, xLabel, yLabel, cursor = null, seen }) {
  const width = Math.max(260, box.clientWidth), height = Math.round(Math.min(300, Math.max(200, width * 0.55)));
  const inner = { w: width - MARGIN.left - MARGIN.right, h: height - MARGIN.top - MARGIN.bottom };
  const sx = x => MARGIN.left + (x - xRange[0]) / (xRange[1] - xRange[0]) * inner.w;
  const sy = y => MARGIN.top + (yRange[1] - y) / (yRange[1] - yRange[0]) * inner.h;
  const clip = `clip${clips++}`, left = MARGIN.left, right = width - MARGIN.right, foot = height - MARGIN.bottom;
  const grid = [
    ...ticks(...yRange, 5).map(y => `<line x1="${left}" x2="${right}" y1="${sy(y)}" y2="${sy(y)}"${y === 0 ? ' class="zero"' : ""}/><text x="${left - 6}" y="${sy(y) + 4}" text-anchor="end">${number(y)}</text>`),
    ...ticks(...xRange, width < 420 ? 4 : 8).map(x => `<line x1="${sx(x)}" x2="${sx(x)}" y1="${MARGIN.top}" y2="${foot}"/><text x="${sx(x)}" y="${foot + 15}" text-anchor="middle">${number(x)}</text>`),
  ];
  const lines = series.map(s => `<path class="line s${s.slot}" stroke-dasharray="${DASHES[s.slot]}" d="${path(s, sx, sy, yRange)}"/>`);
  const boxes = bars.map(b => `<rect x="${sx(b.from)}" width="${Math.max(0, sx(b.to) - sx(b.from) - 1)}" y="${sy(b.y)}" height="${Math.max(0, sy(0) - sy(b.y))}"/>`);
  const mark = cursor === null ? "" : `<line class="cursor" x1="${sx(cursor)}" x2="${sx(cursor)}" y1="${MARGIN.top}" y2="${foot}"/>`;
  box.innerHTML = `<svg width="${width}" height="${height}" role="img" aria-label="${escaped(seen)}">
    <clipPath id="${clip}"><rect x="${left}" y="${MARGIN.top - 2}" width="${inner.w}" height="${inner.h + 4}"/></clipPath>
    <g class="grid">${grid.join("")}</g><g class="bars">${boxes.join("")}</g><g clip-path="url(#${clip})">${lines.join("")}${mark}</g>
    <text class="name" x="${left + inner.w / 2}" y="${height - 3}" text-anchor="middle">${escaped(xLabel)}</text>
    <text class="name" transform="translate(11 ${MARGIN.top + inner.h / 2}) rotate(-90)" text-anchor="middle">${escaped(yLabel)}</text></svg>`;
  return event => xRange[0] + (event.clientX - box.getBoundingClientRect().left - left) / inner.w * (xRange[1] - xRange[0]);
}

function path({ x, y }, sx, sy, [low, high]) {
  const reach = high - low;
  let text = "", pen = false;
  for (let i = 0; i < x.length; i++) {
    if (Number.isNaN(y[i])) { pen = false; continue; }
    const kept = Math.min(high + reach, Math.max(low - reach, y[i]));
    text += `${pen ? "L" : "M"}${sx(x[i]).toFixed(1)} ${sy(kept).toFixed(1)}`;
    pen = true;
  }
  return text;
}

const escaped = text => text.replace(/[&<>"]/g, c => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

// A range that shows most of what the lines do; one line that shoots up does not flatten the others.
function rangeOf(lines, most) {
  const tops = lines.map(y => Math.max(...y.filter(Number.isFinite))), feet = lines.map(y => Math.min(...y.filter(Number.isFinite)));
  const limit = Math.max(most, Math.min(...tops.filter(Number.isFinite)));
  const high = Math.min(limit, Math.max(0.1, ...tops.filter(Number.isFinite))), low = Math.max(-limit, Math.min(0, ...feet.filter(Number.isFinite)));
  const room = 0.04 * (high - low);
  return [low < 0 ? low - room : 0, high + room];
}
