// Elements without markup: text is only ever set as text, so nothing that a model or a user writes becomes HTML.

const SVG = "http://www.w3.org/2000/svg";

/** The element with that id; the page has it. */
export const byId = (id) => document.getElementById(id);

/** An element. Properties are set as properties, those with a dash as attributes; children are elements or text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** An SVG element with these attributes. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Tells a screen reader, without moving anything. */
export function say(text) {
  byId("said").textContent = text;
}

/** Example: 1234.5 is "1,235", 12.34 is "12.3". */
export function number(value) {
  return value >= 100 ? Math.round(value).toLocaleString("en") : (Math.round(value * 10) / 10).toString();
}

/** Example: 0.8234 is "82 %", 0.0123 is "1.2 %", 0.0004 is "< 0.1 %". */
export function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return `${share >= 0.0995 || share === 0 ? Math.round(100 * share) : (100 * share).toFixed(1)} %`;
}
