// A grid of heads: one request for the pictures of a page of it, a frame that shows the outcome, and a selected one.
import * as api from "./api.js";
import { el } from "./dom.js";

const SIDE = 128;
const MARKS = { keep: "K", drop: "D", unsure: "?", clear: "" };

/** on: open(item), select(item). Returns {show(items, blind), mark(item, verdict), move(step), selected()}. */
export function makeGallery(grid, on) {
  let items = [], figures = [], at = -1;
  const select = (k) => {
    if (!items.length) return;
    figures[at]?.setAttribute("aria-selected", "false");
    at = Math.max(0, Math.min(items.length - 1, k));
    figures[at].setAttribute("aria-selected", "true");
    figures[at].scrollIntoView({ block: "nearest" });
    on.select(items[at]);
  };
  const across = () => Math.max(1, getComputedStyle(grid).gridTemplateColumns.split(" ").length);
  grid.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across(), ArrowUp: -across() }[event.key];
    if (step) { event.preventDefault(); select(at + step); }
    if (event.key === "Enter" && items[at]) on.open(items[at]);
  });

  async function show(found, { blind = false } = {}) {
    items = found;
    at = -1;
    figures = items.map((item, k) => figure(item, blind, { onclick: () => { select(k); grid.focus({ preventScroll: true }); }, ondblclick: () => on.open(item) }));
    grid.replaceChildren(...figures);
    for (let from = 0; from < items.length; from += 48) await paint(items.slice(from, from + 48), figures.slice(from, from + 48), found);
  }

  async function paint(some, boxes, asked) {
    const { image } = await api.atlas(some.map((item) => [item.identity, item.show]), "rgb", SIDE);
    if (asked !== items) return; // another page was shown meanwhile
    const columns = Math.max(1, Math.ceil(Math.sqrt(some.length)));
    boxes.forEach((box, k) => {
      const canvas = box.querySelector("canvas");
      canvas.width = canvas.height = SIDE;
      canvas.getContext("2d").drawImage(image, (k % columns) * SIDE, Math.floor(k / columns) * SIDE, SIDE, SIDE, 0, 0, SIDE, SIDE);
    });
  }

  return {
    show,
    selected: () => items[at] ?? null,
    move: (step) => select(at + step),
    mark(item, verdict) {
      items.forEach((one, k) => { if (one.identity === item.identity && one.view === item.view) setMark(figures[k], verdict); });
    },
  };
}

export function nameOf(item) {
  return item.view === null ? `${item.identity}` : `${item.identity}/v${String(item.view).padStart(3, "0")}`;
}

function figure(item, blind, handlers) {
  const score = item.score === undefined || blind ? "" : ` ${Number.isNaN(item.score) ? "no score" : Number(item.score.toPrecision(4))}`;
  const dropped = item.fails ?? !item.keeps, lines = blind ? [] : [item.flip ?? "", item.conflict ? "against the rules" : "", dropped || item.flip ? item.why : ""].filter(Boolean);
  const box = el("figure", { className: dropped && !blind ? "fails" : "", title: lines.join("\n"), ...handlers }, el("canvas"),
    el("figcaption", {}, el("b", { textContent: nameOf(item) }), `${score}${blind ? "" : dropped ? (item.fails ? ", fails" : ", dropped") : ""}`, ...(lines.length && (item.flip || item.conflict) ? [el("br"), lines.join("; ")] : [])));
  box.setAttribute("role", "option");
  box.setAttribute("aria-selected", "false");
  if (item.decision && !blind) setMark(box, item.decision.verdict);
  return box;
}

function setMark(box, verdict) {
  box.querySelector(".mark")?.remove();
  if (MARKS[verdict]) box.append(el("span", { className: "mark", textContent: MARKS[verdict], title: verdict }));
}
