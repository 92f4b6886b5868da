// Verdicts: queued in this browser until the server has recorded them, so that none is lost while it is away.
import * as api from "./api.js";

const KEY = `spinset-verdicts-${location.pathname}`;

export function makeVerdicts({ who, changed }) {
  let queue = JSON.parse(localStorage.getItem(KEY) ?? "[]"), sending = false;
  const done = [], undone = [];
  const store = () => { localStorage.setItem(KEY, JSON.stringify(queue)); changed(queue.length); };

  async function send() {
    if (sending || !queue.length || api.isOffline) return;
    sending = true;
    try {
      const { who: name } = queue[0], batch = queue.filter((one) => one.who === name).slice(0, 100);
      const { recorded } = await api.sendVerdicts(name, batch.map(({ who: _, ...verdict }) => verdict));
      queue = queue.filter((one) => !recorded.includes(one.id));
      store();
    } catch (error) {
      if (error instanceof api.Refused) { queue = queue.slice(1); store(); changed(queue.length, error.message); }
      else { changed(queue.length, error.message); setTimeout(send, 1000); sending = false; return; }
    }
    sending = false;
    send();
  }

  function record(item, verdict, reason, before, more = {}) {
    const one = { id: newId(), who: who(), identity: item.identity, view: item.view, verdict, reason, ...more };
    queue.push(one);
    store();
    send();
    return { item, verdict, reason, before, id: one.id };
  }

  send();
  return {
    decide(item, verdict, reason, before, more) {
      done.push(record(item, verdict, reason, before, more));
      undone.length = 0;
      return done.at(-1);
    },
    /** Restore what stood before the last verdict; returns {item, verdict}, or null. */
    undo() {
      const last = done.pop();
      if (!last) return null;
      undone.push(last);
      const { verdict, reason } = last.before ?? { verdict: "clear", reason: "undone" };
      record(last.item, verdict, reason, null, { undoes: last.id });
      return { item: last.item, verdict, reason };
    },
    redo() {
      const last = undone.pop();
      if (!last) return null;
      done.push(record(last.item, last.verdict, last.reason, last.before));
      return last;
    },
    waiting: () => queue.length,
  };
}

function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
