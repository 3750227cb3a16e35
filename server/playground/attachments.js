// The images of the next question: dropped, pasted, chosen or photographed, as data URLs.

import { byId, make } from "./dom.js";

let images = [];

/** Those attached; from now on there are none. */
export function take() {
  const taken = images;
  set([]);
  return taken;
}

/** Those that were taken are back, before any others. */
export function putBack(taken) {
  set([...taken, ...images]);
}

/** Attach what of these files is an image; say what is not. */
export async function add(files) {
  const refused = [...files].filter(({ type }) => !type.startsWith("image/"));
  const read = [...files].filter(({ type }) => type.startsWith("image/")).map(readImage);
  byId("notice").textContent = refused.length ? `Not an image: ${refused.map(({ name }) => name).join(", ")}` : "";
  set([...images, ...(await Promise.all(read))]);
}

/** Listens for what people do with images, all over the page. */
export function listen() {
  const [files, shot] = [byId("files"), byId("shot")];
  byId("add-images").addEventListener("click", () => files.click());
  for (const input of [files, shot])
    input.addEventListener("change", () => add(input.files).then(() => (input.value = "")));
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    add(event.clipboardData.files);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    add(event.dataTransfer.files);
  });
}

/** `{name, url, bitmap}`: the bitmap is null where this browser cannot read what the server may. */
async function readImage(file) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  const bitmap = make("img", { src: url, alt: file.name });
  return { name: file.name, url, bitmap: await bitmap.decode().then(() => bitmap, () => null) };
}

function set(next) {
  images = next;
  const items = images.map((image) => {
    const remove = make("button", { type: "button", "aria-label": `Remove ${image.name}` }, "×");
    remove.addEventListener("click", () => {
      set(images.filter((other) => other !== image));
      byId("question").focus();
    });
    return make("li", {}, make("img", { src: image.url, alt: image.name, title: image.name }), remove);
  });
  byId("attached").replaceChildren(...items);
}
