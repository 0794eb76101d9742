// Elements. Whatever comes from outside is text, never markup.

export const $ = (id) => document.getElementById(id);

/** An element with attributes; ``class`` and ``data-…`` too, functions are listeners. */
export function h(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Set text only where it differs, so that screen readers are told of changes alone. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
