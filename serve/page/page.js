// The page: what is chosen, and who shows it.

import { announce, byId, count, element } from "./dom.js";
import { Gallery } from "./gallery.js";
import { Lens } from "./lens.js";
import { clearNeighbours, inGallery, showGalleryNeighbours, showIndexNeighbours } from "./neighbours.js";
import { showLatency, snippet } from "./request.js";
import { samples, subjects } from "./samples.js";
import { Service, UNAUTHORISED } from "./service.js";
import { showGallery } from "./tiles.js";

const FIRM = "\u00a0"; // a space at which no line ends

const service = new Service({
  onBusy: (seconds) => announce(`The service is busy; asking again in ${Math.ceil(seconds)} s.`),
  onUnauthorised: askForKey,
});
const gallery = new Gallery(service, () => render());
const lens = new Lens(gallery);
const chosen = { query: null, other: null, scope: "", search: "" };
let models = [];
let nearest = { query: null, item: null };
let isScheduled = false;

/** Show everything anew, once for all changes of a moment. */
function render() {
  if (isScheduled) return;
  isScheduled = true;
  queueMicrotask(() => {
    isScheduled = false;
    settle();
    show();
  });
}

/** Choose for the visitor what is not chosen, and let go of what is gone. */
function settle() {
  const { embedded, accepted } = gallery;
  if (!accepted.includes(chosen.query)) chosen.query = embedded[0] ?? null;
  if (!embedded.includes(chosen.other) || chosen.other === chosen.query) chosen.other = null;
}

function show() {
  const { query } = chosen;
  const hasImages = gallery.items.length > 0;
  if (hasImages && !byId("hero").hidden) byId("content").focus({ preventScroll: true }); // its buttons go
  byId("hero").hidden = hasImages;
  byId("bench").hidden = !hasImages;
  showGallery(gallery, query, { onChoose: chooseQuery, onRemove: remove, onRetry: (item) => gallery.embed(item) });
  showNeighbours();
  lens.show(query, other(), gallery.model);
  byId("follow").hidden = !other();
  showRequest();
}

/** What the query is compared with: the visitor's choice, or the nearest, which is not looked for at every new image. */
function other() {
  const { query } = chosen;
  if (chosen.other || !isReady(query)) return chosen.other;
  const isKept = nearest.query === query && gallery.embedded.includes(nearest.item);
  if (!isKept || gallery.embedded.length === gallery.accepted.length) {
    nearest = { query, item: inGallery(gallery, query)[0]?.item ?? null };
  }
  return nearest.item;
}

const isReady = (item) => item !== null && gallery.result(item).status === "done";

function showNeighbours() {
  const { query, scope } = chosen;
  if (!query) return clearNeighbours("");
  if (scope) return searchIndex();
  chosen.search = "";
  if (!isReady(query)) return clearNeighbours("Waiting for the vector of the query …");
  return showGalleryNeighbours(inGallery(gallery, query), other(), (item) => {
    chosen.other = item;
    render();
  });
}

const searches = new Map(); // image -> a number that tells it from others

function searchIndex() {
  const { query, scope } = chosen;
  if (!searches.has(query)) searches.set(query, searches.size);
  const search = `${searches.get(query)} ${scope} ${service.hasKey}`;
  if (search === chosen.search) return;
  chosen.search = search;
  showIndexNeighbours(service, scope, query.blob, () => chosen.search === search);
}

function showRequest() {
  const { query } = chosen;
  const { model } = gallery;
  showLatency(query ? gallery.result(query).timing : null);
  byId("again").disabled = !query;
  const language = byId("languages").querySelector("input:checked").value;
  byId("snippet").textContent = query && model
    ? snippet(language, service.address("v1/embed"), {
      model: model.id, name: query.name, type: query.blob.type, hasKey: service.hasKey })
    : "";
}

function chooseQuery(item) {
  Object.assign(chosen, { query: item, other: null });
  render();
}

/** Let go of an image; the focus goes to the next one, not to nowhere. */
function remove(item) {
  const place = gallery.accepted.indexOf(item);
  gallery.remove(item);
  queueMicrotask(() => {
    const left = byId("tiles").querySelectorAll(".tile");
    (left[Math.min(Math.max(place, 0), left.length - 1)] ?? byId("content")).focus();
  });
}

