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
      }
      await this.wait(PATIENCE_MS[Math.min(numFailures, PATIENCE_MS.length - 1)], signal);
      numFailures += 1;
    }
  }

  wait(ms, signal) {
    return new Promise((resolve) => {
      setTimeout(resolve, ms);
      signal.addEventListener("abort", resolve, { once: true });
      document.addEventListener("key-changed", resolve, { once: true });
    });
  }
}
