// Two pictures to begin with, drawn here: a red circle and a blue star.

import { make } from "./dom.js";

const SIZE = 336;

/** Them, as files. */
export function samples() {
  return Promise.all([file("red circle.png", circle), file("blue star.png", star)]);
}

async function file(name, draw) {
  const canvas = make("canvas", { width: SIZE, height: SIZE });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, SIZE, SIZE);
  context.beginPath();
  draw(context);
  context.fill();
  const blob = await new Promise((resolve) => canvas.toBlob(resolve));
  return new File([blob], name, { type: "image/png" });
}

function circle(context) {
  context.fillStyle = "rgb(220, 40, 40)";
  context.arc(SIZE / 2, SIZE / 2, SIZE * 0.3, 0, 2 * Math.PI);
}

function star(context) {
  context.fillStyle = "rgb(40, 80, 220)";
  for (let point = 0; point < 10; point++) {
    const radius = SIZE * (point % 2 ? 0.15 : 0.36);
    const angle = (point * Math.PI) / 5 - Math.PI / 2;
    context.lineTo(SIZE / 2 + radius * Math.cos(angle), SIZE / 2 + radius * Math.sin(angle));
  }
}
