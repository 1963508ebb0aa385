// The gallery as it is shown: a tile per image, and a line per image that was refused.

import { copyOf } from "./crop.js";
import { byId, element, showItems } from "./dom.js";

const tiles = new Map();
const lines = new Map();

/** `onChoose`, `onRemove` and `onRetry` are called with an item. */
export function showGallery(gallery, query, actions) {
  const { accepted, refused, embedded } = gallery;
  showItems(byId("tiles"), tiles, accepted, (item) => makeTile(item, actions), (tile, item) => {
    const button = tile.querySelector(".tile");
    showThumbnail(button, item);
    button.setAttribute("aria-pressed", String(item === query));
    tile.dataset.status = gallery.result(item).status;
  });
  showItems(byId("refused"), lines, refused, (item) => makeLine(item, actions), (line, item) => {
    line.querySelector(".why").textContent = gallery.result(item).message;
  });
  byId("refused-box").hidden = refused.length === 0;
  const waiting = accepted.length - embedded.length;
  byId("progress").textContent = waiting ? `${embedded.length} of ${accepted.length}` : String(accepted.length);
}

/** A canvas in place of the dots that stand for an image which is not decoded yet, or never will be. */
export function showThumbnail(parent, item) {
  const shown = parent.querySelector("canvas, .blank");
  if (item.thumbnail ? shown?.tagName === "CANVAS" : shown) return;
  const made = item.thumbnail ? copyOf(item.thumbnail) : element("span", { class: "blank" }, ending(item.name));
  if (shown) shown.replaceWith(made);
  else parent.prepend(made);
}

function makeTile(item, { onChoose, onRemove }) {
  const onKey = (event) => {
    if (event.key === "Delete") onRemove(item);
  };
  return element("li", {},
    element("button", {
      type: "button", class: "tile", "aria-pressed": "false", title: item.name, "aria-label": item.name,
      click: () => onChoose(item), keydown: onKey,
    }),
    element("button", {
      type: "button", class: "remove", "aria-label": `Remove ${item.name}`, click: () => onRemove(item),
    }, "×"));
}

function makeLine(item, { onRemove, onRetry }) {
  return element("li", {},
    element("p", {}, element("b", {}, item.name), " ", element("span", { class: "why" })),
    element("div", { class: "row" },
      element("button", { type: "button", class: "button small", click: () => onRetry(item) }, "Try again"),
      element("button", { type: "button", class: "button small bare", click: () => onRemove(item) }, "Dismiss")));
}

const ending = (name) => (/\.(\w{1,5})$/.exec(name)?.[1] ?? "image").toUpperCase();
