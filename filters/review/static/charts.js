// Draws on canvases in the colours of the page: histograms with a limit to drag, a map of two scores, and one of directions.
import { endPassing, firstPassing } from "./policy.js";

const LEFT = 46, RIGHT = 10, TOP = 16, BOTTOM = 32;

/** A canvas at the resolution of the screen: {pen, width, height, unit, ink, soft, line, accent, warn, paper}; lengths are in units of pixels. */
export function open(canvas) {
  const box = canvas.getBoundingClientRect(), scale = devicePixelRatio || 1, pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  // Charts grow with the text of the page.
  const unit = parseFloat(style.fontSize) / 16, width = box.width / unit, height = box.height / unit;
  canvas.width = Math.round(box.width * scale);
  canvas.height = Math.round(box.height * scale);
  pen.scale(scale * unit, scale * unit);
  pen.clearRect(0, 0, width, height);
  pen.font = "11px system-ui, sans-serif";
  const colours = Object.fromEntries(["ink", "soft", "line", "accent", "warn", "paper"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  return { pen, width, height, unit, ...colours };
}

/** Round numbers from low to high, about `most` of them. */
export function ticks(low, high, most = 5) {
  const span = high - low || 1, power = 10 ** Math.floor(Math.log10(span / most));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => span / s <= most);
  const out = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) out.push(Number((k * step).toPrecision(10)));
  return out;
}

/** Bars of equal width from the counts of codes; those that fail are separate. */
export function bars({ counts, first, last }, rule, count) {
  const size = first.length, low = size ? first[0] : 0, high = size ? last[size - 1] : 1, span = high - low || 1;
  const from = rule.min == null ? 0 : firstPassing({ last }, rule.min), end = rule.max == null ? size : endPassing({ first }, rule.max);
  const pass = new Float64Array(count), fail = new Float64Array(count);
  for (let code = 0; code < size; code++) {
    const bar = Math.min(count - 1, Math.floor(((first[code] - low) / span) * count));
    if (code < from || code >= end) fail[bar] += counts[code];
    else pass[bar] += counts[code];
  }
  return { pass, fail, low, high: low + span };
}

/** Draw a histogram; returns the functions between scores and places. */
export function histogram(canvas, codes, rule, { log, unit, label, low: passLow, high: passHigh }) {
  const view = open(canvas), { pen, width, height } = view, across = Math.max(24, Math.floor((width - LEFT - RIGHT) / 6));
  const limits = rule.min != null || rule.max != null ? rule : { min: finite(passLow), max: finite(passHigh) };
  const { pass, fail, low, high } = bars(codes, limits, across);
  const most = Math.max(1, ...pass.map((n, k) => n + fail[k])), size = (n) => (log ? Math.log1p(n) / Math.log1p(most) : n / most);
  const floor = height - BOTTOM, tall = floor - TOP, place = (x) => LEFT + ((x - low) / (high - low)) * (width - LEFT - RIGHT);
  pen.strokeStyle = view.line;
  pen.fillStyle = view.soft;
  pen.textAlign = "right";
  for (const n of log ? [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7].filter((n) => n <= most) : ticks(0, most, 3)) {
    const y = floor - tall * size(n);
    line(pen, LEFT, y, width - RIGHT, y);
    pen.fillText(n >= 1000 ? `${n / 1000}k` : n, LEFT - 4, y + 4);
  }
  const wide = (width - LEFT - RIGHT) / across;
  for (let k = 0; k < across; k++) {
    const top = size(pass[k] + fail[k]) * tall, failing = (top * fail[k]) / (pass[k] + fail[k] || 1), x = LEFT + k * wide;
    pen.fillStyle = view.accent;
    pen.fillRect(x, floor - top, Math.max(1, wide - 0.5), top - failing);
    if (failing) hatch(view, x, floor - failing, Math.max(1, wide - 0.5), failing);
  }
  pen.strokeStyle = view.soft;
  line(pen, LEFT, floor, width - RIGHT, floor);
  pen.fillStyle = view.soft;
  pen.textAlign = "center";
  for (const x of ticks(low, high)) {
    line(pen, place(x), floor, place(x), floor + 4);
    pen.fillText(x, place(x), floor + 14);
  }
  pen.fillText(label, (LEFT + width - RIGHT) / 2, height - 4);
  pen.save();
  pen.translate(10, (TOP + floor) / 2);
  pen.rotate(-Math.PI / 2);
  pen.fillText(log ? `${unit} (log)` : unit, 0, 0);
  pen.restore();
  for (const [name, limit] of [["min", limits.min], ["max", limits.max]]) {
    if (limit == null) continue;
    const x = Math.min(Math.max(place(limit), LEFT), width - RIGHT);
    pen.strokeStyle = pen.fillStyle = view.warn;
    pen.lineWidth = 2;
    line(pen, x, TOP - 4, x, floor);
    pen.lineWidth = 1;
    pen.textAlign = x < LEFT + 50 ? "left" : x > width - 60 ? "right" : "center";
    pen.fillText(`${name} ${Number(limit.toPrecision(4))}`, x, 10);
  }
  return { at: (x) => low + ((x / view.unit - LEFT) / (width - LEFT - RIGHT)) * (high - low), low, high };
}

