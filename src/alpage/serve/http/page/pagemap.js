// Page map: every KV page a cell on a canvas, that says under the pointer what it holds.

import { colours } from "./colour.js";
import { Grid } from "./grid.js";

const FLASH_MS = 900;
const MAX_HEIGHT_PX = 320;

export class PageMap {
  constructor(canvas, readout, pages) {
    this.canvas = canvas;
    this.readout = readout;
    this.pages = pages;
    this.context = canvas.getContext("2d");
    this.isCalm = matchMedia("(prefers-reduced-motion: reduce)");
    this.flashes = new Map();
    this.frame = null;
    this.shownPage = null;
    this.request = null;
    const style = getComputedStyle(document.documentElement);
    this.night = (name) => style.getPropertyValue(`--night${name}`);

    new ResizeObserver(() => this.layOut()).observe(canvas.parentElement);
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerdown", (event) => this.point(event));
    canvas.addEventListener("pointerleave", (event) => {
      // What a finger has chosen stays.
      if (event.pointerType === "mouse") this.choose(null);
    });
    canvas.addEventListener("keydown", (event) => this.press(event));
    canvas.addEventListener("blur", () => this.choose(null));
  }

  // Shows what is new: runs of pages that changed, pages that were copied to or evicted.
  update(runs, moment) {
    const counts = this.pages.memories.map((memory) => memory.num_pages);
    const isNew = this.grid === undefined || String(counts) !== String(this.counts);
    this.counts = counts;
    if (isNew) this.layOut();
    const now = performance.now();
    for (const page of moment.evicted) this.flashes.set(page, { kind: "-evicted", since: now });
    for (const page of moment.copied) this.flashes.set(page, { kind: "-copied", since: now });
    for (const [first, count] of runs) this.drawRun(first, count);
    if (this.flashes.size > 0) this.frame ??= requestAnimationFrame(() => this.fade());
    this.say();
  }

  // Shows the pages of one request alone; of all with null.
  highlight(request) {
    if (this.request === request) return;
    this.request = request;
    this.drawAll();
  }

  // -- drawing ------------------------------------------------------------------------------------

  layOut() {
    if (this.counts === undefined) return;
    const style = getComputedStyle(this.canvas.parentElement);
    const width = this.canvas.parentElement.clientWidth - 2 * parseFloat(style.paddingLeft);
    if (width <= 0) return;
    const scale = devicePixelRatio || 1;
    this.grid = new Grid(this.counts, Math.floor(width * scale), MAX_HEIGHT_PX * scale, scale);
    this.canvas.width = this.grid.width;
    this.canvas.height = this.grid.height;
    this.canvas.style.width = `${this.grid.width / scale}px`;
    this.canvas.style.height = `${this.grid.height / scale}px`;
    this.drawAll();
  }

  drawAll() {
    if (this.grid === undefined) return;
    this.context.clearRect(0, 0, this.grid.width, this.grid.height);
    this.drawRun(0, this.pages.count);
  }

  drawRun(first, count) {
    if (this.grid === undefined) return;
    for (let page = first; page < first + count;) {
      const cell = this.grid.cell(page);
      this.draw(cell);
      page = cell.end;
    }
  }

  draw(cell) {
    const { context, grid } = this;
    const { inner } = grid;
    context.clearRect(cell.x, cell.y, grid.size, grid.size);
    if (grid.pagesPerCell === 1) this.drawPage(cell);
    else this.drawPages(cell);
    const flash = this.flashOf(cell);
    if (flash !== undefined) {
      const age = this.isCalm.matches ? 0 : (performance.now() - flash.since) / FLASH_MS;
      context.globalAlpha = Math.max(0, 1 - age);
      context.fillStyle = this.night(flash.kind);
      context.fillRect(cell.x, cell.y, inner, inner);
      context.globalAlpha = 1;
    }
    if (this.shownPage !== null && this.shownPage >= cell.first && this.shownPage < cell.end) {
      context.strokeStyle = "#fff";
      context.lineWidth = 2;
      context.strokeRect(cell.x + 1, cell.y + 1, inner - 2, inner - 2);
    }
  }

