// Elements, made and found. Texts are always set as text, never read as HTML.

const TOLD_MILLISECONDS = 6000; // that a message stays

export const byId = (id) => document.getElementById(id);

/** An element with attributes (functions are listeners, booleans properties), and children: elements or texts. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (typeof value === "boolean") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child != null));
  return made;
}

/**
 * Let a list show items: an element for each, made once and then updated, so that what has the focus keeps it.
 * `kept` is a Map of this list's, from item to element.
 */
export function showItems(list, kept, items, make, update) {
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  const wanted = items.map((item) => {
    if (!kept.has(item)) kept.set(item, make(item));
    update(kept.get(item), item);
    return kept.get(item);
  });
  for (const item of [...kept.keys()]) if (!items.includes(item)) kept.delete(item);
  if (wanted.length !== list.children.length || wanted.some((one, index) => one !== list.children[index])) {
    list.replaceChildren(...wanted);
    if (focused?.isConnected) focused.focus({ preventScroll: true });
  }
}

let forgetting;

/** Tell something in passing, aloud to those who do not see the screen. */
export function announce(text) {
  byId("status").textContent = text;
  clearTimeout(forgetting);
  forgetting = setTimeout(() => (byId("status").textContent = ""), TOLD_MILLISECONDS);
}

export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

export function bytes(number) {
  return number >= 2 ** 20 ? `${+(number / 2 ** 20).toFixed(1)} MB` : `${Math.ceil(number / 1024)} kB`;
}

/** Three digits: nobody compares times more finely. */
export function milliseconds(number) {
  return `${number.toFixed(number >= 99.95 ? 0 : number >= 9.995 ? 1 : 2)} ms`;
}

export const decimal = (number) => number.toFixed(3).replace("-", "−");
