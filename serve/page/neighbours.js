// What is alike to the query: in the gallery, by cosines that are computed here, or in an index of the service.

import { nearest } from "./algebra.js";
import { byId, count, decimal, element, showItems } from "./dom.js";
import { showThumbnail } from "./tiles.js";

const MOST = 12;
const SHOWABLE = /^data:image\/(png|jpeg|webp|gif);/; // of what an index says; nothing is fetched from elsewhere

const cards = new Map();

/** The other images of the gallery, best first: [{item, score}]. */
export function inGallery(gallery, query) {
  const others = gallery.embedded.filter((item) => item !== query);
  return nearest(gallery.result(query).vector, others, (item) => gallery.result(item).vector).slice(0, MOST);
}

/** Show them; `onChoose` is called with the item to compare the query with. */
export function showGalleryNeighbours(found, other, onChoose) {
  const scores = new Map(found.map(({ item, score }) => [item, score]));
  const list = byId("neighbours");
  showItems(list, cards, [...scores.keys()], (item) => makeCard(item, onChoose), (card, item) => {
    showThumbnail(card.firstElementChild, item);
    card.firstElementChild.setAttribute("aria-pressed", String(item === other));
    showScore(card, scores.get(item));
  });
  tell(found.length ? "" : "Add another image to compare this one with.");
}

/** Ask an index and show what it says. An answer that came too late is not shown. */
export async function showIndexNeighbours(service, index, blob, isWanted) {
  tell(`Searching in ${index} …`);
  try {
    const found = await service.search(index, blob, MOST);
    if (!isWanted()) return;
    cards.clear();
    byId("neighbours").replaceChildren(...found.map(makeIndexCard));
    tell(found.length ? `${count(found.length, "item")} of ${index}` : `${index} holds nothing yet.`);
  } catch (error) {
    if (!isWanted()) return;
    cards.clear();
    byId("neighbours").replaceChildren();
    tell(error.message, true);
  }
}

export function clearNeighbours(text) {
  cards.clear();
  byId("neighbours").replaceChildren();
  tell(text);
}

function tell(text, isError = false) {
  byId("neighbours-note").textContent = text;
  byId("neighbours-note").classList.toggle("error", isError);
}

function makeCard(item, onChoose) {
  return element("li", {},
    element("button", { type: "button", class: "card", click: () => onChoose(item) },
      element("span", { class: "name" }, item.name), scoreLine()));
}

function makeIndexCard({ id, score, metadata }) {
  const told = Object.entries(metadata ?? {});
  const picture = told.map(([, value]) => value).find((value) => SHOWABLE.test(value));
  const facts = told.filter(([, value]) => value !== picture).slice(0, 4);
  const card = element("li", {},
    element("div", { class: "card" },
      picture ? element("img", { src: picture, alt: "" }) : element("span", { class: "blank" }, String(id).slice(0, 12)),
      element("span", { class: "name", title: String(id) }, String(id)),
      scoreLine(),
      facts.length ? element("dl", { class: "metadata" }, facts.map(makeFact)) : null));
  showScore(card, score);
  return card;
}

const makeFact = ([key, value]) =>
  element("div", {}, element("dt", {}, key), element("dd", {}, typeof value === "string" ? value : JSON.stringify(value)));

const scoreLine = () => element("span", { class: "score" }, element("b", {}), element("i", { "aria-hidden": "true" }));

function showScore(card, score) {
  card.dataset.score = String(score);
  card.querySelector(".score b").textContent = decimal(score);
  card.querySelector(".score i").style.setProperty("--share", String(Math.max(0, Math.min(1, score))));
}
