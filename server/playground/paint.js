// Draws one view of an image on a canvas: clear where a patch was kept, veiled where it was dropped,
// striped where it was merged into a kept one. Knows pixels; `positions` knows what they mean.

import { patches } from "./positions.js";

const LONGEST = 960; // pixels of the canvas
const VEIL = "126, 124, 120"; // a grey that is neither paper nor ink
const STRIPE = "#f5b83d";
const VEILED = 0.86;
const STRIPED = 0.75;
const STRIPE_GAP = 6; // pixels of the window
const UNSEEN = "rgba(126, 124, 120, 0.25)"; // outside of every patch, or nobody knows

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
  veilOutside(context, width, height, patches);
  for (const { token, place } of patches) {
    if (token < counts.unknown) {
      context.fillStyle = UNSEEN;
      context.fillRect(...place);
      continue;
    }
    const kept = counts.kept[token] / counts.of;
    const merged = counts.merged[token] / counts.of;
    shade(context, place, kept, merged, scale);
  }
  if (active) ring(context, active.place, scale);
}

/** How much is left of the veil over what a share of layers and heads kept: roots, so that the few
 * that most patches have are told apart. */
export const veil = (kept) => 1 - Math.sqrt(kept);

/** One patch, or anything else that has a place. */
export function shade(context, [x, y, width, height], kept, merged, scale = 1) {
  context.save();
  context.beginPath();
  const [left, top] = [Math.round(x), Math.round(y)]; // whole pixels: no seams between patches
  context.rect(left, top, Math.round(x + width) - left, Math.round(y + height) - top);
  context.clip();
  context.fillStyle = `rgba(${VEIL}, ${VEILED * veil(kept)})`;
  context.fill();
  if (merged > 0) stripe(context, [x, y, width, height], merged, STRIPE_GAP * scale);
  context.restore();
}

function stripe(context, [x, y, width, height], merged, gap) {
  context.globalAlpha = STRIPED * merged;
  context.strokeStyle = STRIPE;
  context.lineWidth = gap / 4;
  context.beginPath();
  const from = Math.floor((x - (y + height)) / gap) * gap; // on one raster over the whole canvas
  for (let shift = from; shift <= x + width - y; shift += gap) {
    context.moveTo(y + shift, y);
    context.lineTo(y + height + shift, y + height);
  }
  context.stroke();
}

function veilOutside(context, width, height, patches) {
  context.save();
  context.beginPath();
  context.rect(0, 0, width, height);
  for (const { place } of patches) context.rect(...place);
  context.clip("evenodd");
  context.fillStyle = UNSEEN;
  context.fillRect(0, 0, width, height);
  context.restore();
}

function ring(context, [x, y, width, height], scale) {
  for (const [strokeStyle, lineWidth] of [["#000", 5 * scale], ["#fff", 2 * scale]]) {
    Object.assign(context, { strokeStyle, lineWidth });
    context.strokeRect(x, y, width, height);
  }
}
