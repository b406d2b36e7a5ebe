// Pages: the table of all KV pages as the server told it, and what can be said of it.

const COLUMNS = 6;

export class Pages {
  constructor() {
    this.resize(0);
  }

  resize(count) {
    this.count = count;
    this.owner = new Uint32Array(count);
    this.holders = new Uint32Array(count);
    this.tokens = new Uint16Array(count);
    this.cached = new Uint8Array(count);
    this.shares = [];
  }

  // Takes a moment in; returns the runs of pages that changed, as [first, count] pairs.
  take(moment) {
    this.pageSize = moment.page_size;
    this.memories = moment.memories;
    if (moment.is_whole) this.resize(moment.memories.reduce((sum, memory) => sum + memory.num_pages, 0));
    if (moment.shares !== undefined) this.shares = moment.shares;
    const runs = [];
    for (let at = 0; at < moment.cells.length; at += COLUMNS) {
      const [first, count, owner, holders, tokens, cached] = moment.cells.slice(at, at + COLUMNS);
      const end = first + count;
      this.owner.fill(owner, first, end);
      this.holders.fill(holders, first, end);
      this.tokens.fill(tokens, first, end);
      this.cached.fill(cached, first, end);
      runs.push([first, count]);
    }
    return moment.is_whole ? [[0, this.count]] : runs;
  }

  // Counts pages from `first` up to `end` by what they are.
  counts(first = 0, end = this.count) {
    const counts = { held: 0, shared: 0, cached: 0, free: 0 };
    for (let page = first; page < end; page += 1) {
      if (this.holders[page] > 0) {
        counts.held += 1;
        if (this.holders[page] > 1) counts.shared += 1;
      } else if (this.cached[page]) counts.cached += 1;
      else counts.free += 1;
    }
    return counts;
  }

  owners(page) {
    const shared = this.shares.find(({ pages }) =>
      pages.some((first, at) => at % 2 === 0 && page >= first && page < first + pages[at + 1]));
    return shared?.owners ?? (this.owner[page] ? [this.owner[page]] : []);
  }

  // What there is to say of the pages from `first` up to `end`.
  words(first, end) {
    if (end - first > 1) {
      const { held, shared, cached, free } = this.counts(first, end);
      return `Pages ${first} to ${end - 1}: ${held} held, ${shared} of them shared, ${cached} cached, ${free} free`;
    }
    if (this.holders[first] === 0) {
      return `Page ${first}: free${this.cached[first] ? ", and what it held can still be used" : ""}`;
    }
    const owners = this.owners(first);
    const who = owners.length === 1 ? `request ${owners[0]}` : `requests ${listed(owners)}`;
    const holders = this.holders[first] === 1 ? "" : `, shared by ${this.holders[first]} sequences`;
    const cached = this.cached[first] ? ", cached" : "";
    return `Page ${first}: ${who}, ${this.tokens[first]} of ${this.pageSize} tokens${holders}${cached}`;
  }
}

function listed(numbers) {
  const shown = numbers.slice(0, 6).join(", ");
  return numbers.length > 6 ? `${shown} and ${numbers.length - 6} more` : shown;
}
