// The one tooltip of the page: beside what the pointer is over, or what the arrow keys chose.

import { byId } from "./dom.js";

const GAP = 14;
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Lets pointer and arrow keys go over the parts of `node`, by their numbers; -1 is none.
 *
 * `at(event)` is the one under the pointer, `beside(index, across, down)` a neighbour (any number
 * that is none: there is no such), `choose(index)` marks it and says `{text, x, y}` or null.
 * Returns what says it anew, where something else is true of it now. */
export function explore(node, { at, beside, choose }) {
  let index = -1;

  function go(next) {
    const found = choose(next);
    index = found ? next : -1;
    if (found) show(found.text, found.x, found.y);
    else byId("tip").hidden = true;
  }

  function step(across, down) {
    const next = index < 0 ? 0 : beside(index, across, down);
    const before = index;
    go(next);
    if (index < 0) go(before); // at an edge it stays
  }

  node.addEventListener("pointermove", (event) => {
    const next = at(event);
    if (next !== index) go(next);
  });
  node.addEventListener("pointerleave", () => go(-1));
  node.addEventListener("blur", () => go(-1));
  node.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && index >= 0) go(-1);
    else if (event.key in STEPS) step(...STEPS[event.key]);
    else return;
    event.preventDefault();
  });
  return () => {
    if (index >= 0) go(index);
  };
}

/** Within the window. */
function show(text, x, y) {
  const tip = byId("tip");
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const below = y + GAP + height < innerHeight ? y + GAP : y - GAP - height;
  tip.style.left = `${Math.max(8, Math.min(x + GAP, innerWidth - width - 8))}px`;
  tip.style.top = `${Math.max(8, below)}px`;
}
