// The page: what happens when a person changes something.
import * as api from "./api.js";
import { byId, el, fill, perFrame, whenQuiet } from "./dom.js";
import { makeGallery, nameOf } from "./gallery.js";
import { labelPanel } from "./labels.js";
import { makeOrbit } from "./orbit.js";
import { describe } from "./policy.js";
import { ruleCards, snap } from "./rules.js";
import { ask, columnOf, fetchColumns, fetchHeads, fits, levelOf, newRule, state, unused } from "./state.js";
import { makeTabs } from "./tabs.js";
import { makeVerdicts } from "./verdicts.js";

let cards, verdicts;

function say(error) {
  byId("error").textContent = error ? error.message : "";
}

/** Show another policy, or this one after its rules changed in kind. */
async function setPolicy(policy) {
  say(null);
  try {
    await Promise.all([fetchColumns(policy), state.ready]);
  } catch (error) {
    return say(error);
  }
  state.policy = policy;
  byId("whole").checked = Boolean(policy.whole_identities);
  byId("about").textContent = policy.about ?? "";
  cards = ruleCards(byId("rules"), policy, { change, remove, look, level: (rule) => levelOf(rule.score) });
  const names = policy.rules.map((rule, r) => [String(r), rule.name]);
  for (const id of ["rule", "which"]) fill(byId(id), id === "which" ? [["", "all rules"], ...names] : names);
  state.labels?.rules(policy.rules.map(describe));
  await judge();
  // From now on limits can be moved; pictures follow.
  document.documentElement.dataset.ready ??= Math.round(performance.now());
  await tabs.show();
}

function change(r, fields, whole = false) {
  const rule = state.policy.rules[r];
  for (const [name, value] of Object.entries(fields)) {
    const isLimit = (name === "min" || name === "max") && value !== null;
    if (value === null || (name === "drop" && levelOf(rule.score) === "identity")) delete rule[name];
    else rule[name] = isLimit ? snap(columnOf(rule.score), name, value) : value;
  }
  if (whole) setPolicy(state.policy);
  else judgeSoon();
}

function remove(r) {
  if (state.policy.rules.length === 1) return say(new Error("a policy has one rule or more; add another before this one is removed"));
  state.policy.rules.splice(r, 1);
  setPolicy(state.policy);
}

async function judge() {
  const { policy } = state;
  try {
    const result = await ask("judge", { policy });
    state.result = result;
    cards.update(result);
    say(null);
    const gigabytes = (state.about.bytes * result.views) / Math.max(1, state.about.views) / 1e9;
    byId("counts").replaceChildren("keeps ", el("b", { textContent: result.identities.toLocaleString() }), ` of ${state.about.identities.toLocaleString()} identities, `, el("b", { textContent: result.views.toLocaleString() }), ` of ${state.about.views.toLocaleString()} views, ${gigabytes.toPrecision(2)} GB`);
    tellFlips(result.flips);
    // A limit that moves changes no histogram.
    for (const r of cards.outdated(result)) cards.draw(r, await ask("histogram", { rule: r }));
  } catch (error) {
    say(error);
  }
}

let judging = false, again = false;
/** Judge now, and once more if something changed meanwhile; then show the tab anew, unless a verdict was the cause. */
async function judgeSoon(anew = true) {
  if (judging) {
    again = true;
    return;
  }
  judging = true;
  do {
    again = false;
    await judge();
  } while (again);
  judging = false;
  if (anew) showSoon();
}
// While a limit is dragged its counts come first.
const showSoon = whenQuiet(() => tabs.show(), 120);

function tellFlips(flips) {
  byId("flips").textContent = flips ? `Against it: ${flips.lost} identities and ${flips.lostViews} views are lost, ${flips.gained} identities and ${flips.gainedViews} views are gained.` : "";
}

function look(r) {
  byId("kind").value = "borderline";
  byId("rule").value = String(r);
  byId("find").value = "";
  tabs.open("gallery");
}

// Verdicts

function standing(item) {
  return state.made.findLast((one) => one.identity === item.identity && one.view === item.view && !one.blind);
}

/** Whether a key labels a head instead of deciding on it. */
function isLabelling() {
  return tabs.current() === "labels" && orbit.identity() === null;
}

