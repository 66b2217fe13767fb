// The conversation: turns as plain data, their views, and the one thing that may be under way.

import { AnswerView, write } from "./answer.js";
import { clearBanner, complain } from "./banner.js";
import { byId, make, say } from "./dom.js";
import { RaceView, runRound } from "./race.js";
import { chosenSettings, settingsOfRequest } from "./settings.js";
import { save } from "./store.js";

const NEAR = 80; // pixels from the end of the log within which it follows what is written

export class Chat {
  /** `turns`: {role: "user", text}, an answer with role "assistant", or a race with role "race". */
  constructor(turns) {
    this.turns = turns;
    this.log = byId("log");
    this.work = null; // an AbortController while something is under way
    if (turns.at(-1)?.role === "user") byId("prompt").value = turns.pop().text;
    for (const turn of turns) this.append(turn);
    this.follow(true);
  }

  keep() {
    save(this.turns, chosenSettings());
  }

  clear() {
    this.stop();
    this.turns = [];
    for (const element of [...this.log.children]) if (element.id !== "empty") element.remove();
    this.showEmpty();
    clearBanner();
    this.keep();
  }

  stop() {
    this.work?.abort();
  }

  /** What the model reads of a turn list: all of it, or the last question alone. */
  messages(turns = this.turns) {
    return (byId("memory").checked ? turns : turns.slice(-1)).map((turn) => {
      const text = turn.role === "race" ? turn.speculated.text : turn.text;
      return { role: turn.role === "user" ? "user" : "assistant", content: text };
    });
  }

  async send(text) {
    this.begin(text);
    await this.answer();
  }

  async race(text) {
    this.begin(text);
    await this.round(this.raceView(), null);
  }

  begin(text) {
    this.turns.push({ role: "user", text });
    this.append(this.turns.at(-1));
    this.follow(true);
    this.keep();
  }

  /** The answer to the last turn. */
  async answer() {
    const view = new AnswerView("Answer", () => this.follow());
    this.log.append(view.element);
    await this.under(view, () => this.answer(), async (signal) => {
      const answer = await write(this.messages(), settingsOfRequest(), signal, view);
      if (!answer.tokens.length && answer.stopped) return this.takeBack(view);
      this.turns.push({ role: "assistant", ...answer });
      say(`${answer.text} ${view.facts.textContent}`);
    });
  }

  /** One round of the race of the last turn, or of the turn `before`, which it replaces. */
  async round(view, before) {
    const at = before ? this.turns.indexOf(before) : this.turns.length;
    const settings = { ...settingsOfRequest(), ...(before ? seedOf(before) : {}) };
    this.log.append(...(view.element.isConnected ? [] : [view.element]));
    await this.under(before ? null : view, () => this.round(before ? view : this.raceView(), before), async (signal) => {
      const turn = await runRound(view, before, this.messages(this.turns.slice(0, at)), settings, signal);
      if (turn) this.turns[at] = view.turn = turn;
      else if (before) view.show(before);
      else this.takeBack(view);
    });
    if (before && view.turn === before) view.show(before);
  }

  raceView() {
    const view = new RaceView(() => this.work ?? this.round(view, view.turn), () => this.follow());
    return view;
  }

  /** One thing at a time. What fails leaves no view behind, but a banner from which it can be tried again. */
  async under(view, again, work) {
    clearBanner();
    this.work = new AbortController();
    this.showBusy(true);
    try {
      await work(this.work.signal);
    } catch (problem) {
      view?.element.remove();
      complain(problem, again);
    } finally {
      this.work = null;
      this.showBusy(false);
      this.keep();
      this.follow();
    }
  }

  /** Stopped before anything was written: the question goes back to where it was typed. */
  takeBack(view) {
    view.element.remove();
    const { text } = this.turns.pop();
    [...this.log.querySelectorAll(".asked")].at(-1).remove();
    if (!byId("prompt").value) byId("prompt").value = text;
    this.showEmpty();
  }

  append(turn) {
    let element;
    if (turn.role === "user") element = make("div", { className: "asked" }, turn.text);
    else {
      const view = turn.role === "race" ? this.raceView() : new AnswerView("Answer");
      view.turn = turn;
      view.show(turn);
      element = view.element;
    }
    this.log.append(element);
    this.showEmpty();
  }

  showEmpty() {
    byId("empty").hidden = this.turns.length > 0;
  }

  showBusy(on) {
    byId("send").hidden = on;
    byId("stop").hidden = !on;
    byId("race").disabled = on;
    if (document.activeElement === document.body) byId("prompt").focus();
  }

  /** Stays at the end of the log while what is written grows, unless the reader went up. */
  follow(always = false) {
    const { scrollHeight, scrollTop, clientHeight } = this.log;
    if (always || scrollHeight - scrollTop - clientHeight < NEAR + clientHeight / 2) this.log.scrollTop = scrollHeight;
  }
}

/** Further rounds ask for what the first one asked for, so that they can be compared. */
const seedOf = ({ speculated }) => ({ seed: speculated.seed });