/** Those that are not here yet. */
async function useSamples() {
  const names = new Set(gallery.items.map(({ name }) => name));
  const missing = (await samples()).filter(({ name }) => !names.has(name));
  if (missing.length) addFiles(missing);
  else announce("All samples are here already.");
}

function addFiles(files) {
  if (!files.length) return;
  const { taken, left } = gallery.add(files);
  if (taken.length) chooseQuery(taken[0]);
  announce(left
    ? `${count(taken.length, "image")} added; there is no room for ${left} more on this page.`
    : `${count(taken.length, "image")} added.`);
}

function askForKey() {
  if (byId("settings").open) return;
  byId("settings").open = true;
  byId("key-note").textContent = `${service.hasKey ? "The service does not know that key." : "This service wants a key."} `
    + "It stays in the memory of this page, and is gone when you leave it.";
  byId("key").focus();
}

/** What the service has; told plainly if it cannot be known. */
async function connect() {
  try {
    models = await service.models();
    byId("problem").hidden = true;
    showModels();
    gallery.use(models[0]);
    await showScopes();
  } catch (error) {
    if (error.status !== UNAUTHORISED) tellProblem(error);
  }
}

function tellProblem(error) {
  byId("problem").replaceChildren(`${error.message} `,
    element("button", { type: "button", class: "button small", click: () => connect() }, "Try again"));
  byId("problem").hidden = false;
}

function showModels() {
  byId("model").replaceChildren(...models.map(({ id }) => element("option", { value: id }, id)));
  byId("model-field").hidden = models.length < 2;
  showFacts(models[0]);
}

function showFacts({ id, dimensions, spec }) {
  const [height, width] = spec.grid;
  byId("facts").textContent = [
    ...(models.length < 2 ? [id] : []), `${dimensions.toLocaleString("en")} numbers per image`,
    `${spec.preprocess.image_size} px`, `${height} × ${width} patches`,
  ].map((fact) => fact.replaceAll(" ", FIRM)).join(" · ");
}

async function showScopes() {
  const indexes = (await service.indexes()) ?? [];
  byId("scope-field").hidden = indexes.length === 0;
  byId("scope").replaceChildren(element("option", { value: "" }, "these images"), ...indexes.map((index) =>
    element("option", { value: index.name }, `${index.name}: ${count(index.count ?? 0, "item")}`)));
}

function listen() {
  const on = (id, event, handle) => byId(id).addEventListener(event, handle);
  on("samples", "click", useSamples);
  on("more-samples", "click", useSamples);
  on("clear", "click", () => gallery.clear());
  on("files", "change", ({ target }) => {
    addFiles([...target.files]);
    target.value = "";
  });
  on("model", "change", ({ target }) => {
    const model = models.find(({ id }) => id === target.value);
    showFacts(model);
    chosen.other = null;
    gallery.use(model);
  });
  on("scope", "change", ({ target }) => {
    chosen.scope = target.value;
    render();
  });
  on("follow", "click", () => chooseQuery(other()));
  on("again", "click", () => gallery.embed(chosen.query));
  on("languages", "change", showRequest);
  on("copy", "click", copySnippet);
  on("key-form", "submit", useKey);
}

async function useKey(event) {
  event.preventDefault();
  service.key = byId("key").value;
  byId("settings").open = false;
  await connect();
  gallery.retryUnauthorised();
}

async function copySnippet() {
  try {
    await navigator.clipboard.writeText(byId("snippet").textContent);
    announce("Copied.");
  } catch {
    getSelection().selectAllChildren(byId("snippet"));
    announce("The browser does not let this page copy; the text is selected instead.");
  }
}

function listenForFiles() {
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  const mark = (isOver) => document.body.classList.toggle("dropping", isOver);
  addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    mark(true);
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) mark(false);
  });
  addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    mark(false);
    addFiles([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => addFiles([...(event.clipboardData?.files ?? [])]));
}

listen();
listenForFiles();
byId("fan").append(...subjects());
connect();
