// What must outlive the page: drawings under way ("drafts"), and those handed in but not yet taken ("outbox").
// Kept in the browser's IndexedDB, by ticket.

const NAME = "nextslice-annotate";

function open() {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(NAME, 1);
    opening.onupgradeneeded = () => {
      for (const store of ["drafts", "outbox"]) opening.result.createObjectStore(store, { keyPath: "ticket" });
    };
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
}

let database = null;

/** One action on some stores in one transaction; resolves when it is on disk. */
async function transaction(stores, mode, act) {
  database ??= open();
  const begun = (await database).transaction(stores, mode, { durability: "strict" });
  const asked = act(...stores.map((store) => begun.objectStore(store)));
  begun.commit(); // so that it goes on when the page is gone
  return new Promise((resolve, reject) => {
    begun.oncomplete = () => resolve(asked?.result);
    begun.onabort = begun.onerror = () => reject(begun.error);
  });
}

// A page that is left does not wait for the disk. What was not there yet is left where writing takes no time.
const LEFT = "nextslice-annotate-left ";
const unwritten = new Map();

addEventListener("pagehide", () => {
  for (const [ticket, entry] of unwritten) localStorage.setItem(LEFT + ticket, JSON.stringify(entry));
});

function settled(ticket) {
  unwritten.delete(ticket);
  localStorage.removeItem(LEFT + ticket);
}

export async function draft(ticket) {
  const left = localStorage.getItem(LEFT + ticket);
  return left ? JSON.parse(left) : transaction(["drafts"], "readonly", (drafts) => drafts.get(ticket));
}

export async function keepDraft(entry) {
  unwritten.set(entry.ticket, entry);
  await transaction(["drafts"], "readwrite", (drafts) => drafts.put(entry));
  if (unwritten.get(entry.ticket) === entry) settled(entry.ticket);
}

export async function dropDraft(ticket) {
  settled(ticket);
  await transaction(["drafts"], "readwrite", (drafts) => drafts.delete(ticket));
}

export const waiting = () => transaction(["outbox"], "readonly", (outbox) => outbox.getAll());

/** Put a finished drawing into the outbox; its draft stays until the server has it. */
export const handIn = (entry) => transaction(["outbox"], "readwrite", (outbox) => outbox.put(entry));

/** The server has it: neither is needed any more. */
export async function taken(ticket) {
  settled(ticket);
  await transaction(["outbox", "drafts"], "readwrite", (outbox, drafts) => {
    outbox.delete(ticket);
    drafts.delete(ticket);
  });
}

/** The server will not take it: the draft stays, to be opened and put right. */
export const turnedDown = (ticket) => transaction(["outbox"], "readwrite", (outbox) => outbox.delete(ticket));
