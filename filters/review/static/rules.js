// The rules of the policy: a card each, with its histogram, limits and counts.
import { histogram } from "./charts.js";
import { el } from "./dom.js";
import { describe, endPassing, firstPassing, isQuantile, scoreName } from "./policy.js";

/** The limit nearest to `value` that divides no code of a column; a value that already divides none stays as it is. */
export function snap(column, side, value) {
  const { first, last } = column, size = first.length;
  if (!size) return value;
  const k = side === "min" ? firstPassing(column, value) : endPassing(column, value) - 1;
  // A minimum at the last score of a code, or a maximum at its first, divides it, too.
  const divides = k >= 0 && k < size && (side === "min" ? first[k] < Math.fround(value) : Math.fround(value) < last[k]);
  if (!divides) return value;
  const up = value - first[k] > last[k] - value;
  if (side === "min") return up ? (k + 1 < size ? brief(last[k], first[k + 1], false) : value) : brief(k ? last[k - 1] : first[k] - 1, first[k], false);
  return up ? brief(last[k], k + 1 < size ? first[k + 1] : last[k] + 1, true) : brief(k ? last[k - 1] : first[k] - 1, first[k], true);
}

/** The shortest decimal between two scores, at the upper end included for a minimum and at the lower for a maximum. */
function brief(low, high, isMax) {
  for (let digits = 1; digits < 10; digits++) {
    const number = Number((isMax ? low : high).toPrecision(digits)), as32 = Math.fround(number);
    if (isMax ? low <= as32 && as32 < high : low < as32 && as32 <= high) return number;
  }
  return isMax ? low : high;
}

/** Build the cards; `on` has change(rule, fields), remove(rule), look(rule). Returns {update(result), outdated(result), draw(rule, codes), repaint()}. */
export function ruleCards(place, policy, on) {
  const cards = policy.rules.map((rule, r) => card(rule, r, on));
  place.replaceChildren(...cards.map((one) => one.element));
  return {
    update(result) {
      // All charts before any text, which would make the browser lay out the page for each.
      cards.forEach((one, r) => one.count(result.rules[r]));
      cards.forEach((one) => one.tell());
    },
    outdated: (result) => [...cards.keys()].filter((r) => cards[r].drawn() !== result.rules[r].judgedBy),
    draw: (r, codes) => cards[r].draw(codes),
    repaint: () => cards.forEach((one) => one.paint()),
  };
}

function card(rule, r, on) {
  const canvas = el("canvas", { tabIndex: -1 }), numbers = el("p", { className: "numbers" }), log = el("input", { type: "checkbox", checked: true });
  canvas.setAttribute("role", "img");
  const title = el("h3", {}, el("span", { className: "grow", textContent: rule.name }),
    el("button", { textContent: "look", title: "Heads at this limit", onclick: () => on.look(r) }),
    el("button", { textContent: "remove", onclick: () => on.remove(r) }));
  const sides = isQuantile(rule) ? [rule.keep_top != null ? "keep_top" : "keep_bottom"] : ["min", "max"];
  const limits = sides.map((side) => limit(rule, r, side, on));
  const element = el("div", { className: "rule" }, title, canvas, ...limits.map((one) => one.element), numbers, details(rule, r, on, log));
  let codes = null, counted = null, drawn = null, axis = null;
  const paint = () => {
    if (!codes || !counted) return;
    axis = histogram(canvas, codes, rule, { log: log.checked, unit: counted.level === "view" ? "views" : "identities", label: scoreName(rule.score), low: counted.low, high: counted.high });
    canvas.setAttribute("aria-label", `histogram of ${describe(rule)}: ${counted.failing} of ${counted.judged} fail`);
    limits.forEach((one) => one.range(axis));
  };
  log.onchange = paint;
  canvas.onpointerdown = (down) => {
    if (isQuantile(rule) || !axis) return;
    const value = axis.at(down.offsetX), set = sides.filter((side) => rule[side] != null);
    const side = set.sort((a, b) => Math.abs(rule[a] - value) - Math.abs(rule[b] - value))[0];
    const move = (event) => limits[sides.indexOf(side)].set(axis.at(event.offsetX));
    canvas.setPointerCapture(down.pointerId);
    canvas.onpointermove = move;
    canvas.onpointerup = () => { canvas.onpointermove = null; };
    move(down);
  };
  return {
    element,
    drawn: () => drawn,
    draw(found) { codes = found; drawn = counted.judgedBy; paint(); },
    paint,
    count(found) {
      const changed = counted?.key !== found.key;
      counted = found;
      if (changed) paint();
    },
    tell() {
      const { failing, judged, level, dropped, drops, alone } = counted;
      numbers.textContent = `${failing} of ${judged} ${level === "view" ? "views" : "identities"} fail; drops ${dropped} ${drops === "view" ? "views" : "identities"}, ${alone} by this rule alone`;
    },
  };
}