async function decide(item, verdict) {
  if (api.isOffline) return say(new Error("this page is a copy to look at; verdicts need the server"));
  const blind = isLabelling(), before = standing(item), reason = state.reason;
  verdicts.decide(item, verdict, reason, before?.verdict === "clear" ? undefined : before, blind ? { blind } : {});
  // Before anything is awaited, so that the next key meets the next head.
  if (blind) label(item, verdict);
  else if (orbit.identity() === null) gallery.move(1);
  await remember({ ...item, verdict, reason, blind, who: byId("who").value });
}

async function remember({ identity, view, verdict, reason, blind = false, who }) {
  state.made.push({ identity, view, verdict, reason, blind, who });
  (blind ? blindGallery : gallery).mark({ identity, view }, verdict);
  if (blind) return;
  await ask("decide", { made: [state.made.at(-1)] });
  judgeSoon(tabs.current() !== "gallery");
}

/** Take over what other people have decided meanwhile; verdicts that are still on their way come after it. */
async function refresh() {
  try {
    const known = state.made.length, queued = verdicts.waiting(), found = await api.decisions();
    const recorded = new Set(found.map(({ id }) => id)), since = state.made.slice(known);
    state.made = [...found, ...queued.filter((one) => !recorded.has(one.id)), ...since];
    if (state.made.length === known) return;
    await ask("decide", { made: state.made });
    judgeSoon();
  } catch (error) {
    say(error);
  }
}

async function step(back) {
  const one = back ? verdicts.undo() : verdicts.redo();
  if (one) await remember({ ...one.item, verdict: one.verdict, reason: one.reason, who: byId("who").value });
}

// Labels

async function beginLabels(r, count) {
  const items = await ask("items", { kind: "borderline", rule: r, count, seed: ++state.seed }), rule = state.policy.rules[r], column = columnOf(rule.score);
  const middle = rule.min ?? rule.max ?? 0, sign = rule.min != null ? -1 : 1;
  state.blind = { r, labels: new Map(), toScore: (beyond) => snap(column, rule.min != null ? "min" : "max", Number((middle + sign * beyond).toPrecision(5))), beyond: (item) => sign * (item.score - middle) };
  const shown = blindGallery.show(items.map((item) => [Math.random(), item]).sort(([a], [b]) => a - b).map(([, item]) => item), { blind: true });
  blindGallery.move(0);
  byId("blind").focus();
  await shown;
}

function label(item, verdict) {
  const { labels, beyond, toScore } = state.blind;
  if (verdict === "keep" || verdict === "drop") labels.set(nameOf(item), { beyond: beyond(item), bad: verdict === "drop" });
  else labels.delete(nameOf(item));
  state.labels.report([...labels.values()], toScore);
  blindGallery.move(1);
}

// Start

const gallery = makeGallery(byId("grid"), { open: (item) => orbit.open(item.identity), select() {} });
const tabs = makeTabs(gallery, { change, policy: setPolicy, say });
let blindGallery, orbit;
const VERDICT_KEYS = { k: "keep", d: "drop", u: "unsure", c: "clear" };
const KEYS = [["K D U C", "keep, drop, unsure, clear the selected head or view"], ["1 to 9", "reason of the next verdicts"], ["Z, Shift+Z", "undo, redo"], ["arrows", "move"], ["Enter", "open the identity; there, Left and Right turn it, N and P go to the next and previous"], ["/", "find an identity"], ["?", "this help"]];

function target() {
  if (orbit.identity() !== null) return { identity: orbit.identity(), view: null };
  return tabs.current() === "labels" ? (state.blind && blindGallery.selected()) : gallery.selected();
}

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select, textarea") && event.target.type !== "checkbox" && event.target.type !== "range") return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase(), reason = state.about?.reasons[Number(event.key) - 1];
  if (key in VERDICT_KEYS && target()) decide(target(), VERDICT_KEYS[key]);
  else if (key === "z") step(!event.shiftKey);
  else if (reason) setReason(state.reason === reason ? "" : reason);
  else if (key === "/") { tabs.open("gallery"); byId("find").focus(); event.preventDefault(); }
  else if (key === "?") byId("keys").showModal();
  else if ((key === "n" || key === "p") && orbit.identity() !== null) orbit.step(key === "n" ? 1 : -1);
});

function setReason(reason) {
  state.reason = reason;
  tellQueue(verdicts.waiting().length);
}

function tellQueue(count, problem = "") {
  byId("queue").textContent = [state.reason && `reason: ${state.reason}`, count && `${count} to send`, problem].filter(Boolean).join(", ");
}

