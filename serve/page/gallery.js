// The images of the page: kept in memory, embedded once per model.

import { rows, unit } from "./algebra.js";
import { decode, thumbnail } from "./crop.js";
import { bytes } from "./dom.js";

const MOST = 300; // images that the page keeps

/** One image and what is known of it by model: `results`, each {status, vector, timing, message, code}. */
class Item {
  constructor(file) {
    this.blob = file;
    this.name = file.name || "pasted image";
    this.thumbnail = null;
    this.results = new Map();
    this.asked = new Map();
    this.patches = new Map();
  }
}

/** All of them; `onChange` is called whenever something is known that was not. */
export class Gallery {
  #service;
  #onChange;
  #decoding = Promise.resolve();
  items = [];
  model = null;

  constructor(service, onChange) {
    this.#service = service;
    this.#onChange = onChange;
  }

  /** What is known of an image under the current model. */
  result(item) {
    return item.results.get(this.model?.id) ?? { status: "waiting" };
  }

  get embedded() {
    return this.items.filter((item) => this.result(item).status === "done");
  }

  get refused() {
    return this.items.filter((item) => this.result(item).status === "refused");
  }

  get accepted() {
    return this.items.filter((item) => this.result(item).status !== "refused");
  }

  /** Take files in; returns the new items, and how many there was no room for. */
  add(files) {
    const taken = [...files].slice(0, Math.max(0, MOST - this.items.length)).map((file) => new Item(file));
    this.items.push(...taken);
    taken.forEach((item) => {
      this.#decoding = this.#decoding.then(() => this.#look(item)); // one at a time: pixels are large
      this.embed(item);
    });
    this.#onChange();
    return { taken, left: files.length - taken.length };
  }

  remove(item) {
    this.items = this.items.filter((other) => other !== item);
    this.#onChange();
  }

  clear() {
    this.items = [];
    this.#onChange();
  }

  /** Go over to a model; what it has not embedded yet it embeds now. */
  use(model) {
    this.model = model;
    this.items.filter((item) => !item.results.has(model.id)).forEach((item) => this.embed(item));
    this.#onChange();
  }

  /** Once more all that were refused for want of a key. */
  retryUnauthorised() {
    this.refused.filter((item) => this.result(item).code === 401).forEach((item) => this.embed(item));
  }

  /** Ask for the vector of an image. It ends in the item's result, whatever happens. */
  embed(item) {
    if (this.model) item.asked.set(this.model.id, this.#embed(item, this.model));
  }

  async #embed(item, model) {
    if (item.results.get(model.id)?.status !== "done") this.#know(item, model, { status: "waiting" });
    try {
      checkSize(item, model);
      const { values, timing } = await this.#service.embed(model.id, item.blob);
      this.#know(item, model, { status: "done", vector: unit(values), timing });
    } catch (error) {
      this.#know(item, model, { status: "refused", message: error.message, code: error.status });
    }
  }

  /** The patch features of an accepted image: {grid, raw, units}, row by row. Asked for once; may be refused. */
  patchesOf(item) {
    const model = this.model;
    if (!item.patches.has(model.id)) {
      const asked = this.#patches(item, model);
      item.patches.set(model.id, asked);
      asked.catch(() => item.patches.delete(model.id));
    }
    return item.patches.get(model.id);
  }

  async #patches(item, model) {
    await item.asked.get(model.id);
    const { status, message } = item.results.get(model.id);
    if (status !== "done") throw new Error(message);
    return onGrid(await this.#service.embed(model.id, item.blob, { patches: true }));
  }

  async #look(item) {
    const bitmap = await decode(item.blob);
    if (bitmap) {
      item.thumbnail = thumbnail(bitmap);
      bitmap.close();
      this.#onChange();
    }
  }

  #know(item, model, result) {
    item.results.set(model.id, result);
    this.#onChange();
  }
}

function checkSize(item, model) {
  if (item.blob.size > model.max_image_bytes) {
    throw new Error(`${bytes(item.blob.size)} are more than the ${bytes(model.max_image_bytes)} allowed for an image`);
  }
}

function onGrid({ values, shape }) {
  const [height, width, dim] = shape;
  if (shape.length !== 3 || values.length !== height * width * dim) {
    throw new Error("this model gives no patch features on a grid");
  }
  const raw = rows(values, dim);
  return { grid: [height, width], raw, units: raw.map(unit) };
}