/** One limit: a slider and a number, the same value; an empty number means no limit on this side. */
function limit(rule, r, side, on) {
  const share = isQuantile(rule), text = { min: "min", max: "max", keep_top: "top", keep_bottom: "low" }[side], called = `${side} of ${rule.name}`;
  const slider = el("input", { type: "range", min: 0, max: share ? 1 : 1000, step: share ? 0.005 : 1, ariaLabel: `slider ${called}` });
  const number = el("input", { type: "number", step: "any", ariaLabel: called, value: rule[side] ?? "" });
  let axis = share ? { low: 0, high: 1 } : null;
  const set = (value) => {
    const rounded = value === null || share ? value : Number(value.toPrecision(5));
    on.change(r, { [side]: rounded });
    number.value = rule[side] ?? "";
    if (rule[side] != null && axis && document.activeElement !== slider) slider.value = share ? rule[side] : (1000 * (rule[side] - axis.low)) / (axis.high - axis.low);
  };
  slider.oninput = () => set(share ? Number(slider.value) : axis.low + (Number(slider.value) / 1000) * (axis.high - axis.low));
  number.onchange = () => set(number.value === "" ? null : Number(number.value));
  return {
    set,
    element: el("div", { className: "limits" }, el("span", { textContent: text }), slider, number),
    range(found) {
      if (!share) axis = found;
      if (document.activeElement !== slider) slider.value = rule[side] == null ? (side === "max" ? 1000 : 0) : share ? rule[side] : (1000 * (rule[side] - axis.low)) / (axis.high - axis.low);
    },
  };
}

function details(rule, r, on, log) {
  const where = { azimuth: rule.where?.azimuth ?? [-180, 180], elevation: rule.where?.elevation ?? [-90, 90] };
  const degrees = (name, k) => el("input", { type: "number", step: 1, min: name === "azimuth" ? -180 : -90, max: name === "azimuth" ? 360 : 90, style: "width:4.2rem", value: where[name][k], ariaLabel: `${name} ${k ? "to" : "from"}`,
    onchange(event) { where[name][k] = Math.round(Number(event.target.value)); on.change(r, { where }, true); } });
  const counts = [["max_failing", "may fail"], ["max_failing_share", "share that may fail"], ["min_passing", "must pass"]];
  const drop = el("select", { ariaLabel: "drops", onchange: () => on.change(r, { drop: drop.value, ...Object.fromEntries(counts.map(([key]) => [key, null])) }, true) },
    ...["view", "identity"].map((value) => el("option", { value, textContent: value, selected: (rule.drop ?? "view") === value })));
  const chosen = counts.find(([key]) => rule[key] != null)?.[0] ?? "max_failing";
  const how = el("select", { ariaLabel: "how many views", onchange: () => on.change(r, { [chosen]: null, [how.value]: Number(amount.value) }, true) },
    ...counts.map(([value, text]) => el("option", { value, textContent: text, selected: value === chosen })));
  const amount = el("input", { type: "number", step: "any", min: 0, style: "width:4.2rem", value: rule[chosen] ?? 0, ariaLabel: "number of views", onchange: () => on.change(r, { [how.value]: Number(amount.value) }, true) });
  const kinds = [["limits", "limits"], ["keep_top", "keeps a share of the highest"], ["keep_bottom", "keeps a share of the lowest"]];
  const kind = el("select", { ariaLabel: "kind of limit", onchange: () => on.change(r, { min: null, max: null, keep_top: null, keep_bottom: null, [kind.value === "limits" ? "min" : kind.value]: kind.value === "limits" ? 0 : 0.9 }, true) },
    ...kinds.map(([value, text]) => el("option", { value, textContent: text, selected: value === (rule.keep_top != null ? "keep_top" : rule.keep_bottom != null ? "keep_bottom" : "limits") })));
  const ofViews = on.level(rule) === "view";
  return el("details", {}, el("summary", { textContent: "more" }),
    el("div", { className: "row" }, el("label", {}, log, " log counts"), el("label", {}, "kind ", kind)),
    ofViews ? el("div", { className: "row" }, "azimuth ", degrees("azimuth", 0), " to ", degrees("azimuth", 1), " elevation ", degrees("elevation", 0), " to ", degrees("elevation", 1)) : null,
    ofViews ? el("div", { className: "row" }, "a failing view drops the ", drop, ...(rule.drop === "identity" ? [how, amount] : [])) : null);
}
