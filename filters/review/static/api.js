// The server, or the data inside an offline page: the rest of the page does not know which.

import { busy } from "./dom.js";

const inside = globalThis.SPINSET_OFFLINE ?? null;
export const isOffline = inside !== null;

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function answer(path, options) {
  let response;
  try {
    response = await busy(fetch(path, options));
  } catch {
    throw new Error("the server does not answer");
  }
  if (response.ok) return response;
  const text = await response.text();
  let line = text;
  try {
    line = JSON.parse(text).error ?? text;
  } catch {
    // plain text
  }
  throw new Refused(line, response.status);
}

function post(body) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

export async function about() {
  return inside ? inside.about : (await answer("/api/about")).json();
}

export async function heads() {
  const found = unpack(inside ? bytes(inside.heads) : await (await answer("/api/heads")).arrayBuffer());
  const direction = (name) => unpackColumn(found, `${name}.`, found.views);
  return { ...found, azimuth: direction("azimuth"), elevation: direction("elevation") };
}

/** A column of a dataset with so many identities and views. */
export async function column(score, exact, { identities, views }) {
  const key = JSON.stringify(score);
  if (inside && !inside.columns[key]) throw new Refused("an offline page holds the scores of its own policies only", 404);
  const path = `/api/column?score=${encodeURIComponent(key)}&exact=${exact ? 1 : 0}`;
  const found = unpack(inside ? bytes(inside.columns[key]) : await (await answer(path)).arrayBuffer());
  return { level: found.level, ...unpackColumn(found, "", found.level === "view" ? views : identities) };
}

export async function selection(name, heads) {
  const found = unpack(inside ? bytes(inside.selections[name]) : await (await answer(`/api/selections/${encodeURIComponent(name)}`)).arrayBuffer());
  return { ...found, keepIdentity: flags(found.keepIdentity, heads.identities), keepView: flags(found.keepView, heads.views) };
}

export async function identity(number) {
  return inside ? (inside.identities[number] ?? null) : (await answer(`/api/identities/${number}`)).json();
}

/** One image of several views: {image, damaged}. */
export async function atlas(items, member, size) {
  if (inside) return offlineAtlas(items, member, size);
  const response = await answer("/api/atlas", post({ items, member, size }));
  return { image: await createImageBitmap(await response.blob()), damaged: JSON.parse(response.headers.get("X-Damaged") ?? "[]") };
}

async function offlineAtlas(items, member, size) {
  const columns = Math.max(1, Math.ceil(Math.sqrt(items.length)));
  const canvas = new OffscreenCanvas(columns * size, Math.ceil(items.length / columns) * size), pen = canvas.getContext("2d");
  for (const [k, [number, view]] of items.entries()) {
    const sheet = inside.pictures[`${number}/${member}`], place = sheet?.views.indexOf(view) ?? -1;
    if (place < 0) continue;
    const image = await picture(sheet.image), across = Math.max(1, Math.ceil(Math.sqrt(sheet.views.length)));
    pen.drawImage(image, (place % across) * sheet.size, Math.floor(place / across) * sheet.size, sheet.size, sheet.size,
      (k % columns) * size, Math.floor(k / columns) * size, size, size);
  }
  return { image: canvas.transferToImageBitmap(), damaged: [] };
}

const decoded = new Map();
function picture(text) {
  if (!decoded.has(text)) decoded.set(text, createImageBitmap(new Blob([bytes(text)], { type: "image/jpeg" })));
  return decoded.get(text);
}

/** All decisions that the server knows, of other people, too. */
export async function decisions() {
  return inside ? inside.about.decisions : (await answer("/api/decisions")).json();
}

export async function sendVerdicts(who, verdicts) {
  return (await answer("/api/decisions", post({ who, verdicts }))).json();
}

export async function save(name, policy) {
  return (await answer("/api/selections", post({ name, policy }))).json();
}

/** A header of JSON and typed arrays, as filters/review/columns.py packs them. */
function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true), start = length + 4;
  const { arrays, ...header } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const types = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int16: Int16Array, float32: Float32Array, float64: Float64Array };
  const found = Object.entries(arrays).map(([name, { type, at, length }]) => [name, new types[type](buffer, start + at, length)]);
  return { ...header, ...Object.fromEntries(found) };
}

function unpackColumn(found, prefix, rows) {
  const first = found[`${prefix}first`].slice(), last = found[`${prefix}last`].slice();
  return { first, last, codes: found[`${prefix}codes`]?.slice() ?? unpackCodes(found[`${prefix}packed`], rows) };
}

/** Codes of 12 bits, two in three bytes. */
function unpackCodes(packed, rows) {
  const codes = new Uint16Array(rows + (rows % 2));
  for (let from = 0, to = 0; to < codes.length; from += 3, to += 2) {
    const middle = packed[from + 1];
    codes[to] = packed[from] | ((middle & 15) << 8);
    codes[to + 1] = (middle >> 4) | (packed[from + 2] << 4);
  }
  return codes.subarray(0, rows);
}

function flags(packed, count) {
  return Uint8Array.from({ length: count }, (_, k) => (packed[k >> 3] >> (k & 7)) & 1);
}

function bytes(text) {
  const raw = atob(text), out = new Uint8Array(raw.length);
  for (let k = 0; k < raw.length; k++) out[k] = raw.charCodeAt(k);
  return out.buffer;
}
