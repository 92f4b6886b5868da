// The gallery, the map of two scores and the map of viewpoints, of which one is shown.
import { scoreMap, viewpoints } from "./charts.js";
import { byId } from "./dom.js";
import { isQuantile, scoreName } from "./policy.js";
import { ask, fetchColumns, levelOf, state, unused } from "./state.js";

const BINS = 64, TILT = 15, SHOWN = 48;
const LEGENDS = {
  borderline: "The last that pass and the first that fail, one of each identity.", worst: "The farthest beyond the limit.", random: "A random sample of identities.",
  flips: "What this policy and the saved selection decide differently.", decided: "Verdicts of people; those against the rules are marked.", search: "",
};

/** `on` has change(rule, fields), policy(policy) and say(error). Returns {show(), open(name), current()}. */
export function makeTabs(gallery, on) {
  const tabs = { gallery: () => showGallery(gallery), map: () => showMap(on), viewpoints: () => showViewpoints(on), labels: async () => {} };
  let current = "gallery";
  async function show() {
    if (!state.result) return;
    try {
      await tabs[current]();
    } catch (error) {
      on.say(error);
    }
  }
  return {
    show,
    current: () => current,
    open(name) {
      current = name;
      for (const button of byId("tabs").children) button.setAttribute("aria-selected", String(button.dataset.tab === name));
      for (const id of Object.keys(tabs)) byId(id).hidden = id !== name;
      show();
    },
  };
}

async function showGallery(gallery) {
  const kind = byId("find").value.trim() ? "search" : byId("kind").value;
  byId("ofRule").hidden = kind !== "borderline" && kind !== "worst";
  const items = kind === "flips" && !byId("compare").value ? [] : await ask("items", { kind, rule: Number(byId("rule").value), count: SHOWN, seed: state.seed, text: byId("find").value });
  byId("legend").textContent = items.length ? LEGENDS[kind] : kind === "flips" ? "Nothing differs, or no selection to compare with is chosen." : kind === "search" ? "There is no such identity or view." : "There are none.";
  await gallery.show(items);
}

async function showMap(on) {
  const [x, y] = [byId("x").value, byId("y").value].map((text) => JSON.parse(text));
  await fetchColumns({ rules: [{ score: x }, { score: y }] });
  const found = await ask("map", { x, y, bins: BINS });
  const limitOf = (score) => { const rule = state.policy.rules.find((one) => JSON.stringify(one.score) === JSON.stringify(score)); return rule?.min ?? rule?.max; };
  const at = scoreMap(byId("mapcanvas"), found, BINS, [x, y].map(scoreName), { x: limitOf(x), y: limitOf(y) });
  byId("mapnote").textContent = `Darker cells hold more ${found.level === "view" ? "views" : "identities"}; the hatched part of a cell is dropped. Drag to move the limits of the rules on these scores.`;
  const drag = (event) => [x, y].forEach((score, k) => {
    const r = state.policy.rules.findIndex((one) => JSON.stringify(one.score) === JSON.stringify(score) && !isQuantile(one));
    if (r >= 0) on.change(r, { [state.policy.rules[r].min != null ? "min" : "max"]: Number(at(event.offsetX, event.offsetY)[k].toPrecision(4)) });
  });
  byId("mapcanvas").onpointerdown = (down) => {
    byId("mapcanvas").setPointerCapture(down.pointerId);
    byId("mapcanvas").onpointermove = drag;
    byId("mapcanvas").onpointerup = () => { byId("mapcanvas").onpointermove = null; };
    drag(down);
  };
}

async function showViewpoints(on) {
  const which = byId("which").value, rule = which === "" ? null : Number(which), turn = turnOf(state.heads), cells = await ask("viewpoints", { rule, turn, tilt: TILT });
  const cellAt = viewpoints(byId("viewcanvas"), cells, turn);
  byId("viewcanvas").onclick = (event) => {
    const cell = cellAt(event.offsetX, event.offsetY);
    if (cell) ownLimit(cell, rule, on);
  };
}

/** Degrees of azimuth of a cell: one cell for each azimuth of a ring of few. */
function turnOf({ azimuth: { first } }) {
  return first.length <= 24 && 360 % first.length === 0 ? 360 / first.length : 30;
}

/** A rule for the views of one direction, beginning at the limit of the rule that is shown. */
function ownLimit({ azimuth, elevation }, r, on) {
  const turn = turnOf(state.heads);
  const from = state.policy.rules[r ?? state.policy.rules.findIndex((rule) => levelOf(rule.score) === "view")];
  if (!from) return on.say(new Error("no rule judges views; add one first"));
  const left = (((azimuth - turn / 2 + 180) % 360) + 360) % 360 - 180, low = Math.max(-90, Math.ceil(elevation - TILT / 2)), high = Math.min(90, Math.floor(elevation + TILT / 2));
  const rule = { ...structuredClone(from), name: unused(`${from.name} at ${azimuth > 180 ? azimuth - 360 : azimuth}, ${elevation}`), where: { azimuth: [left, left + turn], elevation: [low, high] } };
  state.policy.rules.push(rule);
  on.policy(state.policy);
}
