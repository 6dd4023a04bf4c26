// A ticket with all that is needed to annotate it, and the next one loaded ahead.

import * as api from "./api.js";
import { readMask } from "./masks.js";
import { decode } from "./viewer.js";

const JUST_NOW = 3; // seconds, with room for the whole seconds of the server's clock as we see it

/** Load a ticket: {ticket, item, image, planes}; planes is the mask so far, by slice. */
export async function load(ticket) {
  const [item, file, mask] = await Promise.all([
    api.item(ticket.image),
    api.volume(ticket.image),
    api.composite(ticket.image),
  ]);
  if (item.error) throw new api.Refused(409, `The image cannot be used: ${item.error}`);
  performance.mark("file");
  const [image, planes] = await Promise.all([
    decode(file).then((decoded) => (performance.measure("volume decoded", "file"), decoded)),
    mask ? readMask(mask, item.shape, ticket.axis) : new Map(),
  ]);
  return { ticket, item, image, planes };
}

/** The case after the current one, leased and loaded while the annotator draws. */
export class Ahead {
  constructor(annotator) {
    this.annotator = annotator;
    this.coming = null;
    this.leased = null;
  }

  /** Begin to get a case that is none of these tickets. */
  begin(busy) {
    this.coming ??= this.get(busy).catch((error) => {
      this.coming = null;
      return { error };
    });
  }

  async get(busy) {
    const { tickets, reason } = await api.ask(this.annotator, Math.min(100, busy.length + 1));
    const ticket = tickets.find((each) => !busy.includes(each.ticket));
    if (!ticket) return { reason };
    // One that was there before is somebody's plan for later: only what was leased ahead is given back.
    if (ticket.opened_at > api.serverNow() - JUST_NOW) this.leased = ticket.ticket;
    return { found: await load(ticket) };
  }

  /** The case, {reason} if there is none now, {error} if it could not be had; the next `begin` starts anew. */
  async take(busy) {
    this.begin(busy);
    const got = await this.coming;
    [this.coming, this.leased] = [null, null];
    return got;
  }

  /** Nobody waits for it any more: others may have it. */
  giveBack() {
    if (this.leased) api.release(this.leased).catch(() => {});
    [this.coming, this.leased] = [null, null];
  }
}
