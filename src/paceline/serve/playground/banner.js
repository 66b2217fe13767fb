// What went wrong, in the server's own sentence, and what can be done about it.

import { useKey } from "./api.js";
import { byId, make } from "./dom.js";

/** Shows it; `retry` does what failed once more. A server that asks for a key gets a field for it. */
export function complain(failure, retry) {
  const banner = byId("banner");
  const again = make("button", { type: "button", className: "quiet" }, "Retry");
  const close = make("button", { type: "button", className: "quiet", "aria-label": "Dismiss" }, "✕");
  const field = failure.status === 401 ? keyField() : null;
  again.addEventListener("click", () => {
    if (field) useKey(field.value.trim());
    clearBanner();
    retry();
  });
  field?.addEventListener("keydown", (event) => {
    if (event.key === "Enter") again.click();
  });
  close.addEventListener("click", clearBanner);
  banner.replaceChildren(make("span", { className: "sentence" }, failure.message), ...(field ? [field] : []), again, close);
  banner.hidden = false;
  if (failure.wait) holdBack(again, failure.wait);
}

export function clearBanner() {
  const banner = byId("banner");
  if (banner.contains(document.activeElement)) byId("prompt").focus();
  banner.replaceChildren();
  banner.hidden = true;
}

const keyField = () => make("input", { type: "password", autocomplete: "off", placeholder: "API key", "aria-label": "API key" });

/** Not before the server wants to hear of it again. */
function holdBack(button, seconds) {
  button.disabled = true;
  button.textContent = `Retry in ${seconds} s`;
  setTimeout(() => {
    button.disabled = false;
    button.textContent = "Retry";
  }, 1000 * seconds);
}
