// Draws one view of an image on a canvas: clear where a patch was kept, veiled where it was dropped,
// striped where it was merged into a kept one, as `lookm.show` does (`lookm/picture/veil.py`). Knows
// pixels; `positions` knows what they mean.

import { patches } from "./positions.js";

const LONGEST = 960; // pixels of the canvas
const VEIL = "126, 124, 120"; // a grey that is neither paper nor ink
const STRIPE = "#f5b83d";
const VEILED = 0.86;
const STRIPED = 0.75;
const STRIPE_GAP = 6; // pixels of the window
const FAINT = 0.25; // the veil where nothing is known
const WASHED = 0.6; // white, and grey lines on it, where the model does not see
const HATCHED = 0.5;

/** What of the plane a view needs: the image, and where a grid reaches beyond it. */
function frameOf({ width, height }, view) {
  const [lefts, tops, rights, bottoms] = [0, 1, 2, 3].map((side) => view.map(({ box }) => box[side]));
  return [Math.min(0, ...lefts), Math.min(0, ...tops), Math.max(width, ...rights), Math.max(height, ...bottoms)];
}

/** The patches of a view with their places on a canvas of `width` x `height`. */
export function layout(image, view) {
  const [left, top, right, bottom] = frameOf(image, view);
  const scale = LONGEST / Math.max(right - left, bottom - top);
  const place = ([l, t, r, b]) => [(l - left) * scale, (t - top) * scale, (r - l) * scale, (b - t) * scale];
  return {
    width: Math.max(1, Math.round((right - left) * scale)),
    height: Math.max(1, Math.round((bottom - top) * scale)),
    picture: place([0, 0, image.width, image.height]),
    patches: patches(view).map((patch) => ({ ...patch, place: place(patch.box) })),
  };
}

/** Paint it: `counts` as of `Positions.count`, `active` the patch that is ringed, if any, `scale`
 * pixels of the canvas in one of the window. */
export function paint(canvas, bitmap, { width, height, picture, patches }, counts, active, scale) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  context.fillStyle = "#fff";
  context.fillRect(...picture);
  if (bitmap) context.drawImage(bitmap, ...picture);
  hatchOutside(context, width, height, patches, scale);
  for (const { token, place } of patches) {
    if (token < counts.unknown) faint(context, place);
    else shade(context, place, counts.kept[token] / counts.of, counts.merged[token] / counts.of, scale);
  }
  if (active) ring(context, active.place, scale);
}

/** How much is left of the veil over what a share of layers and heads kept: roots, so that the few
 * that most patches have are told apart. */
export const veil = (kept) => 1 - Math.sqrt(kept);

/** One patch, or anything else that has a place. */
export function shade(context, place, kept, merged, scale = 1) {
  context.save();
  context.beginPath();
  context.rect(...whole(place));
  context.clip();
  context.fillStyle = `rgba(${VEIL}, ${VEILED * veil(kept)})`;
  context.fill();
  context.globalAlpha = STRIPED * merged;
  context.strokeStyle = STRIPE;
  if (merged > 0) diagonals(context, place, 1, STRIPE_GAP * scale);
  context.restore();
}

/** One of which nothing is known. */
export function faint(context, place) {
  context.fillStyle = `rgba(${VEIL}, ${FAINT})`;
  context.fillRect(...whole(place));
}

/** A word that was merged. */
export function underline(context, [x, y, width, height]) {
  context.fillStyle = STRIPE;
  context.fillRect(x, y + height - 2, width, 2);
}

/** What the model does not see. */
export function hatch(context, place, scale = 1) {
  context.fillStyle = `rgba(255, 255, 255, ${WASHED})`;
  context.fillRect(...place);
  context.strokeStyle = `rgba(${VEIL}, ${HATCHED})`;
  diagonals(context, place, -1, STRIPE_GAP * scale);
}

/** Lines that fall (`slope` 1) or rise (-1), on one raster over the whole canvas. */
function diagonals(context, [x, y, width, height], slope, gap) {
  const [top, bottom] = [slope * y, slope * (y + height)];
  const first = Math.floor((x - Math.max(top, bottom)) / gap) * gap;
  context.lineWidth = gap / 4;
  context.beginPath();
  for (let shift = first; shift <= x + width - Math.min(top, bottom); shift += gap) {
    context.moveTo(shift + top, y);
    context.lineTo(shift + bottom, y + height);
  }
  context.stroke();
}

/** In whole pixels: no seams between patches. */
function whole([x, y, width, height]) {
  const [left, top] = [Math.round(x), Math.round(y)];
  return [left, top, Math.round(x + width) - left, Math.round(y + height) - top];
}

function hatchOutside(context, width, height, patches, scale) {
  context.save();
  context.beginPath();
  context.rect(0, 0, width, height);
  for (const { place } of patches) context.rect(...whole(place));
  context.clip("evenodd");
  hatch(context, [0, 0, width, height], scale);
  context.restore();
}

function ring(context, [x, y, width, height], scale) {
  for (const [strokeStyle, lineWidth] of [["#000", 5 * scale], ["#fff", 2 * scale]]) {
    Object.assign(context, { strokeStyle, lineWidth });
    context.strokeRect(x, y, width, height);
  }
}
