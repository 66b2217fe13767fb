// The card beside a token: who wrote it, how likely it was, and which draft it took the place of.
//
// With a pointer: hover or tap. With keys: an answer is one tab stop; arrows walk its tokens, Up and Down go to the
// next place where a draft was rejected, Escape closes the card.

import { byId, make, say } from "./dom.js";
import { author, probability, sentence, visible } from "./tokens.js";

const GAP = 8; // pixels between a token and its card, and between the card and the window's edge
const STEPS = { ArrowRight: 1, ArrowLeft: -1 };
const JUMPS = { ArrowDown: 1, ArrowUp: -1 };

const card = byId("inspector");
let shown = null; // the token that the card is about

/** Makes the tokens inside an element speak. */
export function inspect(text) {
  text.addEventListener("pointerover", (event) => show(event.target.closest(".token")));
  text.addEventListener("pointerleave", hide);
  text.addEventListener("focusin", (event) => {
    const element = event.target.closest(".token");
    show(element);
    if (element) say(sentence(element.token, element.drafter));
  });
  text.addEventListener("focusout", hide);
  text.addEventListener("keydown", (event) => walk(text, event));
  text.addEventListener("click", (event) => {
    const element = event.target.closest(".token");
    if (element) focus(text, element);
  });
}

addEventListener("keydown", (event) => {
  if (event.key === "Escape") hide();
});
addEventListener("scroll", follow, true);
addEventListener("resize", follow);

function walk(text, event) {
  const tokens = [...text.querySelectorAll(".token")];
  const at = tokens.indexOf(document.activeElement);
  let next = null;
  if (event.key in STEPS) next = tokens[at + STEPS[event.key]];
  else if (event.key in JUMPS) next = nextRejected(tokens, at, JUMPS[event.key]);
  else if (event.key === "Home") next = tokens[0];
  else if (event.key === "End") next = tokens.at(-1);
  else return;
  event.preventDefault();
  if (next) focus(text, next);
}

function nextRejected(tokens, at, step) {
  for (let i = at + step; i >= 0 && i < tokens.length; i += step) if (tokens[i].token.rejected) return tokens[i];
  return null;
}

/** The one tab stop of an answer moves along. */
function focus(text, element) {
  text.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
  element.tabIndex = 0;
  element.focus({ preventScroll: false });
}

function show(element) {
  if (!element?.token) return;
  const { token, drafter } = element;
  card.replaceChildren(
    make("p", { className: "author" }, author(token, drafter)),
    row("chosen", token, kindClass(element)),
    ...(token.rejected ? [row("rejected", token.rejected, "refused")] : []),
  );
  card.hidden = false;
  shown = element;
  follow();
}

const kindClass = (element) => [...element.classList].find((name) => name !== "token" && name !== "rejected") ?? "";

/** The word, and its probability as a number and a bar. */
function row(word, { text, logprob }, kind) {
  const fill = make("span", { className: `fill ${kind}` });
  fill.style.width = `${100 * Math.exp(logprob)}%`;
  return make(
    "div",
    { className: "choice" },
    make("span", { className: "word" }, word),
    make("code", {}, visible(text)),
    make("span", { className: "value" }, probability(logprob)),
    make("span", { className: "track" }, fill),
  );
}

/** Below the token, or above where there is no room; never over the window's edge. */
function follow() {
  if (!shown) return;
  const rect = shown.getClientRects()[0] ?? shown.getBoundingClientRect();
  const { width, height } = card.getBoundingClientRect();
  const left = Math.max(GAP, Math.min(rect.left, innerWidth - width - GAP));
  const below = rect.bottom + GAP + height < innerHeight;
  card.style.left = `${left}px`;
  card.style.top = `${below ? rect.bottom + GAP : Math.max(GAP, rect.top - GAP - height)}px`;
}

export function hide() {
  card.hidden = true;
  shown = null;
}
