// The panel's plots: the server is asked once a second, as long as somebody looks.

import { numbers } from "./api.js";
import { byId } from "./dom.js";
import { acceptance, look, rate, widths } from "./metrics.js";
import { Bars, Lines } from "./plots.js";

const EVERY = 1000; // milliseconds
const POINTS = 61; // a minute, and where it began

export function startLive() {
  const live = new Live();
  byId("live").append(...live.plots.map((plot) => plot.element));
  live.tick();
}

class Live {
  constructor() {
    this.looks = [];
    this.speed = new Lines("Tokens written", ["tokens a second"], POINTS, "tokens/s");
    this.load = new Lines("Requests", ["running", "waiting"], POINTS);
    this.cache = new Bars("KV cache in use", "nothing yet", { wide: true });
    this.accepted = new Bars("Accepted, by position", "no drafts yet", { kind: (at) => `d${Math.min(at + 1, 4)}` });
    this.widths = new Bars("Drafts at a time", "no drafts yet");
    this.plots = [this.speed, this.load, this.cache, this.accepted, this.widths];
  }

  /** Never two at once, and none while the page is hidden. */
  async tick() {
    if (!document.hidden) await this.read();
    setTimeout(() => this.tick(), EVERY);
  }

  async read() {
    try {
      this.take(look(await numbers(), performance.now() / 1000));
    } catch {
      tell("down", "not reachable");
    }
  }

  take(now) {
    const before = this.looks.at(-1) ?? now;
    if (now.generated < before.generated) this.looks = []; // the server began again
    this.looks.push(now);
    if (this.looks.length > POINTS) this.looks.shift();
    tell(now.up ? "up" : "down", now.up ? "ready" : "engine restarting");
    this.speed.add(rate(before, now));
    this.load.add(now.running, now.waiting);
    this.cache.show([["", now.cache]]);
    const since = this.since(now);
    this.accepted.show(acceptance(since, now).map((share, at) => [`${at + 1}`, share]));
    this.widths.show(widths(since, now).map((share, width) => [`${width}`, share]));
  }

  /** The last minute, or all of the server's time when nothing was verified in it. */
  since(now) {
    const [first] = this.looks;
    return now.verifications > first.verifications ? first : { widths: [], drafted: [], accepted: [] };
  }
}

function tell(state, words) {
  const pill = byId("state");
  if (pill.dataset.state === state && pill.textContent === words) return;
  pill.dataset.state = state;
  pill.textContent = words;
}
