// Judges in the background: holds the heads, the columns and the decisions, and answers the page's questions about them.
import { DROP, KEEP, UNDECIDED, describe, endPassing, firstPassing, inSector, isQuantile, judge, lowerBound, scoreName } from "./policy.js";

const VERDICTS = { keep: KEEP, drop: DROP, unsure: UNDECIDED, clear: UNDECIDED };
const columns = new Map(), cache = new Map();
let heads, decisions, recorded, standing, policy, result, saved, rowsOf;

const answers = {
  start(given) {
    heads = given;
    rowsOf = new Map(Array.from(heads.identity, (identity, i) => [identity, i]));
    decisions = { identities: new Int8Array(heads.identities), views: new Int8Array(heads.views), version: 0 };
    recorded = new Map();
    standing = [];
  },

  column({ key, column }) {
    columns.set(key, column);
  },

  /** More decisions of people; the last one on each item counts. */
  decide({ made }) {
    const ofViews = () => standing.filter((one) => one.view !== null), before = JSON.stringify(ofViews());
    for (const one of made) if (!one.blind) recorded.set(`${one.identity}/${one.view}`, one);
    standing = [...recorded.values()].filter((one) => one.verdict !== "clear" && rowsOf.has(one.identity));
    const identities = new Int8Array(heads.identities);
    for (const one of standing) if (one.view === null) identities[rowsOf.get(one.identity)] = VERDICTS[one.verdict];
    decisions = { ...decisions, identities };
    if (JSON.stringify(ofViews()) === before) return;
    decisions.version++;
    decisions.views = new Int8Array(heads.views);
    for (const one of ofViews()) decisions.views[rowOfView(rowsOf.get(one.identity), one.view)] = VERDICTS[one.verdict];
  },

  judge({ policy: asked }) {
    policy = asked;
    result = judge(policy, heads, (score) => columns.get(keyOf(score)), decisions, cache);
    return {
      identities: result.identities, views: result.views, empty: result.empty, incomplete: result.incomplete,
      rules: result.tallies.map(({ key, judgedBy, level, drops, judgedCount, failingCount, dropped, alone, low, high }) =>
        ({ key, judgedBy, level, drops, judged: judgedCount, failing: failingCount, dropped, alone, low, high })),
      flips: saved ? countFlips() : null,
    };
  },

  /** How many judged rows have each code of a rule's column; the last number counts NaN. */
  histogram({ rule }) {
    const { judged } = result.tallies[rule], column = columns.get(keyOf(policy.rules[rule].score));
    const counts = new Uint32Array(column.first.length + 1);
    for (let row = 0; row < judged.length; row++) if (judged[row] && column.codes[row] < counts.length) counts[column.codes[row]]++;
    return { counts, first: column.first, last: column.last };
  },

  /** Views, passing views and kept views by direction; of one rule, the views that it judges. */
  viewpoints({ rule, turn, tilt }) {
    const across = 360 / turn, cells = new Map(), tally = rule == null ? null : result.tallies[rule];
    const azimuths = Array.from(heads.azimuth.first, (a) => Math.round(a / turn) % across);
    const elevations = Array.from(heads.elevation.first, (e) => Math.round(e / tilt));
    for (let i = 0; i < heads.identities; i++) {
      for (let row = heads.start[i]; row < heads.start[i + 1]; row++) {
        if (tally?.level === "view" && !tally.judged[row]) continue;
        const azimuth = (azimuths[heads.azimuth.codes[row]] + across) % across, elevation = elevations[heads.elevation.codes[row]];
        const key = azimuth * 1000 + elevation + 500;
        let cell = cells.get(key);
        if (!cell) cells.set(key, (cell = { azimuth: azimuth * turn, elevation: elevation * tilt, views: 0, passing: 0, kept: 0 }));
        cell.views++;
        cell.kept += result.keepView[row];
        cell.passing += tally?.level === "view" ? 1 - tally.failing[row] : result.keepView[row];
      }
    }
    return [...cells.values()];
  },

  /** A grid of two scores: counts of rows, by the ranges of both; scores of views are averaged over an identity if the other is of identities. */
  map({ x, y, bins }) {
    const [one, two] = [x, y].map((score) => columns.get(keyOf(score)));
    const ofViews = one.level === "view" && two.level === "view";
    const [a, b] = [one, two].map((column) => (ofViews || column.level === "identity" ? valuesOf(column) : means(column)));
    const ranges = [a, b].map(rangeOf), all = new Uint32Array(bins * bins), kept = new Uint32Array(bins * bins);
    const keep = ofViews ? result.keepView : result.keepIdentity;
    for (let row = 0; row < a.length; row++) {
      if (Number.isNaN(a[row]) || Number.isNaN(b[row])) continue;
      const cell = binOf(b[row], ranges[1], bins) * bins + binOf(a[row], ranges[0], bins);
      all[cell]++;
      kept[cell] += keep[row];
    }
    return { all, kept, ranges, level: ofViews ? "view" : "identity" };
  },

  /** Rows to look at: {identity, view, score, fails, why}; view is null for an identity. */
  items({ kind, rule, count, seed, text }) {
    if (kind === "search") return search(text);
    if (kind === "flips") return flips(count);
    if (kind === "decided") return decided();
    if (kind === "random") return shuffled(heads.identities, count, seed).map((i) => itemOf(i, null));
    return ofRule(kind, rule, count, seed);
  },

  compare({ selection }) {
    saved = selection;
    return saved ? countFlips() : null;
  },

  view({ identity }) {
    const i = rowsOf.get(identity), rows = range(heads.start[i], heads.start[i + 1]);
    return {
      item: itemOf(i, null),
      views: rows.map((row) => ({ ...itemOf(i, row), azimuth: direction(heads.azimuth, row), elevation: direction(heads.elevation, row) })),
    };
  },

  neighbour({ identity, step }) {
    const i = rowsOf.get(identity) + step;
    return i >= 0 && i < heads.identities ? heads.identity[i] : null;
  },
};

