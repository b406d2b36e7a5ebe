// Conversation: messages, and how the next answer comes to them. It knows nothing of the screen.

import { ask, events } from "./server.js";
import { load, save } from "./store.js";

export class Conversation {
  constructor() {
    this.messages = load("conversation", []);
  }

  say(text) {
    this.messages.push({ role: "user", content: text });
    this.keep();
  }

  // Forgets what comes after the last message of the user.
  takeBack() {
    while (this.messages.at(-1)?.role === "assistant") this.messages.pop();
    this.keep();
  }

  clear() {
    this.messages = [];
    this.keep();
  }

  keep() {
    save("conversation", this.messages);
  }

  // Adds the model's answer, calling `notify` with it as it grows; ends early with the signal.
  async answer({ fields, system, signal, notify }) {
    const prompt = this.messages.filter((message) => message.content !== "");
    const answer = { role: "assistant", content: "" };
    const messages = prompt.map(({ role, content }) => ({ role, content }));
    if (system !== "") messages.unshift({ role: "system", content: system });
    this.messages.push(answer);
    notify(answer);
    const clock = new Clock();
    try {
      const options = { include_usage: true, continuous_usage_stats: true };
      const body = { messages, stream: true, stream_options: options, ...fields };
      const response = await ask("v1/chat/completions", { body, signal });
      for await (const event of events(response)) {
        const [choice] = event.choices;
        answer.content += choice?.delta.content ?? "";
        answer.reason = choice?.finish_reason ?? answer.reason;
        clock.note(event.usage?.completion_tokens ?? 0);
        answer.speed = clock.speed;
        notify(answer);
      }
    } catch (error) {
      if (error.name === "AbortError") answer.reason = "stop button";
      else answer.error = error.message;
    }
    this.keep();
    return answer;
  }
}

// When tokens came.
class Clock {
  constructor() {
    this.begunMs = performance.now();
    this.numTokens = 0;
  }

  note(numTokens) {
    if (numTokens <= this.numTokens) return;
    this.lastMs = performance.now();
    if (this.firstMs === undefined) {
      this.firstMs = this.lastMs;
      this.numFirst = numTokens;
    }
    this.numTokens = numTokens;
  }

  get speed() {
    if (this.firstMs === undefined) return undefined;
    const elapsedS = (this.lastMs - this.firstMs) / 1000;
    return {
      numTokens: this.numTokens,
      firstMs: this.firstMs - this.begunMs,
      tokensPerS: elapsedS > 0 ? (this.numTokens - this.numFirst) / elapsedS : undefined,
    };
  }
}
