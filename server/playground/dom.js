// Elements made in one line. Text becomes text: nothing here, or anywhere in the page, parses HTML.

/** The element with this id, which is in index.html. */
export const byId = (id) => document.getElementById(id);

/** An element with properties (attributes, where the name has a dash) and children. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "list" || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}
