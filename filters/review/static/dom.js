// Elements of the page in few words.

export const byId = (id) => document.getElementById(id);

/** A new element with properties and children. */
export function el(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Fill a <select> with [value, text] pairs, keeping what was chosen where it is still there. */
export function fill(select, pairs, chosen = select.value) {
  select.replaceChildren(...pairs.map(([value, text]) => el("option", { value, textContent: text })));
  if (pairs.some(([value]) => value === chosen)) select.value = chosen;
}

/** Call at most once per frame, with the last arguments. */
export function perFrame(call) {
  let waiting = null;
  return (...args) => {
    if (waiting === null) requestAnimationFrame(() => { const last = waiting; waiting = null; call(...last); });
    waiting = args;
  };
}

/** Call once nothing has asked for it for some milliseconds; the page is busy until then. */
export function whenQuiet(call, milliseconds) {
  let timer = null, done = null;
  return () => {
    if (timer === null) busy(new Promise((resolve) => { done = resolve; }));
    clearTimeout(timer);
    timer = setTimeout(() => { timer = null; done(); call(); }, milliseconds);
  };
}

let running = 0;

/** Mark the page as busy until a promise is settled, for assistive technology. */
export async function busy(promise) {
  if (running++ === 0) document.body.ariaBusy = "true";
  try {
    return await promise;
  } finally {
    setTimeout(() => { if (--running === 0) document.body.ariaBusy = "false"; }, 50);
  }
}
