// The ticket in the page's address: which slices it asks for, which are answered, and what the server is told. Knows nothing of OHIF.
window.NextSlice = (() => {
  const query = new URLSearchParams(location.search);
  const RECORDED_WITHIN_MS = 20000;
  const LOOK_AGAIN_MS = 500;

  async function call(method, path, body) {
    let answer;
    try {
      answer = await fetch(path, {
        method,
        headers: body ? { "Content-Type": "application/json" } : {},
        body: body ? JSON.stringify(body) : undefined,
      });
    } catch {
      throw new Error("The server does not answer.");
    }
    const told = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(typeof told.detail === "string" ? told.detail : `The server answered ${answer.status}.`);
    return told;
  }

  class Asked {
    constructor(ticket) {
      this.id = ticket.ticket;
      this.annotator = ticket.annotator;
      this.strategy = ticket.strategy;
      this.slices = ticket.slices;
      this.state = ticket.state;
      // Of each asked slice; none for a whole volume.
      this.sops = ticket.sop_instances ?? [];
      this.nothingOn = new Set();
    }

    get address() {
      return `/al/tickets/${encodeURIComponent(this.id)}`;
    }

    // The first asked slice without an answer; null if each has one. `painted`: SOP UIDs of slices with voxels.
    firstOpen(painted) {
      return this.sops.find((sop) => !painted.has(sop) && !this.nothingOn.has(sop)) ?? null;
    }

    // Whether every asked slice was said to show nothing, and nothing is painted anywhere.
    isEmpty(painted) {
      return painted.size === 0 && this.sops.length > 0 && this.sops.every((sop) => this.nothingOn.has(sop));
    }

    submitNothing() {
      return call("POST", `${this.address}/nothing`);
    }

    // What the server refused of what was stored for this ticket: SOP UIDs and why.
    async refused() {
      const told = await call("GET", `/al/returns?state=refused&ticket=${encodeURIComponent(this.id)}`);
      return told.returns;
    }

    // Wait until the server has recorded what was stored in the archive; false if it has not, some time later. Throws if it refuses.
    // `before`: what it had refused before.
    async recorded(before) {
      const known = new Set(before.map((one) => one.instance));
      const until = Date.now() + RECORDED_WITHIN_MS;
      while (Date.now() < until) {
        if ((await call("GET", this.address)).state !== "open") return true;
        const refusal = (await this.refused()).find((one) => !known.has(one.instance));
        if (refusal) throw new Error(`The server refused it. ${refusal.reason}`);
        await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS));
      }
      return false;
    }

    // The address of the next ticket; null if nothing is left for now.
    async next() {
      const path = `/activelearning/${encodeURIComponent(this.strategy)}`;
      const sample = await call("POST", path, { client_id: this.annotator || null, next: "resume" });
      return sample.ask?.ohif ?? null;
    }
  }

  return {
    ticket: query.get("ticket") ?? "",
    segments: (query.get("segments") ?? "").split(";").filter(Boolean),
    startSeries: query.get("startSeg") ?? "",
    firstSop: query.get("initialSopInstanceUID") ?? "",
    startTrouble: "",
    // The UID of a series in the archive to begin with; "" if there is nothing yet.
    makeStart: async (ticket) => (await call("POST", `/al/tickets/${encodeURIComponent(ticket)}/start`)).series ?? "",
    load: async (ticket) => new Asked(await call("GET", `/al/tickets/${encodeURIComponent(ticket)}`)),
  };
})();
