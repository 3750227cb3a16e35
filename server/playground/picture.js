// The picture of what was kept: each policy's images and words, under one choice of layer and head.

import { make } from "./dom.js";
import { percent } from "./format.js";
import { legend } from "./legend.js";
import { layout, paint, veil } from "./paint.js";
import { views } from "./positions.js";
import { download } from "./png.js";
import { explore } from "./tip.js";

/** A figure under a turn's answers. `images` are those of the prompt, `{name, bitmap}`; `columns`
 * are `{policy, positions}`, `positions` null where there are none. */
export function picture(images, columns) {
  const known = columns.filter(({ positions }) => positions !== null);
  const { numLayers, numHeads } = known[0].positions;
  const drawn = columns.map((column) => new Column(column, images));
  const repaint = painter();
  const layer = make("input", { type: "range", min: 0, max: numLayers, value: 0, id: fresh("layer") });
  const shown = make("output", { htmlFor: layer.id });
  const all = make("option", { value: "" }, "all");
  const each = Array.from({ length: numHeads }, (_, head) => make("option", { value: head }, `${head + 1}`));
  const head = make("select", { id: fresh("head") }, all, ...each);

  function update() {
    const chosen = { layer: layer.value === "0" ? null : layer.value - 1, head: head.value === "" ? null : +head.value };
    shown.value = chosen.layer === null ? `all ${numLayers} layers` : `layer ${layer.value} of ${numLayers}`;
    layer.setAttribute("aria-valuetext", shown.value);
    for (const column of drawn) column.update(chosen, `${shown.value}, ${headText(chosen.head, numHeads)}`);
    repaint(drawn.flatMap(({ figures }) => figures));
  }

  layer.addEventListener("input", update);
  head.addEventListener("input", update);
  update();
  return make(
    "section",
    { className: "picture", "aria-label": "What was kept" },
    make("h3", {}, "What was kept"),
    make(
      "div",
      { className: "controls" },
      make("label", { htmlFor: layer.id }, "Layer"),
      layer,
      shown,
      make("label", { htmlFor: head.id }, "KV head"),
      head,
    ),
    legend(known.map(({ positions }) => positions)),
    make("div", { className: `columns of-${columns.length}` }, ...drawn.map(({ node }) => node)),
  );
}

/** Paints figures: those on the screen at once, the others one by one after it, since many take long. */
function painter() {
  let waiting = [];

  function next() {
    waiting.shift()?.repaint();
    if (waiting.length) setTimeout(next);
  }

  return (figures) => {
    const begins = waiting.length === 0;
    const seen = new Set(figures.filter((figure) => figure.isSeen));
    waiting = figures.filter((figure) => !seen.has(figure));
    for (const figure of seen) figure.repaint();
    for (const figure of figures) figure.sayAnew();
    if (begins) setTimeout(next);
  };
}

let count = 0;
const fresh = (name) => `${name}-${++count}`;
const headText = (head, of) => (head === null ? `all ${of} KV heads` : `KV head ${head + 1}`);

