// Descriptions of elements, and making the document equal to them in place: what has not changed is not touched, so
// focus, selections and open details survive a live update. Text is only ever text; nothing here parses markup.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "g", "path", "rect", "line", "circle", "text", "title"]);
const known = new WeakMap();

/** An element: `h("td", {class: "name"}, "text", h("b", null, "more"))`. `key` tells it from its like among siblings. */
export function h(tag, attributes, ...children) {
  const present = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  return { tag, attributes: attributes ?? {}, children: present };
}

/** Make the children of `parent` what `wanted` describes. */
export function patch(parent, wanted) {
  const list = [wanted].flat(Infinity).filter(Boolean);
  const old = [...parent.childNodes];
  const keyed = new Map(old.filter((node) => keyOf(node) !== undefined).map((node) => [keyOf(node), node]));
  const others = old.filter((node) => keyOf(node) === undefined);
  const nodes = list.map((child) => reuse(child, keyed, others) ?? create(child));
  const kept = new Set(nodes);
  for (const node of old) if (!kept.has(node)) node.remove();
  let place = parent.firstChild;
  nodes.forEach((node, i) => {
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
    update(node, list[i]);
  });
}

const keyOf = (node) => known.get(node)?.attributes.key;
const isText = (child) => typeof child !== "object";

function reuse(child, keyed, others) {
  if (!isText(child) && child.attributes.key !== undefined) {
    const node = keyed.get(child.attributes.key);
    keyed.delete(child.attributes.key);
    return node && known.get(node).tag === child.tag ? node : undefined;
  }
  const fits = (node) => (isText(child) ? node.nodeType === Node.TEXT_NODE : known.get(node)?.tag === child.tag);
  const index = others.findIndex(fits);
  return index < 0 ? undefined : others.splice(index, 1)[0];
}

function create(child) {
  if (isText(child)) return document.createTextNode("");
  const node = SVG_TAGS.has(child.tag) ? document.createElementNS(SVG, child.tag) : document.createElement(child.tag);
  known.set(node, { tag: child.tag, attributes: {} });
  return node;
}

function update(node, child) {
  if (isText(child)) {
    if (node.data !== String(child)) node.data = String(child);
    return;
  }
  const { attributes: old } = known.get(node);
  for (const name of new Set([...Object.keys(old), ...Object.keys(child.attributes)])) {
    if (old[name] !== child.attributes[name]) assign(node, name, child.attributes[name]);
  }
  known.set(node, { tag: child.tag, attributes: child.attributes });
  patch(node, child.children);
}

function assign(node, name, value) {
  if (name === "key") return;
  if (name.startsWith("on")) node[name] = value ?? null;
  else if (value === undefined || value === null || value === false) node.removeAttribute(name);
  else node.setAttribute(name, value === true ? "" : value);
}
