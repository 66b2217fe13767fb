// Light, dark, or as the system says. Runs before the page is drawn, so that it never flashes.
"use strict";

(() => {
  const NAME = "paceline.theme";
  const CHOICES = ["auto", "light", "dark"];
  const WORDS = {
    auto: ["Auto", "Colours: as the system"],
    light: ["Light", "Colours: light"],
    dark: ["Dark", "Colours: dark"],
  };

  /** Storage may be forbidden, or hold anything. */
  function stored() {
    try {
      const found = localStorage.getItem(NAME);
      return CHOICES.includes(found) ? found : "auto";
    } catch {
      return "auto";
    }
  }

  let theme = stored();

  function show() {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  }

  show();
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const tell = () => {
      button.textContent = WORDS[theme][0];
      button.setAttribute("aria-label", WORDS[theme][1]);
    };
    tell();
    button.addEventListener("click", () => {
      theme = CHOICES[(CHOICES.indexOf(theme) + 1) % CHOICES.length];
      try {
        localStorage.setItem(NAME, theme);
      } catch {
        // It lasts as long as the page.
      }
      show();
      tell();
    });
  });
})();
