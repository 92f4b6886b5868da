// Verdicts: queued in this browser until the server has recorded them, so that none is lost while it is away.
import * as api from "./api.js";

export function makeVerdicts({ dataset, who, changed }) {
  const key = `spinset-verdicts-${dataset}`, done = [], undone = [];
  let queue = JSON.parse(localStorage.getItem(key) ?? "[]"), sending = false, most = 100;
  const store = (problem) => {
    localStorage.setItem(key, JSON.stringify(queue));
    changed(queue.length, problem);
  };

  async function send() {
    if (sending || !queue.length || api.isOffline) return;
    sending = true;
    const { who: name } = queue[0], batch = queue.filter((one) => one.who === name).slice(0, most);
    let wait = 0;
    try {
      const { recorded } = await api.sendVerdicts(name, batch.map(({ who: _, ...verdict }) => verdict));
      queue = queue.filter((one) => !recorded.includes(one.id));
      most = 100;
      store();
    } catch (error) {
      wait = 1000;
      // Only what can never be recorded leaves the queue, alone; a server that is away or has a new token may come back.
      if (error.status === 400 && batch.length === 1) queue = queue.filter((one) => one !== batch[0]);
      if (error.status === 400) most = 1;
      store(error.message);
    }
    sending = false;
    setTimeout(send, wait);
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
    /** Verdicts that the server has not confirmed. */
    waiting: () => queue,
  };
}

function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
