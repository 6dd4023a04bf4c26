// Keeps a ticket's lease alive while somebody draws, and tells when it has run out.

import { Refused, renew, serverNow, Unreachable } from "./api.js";

const LONGEST = 300;
const SHORTEST = 2;

/** told: called with {state: "open", until} or {state: "over"}; times in seconds of the server's clock. */
export class Lease {
  constructor(told) {
    this.told = told;
    this.timer = 0;
    this.active = false;
  }

  start(ticket) {
    this.stop();
    this.id = ticket.ticket;
    this.until = ticket.expires_at;
    this.length = ticket.expires_at - serverNow();
    if (ticket.state === "open") this.told({ state: "open", until: this.until });
    if (ticket.state === "expired") this.told({ state: "over" });
    else if (ticket.state === "open") this.timer = setInterval(() => this.look(), 1000);
  }

  stop() {
    clearInterval(this.timer);
    this.active = false;
    this.busy = false;
  }

  /** Somebody works on it. */
  touch() {
    this.active = true;
  }

  async look() {
    const left = this.until - serverNow();
    const due = left < this.length - Math.max(SHORTEST, Math.min(LONGEST, this.length / 20));
    if (this.busy || !(this.active ? due : left < 0)) return;
    const id = this.id;
    this.busy = true;
    try {
      // A lease that is over is asked for too: the server's answer is what counts.
      const ticket = await renew(id);
      if (id !== this.id) return;
      this.active = false;
      this.until = ticket.expires_at;
      this.length = ticket.expires_at - serverNow();
      this.told({ state: "open", until: this.until });
    } catch (error) {
      if (id === this.id && error instanceof Refused && !(error instanceof Unreachable)) {
        this.stop();
        if (error.status === 410) this.told({ state: "over" });
      }
    } finally {
      this.busy = false;
    }
  }
}
