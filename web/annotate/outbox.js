// Sends what is in the outbox, and tries again until the server has it.

import { Refused, submit } from "./api.js";
import { handIn, taken, turnedDown, waiting } from "./drafts.js";

const FIRST_WAIT = 1000;
const LONGEST_WAIT = 15000;

/** told: called with {state: "sending" | "waiting" | "idle", left} and with {state: "taken" | "refused", entry, ...}. */
export class Outbox {
  constructor(told) {
    this.told = told;
    this.wait = FIRST_WAIT;
    this.running = null;
    this.timer = 0;
    window.addEventListener("online", () => this.flush());
  }

  /** Keep a finished drawing and begin to send it; resolves when it is safe in this browser. */
  async add(entry) {
    await handIn(entry);
    this.wait = FIRST_WAIT;
    this.flush();
  }

  async left() {
    return (await waiting()).length;
  }

  /** Send everything, one after the other, also what another page left; one run at a time. */
  flush() {
    clearTimeout(this.timer);
    this.running ??= this.run().finally(() => (this.running = null));
    return this.running;
  }

  async run() {
    for (let entries = await waiting(); entries.length; entries = await waiting()) {
      const entry = entries[0];
      this.told({ state: "sending", left: entries.length });
      try {
        const answer = await submit(entry);
        await taken(entry.ticket);
        this.wait = FIRST_WAIT;
        this.told({ state: "taken", entry, answer });
      } catch (error) {
        if (error instanceof Refused && error.status >= 400 && error.status < 500 && error.status !== 401) {
          await turnedDown(entry.ticket);
          this.told({ state: "refused", entry, reason: error.message });
          continue;
        }
        this.told({ state: "waiting", left: entries.length });
        this.timer = setTimeout(() => this.flush(), this.wait);
        this.wait = Math.min(2 * this.wait, LONGEST_WAIT);
        return;
      }
    }
    this.told({ state: "idle", left: 0 });
  }
}
