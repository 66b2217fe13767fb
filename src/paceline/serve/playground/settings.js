// The switches: what the server offers, what the user chose, and what a request therefore asks for.

import { drawSeed } from "./api.js";
import { byId, make } from "./dom.js";

const NAMES = { none: "none (plain)", mtp: "MTP", ngram: "n-gram" };
const FIELDS = ["drafter", "drafts", "temperature", "seed", "length", "memory"];

/** Fills the choices with what the server has, then puts back what was chosen before. */
export function fillSettings({ speculation, max_model_len: longest }, chosen) {
  const { drafters, num_speculative_tokens: most } = speculation;
  byId("drafter").replaceChildren(...drafters.map((name) => make("option", { value: name }, NAMES[name] ?? name)));
  const widths = Array.from({ length: most }, (_, i) => String(i + 1));
  const options = [["auto", "auto"], ["0", "0 (none)"], ...widths.map((width) => [width, width])];
  byId("drafts").replaceChildren(...options.map(([value, words]) => make("option", { value }, words)));
  byId("length").max = longest;
  for (const name of FIELDS) restore(byId(name), chosen[name]);
  showDependent();
}

/** A value that the field does not have (any more) leaves it as it is. */
function restore(field, value) {
  if (field.type === "checkbox" && typeof value === "boolean") field.checked = value;
  if (typeof value !== "string" || field.type === "checkbox") return;
  const before = field.value;
  field.value = value;
  if (field.tagName === "SELECT" && field.selectedIndex < 0) field.value = before;
}

function showDependent() {
  byId("drafts").disabled = byId("drafter").value === "none";
  const temperature = byId("temperature");
  temperature.nextElementSibling.value = Number(temperature.value).toFixed(1);
}

/** `changed` is called whenever a switch was moved. */
export function watchSettings(changed) {
  const form = byId("settings");
  form.addEventListener("input", () => {
    showDependent();
    changed();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
}

/** As the fields stand, to be stored. */
export const chosenSettings = () => Object.fromEntries(FIELDS.map((name) => [name, stateOf(byId(name))]));

const stateOf = (field) => (field.type === "checkbox" ? field.checked : field.value);

/** What a request asks for; a seed is drawn where none was given. */
export function settingsOfRequest() {
  const drafts = byId("drafts").value;
  const seed = byId("seed").value.replace(/\D/g, "");
  return {
    drafter: byId("drafter").value || "none",
    drafts: drafts === "auto" || drafts === "" ? "auto" : Number(drafts),
    temperature: Number(byId("temperature").value),
    seed: seed ? Number(seed) : drawSeed(),
    length: Math.max(1, Math.round(Number(byId("length").value)) || 256),
  };
}
