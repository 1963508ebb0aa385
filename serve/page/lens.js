// Two pictures side by side, and what their patches have in common.

import { asColours, dot, largest, principal } from "./algebra.js";
import { colourPicture, heatPicture, paintScale } from "./colours.js";
import { decode, describeCrop, drawPart, keptPart } from "./crop.js";
import { byId, decimal } from "./dom.js";
import { fit, paint } from "./paint.js";

const SIDES = ["query", "other"];
const CROP_PIXELS = 1024; // that a picture is drawn with, whatever the model sees
const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** Both pictures; `gallery` gives the patch features. */
export class Lens {
  #gallery;
  #sides = {};
  #model = null;
  #cursor = null; // {side, at: [row, column]}: the patch that others are compared with
  #overlays = {};
  #reading = null; // similarities of all patches to the cursor's, and where they are highest

  constructor(gallery) {
    this.#gallery = gallery;
    for (const side of SIDES) {
      this.#sides[side] = { canvas: byId(`${side}-canvas`), item: null, crop: null, patches: null };
      this.#listen(side);
      paintScale(byId(`${side}-scale`).querySelector("canvas"));
      new ResizeObserver(() => this.#paint()).observe(this.#sides[side].canvas);
    }
    byId("views").addEventListener("change", () => this.#compute());
    byId("opacity").addEventListener("input", () => this.#paint());
    byId("smooth").addEventListener("change", () => this.#paint());
    byId("own").addEventListener("change", () => this.#compute());
  }

  /** Show a query and the image that it is compared with; either may be null. */
  async show(query, other, model) {
    if (!model) return; // the service has not said yet what it serves
    const items = { query, other };
    const isModel = this.#model === model;
    if (isModel && SIDES.every((side) => this.#sides[side].item === items[side])) return;
    this.#model = model;
    const changed = SIDES.filter((side) => !isModel || this.#sides[side].item !== items[side]);
    if (changed.includes("query")) this.#cursor = null;
    for (const side of changed) Object.assign(this.#sides[side], { item: items[side], patches: null });
    this.#compute();
    await Promise.all(changed.map((side) => this.#load(side, model)));
  }

  get #view() {
    return byId("views").querySelector("input:checked").value;
  }

  /** Its picture first, then its patches: the one is there long before the other. */
  async #load(side, model) {
    const shown = this.#sides[side];
    const { item } = shown;
    const isCurrent = () => this.#model === model && shown.item === item;
    byId(`${side}-name`).textContent = item?.name ?? "";
    const bitmap = item && (await decode(item.blob));
    if (!isCurrent()) return bitmap?.close();
    shown.crop = bitmap ? cropOf(bitmap, model.spec.preprocess) : null;
    byId(`${side}-crop`).textContent = item ? describeCrop(bitmap, model.spec.preprocess) : "";
    bitmap?.close();
    this.#paint();
    if (!item) return undefined;
    try {
      const patches = await this.#gallery.patchesOf(item);
      if (!isCurrent()) return undefined;
      shown.patches = patches;
      const [height, width] = patches.grid;
      if (side === "query" && !this.#cursor) this.#cursor = { side, at: [height >> 1, width >> 1] };
      this.#compute();
    } catch (error) {
      if (isCurrent()) byId("reading").textContent = `No patch features: ${error.message}`;
    }
    return undefined;
  }

  #listen(side) {
    const { canvas } = this.#sides[side];
    const point = (event) => {
      const { grid } = this.#sides[side].patches ?? {};
      if (!grid) return;
      const box = canvas.getBoundingClientRect();
      const share = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
      this.#move(side, share.map((part, axis) => Math.floor(part * grid[axis])));
    };
    canvas.addEventListener("click", point);
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons === 1 && event.pointerType === "mouse") point(event);
    });
    canvas.addEventListener("keydown", (event) => {
      const { patches } = this.#sides[side];
      const step = MOVES[event.key];
      if (!step || !patches || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const from = this.#cursor?.side === side ? this.#cursor.at : patches.grid.map((length) => length >> 1);
      this.#move(side, from.map((place, axis) => place + step[axis]));
    });
  }

  #move(side, at) {
    const { grid } = this.#sides[side].patches;
    const within = at.map((place, axis) => Math.min(grid[axis] - 1, Math.max(0, place)));
    if (this.#cursor?.side === side && within.every((place, axis) => place === this.#cursor.at[axis])) return;
    this.#cursor = { side, at: within };
    this.#compute();
  }

  /** Everything that depends on the patches, the cursor and the view. */
  #compute() {
    const known = SIDES.filter((side) => this.#sides[side].patches);
    this.#overlays = {};
    this.#reading = this.#view === "alike" ? this.#compare(known) : null;
    if (this.#view === "colours" && known.length) this.#colour(known);
    this.#tell();
    this.#paint();
  }

  /** How alike every patch is to the one under the cursor. */
  #compare(known) {
    const source = this.#cursor && this.#sides[this.#cursor.side].patches;
    if (!source) return null;
    const place = this.#cursor.at[0] * source.grid[1] + this.#cursor.at[1];
    const cosines = {};
    const best = {};
    for (const side of known) {
      const { units } = this.#sides[side].patches;
      cosines[side] = units.map((vector) => dot(vector, source.units[place]));
      best[side] = largest(cosines[side], side === this.#cursor.side ? place : -1);
    }
    const ranges = rangesOf(known, cosines, best, byId("own").checked);
    for (const side of known) {
      this.#overlays[side] = heatPicture(cosines[side], this.#sides[side].patches.grid, ...ranges[side]);
    }
    return { cosines, best, ranges };
  }

  /** One set of axes for both pictures, so that a colour means the same in each. */
  #colour(known) {
    const points = known.flatMap((side) => this.#sides[side].patches.raw);
    const { coordinates, shares } = principal(points);
    const colours = asColours(coordinates);
    let start = 0;
    for (const side of known) {
      const { grid, raw } = this.#sides[side].patches;
      this.#overlays[side] = colourPicture(colours.slice(start, start + raw.length), grid);
      start += raw.length;
    }
    const whole = shares.reduce((sum, share) => sum + share, 0);
    byId("reading").textContent = `Red, green and blue are the three directions in which the patches of ${
      known.length === 2 ? "both pictures" : "the picture"} differ most: ${Math.round(whole * 100)} % of the variance.`;
  }

  #tell() {
    const reading = this.#reading;
    byId("own-field").hidden = this.#view !== "alike";
    for (const side of SIDES) showScale(byId(`${side}-scale`), reading?.ranges[side]);
    if (this.#view === "plain") byId("reading").textContent = "What the model sees, at the resolution of the file.";
    if (!reading) return;
    const [row, column] = this.#cursor.at;
    const opposite = SIDES.find((side) => side !== this.#cursor.side);
    const where = { query: "the query", other: "the neighbour" };
    const match = this.#place(opposite);
    byId("reading").textContent = `Patch ${row + 1}, ${column + 1} of ${where[this.#cursor.side]}. ` + (match
      ? `Most alike in ${where[opposite]}: ${match[0] + 1}, ${match[1] + 1}, cosine `
        + `${decimal(reading.cosines[opposite][reading.best[opposite]])}.`
      : "");
  }

  /** Where a side is most alike to the cursor's patch; null on the cursor's own side. */
  #place(side) {
    const best = this.#reading?.best[side] ?? -1;
    if (best < 0 || side === this.#cursor.side) return null;
    const columns = this.#sides[side].patches.grid[1];
    return [Math.floor(best / columns), best % columns];
  }

  #paint() {
    for (const side of SIDES) {
      const { canvas, crop, patches, item } = this.#sides[side];
      fit(canvas);
      const isMarked = this.#view === "alike";
      paint(canvas, {
        crop: item && crop,
        overlay: patches && this.#overlays[side],
        opacity: byId("opacity").value / 100,
        isSmooth: byId("smooth").checked,
        grid: patches?.grid,
        cursor: isMarked && this.#cursor?.side === side ? this.#cursor.at : null,
        match: isMarked && patches ? this.#place(side) : null,
      });
      canvas.setAttribute("aria-label", item ? `Patches of ${item.name}` : "No picture yet");
    }
  }
}

/** From the least to the most alike patch but the cursor's own: of both pictures, or of each. */
function rangesOf(sides, cosines, best, isOwn) {
  const own = sides.map((side) => [Math.min(...cosines[side]), best[side] < 0 ? 1 : cosines[side][best[side]]]);
  const joint = [Math.min(...own.map(([low]) => low)), Math.max(...own.map(([, high]) => high))];
  return Object.fromEntries(sides.map((side, index) => [side, isOwn ? own[index] : joint]));
}

/** What the darkest and the lightest colour stand for. */
function showScale(scale, range) {
  scale.hidden = !range;
  range?.forEach((end, index) => (scale.querySelectorAll("span")[index].textContent = decimal(end)));
}

function cropOf(bitmap, preprocess) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = CROP_PIXELS;
  drawPart(canvas, bitmap, keptPart(bitmap.width, bitmap.height, preprocess));
  return canvas;
}