  drawPage({ first: page, x, y }) {
    const { context, pages } = this;
    const { inner } = this.grid;
    const owner = pages.owner[page];
    if (owner === 0) {
      context.fillStyle = this.night(pages.cached[page] ? "-cached" : "-free");
      context.fillRect(x, y, inner, inner);
      return;
    }
    const { bright, deep } = colours(owner);
    context.globalAlpha = this.isAside(page) ? 0.2 : 1;
    context.fillStyle = deep;
    context.fillRect(x, y, inner, inner);
    const height = Math.round(inner * (pages.tokens[page] / pages.pageSize));
    context.fillStyle = bright;
    context.fillRect(x, y + inner - height, inner, height);
    if (pages.holders[page] > 1) {
      const mark = Math.max(2, Math.round(inner * 0.4));
      context.fillStyle = "#fff";
      context.fillRect(x + inner - mark, y, mark, mark);
    }
    context.globalAlpha = 1;
  }

  // Several pages in one cell: layers from the ground up, each as high as its part of them.
  drawPages({ first, end, x, y }) {
    const { context, pages } = this;
    const { inner } = this.grid;
    const { held, shared, cached } = pages.counts(first, end);
    const count = end - first;
    let page = first;
    while (page < end - 1 && pages.owner[page] === 0) page += 1;
    context.fillStyle = this.night("-free");
    context.fillRect(x, y, inner, inner);
    context.fillStyle = this.night("-cached");
    const cachedHeight = Math.round((inner * (held + cached)) / count);
    context.fillRect(x, y + inner - cachedHeight, inner, cachedHeight);
    if (held === 0) return;
    context.globalAlpha = this.isAside(page) ? 0.2 : 1;
    context.fillStyle = colours(pages.owner[page]).bright;
    const heldHeight = Math.ceil((inner * held) / count);
    context.fillRect(x, y + inner - heldHeight, inner, heldHeight);
    if (shared > 0) {
      context.fillStyle = "#fff";
      context.fillRect(x + inner - 2, y, 2, 2);
    }
    context.globalAlpha = 1;
  }

  isAside(page) {
    return this.request !== null && !this.pages.owners(page).includes(this.request);
  }

  flashOf({ first, end }) {
    for (let page = first; page < end; page += 1) {
      const flash = this.flashes.get(page);
      if (flash !== undefined) return flash;
    }
    return undefined;
  }

  fade() {
    this.frame = null;
    const now = performance.now();
    for (const [page, { since }] of this.flashes) {
      if (now - since > FLASH_MS) this.flashes.delete(page);
      if (page < this.pages.count) this.draw(this.grid.cell(page));
    }
    if (this.flashes.size > 0) this.frame = requestAnimationFrame(() => this.fade());
  }

  // -- what is under the pointer ------------------------------------------------------------------

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.grid?.scale ?? 1;
    const x = (event.clientX - box.left) * scale;
    const y = (event.clientY - box.top) * scale;
    this.choose(this.grid?.at(x, y) ?? null);
  }

  press(event) {
    if (this.grid === undefined) return;
    const across = this.grid.pagesPerCell;
    const down = across * this.grid.columns;
    const steps = { ArrowLeft: -across, ArrowRight: across, ArrowUp: -down, ArrowDown: down };
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const page = this.shownPage === null ? 0 : this.shownPage + step;
    this.readout.setAttribute("aria-live", "polite");
    if (page >= 0 && page < this.pages.count) this.choose(page);
  }

  choose(page) {
    const before = this.shownPage;
    this.shownPage = page;
    for (const changed of [before, page]) {
      if (changed !== null && changed < this.pages.count) this.draw(this.grid.cell(changed));
    }
    this.say();
  }

  say() {
    const page = this.shownPage;
    let words = "Point at a page to see what it holds.";
    if (page !== null && page < this.pages.count) {
      const { first, end } = this.grid.cell(page);
      words = this.pages.words(first, end);
    }
    if (this.readout.textContent !== words) this.readout.textContent = words;
  }
}
