/** The list of ranked pages, of which one is looked at. */

import { bar, byId, count, element, say } from "./elements.js";
import { smallPicture } from "./pictures.js";

const STEPS = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
const WRITTEN_IN = "input, textarea, select, dialog, [data-scrolls]";

/** Ranked pages; `selected` is called with the index of the one to look at. */
export class Ranks {
  constructor({ selected }) {
    this.results = [];
    this.index = -1;
    this.selected = selected;
    addEventListener("keydown", (event) => this.#key(event));
  }

  /** Show results, of so many ranked pages. */
  show(results, pages) {
    this.results = results;
    this.index = -1;
    const best = Math.max(...results.map((result) => result.score));
    this.named = new Set(results.map((result) => result.file)).size > 1;
    byId("ranks").replaceChildren(...results.map((result, index) => this.#option(result, index, best)));
    byId("ranks-count").textContent = results.length < pages
      ? `The best ${results.length} of ${count(pages, "page")}`
      : `${count(pages, "page")}, best first`;
    this.select(0);
  }

  /** Look at another page. */
  select(index, { focus = false } = {}) {
    if (!(index in this.results)) return;
    const options = byId("ranks").children;
    if (this.index in options) {
      options[this.index].setAttribute("aria-selected", "false");
      options[this.index].tabIndex = -1;
    }
    this.index = index;
    options[index].setAttribute("aria-selected", "true");
    options[index].tabIndex = 0;
    if (focus) options[index].focus({ preventScroll: true });
    options[index].scrollIntoView({ block: "nearest", inline: "nearest" });
    this.selected(index);
  }

  /** Look at the next page or the one before, and say which it is. */
  step(by) {
    const result = this.results[this.index + by];
    if (!result) return;
    this.select(this.index + by);
    say(describe(result));
  }

  /** Put the focus on the page that is looked at. */
  focus() {
    byId("ranks").children[this.index]?.focus();
  }

  #option(result, index, best) {
    const image = element("img", { alt: "", width: 44, height: 60 });
    smallPicture(image, result.file, result.page);
    const share = best > 0 ? result.score / best : 0;
    return element(
      "div", {
        role: "option", tabindex: -1, "aria-selected": "false",
        "aria-label": describe(result),
        click: () => this.select(index, { focus: true }),
      },
      element("span", { class: "rank" }, String(result.rank)),
      image,
      element(
        "span", { class: "what" }, element("span", { class: "page" }, `Page ${result.page}`),
        ...(this.named ? [element("span", { class: "name soft" }, result.name)] : []), bar(share),
      ),
    );
  }

  #key(event) {
    if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (byId("answers").hidden || event.target.closest?.(WRITTEN_IN)) return;
    const inside = event.target.closest?.("#ranks");
    const vertical = event.key === "ArrowDown" || event.key === "ArrowUp";
    if (vertical && !inside) return; // the page scrolls
    const step = STEPS[event.key];
    const end = { Home: 0, End: this.results.length - 1 }[event.key];
    if (step === undefined && (end === undefined || !inside)) return;
    event.preventDefault();
    if (inside) this.select(end ?? this.index + step, { focus: true });
    else this.step(step);
  }
}

function describe(result) {
  return `Rank ${result.rank}: ${result.name}, page ${result.page}`;
}
