// Elements made and kept. Text only ever becomes text: names and messages come from strangers.

const SVG = "http://www.w3.org/2000/svg";

/** Controls, and those of the direction of writing: a name must not reorder the question it stands in. */
const STEERS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

/** The text with a mark in place of each of them. */
export const plain = (text) => String(text).replace(STEERS, "\ufffd");

/** The element with an id. */
export const at = (id) => document.getElementById(id);

/** An element. `set` holds attributes; those that begin with `on` are listeners. */
export function make(tag, set = {}, ...children) {
  return dress(document.createElement(tag), set, children);
}

/** The same in a picture. */
export function draw(tag, set = {}, ...children) {
  return dress(document.createElementNS(SVG, tag), set, children);
}

function dress(element, set, children) {
  for (const [name, value] of Object.entries(set)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : plain(value));
  }
  const shown = children.filter((child) => child !== null && child !== undefined && child !== "");
  element.append(...shown.map((child) => (child instanceof Node ? child : plain(child))));
  return element;
}

/** Sets a text where it differs: what stays as it is costs no layout. */
export function say(element, text) {
  const shown = plain(text ?? "");
  if (element.textContent !== shown) element.textContent = shown;
}

/** Sets or removes an attribute where it differs. */
export function mark(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (value === true) element.setAttribute(name, "");
  else if (element.getAttribute(name) !== plain(value)) element.setAttribute(name, plain(value));
}

/**
 * Keeps one child of `parent` for each of `items`, in their order: `create` makes it, `update`
 * fits it. One that stays is the same element, so focus and selection stay too.
 */
export function keep(parent, items, key, create, update) {
  const known = parent.kept ?? (parent.kept = new Map());
  const wanted = new Map(items.map((item) => [key(item), item]));
  for (const [name, child] of known) {
    if (!wanted.has(name)) {
      child.remove();
      known.delete(name);
    }
  }
  let place = parent.firstElementChild;
  for (const [name, item] of wanted) {
    let child = known.get(name);
    if (!child) {
      child = create(item);
      known.set(name, child);
    }
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
    update(child, item);
  }
}
