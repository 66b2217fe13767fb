// One answer: written as it comes, then kept as plain data that can be stored and shown again.

import { ask } from "./api.js";
import { make, number, percent } from "./dom.js";
import { inspect } from "./inspector.js";
import { tokenElement } from "./tokens.js";

/** Where an answer stands on the page: its tokens, and a line that tells what it cost. */
export class AnswerView {
  constructor(label, changed = () => {}) {
    this.text = make("div", { className: "text", role: "group", "aria-label": label });
    this.facts = make("p", { className: "facts" });
    this.element = make("div", { className: "answer" }, this.text, this.facts);
    this.changed = changed;
    this.news = []; // elements that wait for the next frame
    this.answer = null; // the whole answer, when it is there
    inspect(this.text);
  }

  /** Tokens appear with the next frame, however many came since the last one. */
  add(tokens, drafter) {
    if (!this.news.length) requestAnimationFrame(() => this.flush());
    this.news.push(...tokens.filter((token) => token.text).map((token) => tokenElement(token, drafter)));
  }

  flush() {
    const first = !this.text.firstChild;
    this.text.append(...this.news);
    this.news = [];
    if (first && this.text.firstChild) this.text.firstChild.tabIndex = 0;
    this.changed();
  }

  busy(on) {
    this.text.ariaBusy = on || null;
    this.element.classList.toggle("busy", on);
  }

  /** All its tokens are on the page, or wait for the next frame. */
  end(answer) {
    this.answer = answer;
    this.flush();
    this.facts.textContent = facts(answer);
  }

  clear() {
    this.answer = null;
    this.text.replaceChildren();
    this.facts.textContent = "";
  }

  /** A whole answer, as it was stored. */
  show(answer) {
    if (this.answer === answer) return;
    this.clear();
    this.add(answer.tokens, answer.drafter);
    this.end(answer);
  }
}

/**
 * Asks, and shows what comes; the whole answer at its end, or what there is of it when the signal stopped it (`stopped`).
 * Throws `Failure`.
 */
export async function write(messages, settings, signal, view) {
  const answer = { text: "", tokens: [], drafter: settings.drafter, drafts: settings.drafts, seed: settings.seed };
  view.busy(true);
  try {
    for await (const chunk of ask(messages, settings, signal)) take(chunk, answer, view);
  } catch (problem) {
    if (problem.name !== "AbortError") throw problem;
    answer.stopped = true;
  } finally {
    view.busy(false);
  }
  view.end(answer);
  return answer;
}

function take(chunk, answer, view) {
  const choice = chunk.choices[0];
  if (!choice) {
    answer.counts = chunk.usage.speculation;
    return;
  }
  answer.text += choice.delta.content ?? "";
  if (choice.finish_reason) answer.reason = choice.finish_reason;
  const told = choice.paceline;
  if (!told) return;
  answer.tokens.push(...told.tokens);
  if (told.timing) answer.speed = speedOf(told.timing);
  view.add(told.tokens, answer.drafter);
}

/** Tokens a second from the first token to the last, by the engine's clock; 0 for an answer of one token. */
const speedOf = ({ tpot_ms: each }) => (each > 0 ? 1000 / each : 0);

export function nameOf({ drafter, drafts }) {
  if (drafter === "none") return "no drafter";
  return `${drafter === "mtp" ? "MTP" : drafter === "ngram" ? "n-gram" : drafter}, k ${drafts}`;
}

function facts(answer) {
  const { counts } = answer;
  return [
    answer.stopped ? "stopped" : answer.reason === "length" ? "cut at the longest answer" : "",
    `${number(answer.tokens.length)} tokens`,
    answer.speed ? `${number(answer.speed)} tokens/s` : "",
    counts?.drafted ? `${number(counts.acceptance_length)} tokens per verification` : "",
    counts?.drafted ? `${percent(counts.acceptance_rate)} of drafts accepted` : "",
    nameOf(answer),
    `seed ${answer.seed}`,
  ]
    .filter(Boolean)
    .join(" · ");
}
