// A picture from the camera: in the page where the browser lets it, else by the phone's own camera.

import { add } from "./attachments.js";
import { byId, make } from "./dom.js";

/** Listens for the button. */
export function listen() {
  const [dialog, video] = [byId("camera-dialog"), byId("viewfinder")];
  byId("camera").addEventListener("click", () => open(dialog, video));
  byId("close-camera").addEventListener("click", () => dialog.close());
  byId("take").addEventListener("click", () => take(video).then(() => dialog.close()));
  dialog.addEventListener("close", () => {
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    video.srcObject = null;
  });
}

async function open(dialog, video) {
  if (!navigator.mediaDevices) return byId("shot").click(); // browsers ask for https, or this machine
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    dialog.showModal();
  } catch {
    byId("notice").textContent = "There is no camera that this page may use.";
  }
}

async function take(video) {
  const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  await add([new File([blob], "camera.jpg", { type: blob.type })]);
}
