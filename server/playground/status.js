// The server's live figures: ready or not, how full its pool is, how fast it decodes.

import * as api from "./api.js";
import { byId } from "./dom.js";
import { bytes, percent, rate, whole } from "./format.js";

const EVERY_MS = 2000;

/** Asks every two seconds while the page is seen. `onKeyWanted` is called where a key is missing or
 * wrong, `onModel` once with what `/v1/models` says. */
export function watch({ onKeyWanted, onModel }) {
  let known = false;

  async function look() {
    if (document.hidden) return;
    try {
      const waiting = await api.readiness();
      if (!known) {
        onModel(await api.models());
        known = true;
      }
      show(await api.metrics());
      say(waiting ?? "ready", waiting === null);
    } catch (error) {
      if (error.status === 401) onKeyWanted();
      say(error.status === 401 ? "asks for an API key" : error.message, false);
    }
  }

  async function again() {
    await look();
    setTimeout(again, EVERY_MS);
  }

  again();
  return look;
}

function say(text, ready) {
  const state = byId("state");
  if (state.textContent !== text) state.textContent = text;
  state.classList.toggle("ready", ready);
}

function show(sample) {
  const capacity = sample.lookm_kv_cache_capacity_bytes ?? 0;
  const used = sample.lookm_kv_cache_used_bytes ?? 0;
  const share = capacity ? used / capacity : 0;
  byId("pool").value = share;
  byId("pool-text").textContent = `${percent(share)} of ${bytes(capacity)}`;
  const perSecond = sample.lookm_decode_tokens_per_second;
  byId("rate").textContent = perSecond ? rate(perSecond) : "idle";
  const { lookm_requests_running: running = 0, lookm_requests_waiting: waiting = 0 } = sample;
  byId("requests").textContent = `${whole(running)} running, ${whole(waiting)} waiting`;
}