/** A policy's images, then its words. */
class Column {
  constructor({ policy, positions }, images) {
    Object.assign(this, { policy, positions, images, figures: [], words: [] });
    this.node = make("div", { className: "kept" });
    if (positions === null) {
      this.node.append(make("p", { className: "note" }, `${policy}: nothing to show.`));
      return;
    }
    const save = make("button", { type: "button", className: "quiet" }, "Download PNG");
    save.setAttribute("aria-label", `Download the picture of ${policy} as PNG`);
    save.addEventListener("click", () => download(this));
    const pictures = positions.images.flatMap((image, at) => this.#figuresOf(image, at));
    this.node.append(make("h4", {}, policy), make("div", { className: "images" }, ...pictures));
    this.node.append(this.#wordsOf(positions.text), save);
  }

  update(chosen, title) {
    if (this.positions === null) return;
    this.chosen = chosen;
    this.title = title;
    this.counts = this.positions.count(chosen.layer, chosen.head);
    for (const { node, token } of this.words) {
      const known = token >= this.counts.unknown;
      node.style.setProperty("--dropped", known ? veil(this.counts.kept[token] / this.counts.of) : 0);
      node.classList.toggle("merged", this.counts.merged[token] * 2 > this.counts.of);
    }
    this.sayAnew();
  }

  /** What became of a token, in words. */
  fate(token) {
    const [kept, merged, of] = [this.counts.kept[token], this.counts.merged[token], this.counts.of];
    const dropped = of - kept - merged;
    if (token < this.counts.unknown) return "not known, an earlier turn decided it";
    if (of === 1) return kept ? "kept" : merged ? "merged into a kept token" : "dropped";
    const parts = [`kept in ${kept} of ${of} (${percent(kept / of)})`];
    if (merged) parts.push(`merged in ${merged}`);
    if (dropped) parts.push(`dropped in ${dropped}`);
    return parts.join(", ");
  }

  #figuresOf(image, at) {
    const { name = "", bitmap = null } = this.images[at] ?? {};
    const seen = views(image);
    return seen.map((view, number) => {
      const part = seen.length === 1 ? "" : number === 0 ? ", seen whole" : ", seen in tiles";
      const title = `Image ${at + 1}${part}`;
      const figure = new Figure(this, title, bitmap, layout(image, view));
      this.figures.push(figure);
      return make("figure", {}, figure.canvas, make("figcaption", {}, title, make("span", { className: "file" }, name)));
    });
  }

  #wordsOf(runs) {
    const flow = make("p", { className: "words", tabIndex: 0, role: "application" });
    flow.setAttribute("aria-label", `Text of the prompt under ${this.policy}: arrow keys move from word to word`);
    for (const { first_token: first, tokens } of runs) {
      if (flow.hasChildNodes()) flow.append(make("span", { className: "gap" }, "image"));
      tokens.forEach((text, at) => {
        const node = make("span", { className: "word" }, visible(text));
        this.words.push({ node, token: first + at, text: visible(text) });
        flow.append(node);
      });
    }
    this.sayAnew = explore(flow, {
      at: ({ target }) => this.words.findIndex(({ node }) => node === target),
      beside: (index, across, down) => index + across + down,
      choose: (index) => this.#pointAt(index),
    });
    return flow;
  }

  #pointAt(index) {
    this.words.forEach(({ node }, at) => node.classList.toggle("active", at === index));
    if (!this.words[index]) return null;
    const { node, token, text } = this.words[index];
    node.scrollIntoView({ block: "nearest" });
    const { left, bottom } = node.getBoundingClientRect();
    return { text: `“${text.trim()}”, token ${token}: ${this.fate(token)}`, x: left, y: bottom };
  }
}

const visible = (text) => text.replaceAll("\n", "↵");

/** One view of one image on its canvas. */
class Figure {
  constructor(column, title, bitmap, placed) {
    Object.assign(this, { column, title, bitmap, placed, active: -1 });
    this.canvas = make("canvas", { tabIndex: 0, role: "application" });
    this.canvas.setAttribute("aria-label", `${title} under ${column.policy}: arrow keys move from patch to patch`);
    new ResizeObserver(() => this.repaint()).observe(this.canvas); // stripes are as wide at any size
    this.sayAnew = explore(this.canvas, {
      at: ({ offsetX, offsetY }) => this.#patchAt(offsetX * this.#scale, offsetY * this.#scale),
      beside: (index, across, down) => this.#beside(index, across, down),
      choose: (index) => this.#pointAt(index),
    });
  }

  repaint() {
    paint(this.canvas, this.bitmap, this.placed, this.column.counts, this.placed.patches[this.active], this.#scale);
  }

  /** On the screen, or about to be there for the first time. */
  get isSeen() {
    const { top, bottom } = this.canvas.getBoundingClientRect();
    return !this.canvas.isConnected || (bottom > 0 && top < innerHeight);
  }

  /** Pixels of the canvas in one of the window. */
  get #scale() {
    return this.placed.width / (this.canvas.clientWidth || this.placed.width);
  }

  #patchAt(x, y) {
    return this.placed.patches.findIndex(
      ({ place: [left, top, width, height] }) => x >= left && x < left + width && y >= top && y < top + height,
    );
  }

  /** The neighbour of a patch, across the edges of tiles, too. */
  #beside(index, across, down) {
    const [x, y, width, height] = this.placed.patches[index].place;
    return this.#patchAt(x + width * (across + 0.5), y + height * (down + 0.5));
  }

  #pointAt(index) {
    this.active = index;
    this.repaint();
    if (index < 0) return null;
    const { token, tile, row, column, place: [x, y, width, height] } = this.placed.patches[index];
    const { left, top } = this.canvas.getBoundingClientRect();
    const inTile = this.placed.patches.at(-1).tile ? ` tile ${tile + 1},` : "";
    const where = `${this.title},${inTile} row ${row + 1}, column ${column + 1} (token ${token})`;
    return { text: `${where}: ${this.column.fate(token)}`, x: left + (x + width) / this.#scale, y: top + (y + height) / this.#scale };
  }
}
