// A conversation: turns of a question and its answers, a column and a history for each policy.

import * as api from "./api.js";
import { byId, make } from "./dom.js";
import { bytes, percent, rate, seconds, whole } from "./format.js";
import { picture } from "./picture.js";
import { decode } from "./positions.js";
import { differences } from "./words.js";

const SHARED = "Times are measured here, while these columns share the server.";
const WITHOUT_POSITIONS = "This server does not say which tokens were kept.";

export class Conversation {
  #turns = [];
  #asked = 0;
  #canShow = true; // until the server refuses

  /** Ask each policy. `settings` are `{model, policies, system, temperature, length, positions}`.
   * Returns when all have answered, failed, or `signal` stopped them: whether any said something.
   * A question to which none did is not part of what follows, nor are its images. */
  async ask({ text, images }, settings, signal) {
    const turn = { text, images, answers: new Map() };
    const columns = settings.policies.map((policy) => new Column(policy));
    const node = make(
      "article",
      { className: "turn", "aria-label": `Question ${++this.#asked}` },
      questionOf(turn),
      make("div", { className: `columns of-${columns.length}` }, ...columns.map((column) => column.node)),
      make("p", { className: "note shared", hidden: columns.length === 1 }, SHARED),
    );
    byId("conversation").append(node);
    node.scrollIntoView({ block: "start" });
    this.#turns.push(turn);
    await Promise.all(columns.map((column) => this.#answer(turn, column, settings, signal)));
    mark(columns);
    await this.#showKept(node, columns);
    if (!turn.answers.size) this.#turns.splice(this.#turns.indexOf(turn), 1);
    return turn.answers.size > 0;
  }

  async #answer(turn, column, settings, signal) {
    const { model, policy, length, temperature } = { ...settings, policy: column.policy };
    const body = {
      model: policy ? `${model}:${policy}` : model,
      messages: this.#messages(settings.system, policy),
      ...(length ? { max_tokens: length } : {}),
      ...(temperature === null ? {} : { temperature }),
    };
    const shows = settings.positions && this.#canShow;
    try {
      await column.read(api.answer(shows ? { ...body, kv_cache: { positions: true } } : body, signal));
    } catch (problem) {
      if (shows && refusesPositions(problem)) {
        this.#canShow = false;
        byId("notice").textContent = WITHOUT_POSITIONS;
        return this.#answer(turn, column, settings, signal);
      }
      column.fail(signal.aborted ? "Stopped." : problem.message, !signal.aborted);
      if (!column.text) return;
    }
    turn.answers.set(policy, column.text);
  }

  /** The messages up to now; each policy goes on from what it said itself, where it did. */
  #messages(system, policy) {
    const messages = system ? [{ role: "system", content: system }] : [];
    for (const { text, images, answers } of this.#turns) {
      const pictures = images.map(({ url }) => ({ type: "image_url", image_url: { url } }));
      messages.push({ role: "user", content: [...pictures, { type: "text", text }] });
      const said = answers.get(policy) ?? answers.values().next().value;
      if (said) messages.push({ role: "assistant", content: said });
    }
    if (messages.at(-1).role === "assistant") messages.pop(); // another column was faster
    return messages;
  }

  async #showKept(node, columns) {
    const sent = columns.map(({ positions }) => positions && decode(positions));
    const found = await Promise.all(sent);
    if (!found.some(Boolean)) return;
    const shown = columns.map(({ label }, at) => ({ policy: label, positions: found[at] ?? null }));
    node.append(picture(this.#turns.flatMap(({ images }) => images), shown));
  }
}

const refusesPositions = ({ param, message }) => /positions/.test(`${param} ${message}`);

function questionOf({ text, images }) {
  const shown = images.map(({ url, name }) => make("li", {}, make("img", { src: url, alt: name, title: name })));
  return make(
    "div",
    { className: "question" },
    make("ul", { "aria-label": "Images", hidden: !shown.length }, ...shown),
    make("h2", {}, text),
  );
}

/** One policy's answer to one question, with its figures. */
class Column {
  text = "";
  positions = null;
  #begun = 0;
  #first = null;
  #last = null;

  constructor(policy) {
    this.policy = policy;
    this.label = policy || "default";
    this.answer = make("p", { className: "text" });
    this.problem = make("p", { className: "problem", hidden: true });
    this.figures = make("dl", { className: "figures" });
    const title = make("h3", {}, this.label);
    this.node = make("section", { className: "answer", "aria-label": `Answer of ${this.label}` });
    this.node.append(title, this.answer, this.problem, this.figures);
    this.node.setAttribute("aria-busy", "true");
  }

  async read(chunks) {
    this.#begun = performance.now();
    for await (const { choices, usage } of chunks) {
      const piece = choices[0]?.delta.content;
      if (piece) this.#add(piece);
      if (usage) this.#measure(usage);
    }
    this.#end();
  }

  fail(message, alarming) {
    this.problem.textContent = message;
    this.problem.hidden = false;
    this.problem.classList.toggle("alarming", alarming);
    if (alarming) this.problem.setAttribute("role", "alert");
    this.#end();
  }

  /** The answer in pieces, `{text, differs}`. */
  show(pieces) {
    this.answer.replaceChildren(...pieces.map(({ text, differs }) => (differs ? make("mark", {}, text) : text)));
  }

  #add(piece) {
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.text += piece;
    this.answer.append(piece);
    if (this.figures.childElementCount === 0) this.#figure("First token", seconds(this.#first - this.#begun));
  }

  #measure({ completion_tokens: generated, kv_cache: cache }) {
    const tookMs = this.#last - this.#first;
    if (generated > 1 && tookMs > 0) this.#figure("Speed", rate(((generated - 1) * 1000) / tookMs));
    const share = percent(cache.kept_tokens / cache.prompt_tokens);
    this.#figure("Kept", `${whole(cache.kept_tokens)} of ${whole(cache.prompt_tokens)} tokens (${share})`);
    this.#figure("Cache", `${bytes(cache.bytes)} of ${bytes(cache.full_bytes)}`);
    this.positions = cache.positions ?? null;
  }

  #figure(name, value) {
    this.figures.append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  }

  #end() {
    this.node.removeAttribute("aria-busy");
  }
}

function mark(columns) {
  const answered = columns.filter(({ text }) => text);
  if (answered.length < 2) return;
  differences(answered.map(({ text }) => text)).forEach((pieces, at) => answered[at].show(pieces));
}
