// What the look means, in plain words: on the page and in its PNG. `lookm.show` has the same words.

import { make } from "./dom.js";
import { faint, hatch, shade } from "./paint.js";
import { cropped } from "./positions.js";

const SIDE = 16;

/** What these pictures may have, `{text, draw}`: `draw(context, place)` on white. */
export function entries(positions) {
  return [
    { text: "clear: kept", draw: shades(1, 0) },
    { text: "partly veiled: kept in some layers and heads", draw: shades(0.25, 0) },
    { text: "grey: dropped", draw: shades(0, 0) },
    { text: "striped, words underlined: merged into what was kept", draw: shades(0, 1), isThere: merges },
    { text: "faint grey: not known, an earlier turn decided it", draw: faint, isThere: isUnknown },
    { text: "hatched: the model does not see it", draw: hatch, isThere: isCropped },
  ].filter(({ isThere }) => !isThere || positions.some(isThere));
}

/** Them as a list. */
export function legend(positions) {
  const items = entries(positions).map(({ text, draw }) => make("li", {}, swatch(draw), text));
  return make("ul", { className: "legend", "aria-label": "Legend" }, ...items);
}

const shades = (kept, merged) => (context, place) => shade(context, place, kept, merged);
const merges = ({ merged }) => merged !== null;
const isUnknown = ({ numUnknown }) => numUnknown > 0;
const isCropped = ({ images }) => images.some(cropped);

function swatch(draw) {
  const canvas = make("canvas", { width: SIDE, height: SIDE });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, SIDE, SIDE);
  draw(context, [0, 0, SIDE, SIDE]);
  return make("img", { className: "swatch", src: canvas.toDataURL(), alt: "" });
}
