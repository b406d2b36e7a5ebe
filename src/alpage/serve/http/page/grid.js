// Grid: where on a canvas the cell of a page lies. A cell stands for several pages if it must.
//
// All lengths are the screen's own pixels, so that edges are sharp whatever the zoom.

const LARGEST_PX = 16;
const SMALLEST_PX = 5;
const BAND_GAP_PX = 8;

export class Grid {
  // Lays the pages of some memories, one band each, into a width and a height; `scale` of these
  // pixels are one of the page's.
  constructor(counts, width, maxHeight, scale) {
    this.width = width;
    this.scale = scale;
    const bandGap = Math.round(BAND_GAP_PX * scale);
    const gaps = bandGap * Math.max(0, counts.length - 1);
    const smallest = Math.round(SMALLEST_PX * scale);
    this.pagesPerCell = 1;
    this.size = Math.round(LARGEST_PX * scale);
    while (this.size > smallest && this.rows(counts) * this.size + gaps > maxHeight) this.size -= 1;
    while (this.rows(counts) * this.size + gaps > maxHeight && this.pagesPerCell < 4096) this.pagesPerCell += 1;
    this.bands = [];
    let first = 0;
    let top = 0;
    for (const count of counts) {
      this.bands.push({ first, count, top });
      first += count;
      top += this.numRows(count) * this.size + bandGap;
    }
    this.height = Math.max(this.size, top - bandGap);
  }

  get columns() {
    return Math.max(1, Math.floor(this.width / this.size));
  }

  // The square that leaves a gap between cells.
  get inner() {
    return this.size - Math.max(1, Math.round((this.size > 6 * this.scale ? 2 : 1) * this.scale));
  }

  // From one column to the next: what is left of the width is spread between them, unless that
  // would show as a pattern.
  get pitch() {
    if (this.size < 8 * this.scale) return this.size;
    return (this.width - this.inner) / Math.max(1, this.columns - 1);
  }

  numRows(count) {
    return Math.ceil(Math.ceil(count / this.pagesPerCell) / this.columns);
  }

  rows(counts) {
    return counts.reduce((sum, count) => sum + this.numRows(count), 0);
  }

  band(page) {
    return this.bands.findLast((band) => page >= band.first);
  }

  // The cell of a page: its pages, and its corner.
  cell(page) {
    const band = this.band(page);
    const number = Math.floor((page - band.first) / this.pagesPerCell);
    const first = band.first + number * this.pagesPerCell;
    return {
      first,
      end: Math.min(first + this.pagesPerCell, band.first + band.count),
      x: Math.floor((number % this.columns) * this.pitch),
      y: band.top + Math.floor(number / this.columns) * this.size,
    };
  }

  // The first page of the cell at a point, if there is one.
  at(x, y) {
    const band = this.bands.findLast(({ top }) => y >= top);
    const column = Math.floor(x / this.pitch);
    if (band === undefined || column < 0 || column >= this.columns) return null;
    const number = Math.floor((y - band.top) / this.size) * this.columns + column;
    const page = band.first + number * this.pagesPerCell;
    return page < band.first + band.count ? page : null;
  }
}
