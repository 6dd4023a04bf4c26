// A ticket with all that is needed to annotate it, and the next one loaded ahead.

import * as api from "./api.js";
import { readMask } from "./masks.js";
import { decode } from "./viewer.js";

/** Load a ticket: {ticket, item, image, planes}; planes is the mask so far, by slice. */
export async function load(ticket) {
  const [item, file, mask] = await Promise.all([
    api.item(ticket.image),
    api.volume(ticket.image),
    api.composite(ticket.image),
  ]);
  if (item.error) throw new api.Refused(409, `The image cannot be used: ${item.error}`);
  const [image, planes] = await Promise.all([
    decode(file),
    mask ? readMask(mask, item.shape, ticket.axis) : new Map(),
  ]);
  return { ticket, item, image, planes };
}

/** The case after the current one, leased and loaded while the annotator draws. */
export class Ahead {
  constructor(annotator) {
    this.annotator = annotator;
    this.coming = null;
    this.ticket = null;
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
    this.ticket = tickets.find((ticket) => !busy.includes(ticket.ticket)) ?? null;
    return this.ticket ? { found: await load(this.ticket) } : { reason };
  }

  /** The case, {reason} if there is none now, {error} if it could not be had; the next `begin` starts anew. */
  async take(busy) {
    this.begin(busy);
    const got = await this.coming;
    [this.coming, this.ticket] = [null, null];
    return got;
  }

  /** Nobody waits for it any more: others may have it. */
  giveBack() {
    if (this.ticket) api.release(this.ticket.ticket).catch(() => {});
    [this.coming, this.ticket] = [null, null];
  }
}
