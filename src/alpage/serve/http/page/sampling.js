// Sampling: the knobs beside a message. An empty one is left to the server.

import { load, save } from "./store.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const DEFAULTS = { temperature: "0.7", top_p: "", max_tokens: "512", seed: "", system: "" };

export class Sampling {
  constructor() {
    this.form = document.getElementById("composer");
    this.words = document.getElementById("sampling-words");
    const kept = { ...DEFAULTS, ...load("sampling", {}) };
    for (const name of Object.keys(DEFAULTS)) this.form.elements[name].value = kept[name];
    const drawer = document.getElementById("sampling");
    drawer.addEventListener("input", () => this.keep());
    // A value that is refused has to be seen.
    drawer.addEventListener("invalid", () => { drawer.open = true; }, { capture: true });
    this.keep();
  }

  // What a request says of it: only what was filled in.
  get fields() {
    const filled = NUMBERS.filter((name) => this.form.elements[name].value !== "");
    return Object.fromEntries(filled.map((name) => [name, Number(this.form.elements[name].value)]));
  }

  get system() {
    return this.form.elements.system.value.trim();
  }

  keep() {
    const names = Object.keys(DEFAULTS);
    save("sampling", Object.fromEntries(names.map((name) => [name, this.form.elements[name].value])));
    const { temperature, top_p, max_tokens, seed } = this.fields;
    this.words.textContent = [
      temperature !== undefined && `temperature ${temperature}`,
      top_p !== undefined && `top-p ${top_p}`,
      max_tokens !== undefined && `${max_tokens} tokens`,
      seed !== undefined && `seed ${seed}`,
      this.system !== "" && "system prompt",
    ].filter(Boolean).map((part) => ` · ${part}`).join("");
  }
}
