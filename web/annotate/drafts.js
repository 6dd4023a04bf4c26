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
  return new Promise((resolve, reject) => {
    begun.oncomplete = () => resolve(asked?.result);
    begun.onabort = begun.onerror = () => reject(begun.error);
  });
}

export const draft = (ticket) => transaction(["drafts"], "readonly", (drafts) => drafts.get(ticket));
export const keepDraft = (entry) => transaction(["drafts"], "readwrite", (drafts) => drafts.put(entry));
export const dropDraft = (ticket) => transaction(["drafts"], "readwrite", (drafts) => drafts.delete(ticket));
export const waiting = () => transaction(["outbox"], "readonly", (outbox) => outbox.getAll());

/** Put a finished drawing into the outbox; its draft stays until the server has it. */
export const handIn = (entry) => transaction(["outbox"], "readwrite", (outbox) => outbox.put(entry));

/** The server has it: neither is needed any more. */
export const taken = (ticket) =>
  transaction(["outbox", "drafts"], "readwrite", (outbox, drafts) => {
    outbox.delete(ticket);
    drafts.delete(ticket);
  });

/** The server will not take it: the draft stays, to be opened and put right. */
export const turnedDown = (ticket) => transaction(["outbox"], "readwrite", (outbox) => outbox.delete(ticket));
