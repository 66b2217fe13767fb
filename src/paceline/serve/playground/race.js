// The same prompt without and with speculation: two lanes, the ratio, and whether the text is the same.
//
// The lanes run one after the other, since two answers at once would take each other's processor; every further round
// turns the order round. The seed is the same, so the text has to be.

import { AnswerView, nameOf, write } from "./answer.js";
import { make, number, say } from "./dom.js";

const MEASURE =
  "The two answers run one after the other on the same server, with the same seed; each further round turns the order " +
  "round. Tokens a second count from the first token to the last, by the engine's own clock: neither reading the " +
  "prompt nor drawing this page is in it. The ratio is the median of the rounds.";

export class RaceView {
  /** `again`: called when another round is wanted. */
  constructor(again, changed) {
    this.plain = new Lane("Plain", "plain", changed);
    this.speculated = new Lane("Speculated", "speculated", changed);
    this.verdict = make("p", { className: "verdict" });
    this.rounds = make("div", { className: "rounds" });
    this.again = make("button", { type: "button", className: "quiet" }, "Race again");
    this.again.addEventListener("click", again);
    this.element = make(
      "section",
      { className: "race", "aria-label": "Race" },
      make("div", { className: "lanes" }, this.plain.element, this.speculated.element),
      this.verdict,
      this.rounds,
      make("details", {}, make("summary", {}, "How this is measured"), make("p", {}, MEASURE)),
      this.again,
    );
  }

  show(turn) {
    const fastest = Math.max(turn.plain.speed ?? 0, turn.speculated.speed ?? 0);
    this.plain.end(turn.plain, fastest);
    this.speculated.end(turn.speculated, fastest);
    this.speculated.name(`Speculated: ${nameOf(turn.speculated)}`);
    this.verdict.replaceChildren(...verdict(turn));
    this.rounds.replaceChildren(...(turn.rounds.length > 1 ? [table(turn.rounds)] : []));
  }
}

class Lane {
  constructor(title, kind, changed) {
    this.title = make("h3", {}, title);
    this.speed = make("span", { className: "speed" }, "–");
    this.fill = make("span", { className: `fill ${kind}` });
    this.view = new AnswerView(title, changed);
    this.element = make(
      "div",
      { className: "lane" },
      this.title,
      make("p", { className: "pace" }, this.speed, make("span", { className: "unit" }, "tokens/s")),
      make("span", { className: "track" }, this.fill),
      this.view.element,
    );
  }

  name(title) {
    this.title.textContent = title;
  }

  begin() {
    this.view.clear();
    this.speed.textContent = "…";
    this.fill.style.width = "0";
  }

  end(answer, fastest) {
    this.view.show(answer);
    this.speed.textContent = answer.speed ? number(answer.speed) : "–";
    this.fill.style.width = `${fastest ? (100 * (answer.speed ?? 0)) / fastest : 0}%`;
  }
}

/**
 * One round. The turn with this round in it, or null when it was stopped. `before`: the turn as it was, if there was one.
 * Throws `Failure`.
 */
export async function runRound(view, before, messages, settings, signal) {
  const lanes = [
    ["plain", { ...settings, drafter: "none", drafts: 0 }],
    ["speculated", settings],
  ];
  const rounds = before?.rounds ?? [];
  if (rounds.length % 2) lanes.reverse();
  for (const [name] of lanes) view[name].begin();
  view.speculated.name(`Speculated: ${nameOf(settings)}`);
  const turn = { role: "race" };
  for (const [name, own] of lanes) {
    turn[name] = await write(messages, own, signal, view[name].view);
    if (turn[name].stopped) return null;
    view[name].speed.textContent = number(turn[name].speed ?? 0);
  }
  turn.rounds = [...rounds, { plain: turn.plain.speed ?? 0, speculated: turn.speculated.speed ?? 0 }];
  turn.same = sameText(turn.plain, turn.speculated) && (before?.same ?? true);
  view.show(turn);
  say(view.verdict.textContent);
  return turn;
}

/** Token for token. */
function sameText(one, other) {
  const ids = ({ tokens }) => tokens.map((token) => token.id).join();
  return one.text === other.text && ids(one) === ids(other);
}

/** The middle one; of an even number the mean of the two in the middle. */
export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const ratioOf = ({ plain, speculated }) => (plain ? speculated / plain : 0);

function verdict({ rounds, same, plain }) {
  const ratio = median(rounds.map(ratioOf));
  const times = ratio ? `${ratio.toFixed(2)}×` : "–";
  const words = `${number(plain.tokens.length)} tokens, token for token`;
  return [
    make("strong", {}, times),
    ` the speed${rounds.length > 1 ? `, median of ${rounds.length} rounds` : ""} `,
    make("span", { className: same ? "same" : "differs" }, same ? `✓ same text: ${words}` : "✗ the texts differ"),
  ];
}

function table(rounds) {
  const cells = (tag, ...values) => make("tr", {}, ...values.map((value) => make(tag, {}, value)));
  const body = rounds.map((round, at) =>
    cells("td", `${at + 1}`, number(round.plain), number(round.speculated), `${ratioOf(round).toFixed(2)}×`),
  );
  return make(
    "table",
    {},
    make("thead", {}, cells("th", "Round", "Plain, tokens/s", "Speculated, tokens/s", "Ratio")),
    make("tbody", {}, ...body),
  );
}
