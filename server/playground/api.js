// The server, by its public endpoints only. Knows URLs, the API key and server-sent events.

const STORED_KEY = "lookm-api-key";
const UNREACHABLE = "The server cannot be reached. Is it still running?";
const BROKEN = "The connection was lost before the answer's end.";

/** What went wrong, in words for a person. `status` is 0 where no answer came. */
export class Problem extends Error {
  constructor(message, { status = 0, code = null, param = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param });
  }
}

export const key = {
  get: () => sessionStorage.getItem(STORED_KEY) ?? "",
  set: (value) => sessionStorage.setItem(STORED_KEY, value),
};

/** The model's name, its longest context, and the policies that the server lists. */
export async function models() {
  const { data } = await (await request("v1/models")).json();
  const [{ id: name, max_model_len: context }, ...variants] = data;
  return { name, context, policies: variants.map(({ id }) => id.slice(name.length + 1)) };
}

/** Whether a request would be answered now; else why not. */
export async function readiness() {
  const response = await reach("readyz");
  return response.ok ? null : (await problemOf(response)).message;
}

/** The samples of `/metrics` that have no labels, by name. */
export async function metrics() {
  const text = await (await request("metrics")).text();
  const samples = {};
  for (const line of text.split("\n")) {
    const [name, value] = line.split(" ");
    if (name && name !== "#" && !name.includes("{")) samples[name] = Number(value);
  }
  return samples;
}

/** The chunks of a streamed answer, as they come. Throws `Problem`, also where a stream breaks. */
export async function* answer(body, signal) {
  const options = { stream: true, stream_options: { include_usage: true } };
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, ...options }),
    signal,
  });
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Problem(chunk.error.message, chunk.error);
    yield chunk;
  }
  throw new Problem(BROKEN);
}

/** What each event of a stream holds. Comments, which keep it alive, are left out. */
async function* events(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw signal.aborted ? error : new Problem(BROKEN);
    });
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const line of parts.flatMap((part) => part.split("\n"))) if (line.startsWith("data: ")) yield line.slice(6);
  }
}

async function request(path, options = {}) {
  const response = await reach(path, options);
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function reach(path, options = {}) {
  const authorization = key.get() ? { authorization: `Bearer ${key.get()}` } : {};
  try {
    return await fetch(path, { ...options, headers: { ...options.headers, ...authorization } });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem(UNREACHABLE);
  }
}

async function problemOf(response) {
  const { status } = response;
  const { error } = await response.json().catch(() => ({}));
  return new Problem(error?.message ?? `The server answered with status ${status}.`, { ...error, status });
}
