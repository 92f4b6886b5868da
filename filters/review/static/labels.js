// Blind labels: the share of right verdicts at a limit, with its interval, and the limit that reaches a wanted precision.
import { el } from "./dom.js";

/** Wilson's 95 % interval of a share of k of n. Source: Wilson, 1927. */
export function wilson(k, n) {
  if (!n) return [0, 1];
  const z = 1.959964, p = k / n, middle = (p + (z * z) / (2 * n)) / (1 + (z * z) / n);
  const half = (z / (1 + (z * z) / n)) * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n));
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

/** Labels that make the interval of a share narrower than `width` on each side. */
export function labelsNeeded(share, width) {
  for (let n = 10; n < 100_000; n = Math.ceil(n * 1.1)) {
    const [low, high] = wilson(share * n, n);
    if ((high - low) / 2 <= width) return n;
  }
  return 100_000;
}

/** Of labelled items {beyond, bad}: how well "beyond the limit" finds what is bad; `beyond` rises from good to bad. */
export function measure(labels, limit = 0) {
  const dropped = labels.filter((one) => one.beyond > limit), bad = labels.filter((one) => one.bad);
  const hits = dropped.filter((one) => one.bad).length;
  return { precision: [hits, dropped.length, wilson(hits, dropped.length)], recall: [hits, bad.length, wilson(hits, bad.length)] };
}

/** The lowest limit on `beyond` whose drops are bad with a share of at least `precision`; null without one. */
export function limitFor(labels, precision) {
  const places = [...new Set(labels.map((one) => one.beyond))].sort((a, b) => a - b);
  const below = places.map((place, k) => (k ? (places[k - 1] + place) / 2 : place - 1));
  return below.find((limit) => { const [hits, dropped] = measure(labels, limit).precision; return dropped && hits / dropped >= precision; }) ?? null;
}

/** The panel; `on` has start(rule, count), setLimit(value). Returns {rules(list), report(labels, side, scale), place}. */
export function labelPanel(panel, on) {
  const rule = el("select"), count = el("input", { type: "number", min: 10, max: 500, value: 50, style: "width:5rem" }), wanted = el("input", { type: "number", min: 0.5, max: 1, step: 0.01, value: 0.9, style: "width:5rem" });
  const place = el("div"), report = el("div");
  panel.replaceChildren(el("p", { className: "note", textContent: "Heads on both sides of a limit, mixed, without their scores: press K for a head that should be kept and D for one that should be dropped. The labels measure the limit and override nothing." }),
    el("div", { className: "row" }, el("label", {}, "Rule ", rule), el("label", {}, "items ", count), el("button", { textContent: "Begin", onclick: () => on.start(Number(rule.value), Number(count.value)) })), report, place);
  return {
    place, rule: () => Number(rule.value),
    rules: (names) => rule.replaceChildren(...names.map((textContent, value) => el("option", { value, textContent }))),
    report(labels, toScore) {
      const { precision, recall } = measure(labels), percent = ([k, n, [low, high]]) => (n ? `${k} of ${n} (${(100 * low).toFixed(0)} to ${(100 * high).toFixed(0)} %)` : "no items yet");
      const more = precision[1] ? Math.max(0, labelsNeeded(precision[0] / precision[1], 0.05) - precision[1]) : 0, better = limitFor(labels, Number(wanted.value));
      report.replaceChildren(el("p", { textContent: `${labels.length} labelled. Precision at the limit (dropped items that are bad): ${percent(precision)}. Recall among these items (bad items that are dropped): ${percent(recall)}.` }),
        el("p", { className: "note", textContent: more ? `About ${more} more labels of dropped items give the precision to ±5 points.` : "" }),
        el("div", { className: "row" }, el("label", {}, "Wanted precision ", wanted), better === null ? el("span", { className: "note", textContent: "no limit among these items reaches it" })
          : el("button", { textContent: `Set the limit to ${toScore(better)}`, onclick: () => on.setLimit(toScore(better)) })));
      wanted.onchange = () => this.report(labels, toScore);
    },
  };
}
