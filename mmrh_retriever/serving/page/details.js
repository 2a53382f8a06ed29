/** What is known of the page that is looked at: its scores, and its boxes to cite. */

import { bar, byId, element, icon } from "./elements.js";
import { numbersLike, percent } from "./citation.js";

const CELL = "Part of the page"; // of a grid, where the page has no layout

/** Shows scores and boxes. `boxChosen` and `copied` are called with a box's index. */
export class Details {
  constructor({ boxChosen, copied }) {
    this.boxChosen = boxChosen;
    this.copied = copied;
  }

  /** Show one of the results; `pages` is how many its file has, if that is known. */
  show(result, results, pages) {
    byId("page-title").textContent = result.name;
    const label = result.label && result.label !== String(result.page) ? `, printed ${result.label}` : "";
    byId("page-place").textContent = `Page ${result.page}${pages ? ` of ${pages}` : ""}${label}`;
    byId("scores").replaceChildren(...this.#scores(result, results));
    byId("box-list").replaceChildren(...(result.regions ?? []).map((region, index) => this.#box(result, region, index)));
    byId("boxes-title").hidden = !result.regions?.length;
  }

  /** Let a box stand out. */
  choose(box) {
    for (const [index, row] of [...byId("box-list").children].entries()) {
      row.querySelector(".pick").setAttribute("aria-pressed", String(index === box));
    }
  }

  #scores(result, results) {
    const hybrid = result.attention_score !== undefined || result.text_score !== undefined;
    const rows = [this.#row(hybrid ? "Score" : "Attention", hybrid ? "share among these pages" : "mass on the page",
      "score", result, results)];
    if (hybrid) {
      rows.push(this.#row("Attention", "to the page\u2019s picture", "attention_score", result, results));
      rows.push(this.#row("Text", "BM25 of its text layer", "text_score", result, results));
    }
    if (result.probability !== undefined) {
      rows.push([element("dt", {}, "Probability", element("small", {}, "of being evidence")),
        element("dd", {}, element("span", { class: "number" }, percent(result.probability)), bar(result.probability))]);
    }
    return rows.flat();
  }

  #row(name, meaning, field, result, results) {
    const values = results.map((other) => other[field]).filter((value) => value !== undefined);
    const value = result[field];
    const best = Math.max(0, ...values);
    const shown = value === undefined
      ? [element("span", { class: "soft" }, "none")]
      : [element("span", { class: "number" }, numbersLike(values)(value)), bar(best > 0 ? value / best : 0)];
    return [element("dt", {}, name, element("small", {}, meaning)), element("dd", {}, ...shown)];
  }

  #box(result, region, index) {
    const kind = region.kind === "cell" ? CELL : region.kind[0].toUpperCase() + region.kind.slice(1);
    const text = region.text?.trim().replace(/\s+/g, " ");
    return element(
      "li", {},
      element(
        "button", {
          type: "button", class: "pick", "aria-pressed": String(index === 0), click: () => this.boxChosen(index),
        },
        element("span", { class: "rank", "aria-hidden": "true" }, String(index + 1)),
        element("span", { class: "what" }, element("span", { class: "soft" }, kind),
          ...(text ? [element("span", { class: "excerpt" }, text)] : [])),
      ),
      element("button", {
        type: "button", class: "sign", "aria-label": `Copy the citation of box ${index + 1}`,
        click: () => this.copied(index),
      }, icon("copy")),
    );
  }
}