function policies() {
  const { presets, saved } = state.about, names = (from, kind) => Object.keys(from).filter((name) => fits(from[name])).map((name) => [`${kind}/${name}`, `${name} (${kind})`]);
  return [...names(saved, "saved"), ...names(presets, "preset"), ["new/mine", "a new one"]];
}

function listSaved() {
  fill(byId("policy"), policies());
  fill(byId("compare"), [["", "nothing"], ...Object.keys(state.about.saved).map((name) => [name, name])]);
}

async function choosePolicy() {
  const [kind, name] = byId("policy").value.split("/");
  byId("name").value = name;
  const { presets, saved, scores } = state.about;
  await setPolicy(kind === "new" ? { name, rules: [await newRule(scores[0].name, scores[0].name)] } : structuredClone((kind === "preset" ? presets : saved)[name]));
}

async function start() {
  const about = (state.about = await api.about());
  state.ready = fetchHeads();
  byId("dataset").textContent = `${about.name}: ${about.source}, ${about.rig}`;
  document.title = `${about.name} – spinset review`;
  byId("who").value = localStorage.getItem("spinset-who") ?? about.who;
  byId("who").onchange = () => localStorage.setItem("spinset-who", byId("who").value);
  verdicts = makeVerdicts({ dataset: about.fingerprint, who: () => byId("who").value || about.who, changed: tellQueue });
  orbit = makeOrbit(byId("orbit"), { ask, members: about.members, buttons: (item, text) => ["keep", "drop"].map((verdict) => el("button", { textContent: `${verdict} ${text}`, onclick: () => decide(item, verdict) })) });
  state.labels = labelPanel(byId("labels"), { start: beginLabels, setLimit: (value) => { const rule = state.policy.rules[state.blind.r]; change(state.blind.r, { [rule.min != null ? "min" : "max"]: value }); } });
  byId("labels").append(el("div", { id: "blind", tabIndex: 0, className: "grid" }));
  blindGallery = makeGallery(byId("blind"), { open() {}, select() {} });
  byId("keylist").append(...KEYS.map(([key, text]) => el("tr", {}, el("td", {}, el("kbd", { textContent: key })), el("td", { textContent: text }))), el("tr", {}, el("td", { textContent: "reasons" }), el("td", { textContent: about.reasons.map((reason, k) => `${k + 1} ${reason}`).join(", ") })));
  const scores = about.scores.map(({ name, about: text }) => [JSON.stringify(name), `${name}`, text]);
  for (const id of ["score", "x", "y"]) fill(byId(id), scores);
  if (scores.length > 1) byId("y").value = scores[1][0];
  state.made = about.decisions;
  listSaved();
  await choosePolicy();
  addEventListener("focus", refresh);
}

byId("policy").onchange = choosePolicy;
byId("whole").onchange = () => { state.policy.whole_identities = byId("whole").checked; judgeSoon(); };
byId("add").onsubmit = async (event) => {
  event.preventDefault();
  const score = JSON.parse(byId("score").value);
  try {
    await setPolicy({ ...state.policy, rules: [...state.policy.rules, await newRule(score, unused(score.split(".")[1]))] });
  } catch (error) {
    say(error);
  }
};
byId("save").onsubmit = async (event) => {
  event.preventDefault();
  try {
    const made = await api.save(byId("name").value, state.policy);
    state.about.saved[made.name] = structuredClone(state.policy);
    listSaved();
    byId("saved").textContent = `Saved ${made.name}: ${made.summary.identities.kept} identities, ${made.summary.views.kept} views, sha256 ${made.sha256.slice(0, 12)}`;
  } catch (error) {
    say(error);
  }
};
byId("compare").onchange = async () => {
  const name = byId("compare").value;
  try {
    tellFlips(await ask("compare", { selection: name ? await api.selection(name, state.heads) : null }));
    tabs.show();
  } catch (error) {
    say(error);
  }
};
byId("undo").onclick = () => step(true);
byId("redo").onclick = () => step(false);
byId("help").onclick = () => byId("keys").showModal();
byId("shuffle").onclick = () => { state.seed++; tabs.show(); };
for (const id of ["kind", "rule", "find", "x", "y", "which"]) byId(id).onchange = tabs.show;
for (const button of byId("tabs").children) button.onclick = () => tabs.open(button.dataset.tab);
const repaint = perFrame(() => { cards?.repaint(); tabs.show(); });
addEventListener("resize", repaint);
matchMedia("(prefers-color-scheme: dark)").onchange = repaint;
start().catch(say);
