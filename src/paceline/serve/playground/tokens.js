// Tokens and who wrote them: the colours' names, the legend, one element a token, and a sentence about it.

import { make, percent } from "./dom.js";

const DEEPEST = 4; // drafts from here on share a colour

/** What the legend shows: class, sample, words. */
const LEGEND = [
  ["target", "word", "the target"],
  ["d1", "word", "MTP, depth 1"],
  ["d2", "word", "MTP, depth 2"],
  ["d3", "word", "MTP, depth 3"],
  ["d4", "word", "MTP, depth 4+"],
  ["ngram", "word", "n-gram"],
  ["target rejected", "word", "the target, in place of a rejected draft"],
];

/** The class of a token. `origin`: 0 the target, else the depth of the accepted draft. */
export function kindOf(origin, drafter) {
  if (!(origin > 0)) return "target"; // -1: forced by a grammar, nobody's draft
  return drafter === "ngram" ? "ngram" : `d${Math.min(origin, DEEPEST)}`;
}

export function fillLegend(list) {
  for (const [kind, text, words] of LEGEND) {
    const sample = make("span", { className: `token sample ${kind}`, "aria-hidden": "true" }, text);
    list.append(make("li", {}, sample, words));
  }
}

/** A token's element; `inspector` finds the token again by its `token`. Not a tab stop: arrows walk (see `inspector`). */
export function tokenElement(token, drafter) {
  const rejected = token.rejected ? " rejected" : "";
  const element = make("span", { className: `token ${kindOf(token.origin, drafter)}${rejected}`, tabIndex: -1 });
  element.textContent = token.text;
  element.token = token;
  element.drafter = drafter;
  return element;
}

export const probability = (logprob) => percent(Math.exp(logprob));

/** Blanks and line ends would not be seen. Example: " sea\n" is "·sea↵". */
export function visible(text) {
  return text ? text.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "⇥") : "(nothing visible)";
}

export function author(token, drafter) {
  if (!(token.origin > 0)) return "Written by the target";
  const name = drafter === "ngram" ? "n-gram" : drafter === "mtp" ? "MTP" : drafter;
  return `Accepted ${name} draft, depth ${token.origin}`;
}

/** All that the inspector shows, as one sentence for a screen reader. */
export function sentence(token, drafter) {
  const draft = token.rejected;
  const refused = draft ? ` Draft “${draft.text}” rejected, ${probability(draft.logprob)}.` : "";
  return `“${token.text}”: ${author(token, drafter)}, ${probability(token.logprob)}.${refused}`;
}
