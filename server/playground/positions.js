// `usage.kv_cache.positions`, decoded: which tokens each layer and KV head kept, which it merged.

const SLACK = 0.5; // pixels: the edges of boxes may be rounded

/** See `Positions`. */
export async function decode(positions) {
  const kept = await inflated(positions.kept);
  const merged = positions.merged === null ? null : await inflated(positions.merged);
  return new Positions(positions, kept, merged);
}

/** Bits in rows, one for each layer and KV head, a bit a token, rows padded to whole bytes. */
class Positions {
  constructor({ num_tokens, num_layers, num_kv_heads, num_unknown, text, images }, kept, merged) {
    Object.assign(this, { numTokens: num_tokens, numLayers: num_layers, numHeads: num_kv_heads });
    Object.assign(this, { numUnknown: num_unknown, text, images, kept, merged });
  }

  /** Of each token, in how many layers and heads it was kept, and merged; `layer` and `head` may be
   * null, for all of them. `of` is how many there are; of the first `unknown` tokens, which an
   * earlier turn kept or not, nothing is known. */
  count(layer, head) {
    const layers = layer === null ? range(this.numLayers) : [layer];
    const heads = head === null ? range(this.numHeads) : [head];
    const rows = layers.flatMap((l) => heads.map((h) => l * this.numHeads + h));
    const none = new Uint16Array(this.numTokens);
    return {
      kept: this.#sum(this.kept, rows),
      merged: this.merged === null ? none : this.#sum(this.merged, rows),
      of: rows.length,
      unknown: this.numUnknown,
    };
  }

  #sum(bits, rows) {
    const sums = new Uint16Array(this.numTokens);
    const rowBytes = Math.ceil(this.numTokens / 8);
    for (const row of rows)
      for (let token = 0; token < this.numTokens; token++)
        sums[token] += (bits[row * rowBytes + (token >> 3)] >> (7 - (token & 7))) & 1;
    return sums;
  }
}

/** The grids of an image in views that cover each place once: a tiled image is seen whole and in
 * tiles, which lie upon each other. */
export function views({ grids }) {
  const found = [];
  for (const grid of grids) {
    const view = found.find((each) => each.every((other) => !overlap(grid.box, other.box)));
    if (view) view.push(grid);
    else found.push([grid]);
  }
  return found;
}

function overlap([left, top, right, bottom], [left2, top2, right2, bottom2]) {
  const across = Math.min(right, right2) - Math.max(left, left2);
  const down = Math.min(bottom, bottom2) - Math.max(top, top2);
  return across > SLACK && down > SLACK;
}

/** Whether some of the image is outside of what the model sees. */
export function cropped({ width, height, grids }) {
  const seen = (side, most) => grids.reduce((found, { box }) => most(found, box[side]), grids[0].box[side]);
  const [left, top] = [seen(0, Math.min), seen(1, Math.min)];
  const [right, bottom] = [seen(2, Math.max), seen(3, Math.max)];
  return left > SLACK || top > SLACK || right < width - SLACK || bottom < height - SLACK;
}

/** The patches of a view: `{token, tile, row, column, box}`, boxes in pixels of the image. */
export function patches(view) {
  return view.flatMap(({ first_token, rows, columns, row_stride, box: [left, top, right, bottom] }, tile) => {
    const [width, height] = [(right - left) / columns, (bottom - top) / rows];
    return range(rows).flatMap((row) =>
      range(columns).map((column) => ({
        token: first_token + row * row_stride + column,
        tile,
        row,
        column,
        box: [left + column * width, top + row * height, left + (column + 1) * width, top + (row + 1) * height],
      })),
    );
  });
}

const range = (count) => Array.from({ length: count }, (_, at) => at);

async function inflated(text) {
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