function keyOf(score) {
  return JSON.stringify(score);
}

function range(from, to) {
  return Array.from({ length: to - from }, (_, k) => from + k);
}

function viewNumber(i, row) {
  return heads.view ? heads.view[row] : row - heads.start[i];
}

function rowOfView(i, view) {
  return range(heads.start[i], heads.start[i + 1]).find((row) => viewNumber(i, row) === view);
}

function ownerOf(row) {
  return lowerBound(heads.start, row + 1) - 1;
}

function direction(column, row) {
  return column.first[column.codes[row]];
}

function scoreAt(column, row) {
  const code = column.codes[row];
  return code < column.first.length ? column.first[code] : NaN;
}

/** An identity, or one of its views, with the reason for which it is dropped. */
function itemOf(i, row, rule = null) {
  const keeps = row === null ? result.keepIdentity[i] : result.keepView[row];
  const item = { identity: heads.identity[i], view: row === null ? null : viewNumber(i, row), keeps: Boolean(keeps), why: keeps ? "" : reason(i, row) };
  const decision = standing.find((one) => one.identity === item.identity && one.view === item.view);
  if (decision) item.decision = decision;
  if (rule !== null) {
    const { level, failing } = result.tallies[rule], at = level === "view" ? row : i;
    item.score = at === null ? NaN : scoreAt(columns.get(keyOf(policy.rules[rule].score)), at);
    item.fails = at !== null && Boolean(failing[at]);
  }
  item.show = row === null ? frontal(i) : item.view;
  return item;
}

function reason(i, row) {
  const decided = row === null ? decisions.identities[i] : decisions.views[row];
  if (decided === DROP) return "decision: drop";
  const first = result.tallies.findIndex((tally) => tally.drops === (row === null ? "identity" : "view") && tally.dropping[row ?? i]);
  if (first >= 0) {
    const rule = policy.rules[first], { level } = result.tallies[first], column = columns.get(keyOf(rule.score));
    const value = level === "view" && row === null ? "" : `, ${scoreName(rule.score)} is ${scoreAt(column, row ?? i).toPrecision(4)}`;
    return describe(rule) + value;
  }
  if (row !== null) return "its identity is dropped";
  const left = range(heads.start[i], heads.start[i + 1]).some((view) =>
    !result.tallies.some((tally) => tally.drops === "view" && tally.dropping[view]) && decisions.views[view] !== DROP);
  return left ? "one of its views is dropped" : "no view of it is left";
}

