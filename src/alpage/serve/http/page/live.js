// Live: what the server tells of its engine, as long as somebody looks.

import { ask, events } from "./server.js";

const PATIENCE_MS = [500, 1000, 2000, 5000];

export class Live {
  // Calls `take` with each moment, and `tell` with how the connection is: live, quiet or broken.
  constructor({ take, tell }) {
    this.take = take;
    this.tell = tell;
    this.stopping = null;
  }

  look(isLooking) {
    if (isLooking === (this.stopping !== null)) return;
    if (isLooking) {
      this.stopping = new AbortController();
      this.run(this.stopping.signal);
    } else {
      this.stopping.abort();
      this.stopping = null;
      this.tell("quiet", "paused");
    }
  }

  async run(signal) {
    let numFailures = 0;
    while (!signal.aborted) {
      let patienceMs = PATIENCE_MS[Math.min(numFailures, PATIENCE_MS.length - 1)];
      try {
        const response = await ask("live", { signal });
        for await (const moment of events(response)) {
          numFailures = 0;
          this.tell("live", "live");
          this.take(moment);
        }
        if (!signal.aborted) this.tell("broken", "The server ended the stream.");
      } catch (error) {
        if (signal.aborted) return;
        this.tell("broken", error.message);
        // Another key is needed, and whoever has it is not asked over and over.
        if (error.status === 401) patienceMs = null;
      }
      await this.wait(patienceMs, signal);
      numFailures += 1;
    }
  }

  // Waits some time, for ever with null; less if there is another key, or nobody looks any more.
  wait(ms, signal) {
    return new Promise((resolve) => {
      const over = new AbortController();
      const end = () => {
        over.abort();
        resolve();
      };
      if (ms !== null) setTimeout(end, ms);
      signal.addEventListener("abort", end, { signal: over.signal });
      document.addEventListener("key-changed", end, { signal: over.signal });
    });
  }
}
