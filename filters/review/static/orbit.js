// One identity: a picture to turn by dragging, all its views, its scores, and where it came from.
import * as api from "./api.js";
import { el } from "./dom.js";

const SIDE = 256, SMALL = 64, KEPT = 8;

/** Returns {open(identity), shown(), step(by)}; `ask` asks the worker, `on.verdicts` lists buttons for an item. */
export function makeOrbit(dialog, { ask, members, buttons }) {
  const sheets = new Map();
  let views = [], at = 0, identity = null, member = "rgb";
  const turn = el("canvas", { id: "turn", width: SIDE, height: SIDE, tabIndex: 0 }), strip = el("canvas", { id: "strip", tabIndex: -1 });
  const caption = el("p"), scores = el("table"), lineage = el("table"), title = el("h2"), marks = el("div", { className: "row" });
  const which = el("select", { ariaLabel: "picture", onchange: () => { member = which.value; draw(); } }, ...members.map((name) => el("option", { value: name, textContent: name === "rgb" ? "colour" : "normals" })));
  dialog.replaceChildren(title, el("div", { className: "sides" }, el("div", {}, turn, el("div", { className: "row" }, which, caption), marks), el("div", {}, scores)), strip, lineage,
    el("form", { method: "dialog", className: "row" }, el("button", { textContent: "Close" })));
  turn.setAttribute("role", "img");

  const order = () => views.map((_, k) => k).sort((a, b) => views[a].azimuth - views[b].azimuth);
  const move = (step) => {
    // The next view by azimuth among those of about the same elevation.
    const level = order().filter((k) => Math.abs(views[k].elevation - views[at].elevation) < 8), place = level.indexOf(at);
    at = level[(place + step + level.length) % level.length];
    draw();
  };
  turn.onpointerdown = (down) => {
    let from = down.offsetX;
    turn.setPointerCapture(down.pointerId);
    turn.onpointermove = (event) => { if (Math.abs(event.offsetX - from) > 12) { move(event.offsetX > from ? 1 : -1); from = event.offsetX; } };
    turn.onpointerup = () => { turn.onpointermove = null; };
  };
  dialog.addEventListener("keydown", (event) => { if (event.key === "ArrowRight" || event.key === "ArrowLeft") { move(event.key === "ArrowRight" ? 1 : -1); event.preventDefault(); } });
  strip.onclick = (event) => {
    const columns = Math.floor(strip.width / SMALL), k = Math.floor((event.offsetY * strip.width) / strip.clientWidth / SMALL) * columns + Math.floor((event.offsetX * strip.width) / strip.clientWidth / SMALL);
    if (k < views.length) { at = k; draw(); }
  };

  /** One image of all views of an identity, kept for a while, so that neighbours can be fetched ahead. */
  function sheet(of, name) {
    const key = `${of[0].identity}/${name}`;
    if (!sheets.has(key)) sheets.set(key, api.atlas(of.slice(0, 256).map((view) => [view.identity, view.view]), name, SIDE));
    if (sheets.size > KEPT) sheets.delete(sheets.keys().next().value);
    return sheets.get(key);
  }

  async function draw() {
    const shown = views, { image, damaged } = await sheet(views, member);
    if (shown !== views) return;
    const columns = Math.max(1, Math.ceil(Math.sqrt(views.length))), view = views[at];
    const copy = (pen, k, x, y, side) => pen.drawImage(image, (k % columns) * SIDE, Math.floor(k / columns) * SIDE, SIDE, SIDE, x, y, side, side);
    copy(turn.getContext("2d"), at, 0, 0, SIDE);
    caption.textContent = `view ${view.view}: azimuth ${view.azimuth.toFixed(0)}°, elevation ${view.elevation.toFixed(0)}°${damaged.includes(at) ? ", damaged" : ""}; ${view.keeps ? "kept" : `dropped (${view.why})`}`;
    strip.width = Math.floor((strip.clientWidth || 800) / SMALL) * SMALL;
    const across = strip.width / SMALL;
    strip.height = Math.ceil(views.length / across) * SMALL;
    const pen = strip.getContext("2d"), style = getComputedStyle(document.documentElement);
    views.forEach((one, k) => {
      const x = (k % across) * SMALL, y = Math.floor(k / across) * SMALL;
      copy(pen, k, x + 2, y + 2, SMALL - 4);
      pen.lineWidth = k === at ? 3 : 1;
      pen.setLineDash(one.keeps ? [] : [3, 3]);
      pen.strokeStyle = style.getPropertyValue(k === at ? "--ink" : one.keeps ? "--accent" : "--warn");
      pen.strokeRect(x + 1.5, y + 1.5, SMALL - 3, SMALL - 3);
    });
    marks.replaceChildren(...buttons(view, `view ${view.view}`), ...buttons({ ...view, view: null }, `identity ${view.identity}`));
    table();
  }

  let facts = null;
  function table() {
    if (!facts) return;
    const number = (x) => (x === null || x === undefined ? "–" : Number(x.toPrecision(4)));
    scores.replaceChildren(...Object.entries(facts.view_scores).map(([name, values]) => rowOf(name, number(values[at]))), ...Object.entries(facts.scores).map(([name, value]) => rowOf(`${name} (identity)`, number(value))));
  }

  async function open(asked) {
    const found = await ask("view", { identity: asked });
    identity = asked;
    views = found.views;
    at = Math.max(0, views.findIndex((view) => view.view === found.item.show));
    facts = null;
    title.textContent = `Identity ${asked}: ${found.item.keeps ? "kept" : `dropped: ${found.item.why}`}`;
    if (!dialog.open) dialog.showModal();
    turn.focus();
    await draw();
    facts = await api.identity(asked);
    lineage.replaceChildren();
    scores.replaceChildren();
    if (identity !== asked || !facts) return;
    table();
    const defects = facts.row.defects?.map((one) => `${one.kind} ${one.strength.toFixed(2)}`).join(", ");
    const lines = { "planted defects": facts.row.defects == null ? "not known" : defects || "none", seed: facts.row.seed, outcome: facts.row.outcome, shard: facts.shard, source: `${facts.source?.name ?? ""} ${facts.source?.version ?? ""}`, made: `${facts.made?.finished ?? ""} on ${facts.made?.host ?? ""}`, mesh: JSON.stringify(facts.row.mesh ?? null) };
    lineage.replaceChildren(...Object.entries(lines).map(([name, value]) => rowOf(name, value)));
    for (const step of [1, -1]) {
      const next = await ask("neighbour", { identity: asked, step });
      if (next !== null) await sheet((await ask("view", { identity: next })).views, member);
    }
  }

  return { open, identity: () => (dialog.open ? identity : null), view: () => views[at], step: async (by) => { const next = await ask("neighbour", { identity, step: by }); if (next !== null) open(next); } };
}

function rowOf(name, value) {
  return el("tr", {}, el("th", { textContent: name }), el("td", { textContent: String(value) }));
}
