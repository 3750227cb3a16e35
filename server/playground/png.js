// A column of the picture as one PNG: its images, its words, what is shown and what it means.

import { make } from "./dom.js";
import { entries } from "./legend.js";
import { faint, shade, underline } from "./paint.js";

const WIDTH = 1280;
const MARGIN = 40;
const GAP = 24;
const LINE = 30;
const FONT = "system-ui, sans-serif";

/** Words stay readable under their veil. */
const lighter = (kept) => (0.5 + 0.5 * Math.sqrt(kept)) ** 2;

/** Let the person save it. */
export function download(column) {
  for (const figure of column.figures) figure.repaint(); // what is not on the screen may wait still
  const canvas = make("canvas", { width: WIDTH, height: 1 });
  const height = draw(canvas.getContext("2d"), column); // once to measure, once to keep
  canvas.height = height;
  draw(canvas.getContext("2d"), column, height);
  canvas.toBlob((blob) => {
    const link = make("a", { href: URL.createObjectURL(blob), download: fileName(column) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

function fileName({ policy, title }) {
  return `kept-${policy}-${title}.png`.replace(/[^\w@.-]+/g, "-");
}

/** Draws it all; returns the height that it takes. */
function draw(context, { policy, title, figures, words, counts, positions }, height = 1) {
  context.fillStyle = "#fbfaf7";
  context.fillRect(0, 0, WIDTH, height);
  context.textBaseline = "top";
  write(context, `600 28px ${FONT}`, policy, MARGIN, MARGIN);
  write(context, `18px ${FONT}`, title, MARGIN, MARGIN + 40);
  let y = drawLegend(context, entries([positions]), MARGIN + 80);
  y = drawImages(context, figures, y + GAP);
  return drawWords(context, words, counts, y) + MARGIN;
}

function write(context, font, text, x, y) {
  context.font = font;
  context.fillStyle = "#1d1c1a";
  context.fillText(text, x, y);
  return context.measureText(text).width;
}

function drawLegend(context, found, y) {
  let x = MARGIN;
  context.font = `16px ${FONT}`;
  for (const { text, draw } of found) {
    const length = 32 + context.measureText(text).width;
    if (x + length > WIDTH - MARGIN) [x, y] = [MARGIN, y + LINE];
    context.fillStyle = "#fff";
    context.fillRect(x, y, 22, 22);
    draw(context, [x, y, 22, 22]);
    context.lineWidth = 1;
    context.strokeStyle = "#8a867e";
    context.strokeRect(x + 0.5, y + 0.5, 21, 21);
    write(context, `16px ${FONT}`, text, x + 32, y + 3);
    x += length + GAP;
  }
  return y + 22;
}

function drawImages(context, figures, y) {
  const across = Math.min(figures.length, 3);
  const width = Math.min(560, (WIDTH - 2 * MARGIN - GAP * (across - 1)) / Math.max(1, across));
  let tallest = 0;
  figures.forEach(({ canvas, title }, at) => {
    if (at && at % across === 0) [y, tallest] = [y + tallest + GAP + LINE, 0];
    const x = MARGIN + (at % across) * (width + GAP);
    const tall = (width * canvas.height) / canvas.width;
    write(context, `16px ${FONT}`, title, x, y);
    context.drawImage(canvas, x, y + LINE, width, tall);
    tallest = Math.max(tallest, tall);
  });
  return y + tallest + (figures.length ? LINE + GAP : 0);
}

function drawWords(context, words, counts, y) {
  context.font = `17px ${FONT}`;
  let x = MARGIN;
  for (const { text, token } of words) {
    const width = context.measureText(text).width + 8;
    if (x + width > WIDTH - MARGIN) [x, y] = [MARGIN, y + LINE];
    const place = [x, y, width, LINE - 6];
    if (token < counts.unknown) faint(context, place);
    else shade(context, place, lighter(counts.kept[token] / counts.of), 0);
    if (counts.merged[token] * 2 > counts.of) underline(context, place);
    write(context, `17px ${FONT}`, text, x + 4, y + 4);
    x += width + 2;
  }
  return y + LINE;
}