/** A map of two scores: darker cells hold more rows, a hatched part is dropped. Returns the scores at a place. */
export function scoreMap(canvas, { all, kept, ranges }, bins, labels, corner) {
  const view = open(canvas), { pen, width, height } = view, left = 64, floor = height - 40, wide = (width - left - RIGHT) / bins, tall = (floor - TOP) / bins;
  const most = Math.log1p(all.reduce((a, b) => Math.max(a, b), 1));
  for (let cell = 0; cell < all.length; cell++) {
    if (!all[cell]) continue;
    const x = left + (cell % bins) * wide, y = floor - (Math.floor(cell / bins) + 1) * tall, part = kept[cell] / all[cell];
    pen.globalAlpha = 0.25 + (0.75 * Math.log1p(all[cell])) / most;
    pen.fillStyle = view.accent;
    pen.fillRect(x, y + tall * (1 - part), wide + 0.3, tall * part + 0.3);
    if (part < 1) hatch(view, x, y, wide + 0.3, tall * (1 - part));
  }
  pen.globalAlpha = 1;
  pen.fillStyle = pen.strokeStyle = view.soft;
  const [[x0, x1], [y0, y1]] = ranges;
  const place = (x, y) => [left + ((x - x0) / (x1 - x0)) * (width - left - RIGHT), floor - ((y - y0) / (y1 - y0)) * (floor - TOP)];
  pen.textAlign = "center";
  for (const x of ticks(x0, x1, 8)) pen.fillText(x, place(x, y0)[0], floor + 15);
  pen.fillText(labels[0], (left + width) / 2, floor + 32);
  pen.textAlign = "right";
  for (const y of ticks(y0, y1, 8)) pen.fillText(y, left - 6, place(x0, y)[1] + 4);
  pen.save();
  pen.translate(12, (TOP + floor) / 2);
  pen.rotate(-Math.PI / 2);
  pen.textAlign = "center";
  pen.fillText(labels[1], 0, 0);
  pen.restore();
  line(pen, left, TOP, left, floor);
  line(pen, left, floor, width - RIGHT, floor);
  pen.strokeStyle = view.warn;
  pen.lineWidth = 2;
  const [cx, cy] = place(corner.x ?? x0, corner.y ?? y0);
  if (corner.x != null) line(pen, cx, TOP, cx, floor);
  if (corner.y != null) line(pen, left, cy, width - RIGHT, cy);
  if (corner.x != null && corner.y != null) {
    pen.fillStyle = view.paper;
    pen.beginPath();
    pen.arc(cx, cy, 6, 0, 7);
    pen.fill();
    pen.stroke();
  }
  pen.lineWidth = 1;
  return (px, py) => [x0 + ((px / view.unit - left) / (width - left - RIGHT)) * (x1 - x0), y0 + ((floor - py / view.unit) / (floor - TOP)) * (y1 - y0)];
}

/** Shares by direction; returns the cell at a place. */
export function viewpoints(canvas, cells, turn) {
  const view = open(canvas), { pen, width, height } = view, left = 52;
  const azimuths = Array.from({ length: 360 / turn }, (_, k) => ((k * turn + 180) % 360) - 180).sort((a, b) => a - b);
  const elevations = [...new Set(cells.map((cell) => cell.elevation))].sort((a, b) => a - b);
  const wide = (width - left - RIGHT) / azimuths.length, tall = Math.min(96, (height - 36 - TOP) / Math.max(elevations.length, 1));
  const floor = TOP + tall * elevations.length;
  const wrap = (a) => ((a + 540) % 360) - 180;
  pen.textAlign = "center";
  for (const cell of cells) {
    const x = left + azimuths.indexOf(wrap(cell.azimuth)) * wide, y = floor - (elevations.indexOf(cell.elevation) + 1) * tall;
    const share = cell.passing / cell.views;
    pen.fillStyle = view.accent;
    pen.globalAlpha = 0.12 + 0.68 * share;
    pen.fillRect(x + 1, y + 1, wide - 2, tall - 2);
    pen.globalAlpha = 1;
    if (share < 1) hatch(view, x + 1, y + 1, wide - 2, (tall - 2) * (1 - share) * 0.35);
    pen.fillStyle = view.ink;
    pen.font = "600 12px system-ui, sans-serif";
    if (wide > 24) pen.fillText(Math.round(100 * share), x + wide / 2, y + tall / 2 + 4);
  }
  pen.font = "11px system-ui, sans-serif";
  pen.fillStyle = view.soft;
  azimuths.forEach((azimuth, k) => pen.fillText(`${azimuth}°`, left + (k + 0.5) * wide, floor + 14));
  pen.fillText("azimuth (0 is the front)", (left + width) / 2, floor + 30);
  pen.textAlign = "right";
  elevations.forEach((elevation, k) => pen.fillText(`${elevation}°`, left - 6, floor - (k + 0.5) * tall + 4));
  pen.save();
  pen.translate(11, (TOP + floor) / 2);
  pen.rotate(-Math.PI / 2);
  pen.textAlign = "center";
  pen.fillText("elevation", 0, 0);
  pen.restore();
  return (px, py) => {
    const azimuth = azimuths[Math.floor((px / view.unit - left) / wide)], elevation = elevations[Math.floor((floor - py / view.unit) / tall)];
    return cells.find((cell) => wrap(cell.azimuth) === azimuth && cell.elevation === elevation);
  };
}

function finite(x) {
  return Number.isFinite(x) ? x : null;
}

function line(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

/** The dropped part of a chart: hatched, so that colour alone carries nothing. */
function hatch({ pen, warn }, x, y, wide, tall) {
  pen.save();
  pen.beginPath();
  pen.rect(x, y, wide, tall);
  pen.clip();
  pen.fillStyle = pen.strokeStyle = warn;
  pen.globalAlpha *= 0.3;
  pen.fillRect(x, y, wide, tall);
  pen.globalAlpha /= 0.3;
  const gap = 4, offset = (x + y) % gap;
  for (let k = -tall - offset; k < wide; k += gap) line(pen, x + k, y + tall, x + k + tall, y);
  pen.restore();
}
