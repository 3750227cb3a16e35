// Which policies answer: one to three fields, each with what the server lists to choose from.

import { byId, make } from "./dom.js";

const MOST = 3;
const FIRST = ["full", "look-m-plus@0.2"];
const NEXT = "look-m@0.2";

/** The policies asked for, each once; a field left empty is the server's default. */
export function chosen() {
  return [...new Set(fields().map(({ value }) => value.trim()))];
}

/** Offer these. */
export function offer(names) {
  byId("known-policies").replaceChildren(...names.map((value) => make("option", { value })));
}

/** Puts the first fields there and listens. */
export function listen() {
  FIRST.forEach(addField);
  byId("add-policy").addEventListener("click", () => {
    addField(NEXT);
    fields().at(-1).select();
  });
}

const fields = () => [...byId("policy-list").querySelectorAll("input")];

function addField(value) {
  const input = make("input", { value, list: "known-policies", spellcheck: false, autocomplete: "off" });
  const remove = make("button", { type: "button", className: "quiet" }, "×");
  const row = make("div", { className: "row" }, input, remove);
  remove.addEventListener("click", () => {
    row.remove();
    number();
    fields().at(-1).focus();
  });
  byId("policy-list").append(row);
  number();
}

/** Names each field by its place; the last one stays, and there are at most three. */
function number() {
  fields().forEach((input, at) => {
    input.setAttribute("aria-label", `Policy ${at + 1}`);
    input.nextSibling.setAttribute("aria-label", `Remove policy ${at + 1}`);
    input.nextSibling.hidden = fields().length === 1;
  });
  byId("add-policy").hidden = fields().length >= MOST;
}
