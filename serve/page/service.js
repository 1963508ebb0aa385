// The service as the page asks it: a few requests at a time, patience when it is busy, errors in its own words.

const AT_ONCE = 4; // requests
const TRIES = 5; // of one request that the service has no room for
const LONGEST_WAIT = 20; // seconds, whatever the service says
export const UNAUTHORISED = 401;
const BUSY = new Set([429, 503]);
const REMEMBERED = 5000; // requests whose times the browser keeps
const ROOT = new URL("..", import.meta.url); // the service may lie below a path

/** A request that was refused. `status` is 0 where no answer came. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** One service. The key lives here, and nowhere else. */
export class Service {
  #key = "";
  #onBusy;
  #onUnauthorised;
  #running = 0;
  #sent = 0;
  #waiting = [];

  /** `onBusy(seconds)` is told of each wait, `onUnauthorised()` of each answer that wants a key, or another. */
  constructor({ onBusy, onUnauthorised }) {
    this.#onBusy = onBusy;
    this.#onUnauthorised = onUnauthorised;
    performance.setResourceTimingBufferSize(REMEMBERED);
  }

  set key(key) {
    this.#key = key.trim();
  }

  get hasKey() {
    return this.#key !== "";
  }

  /** Where requests go, as one would write it in a terminal. */
  address(path) {
    return new URL(path, ROOT).href;
  }

  async models() {
    return (await this.#json("v1/models")).data;
  }

  /** The names and sizes of indexes; null where the service has none. */
  async indexes() {
    try {
      return (await this.#json("v1/indexes")).data;
    } catch (error) {
      if (error.status === 404) return null;
      throw error;
    }
  }

  /** What lies nearest to an image in an index: [{id, score, metadata}]. */
  async search(index, blob, count) {
    const body = JSON.stringify({ image: await dataUri(blob), k: count, include: ["metadata"] });
    const headers = { "content-type": "application/json" };
    const found = await this.#json(`v1/indexes/${encodeURIComponent(index)}/search`, { method: "POST", body, headers });
    return found.data;
  }

  /** The numbers of an image, {values, shape, timing}; `patches` for a vector per patch, which do not wait in line. */
  async embed(model, blob, { patches = false } = {}) {
    const query = new URLSearchParams({ model, ...(patches ? { patches: "true" } : {}) });
    const type = blob.type.startsWith("image/") ? blob.type : "application/octet-stream";
    const headers = { accept: "application/octet-stream", "content-type": type };
    const answer = await this.#ask(`v1/embed?${query}`, { method: "POST", body: blob, headers }, patches);
    const shape = (answer.response.headers.get("x-embedding-shape") ?? "").split(",").map(Number).slice(1);
    return { values: new Float32Array(answer.content), shape, timing: answer.timing };
  }

  async #json(path, options) {
    const { content } = await this.#ask(path, options);
    return JSON.parse(new TextDecoder().decode(content));
  }

  async #ask(path, options, isUrgent = false) {
    await this.#turn(isUrgent);
    try {
      return await this.#patiently(path, options);
    } finally {
      this.#leave();
    }
  }

  /** Wait for one of the places; who leaves hands his on. */
  async #turn(isUrgent) {
    if (this.#running < AT_ONCE) this.#running += 1;
    else await new Promise((resolve) => (isUrgent ? this.#waiting.unshift(resolve) : this.#waiting.push(resolve)));
  }

  #leave() {
    const next = this.#waiting.shift();
    if (next) next();
    else this.#running -= 1;
  }

  async #patiently(path, options) {
    for (let attempt = 1; ; attempt += 1) {
      const answer = await this.#once(path, options);
      if (answer.response.ok) return answer;
      if (answer.response.status === UNAUTHORISED) this.#onUnauthorised();
      const seconds = Number(answer.response.headers.get("retry-after"));
      const mayPass = BUSY.has(answer.response.status) && seconds > 0;
      if (!mayPass || attempt === TRIES) throw refusal(answer);
      const wait = Math.min(seconds, LONGEST_WAIT);
      this.#onBusy(wait);
      await new Promise((resolve) => setTimeout(resolve, wait * 1000));
    }
  }

  async #once(path, options = {}) {
    const headers = { ...options.headers, ...(this.#key ? { authorization: `Bearer ${this.#key}` } : {}) };
    const address = `${this.address(path)}#${(this.#sent += 1)}`; // by which its times are found; it is not sent
    const started = performance.now();
    try {
      const response = await fetch(address, { ...options, headers, cache: "no-store" });
      const content = await response.arrayBuffer();
      const told = response.headers.get("server-timing") ?? "";
      return { response, content, timing: readTiming(told, tookSince(started, address)) };
    } catch {
      throw new Refusal(0, "the service did not answer; is it still running?");
    }
  }
}

/** How long a request took that was begun then. Not by the clock: the page may have been busy when the answer came. */
function tookSince(started, address) {
  const end = performance.getEntriesByName(address, "resource")[0]?.responseEnd;
  return (end || performance.now()) - started;
}

/** Server-Timing as {stages: [[name, ms]], total, roundTrip, isCached}; in milliseconds. */
export function readTiming(header, roundTrip) {
  const entries = header.split(",").map((entry) => entry.trim().split(";"));
  const value = (fields, name) => fields.find((field) => field.startsWith(`${name}=`))?.slice(name.length + 1);
  const times = entries.filter((fields) => value(fields, "dur")).map((fields) => [fields[0], +value(fields, "dur")]);
  const cached = value(entries.find(([name]) => name === "cache") ?? [], "desc") ?? "";
  return {
    stages: times.filter(([name]) => name !== "total"),
    total: times.find(([name]) => name === "total")?.[1] ?? 0,
    isCached: /^"[1-9]/.test(cached),
    roundTrip,
  };
}

/** An error in the service's own words. */
function refusal({ response, content }) {
  const text = new TextDecoder().decode(content);
  try {
    const told = JSON.parse(text);
    const message = String(told.error?.message ?? told.error ?? told.detail ?? text);
    return new Refusal(response.status, message.replace(/^input\[0\]: /, "")); // there is one image only
  } catch {
    return new Refusal(response.status, text.trim().slice(0, 200) || `the service answered ${response.status}`);
  }
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Refusal(0, "the file cannot be read any more"));
    reader.readAsDataURL(blob);
  });
}
