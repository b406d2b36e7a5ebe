// Engine: figures, page map and requests on the screen.

import { colours } from "./colour.js";
import { Live } from "./live.js";
import { PageMap } from "./pagemap.js";
import { Pages } from "./pages.js";
import { Sparkline } from "./sparkline.js";

const NUM_SAMPLES = 120;
const RATE_WINDOW_S = 1;
const STATES = { prompt: "prefill", decode: "decode", preempted: "preempted", swapped: "swapped", waiting: "queued" };

export class Engine {
  constructor() {
    const find = (name) => document.getElementById(name);
    this.find = find;
    this.pages = new Pages();
    this.map = new PageMap(find("map"), find("readout"), this.pages);
    this.spark = new Sparkline(find("spark"), NUM_SAMPLES);
    this.past = [];
    this.rows = new Map();
    this.live = new Live({
      take: (moment) => this.show(moment),
      tell: (state, words) => {
        const pulse = find("pulse");
        pulse.dataset.state = state;
        if (pulse.textContent !== words) pulse.textContent = words;
      },
    });
  }

  look(isLooking) {
    this.live.look(isLooking);
  }

  show(moment) {
    const runs = this.pages.take(moment);
    this.map.update(runs, moment);
    this.write("running", moment.num_running);
    this.write("queued", moment.num_waiting);
    const rate = this.rate(moment);
    this.write("rate", rate >= 100 || rate === 0 ? Math.round(rate) : rate.toFixed(1));
    this.spark.add(rate);
    this.showMemory();
    this.showRequests(moment);
    this.write("steps", moment.num_steps);
    const total = (name) => moment.memories.reduce((sum, memory) => sum + memory[name], 0);
    this.write("copied", total("num_copied"));
    this.write("evicted", total("num_evicted"));
    this.write("preempted", moment.num_preemptions);
    this.write("swapped", total("num_swapped"));
  }

  // Tokens drawn in the last second, per second.
  rate({ at_s: atS, num_drawn_tokens: numDrawn }) {
    if (this.past.length > 0 && numDrawn < this.past[0].numDrawn) this.past = [];
    this.past.push({ atS, numDrawn });
    while (this.past.length > 2 && atS - this.past[0].atS > RATE_WINDOW_S) this.past.shift();
    const [oldest] = this.past;
    return atS > oldest.atS ? (numDrawn - oldest.numDrawn) / (atS - oldest.atS) : 0;
  }

  showMemory() {
    const { held, shared, cached, free } = this.pages.counts();
    const count = this.pages.count;
    const percent = (part) => `${(100 * part) / Math.max(1, count)}%`;
    const [heldBar, cachedBar] = this.find("bar").children;
    heldBar.style.width = percent(held);
    cachedBar.style.width = percent(cached);
    const words = `${number(held)} of ${number(count)} held · ${Math.round((100 * held) / Math.max(1, count))} %`;
    this.write("held-words", words);
    const all = `${count} pages: ${held} held, ${shared} of them shared, ${cached} cached, ${free} free`;
    this.find("bar").setAttribute("aria-label", all);
    this.find("map").setAttribute("aria-label", `Page map. ${all}`);
  }

  showRequests(moment) {
    const body = this.find("requests");
    const seen = new Set();
    for (const request of moment.requests) {
      seen.add(request.number);
      let row = this.rows.get(request.number);
      if (row === undefined) {
        row = this.makeRow(request.number);
        this.rows.set(request.number, row);
      }
      row.className = request.state;
      const times = request.num_sequences > 1 ? ` ×${request.num_sequences}` : "";
      const texts = [
        request.number,
        STATES[request.state] + times,
        number(request.num_prompt_tokens),
        number(request.num_drawn_tokens),
        number(request.num_table_entries),
      ];
      [...row.cells].forEach((cell, at) => {
        const text = String(texts[at]);
        const target = at === 0 ? cell.lastChild : cell;
        if (target.textContent !== text) target.textContent = text;
      });
      if (body.rows[seen.size - 1] !== row) body.insertBefore(row, body.rows[seen.size - 1] ?? null);
    }
    for (const [known, row] of this.rows) {
      if (!seen.has(known)) {
        if (this.map.request === known) this.map.highlight(null);
        row.remove();
        this.rows.delete(known);
      }
    }
    this.find("no-requests").hidden = seen.size > 0;
    body.parentElement.hidden = seen.size === 0;
  }

  makeRow(request) {
    const row = document.createElement("tr");
    row.tabIndex = 0;
    for (let at = 0; at < 5; at += 1) row.insertCell();
    const swatch = document.createElement("i");
    swatch.className = "swatch";
    swatch.style.background = colours(request).bright;
    row.cells[0].append(swatch, document.createElement("span"));
    for (const name of ["pointerenter", "focus"]) row.addEventListener(name, () => this.map.highlight(request));
    for (const name of ["pointerleave", "blur"]) row.addEventListener(name, () => this.map.highlight(null));
    return row;
  }

  write(name, value) {
    const text = typeof value === "number" ? number(value) : value;
    const element = this.find(name);
    if (element.textContent !== text) element.textContent = text;
  }
}

const number = (value) => value.toLocaleString("en");
