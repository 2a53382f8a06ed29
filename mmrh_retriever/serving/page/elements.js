/** Elements of the page. Texts become text nodes, never markup. */

const SVG = "http://www.w3.org/2000/svg";

/** The page's element with an id. */
export function byId(id) {
  return document.getElementById(id);
}

/** A new element. Properties are attributes, or listeners where the value is a function; absent values are left out. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** A drawn sign from the page's symbols, which screen readers pass over. */
export function icon(name) {
  const drawn = document.createElementNS(SVG, "svg");
  drawn.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  drawn.append(use);
  return drawn;
}

/** A part of a whole as a bar. */
export function bar(share) {
  const filled = element("i");
  filled.style.width = `${Math.round(100 * Math.min(1, Math.max(0, share)))}%`;
  return element("span", { class: "bar", "aria-hidden": "true" }, filled);
}

/** Tell screen readers what happened. */
export function say(text) {
  byId("status").textContent = text;
}

/** "1 page", "2 pages". */
export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}
