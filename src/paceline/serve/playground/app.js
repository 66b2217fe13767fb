// The page: puts the parts together and listens to the composer.

import { served } from "./api.js";
import { clearBanner, complain } from "./banner.js";
import { Chat } from "./chat.js";
import { byId, make } from "./dom.js";
import { startLive } from "./live.js";
import { fillSettings, watchSettings } from "./settings.js";
import { load } from "./store.js";
import { fillLegend } from "./tokens.js";

const IDEAS = [
  "Tell me about yourself.",
  "A train travels at 67 km per hour for 2 hours and then 30 km more. How far does it travel in total?",
  "Add up these numbers step by step: 87, 66, 84, 98, 11, 12.",
];

const { turns, settings } = load();
const chat = new Chat(turns);
const prompt = byId("prompt");

function submit(act) {
  const text = prompt.value.trim();
  if (!text || chat.work) return;
  prompt.value = "";
  grow();
  act(text);
}

/** The box is as high as its text, within reason (the style sheet's). */
function grow() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

async function connect() {
  try {
    const model = await served();
    byId("model").textContent = model.id;
    fillSettings(model, settings);
    clearBanner();
  } catch (problem) {
    complain(problem, connect);
  }
}

function listen() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit((text) => chat.send(text));
  });
  byId("race").addEventListener("click", () => submit((text) => chat.race(text)));
  byId("stop").addEventListener("click", () => chat.stop());
  byId("new").addEventListener("click", () => {
    chat.clear();
    prompt.focus();
  });
  prompt.addEventListener("input", grow);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submit((text) => chat.send(text));
    } else if (event.key === "Escape") chat.stop();
  });
  byId("panel-switch").addEventListener("click", () => {
    const open = document.body.classList.toggle("panel-open");
    byId("panel-switch").setAttribute("aria-expanded", String(open));
    byId("panel-switch").textContent = open ? "Chat" : "Panel";
  });
  watchSettings(() => chat.keep());
}

function offerIdeas() {
  for (const idea of IDEAS) {
    const button = make("button", { type: "button" }, idea);
    button.addEventListener("click", () => {
      prompt.value = idea;
      grow();
      prompt.focus();
    });
    byId("ideas").append(button);
  }
}

fillLegend(byId("legend"));
offerIdeas();
listen();
startLive();
await connect();