/** The number of the view that is nearest to the front. */
function frontal(i) {
  let best = heads.start[i], nearest = Infinity;
  for (let row = heads.start[i]; row < heads.start[i + 1]; row++) {
    const azimuth = ((direction(heads.azimuth, row) + 540) % 360) - 180;
    const away = Math.hypot(azimuth, direction(heads.elevation, row));
    if (away < nearest) [nearest, best] = [away, row];
  }
  return viewNumber(i, best);
}

/** Rows near the limit of a rule or far beyond it, at most one of each identity. */
function ofRule(kind, r, count, seed) {
  const { level } = result.tallies[r], beyond = distances(r), size = columns.get(keyOf(policy.rules[r].score)).first.length;
  const counts = new Uint32Array(2 * size + 1);
  for (let row = 0; row < beyond.length; row++) if (beyond[row] > -Infinity) counts[beyond[row] + size]++;
  const passes = range(0, size).reverse(), failures = range(size, counts.length);
  /** Rows by their distance, from one distance to another one. */
  const rowsBetween = (low, high) => {
    const found = new Map();
    for (let row = 0; row < beyond.length; row++) {
      const key = beyond[row] + size;
      if (key < low || key > high) continue;
      if (!found.has(key)) found.set(key, []);
      found.get(key).push(row);
    }
    return found;
  };
  const take = (keys, most) => {
    const seen = new Set(), taken = [];
    let left = keys.filter((key) => counts[key]), enough = 20 * most;
    while (left.length) {
      // The nearest distances first, as many as hold some rows; more only if these were of few identities.
      let some = 0, rows = 0;
      while (some < left.length && rows < enough) rows += counts[left[some++]];
      const near = left.slice(0, some), ends = [near[0], near.at(-1)].sort((a, b) => a - b), found = rowsBetween(...ends);
      for (const row of near.flatMap((key) => mixed(found.get(key), seed))) {
        const i = level === "view" ? ownerOf(row) : row;
        if (seen.has(i)) continue;
        seen.add(i);
        taken.push(itemOf(i, level === "view" ? row : null, r));
        if (taken.length === most) return taken;
      }
      left = left.slice(some);
      enough *= 10;
    }
    return taken;
  };
  if (kind === "worst") return take(failures.reverse(), count);
  return [...take(passes, count / 2).reverse(), ...take(failures, count / 2)];
}

/** How many codes each judged row lies beyond the limit of a rule, from 0; negative if it passes, -Infinity if it is not to be shown. */
function distances(r) {
  const rule = policy.rules[r], { judged, failing, low, high } = result.tallies[r];
  const column = columns.get(keyOf(rule.score)), size = column.first.length, { codes } = column;
  const lowest = Number.isFinite(low) ? firstPassing(column, low) : -size, end = Number.isFinite(high) ? endPassing(column, high) : 2 * size;
  const beyond = new Float32Array(judged.length).fill(-Infinity);
  for (let row = 0; row < judged.length; row++) {
    if (!judged[row] || codes[row] >= size) continue;
    const away = Math.max(lowest - 1 - codes[row], codes[row] - end);
    // Others are kept by a decision, or tied with the last one that a quantile keeps.
    if (failing[row] === (away >= 0 ? 1 : 0)) beyond[row] = Math.max(away, -size);
  }
  return beyond;
}

function search(text) {
  const [, identity, view] = /^\s*(\d+)(?:\/v?(\d+))?\s*$/.exec(text) ?? [];
  const i = rowsOf.get(Number(identity));
  if (i === undefined) return [];
  const row = view === undefined ? null : rowOfView(i, Number(view));
  return row === undefined ? [] : [itemOf(i, row)];
}

function decided() {
  return standing.map((one) => {
    const i = rowsOf.get(one.identity), row = one.view === null ? null : rowOfView(i, one.view), item = itemOf(i, row);
    item.conflict = VERDICTS[one.verdict] !== UNDECIDED && byRules(i, row) !== (one.verdict === "keep");
    return item;
  });
}

