// Small plots, drawn as SVG or as bars; each tells a screen reader its numbers in words.

import { draw, make, number, percent } from "./dom.js";

const WIDTH = 240;
const HEIGHT = 36;

/** Lines over the last `points` values, with the latest one as a number above. `names`: one for each line. */
export class Lines {
  constructor(title, names, points, unit = "") {
    this.points = points;
    this.unit = unit;
    this.names = names;
    this.series = names.map(() => []);
    this.values = names.map(() => make("span", { className: "now" }, "0"));
    const heads = names.map((name, i) =>
      make("span", { className: `head line${i}` }, this.values[i], make("span", { className: "unit" }, unit || name)),
    );
    this.most = make("span", { className: "most" });
    this.area = draw("path", { class: "area" });
    this.paths = names.map((_, i) => draw("path", { class: `line line${i}` }));
    this.svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.svg.append(draw("path", { class: "base", d: `M0 ${HEIGHT - 0.5}H${WIDTH}` }));
    this.svg.append(this.area, ...this.paths);
    this.element = make(
      "div",
      { className: "plot wide" },
      make("h3", {}, title),
      make("p", { className: "heads" }, ...heads, this.most),
      this.svg,
    );
    this.title = title;
  }

  add(...values) {
    this.series.forEach((series, i) => {
      series.push(values[i]);
      if (series.length > this.points) series.shift();
      this.values[i].textContent = number(values[i]);
    });
    const most = Math.max(1, ...this.series.flat());
    this.most.textContent = `max ${number(most)}`;
    this.paths.forEach((path, i) => path.setAttribute("d", this.path(this.series[i], most)));
    const line = this.path(this.series[0], most);
    this.area.setAttribute("d", `${line}V${HEIGHT}H${this.x(0, this.series[0].length).toFixed(1)}Z`);
    const now = this.names.map((name, i) => `${name} ${number(values[i])}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.title}: ${now} now, at most ${number(most)} in the last minute`);
  }

  /** The latest value stands at the right edge. */
  x(at, count) {
    return ((at + this.points - count) * WIDTH) / (this.points - 1);
  }

  path(series, most) {
    const y = (value) => HEIGHT - 1 - ((HEIGHT - 4) * value) / most;
    return series.map((v, i) => `${i ? "L" : "M"}${this.x(i, series.length).toFixed(1)} ${y(v).toFixed(1)}`).join("");
  }
}

/** Shares as horizontal bars, one a line: label, bar, percentage; a wide one is a single bar without a label. */
export class Bars {
  constructor(title, empty, { kind = () => "", wide = false } = {}) {
    this.title = title;
    this.empty = empty;
    this.kind = kind;
    this.rows = make("div", { className: "bars", role: "img" });
    this.element = make("div", { className: wide ? "plot wide" : "plot" }, make("h3", {}, title), this.rows);
    this.show([]);
  }

  /** `shares`: [[label, share or null]]. */
  show(shares) {
    if (!shares.length) {
      this.rows.replaceChildren(make("p", { className: "none" }, this.empty));
      this.rows.setAttribute("aria-label", `${this.title}: ${this.empty}`);
      return;
    }
    this.rows.replaceChildren(...shares.flatMap(([label, share], at) => this.row(label, share, at)));
    const words = shares.map(([label, share]) => `${label}: ${share === null ? "none" : percent(share)}`);
    this.rows.setAttribute("aria-label", `${this.title}: ${words.join(", ")}`);
  }

  row(label, share, at) {
    const fill = make("span", { className: `fill ${this.kind(at)}` });
    fill.style.width = `${100 * (share ?? 0)}%`;
    return [
      ...(label ? [make("span", { className: "label" }, label)] : []),
      make("span", { className: "track" }, fill),
      make("span", { className: "value" }, share === null ? "–" : percent(share)),
    ];
  }
}
