// Wires the page: each concern has a module of its own.

import * as api from "./api.js";
import * as attachments from "./attachments.js";
import * as camera from "./camera.js";
import { Conversation } from "./chat.js";
import { byId } from "./dom.js";
import * as policies from "./policies.js";
import { samples } from "./samples.js";
import { watch } from "./status.js";

const SAMPLE_QUESTION = "List the colours of all images.";

let model = "";
let conversation = new Conversation();
let running = null; // what stops the answers that are being written

async function ask() {
  const question = byId("question");
  if (running || !question.value.trim()) return;
  if (!model) return (byId("notice").textContent = "The server has not said yet which model it has.");
  running = new AbortController();
  const asked = { text: question.value.trim(), images: attachments.take() };
  question.value = "";
  byId("notice").textContent = "";
  byId("welcome").hidden = true;
  setBusy(true);
  const asking = conversation;
  try {
    const answered = await asking.ask(asked, settings(), running.signal);
    if (!answered && asking === conversation) putBack(asked);
  } finally {
    running = null;
    setBusy(false);
    question.focus();
  }
}

/** To be mended and asked again, unless the next question is being written. */
function putBack({ text, images }) {
  byId("question").value ||= text;
  attachments.putBack(images);
}

function settings() {
  const number = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
  return {
    model,
    policies: policies.chosen(),
    system: byId("system").value.trim(),
    temperature: number("temperature"),
    length: number("length"),
    positions: byId("positions").checked,
  };
}

function setBusy(busy) {
  byId("stop").hidden = !busy;
  byId("send").hidden = busy;
}

function startAnew() {
  running?.abort();
  conversation = new Conversation();
  for (const turn of document.querySelectorAll(".turn")) turn.remove();
  byId("welcome").hidden = false;
  byId("question").focus();
}

/** On a narrow page the settings are folded away, on a wide one always there. */
function fold() {
  const wide = matchMedia("(min-width: 56rem)");
  const set = () => (byId("panel").open = wide.matches);
  wide.addEventListener("change", set);
  set();
}

function listen() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  byId("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      ask();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("clear").addEventListener("click", startAnew);
  byId("settings").addEventListener("submit", (event) => event.preventDefault());
  byId("samples").addEventListener("click", async () => {
    await attachments.add(await samples());
    byId("question").value = SAMPLE_QUESTION;
    byId("question").focus();
  });
}

fold();
listen();
policies.listen();
attachments.listen();
camera.listen();
const look = watch({
  onKeyWanted: () => (byId("key-form").hidden = false),
  onModel(found) {
    model = found.name;
    byId("model").textContent = found.name;
    document.title = `${found.name} · lookm playground`;
    policies.offer(found.policies);
  },
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.key.set(byId("key").value.trim());
  look();
});
