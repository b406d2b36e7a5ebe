// Sparkline: a row of numbers as a line, the newest at the right.

const SVG = "http://www.w3.org/2000/svg";

export class Sparkline {
  constructor(svg, numSamples) {
    this.numSamples = numSamples;
    this.samples = [];
    const { width, height } = svg.viewBox.baseVal;
    this.width = width;
    this.height = height;
    this.area = svg.appendChild(document.createElementNS(SVG, "path"));
    this.area.setAttribute("class", "area");
    this.line = svg.appendChild(document.createElementNS(SVG, "path"));
  }

  add(value) {
    this.samples.push(value);
    if (this.samples.length > this.numSamples) this.samples.shift();
    const most = Math.max(1, ...this.samples);
    const step = this.width / (this.numSamples - 1);
    const left = this.width - (this.samples.length - 1) * step;
    const points = this.samples.map((sample, at) => {
      const y = this.height - 1 - (sample / most) * (this.height - 2);
      return `${(left + at * step).toFixed(2)} ${y.toFixed(2)}`;
    });
    const line = `M${points.join("L")}`;
    this.line.setAttribute("d", line);
    this.area.setAttribute("d", `${line}L${this.width} ${this.height}L${left} ${this.height}Z`);
  }
}
