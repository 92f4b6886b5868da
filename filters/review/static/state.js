// What the page knows: the dataset, the policy, the columns that have arrived, and the worker that judges.
import * as api from "./api.js";
import { busy } from "./dom.js";
import { isQuantile } from "./policy.js";

export const state = { about: null, heads: null, policy: null, columns: new Map(), exact: new Set(), result: null, ready: null, made: [], reason: "", seed: 1, blind: null };

const worker = api.isOffline ? new Worker(globalThis.SPINSET_OFFLINE.worker) : new Worker("/static/worker.js", { type: "module" });
const waiting = new Map();
let asked = 0;
worker.onmessage = ({ data: { id, answer, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error) reject(new Error(error));
  else resolve(answer);
};

/** Ask the worker; answers come in order. */
export function ask(what, given = {}) {
  return busy(new Promise((resolve, reject) => {
    waiting.set(++asked, { resolve, reject });
    worker.postMessage({ id: asked, ask: what, ...given });
  }));
}

export const levelOf = (score) => (typeof score === "string" ? state.about.scores.find((one) => one.name === score)?.level : "view");
export const columnOf = (score) => state.columns.get(JSON.stringify(score));

/** Fetch the heads, and hand them to the worker with the decisions on them. */
export async function fetchHeads() {
  state.heads = await api.heads();
  await ask("start", state.heads);
  await ask("decide", { made: state.about.decisions });
}

/** Fetch the columns of a policy that are not here yet; shares of views need every score apart. */
export async function fetchColumns(policy) {
  await Promise.all(policy.rules.map(async (rule) => {
    const key = JSON.stringify(rule.score), exact = isQuantile(rule) && levelOf(rule.score) === "view";
    if (state.columns.has(key) && (!exact || state.exact.has(key))) return;
    const column = await api.column(rule.score, exact, state.about);
    state.columns.set(key, column);
    if (exact) state.exact.add(key);
    await ask("column", { key, column });
  }));
}

/** A rule on a score that nothing fails yet. */
export async function newRule(score, name) {
  const rule = { name, score, min: -Infinity };
  await fetchColumns({ rules: [rule] });
  rule.min = columnOf(score).first[0] ?? 0;
  return rule;
}

/** A name that no rule has. */
export function unused(name) {
  const names = state.policy.rules.map((rule) => rule.name);
  return names.includes(name) ? unused(`${name}*`) : name;
}

/** Whether the dataset has every score that a policy reads. */
export const fits = (policy) => policy.rules.every((rule) => (typeof rule.score === "string" ? [rule.score] : rule.score.softmax).every((name) => state.about.scores.some((one) => one.name === name)));
