// Judges heads by a policy as filters/policy.py does; the same test vectors run in both.
//
// heads: {identities: b, views: n, start: Uint32Array(b + 1), azimuth: column, elevation: column}; views of identity i are the
// rows start[i] to start[i + 1].
// column: {level, codes, first, last}: code k stands for the scores from first[k] to last[k] (32-bit numbers, rising); the
// code first.length is NaN and first.length + 1 says that the scorer did not look. A limit must not lie within a code.

export const KEEP = 1, DROP = -1, UNDECIDED = 0;
const WHOLE_CIRCLE = [-180, 180], ALL_ELEVATIONS = [-90, 90];

export function scoreName(score) {
  return typeof score === "string" ? score : `softmax(${score.softmax.join(", ")})`;
}

export function isQuantile(rule) {
  return rule.keep_top != null || rule.keep_bottom != null;
}

/** The first code whose scores are all at least `limit`; a score passes `min` if its code is at least this. */
export function firstPassing(column, limit) {
  return lowerBound(column.last, Math.fround(limit));
}

/** The number of codes whose scores are all at most `limit`; a score passes `max` if its code is below this. */
export function endPassing(column, limit) {
  const { first } = column, value = Math.fround(limit);
  let low = 0, high = first.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (first[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The index of the first number in rising `numbers` that is at least `value`. */
export function lowerBound(numbers, value) {
  let low = 0, high = numbers.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Which views lie in a sector, or null if all do. */
export function inSector(where, heads) {
  const [left, right] = where?.azimuth ?? WHOLE_CIRCLE, [low, high] = where?.elevation ?? ALL_ELEVATIONS;
  const turns = right - left < 360, tilts = low !== -90 || high !== 90;
  if (!turns && !tilts) return null;
  const inside = new Uint8Array(heads.views).fill(1), width = Math.fround(right - left), from = Math.fround(left);
  const around = Float32Array.from(heads.azimuth.first, (azimuth) => {
    const away = Math.fround(Math.fround(azimuth - from) % 360);
    return away < 0 ? Math.fround(away + 360) : away;
  });
  const turned = Uint8Array.from(around, (away) => (!turns || away <= width ? 1 : 0));
  const tilted = Uint8Array.from(heads.elevation.first, (elevation) =>
    !tilts || (elevation >= Math.fround(low) && elevation <= Math.fround(high)) ? 1 : 0);
  const azimuths = heads.azimuth.codes, elevations = heads.elevation.codes;
  for (let view = 0; view < inside.length; view++) inside[view] = turned[azimuths[view]] & tilted[elevations[view]];
  return inside;
}

/**
 * Apply the rules in order, then the decisions.
 *
 * decisions: {identities: Int8Array(b), views: Int8Array(n), version}; columnOf(rule.score) gives a column; `cache` is a Map
 * in which the outcome of rules that did not change is kept from call to call. `version` changes with the decisions on views;
 * `judgedBy` of a tally changes with the rows that its rule looks at.
 */
export function judge(policy, heads, columnOf, decisions, cache = new Map()) {
  const tallies = [], used = new Map();
  const remember = (key, make) => {
    const found = used.get(key) ?? cache.get(key) ?? make();
    used.set(key, found);
    return found;
  };
  for (const rule of policy.rules) {
    const column = columnOf(rule.score);
    const where = JSON.stringify([rule.name, rule.score, rule.where, decisions.version]);
    const judged = remember(where, () => judgedRows(rule, heads, column, decisions));
    const before = isQuantile(rule) ? tallies.map((tally) => tally.key) : [];
    const key = JSON.stringify([rule, decisions.version, before]), judgedBy = isQuantile(rule) ? key : where;
    tallies.push(remember(key, () => ({ key, judgedBy, ...counted(judgeRule(rule, heads, column, decisions, tallies, judged)) })));
  }
  const failed = (drops, rows) => remember(JSON.stringify([drops, ...tallies.map((tally) => tally.key)]), () => count(tallies, drops, rows));
  const outcome = conclude(policy, heads, tallies, decisions, failed("view", heads.views), failed("identity", heads.identities));
  cache.clear();
  for (const [key, found] of used) cache.set(key, found);
  return outcome;
}

/** The rows that a rule looks at, by its sector and by decisions that drop views. */
function judgedRows(rule, heads, column, decisions) {
  const ofIdentities = column.level === "identity", name = scoreName(rule.score);
  if (ofIdentities && (rule.where || rule.drop === "view"))
    throw new Error(`rule ${rule.name}: ${name} is a score of identities, so where and drop = view mean nothing`);
  const judged = (ofIdentities ? null : inSector(rule.where, heads)) ?? new Uint8Array(column.codes.length).fill(1);
  const never = column.first.length + 1, { codes } = column, { views } = decisions;
  let unscored = 0;
  for (let row = 0; row < judged.length; row++) {
    if (!ofIdentities && views[row] === DROP) judged[row] = 0;
    if (judged[row] && codes[row] === never) unscored++;
  }
  if (unscored) throw new Error(`rule ${rule.name}: ${name} was not scored for ${unscored} of the rows that it judges`);
  return judged;
}

function judgeRule(rule, heads, column, decisions, before, looked) {
  const ofIdentities = column.level === "identity", judged = isQuantile(rule) ? looked.slice() : looked;
  if (isQuantile(rule)) leaveOutFailed(judged, heads, before, ofIdentities);
  const { failing, low, high } = isQuantile(rule) ? failingShare(rule, column, judged) : failingLimits(rule, column, judged);
  if (ofIdentities) return { level: "identity", drops: "identity", judged, failing, dropping: failing, low, high };
  const { views } = decisions;
  if (views.includes(KEEP)) for (let view = 0; view < failing.length; view++) if (views[view] === KEEP) failing[view] = 0;
  if (rule.drop !== "identity") return { level: "view", drops: "view", judged, failing, dropping: failing, low, high };
  return { level: "view", drops: "identity", judged, failing, dropping: tooMany(rule, heads, judged, failing), low, high };
}

function leaveOutFailed(judged, heads, before, ofIdentities) {
  for (const tally of before) {
    if (tally.drops === "identity" && ofIdentities) {
      for (let row = 0; row < judged.length; row++) if (tally.dropping[row]) judged[row] = 0;
    } else if (tally.drops === "identity") {
      for (let i = 0; i < heads.identities; i++) if (tally.dropping[i]) judged.fill(0, heads.start[i], heads.start[i + 1]);
    } else if (!ofIdentities) {
      for (let row = 0; row < judged.length; row++) if (tally.dropping[row]) judged[row] = 0;
    }
  }
}

function failingLimits(rule, column, judged) {
  const from = rule.min == null ? 0 : firstPassing(column, rule.min);
  const end = rule.max == null ? column.first.length : endPassing(column, rule.max);
  const failing = new Uint8Array(judged.length), { codes } = column;
  // The signs of two differences instead of branches, which random scores would mispredict.
  for (let row = 0; row < failing.length; row++)
    failing[row] = judged[row] & (((codes[row] - from) >>> 31) | ((end - 1 - codes[row]) >>> 31));
  return { failing, low: rule.min ?? -Infinity, high: rule.max ?? Infinity };
}

/** A share of the judged passes; equal scores pass in the order of the rows. */
function failingShare(rule, column, judged) {
  const { codes, first, last } = column, top = rule.keep_top != null, size = first.length;
  const counts = new Uint32Array(size);
  let ranked = 0;
  for (let row = 0; row < judged.length; row++) if (judged[row] && codes[row] < size) counts[codes[row]]++, ranked++;
  let room = Math.ceil((top ? rule.keep_top : rule.keep_bottom) * ranked - 1e-9);
  const passes = new Uint32Array(size);
  let edge = -1;
  for (let k = 0; k < size && room > 0; k++) {
    const code = top ? size - 1 - k : k;
    passes[code] = Math.min(counts[code], room);
    room -= passes[code];
    if (passes[code]) edge = code;
  }
  const failing = new Uint8Array(judged.length);
  for (let row = 0; row < failing.length; row++) {
    if (!judged[row]) continue;
    const code = codes[row];
    if (code < size && passes[code] > 0) passes[code]--;
    else failing[row] = 1;
  }
  if (edge < 0) return { failing, low: Infinity, high: -Infinity };
  return top ? { failing, low: first[edge], high: Infinity } : { failing, low: -Infinity, high: last[edge] };
}

function tooMany(rule, heads, judged, failing) {
  const dropping = new Uint8Array(heads.identities), { start } = heads;
  for (let i = 0; i < dropping.length; i++) {
    let looked = 0, failed = 0;
    for (let view = start[i], end = start[i + 1]; view < end; view++) {
      looked += judged[view];
      failed += failing[view];
    }
    if (rule.min_passing != null) dropping[i] = looked - failed < rule.min_passing ? 1 : 0;
    else if (rule.max_failing_share != null) dropping[i] = failed > rule.max_failing_share * looked ? 1 : 0;
    else dropping[i] = failed > (rule.max_failing ?? 0) ? 1 : 0;
  }
  return dropping;
}

function conclude(policy, heads, tallies, decisions, failedViews, failedIdentities) {
  const keepView = new Uint8Array(heads.views), keepIdentity = new Uint8Array(heads.identities);
  const { start } = heads, { rules } = failedViews, decided = decisions.views;
  let identities = 0, views = 0, empty = 0, incomplete = 0;
  for (let i = 0; i < heads.identities; i++) {
    const begin = start[i], end = start[i + 1];
    let left = 0;
    for (let view = begin; view < end; view++) {
      const passes = Number(rules[view] === 0) & Number(decided[view] !== DROP);
      keepView[view] = passes;
      left += passes;
    }
    let keeps = failedIdentities.rules[i] === 0;
    if (keeps && left === 0) {
      empty++;
      keeps = false;
    } else if (keeps && policy.whole_identities && left < end - begin) {
      incomplete++;
      keeps = false;
    }
    if (decisions.identities[i] !== UNDECIDED) keeps = decisions.identities[i] === KEEP && left > 0;
    keepIdentity[i] = keeps ? 1 : 0;
    if (keeps) {
      identities++;
      views += left;
    } else keepView.fill(0, begin, end);
  }
  const alone = { view: failedViews.alone, identity: failedIdentities.alone };
  const withAlone = tallies.map((tally, r) => ({ ...tally, alone: alone[tally.drops][r] }));
  return { tallies: withAlone, keepIdentity, keepView, identities, views, empty, incomplete };
}

/** How many rules each row fails, and for each rule the rows that fail no other. */
function count(tallies, drops, rows) {
  const own = tallies.flatMap((tally, r) => (tally.drops === drops ? [r] : [])), alone = new Uint32Array(tallies.length);
  if (own.length === 1) {
    alone[own[0]] = tallies[own[0]].dropped;
    return { rules: tallies[own[0]].dropping, alone };
  }
  const rules = new Uint8Array(rows), sum = new Uint16Array(rows);
  for (const r of own) {
    const { dropping } = tallies[r], words = new Uint32Array(dropping.buffer, 0, rows >> 2);
    const add = (row) => { rules[row] += dropping[row]; sum[row] += dropping[row] * r; };
    // Most words hold four rows that pass.
    for (let k = 0; k < words.length; k++) if (words[k]) for (let row = 4 * k; row < 4 * k + 4; row++) add(row);
    for (let row = 4 * words.length; row < rows; row++) add(row);
  }
  // Where one rule fails, the sum of the numbers of the rules is its own.
  if (own.length) for (let row = 0; row < rows; row++) if (rules[row] === 1) alone[sum[row]]++;
  return { rules, alone };
}

function counted(tally) {
  const judgedCount = total(tally.judged), failingCount = total(tally.failing);
  return { ...tally, judgedCount, failingCount, dropped: tally.dropping === tally.failing ? failingCount : total(tally.dropping) };
}

/** The sum of flags, four at a time. */
function total(flags) {
  const words = new Uint32Array(flags.buffer, 0, flags.length >> 2);
  let sum = 0;
  for (let k = 0; k < words.length; k++) sum += (Math.imul(words[k], 0x01010101) >>> 24);
  for (let row = words.length << 2; row < flags.length; row++) sum += flags[row];
  return sum;
}

/** The reason of a rule as filters/rules.py writes it. */
export function describe(rule) {
  const percent = 100 * (rule.keep_top ?? rule.keep_bottom ?? 0);
  const limits = [rule.min != null ? `below ${short(rule.min)}` : "", rule.max != null ? `above ${short(rule.max)}` : ""];
  const why = isQuantile(rule)
    ? `${scoreName(rule.score)} not among the ${rule.keep_top != null ? "highest" : "lowest"} ${short(percent)} %`
    : `${scoreName(rule.score)} ${limits.filter(Boolean).join(" or ")}`;
  const parts = [["azimuth", WHOLE_CIRCLE], ["elevation", ALL_ELEVATIONS]]
    .map(([name, whole]) => [name, rule.where?.[name] ?? whole, whole])
    .filter(([, ends, whole]) => ends[0] !== whole[0] || ends[1] !== whole[1])
    .map(([name, ends]) => `${name} ${short(ends[0])} to ${short(ends[1])}`);
  return `${rule.name}: ${why}${parts.length ? ` (${parts.join(", ")})` : ""}`;
}

/** A number with six significant digits, as Python's :g for the numbers that occur here. */
export function short(number) {
  return String(Number(Number(number).toPrecision(6)));
}