/** Whether the rules alone let a row pass, which decisions hide; what a quantile kept, it keeps. */
function byRules(i, row) {
  return policy.rules.every((rule, r) => {
    const { drops, dropping, level } = result.tallies[r];
    if (row === null || level === "identity") return row !== null || drops !== "identity" || !dropping[i];
    if (drops === "identity" || isQuantile(rule)) return drops === "identity" || !dropping[row];
    const column = columns.get(keyOf(rule.score)), code = column.codes[row];
    return passes(rule, column, code) || inSector(rule.where, heads)?.[row] === 0;
  });
}

function passes(rule, column, code) {
  const from = rule.min == null ? 0 : firstPassing(column, rule.min);
  return code >= from && code < (rule.max == null ? column.first.length : endPassing(column, rule.max));
}

function countFlips() {
  let lost = 0, gained = 0, lostViews = 0, gainedViews = 0;
  for (let i = 0; i < heads.identities; i++) {
    const now = result.keepIdentity[i], then = saved.keepIdentity[i];
    lost += then & ~now & 1;
    gained += now & ~then & 1;
  }
  for (let row = 0; row < heads.views; row++) {
    lostViews += saved.keepView[row] & ~result.keepView[row] & 1;
    gainedViews += result.keepView[row] & ~saved.keepView[row] & 1;
  }
  return { lost, gained, lostViews, gainedViews };
}

/** Identities, and views of identities that both keep, on which the policy and the saved selection differ. */
function flips(count) {
  const found = [];
  for (let i = 0; i < heads.identities && found.length < count; i++) {
    if (saved.keepIdentity[i] !== result.keepIdentity[i]) found.push(flip(i, null, saved.keepIdentity[i], saved.whyIdentity[i]));
    else if (result.keepIdentity[i]) {
      for (let row = heads.start[i]; row < heads.start[i + 1] && found.length < count; row++)
        if (saved.keepView[row] !== result.keepView[row]) found.push(flip(i, row, saved.keepView[row], saved.whyView[row]));
    }
  }
  return found;
}

function flip(i, row, kept, code) {
  const item = itemOf(i, row), before = saved.reasons[code] ?? "";
  item.flip = kept ? "kept → dropped" : "dropped → kept";
  if (!kept) item.why = `${saved.name} dropped it: ${before}`;
  return item;
}

function valuesOf(column) {
  return Float32Array.from(column.codes, (code) => (code < column.first.length ? column.first[code] : NaN));
}

/** The mean of a column of views over each identity. */
function means(column) {
  const out = new Float32Array(heads.identities);
  for (let i = 0; i < out.length; i++) {
    let sum = 0, known = 0;
    for (let row = heads.start[i]; row < heads.start[i + 1]; row++) {
      const value = scoreAt(column, row);
      if (!Number.isNaN(value)) sum += value, known++;
    }
    out[i] = known ? sum / known : NaN;
  }
  return out;
}

function rangeOf(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (value < low) low = value;
  for (const value of values) if (value > high) high = value;
  return low < high ? [low, high] : [low - 0.5, low + 0.5];
}

function binOf(value, [low, high], bins) {
  return Math.min(bins - 1, Math.floor(((value - low) / (high - low)) * bins));
}

/** A reproducible order of rows. */
function mixed(rows, seed) {
  return rows.map((row) => [hash(row, seed), row]).sort(([a], [b]) => a - b).map(([, row]) => row);
}

function shuffled(size, count, seed) {
  if (size <= 4 * count) return mixed(range(0, size), seed).slice(0, count);
  const taken = new Set();
  for (let k = 0; taken.size < count; k++) taken.add(hash(k, seed) % size);
  return [...taken];
}

function hash(number, seed) {
  let x = (number ^ (seed * 0x9e3779b1)) >>> 0;
  x = Math.imul(x ^ (x >>> 16), 0x45d9f3b) >>> 0;
  x = Math.imul(x ^ (x >>> 16), 0x45d9f3b) >>> 0;
  return (x ^ (x >>> 16)) >>> 0;
}

onmessage = ({ data: { id, ask, ...given } }) => {
  try {
    postMessage({ id, answer: answers[ask](given) });
  } catch (error) {
    postMessage({ id, error: error.message });
  }
};
