/** The page that is looked at: its picture, heat map and boxes, larger and smaller. */

import { byId, element } from "./elements.js";
import { pictureOf } from "./pictures.js";

const ZOOMS = [1, 1.25, 1.5, 2, 3, 4];
const SIDE = 2000; // pixels of a picture's longer side at most

/** Shows one page. `boxChosen` is called with a box's index, `refused` with an error. */
export class Viewer {
  constructor({ boxChosen, refused }) {
    this.boxChosen = boxChosen;
    this.refused = refused;
    this.zoom = 1;
    this.result = null;
    for (const id of ["heat", "boxes"]) {
      byId(id).addEventListener("click", (event) => {
        const on = event.target.getAttribute("aria-pressed") !== "true";
        event.target.setAttribute("aria-pressed", String(on));
        this.#drawn();
      });
    }
    byId("smaller").addEventListener("click", () => this.#zoomBy(-1));
    byId("larger").addEventListener("click", () => this.#zoomBy(1));
    byId("fit").addEventListener("click", () => this.#zoomTo(1));
    new ResizeObserver(() => this.#size()).observe(byId("pane"));
  }

  /** Show a ranked page with what the question looks at. */
  show(result, question) {
    this.result = result;
    this.question = question;
    this.box = 0;
    byId("overlay").replaceChildren(...this.#boxes());
    byId("picture").removeAttribute("src");
    byId("pane").scrollTo(0, 0);
    this.#size();
    this.#drawn();
  }

  /** Let a box stand out, and bring it into view. */
  choose(box) {
    this.box = box;
    [...byId("overlay").children].forEach((drawn, index) => drawn.classList.toggle("chosen", index === box));
    const pane = byId("pane");
    const drawn = byId("overlay").children[box];
    if (!drawn || pane.scrollHeight <= pane.clientHeight + 1) return;
    pane.scrollTo({ top: drawn.offsetTop - pane.clientHeight / 3, left: drawn.offsetLeft - pane.clientWidth / 6 });
  }

  async #drawn() {
    const { result, question } = this;
    if (!result) return;
    const heat = byId("heat").getAttribute("aria-pressed") === "true";
    byId("overlay").hidden = byId("boxes").getAttribute("aria-pressed") !== "true";
    byId("legend").classList.toggle("unused", !heat);
    const image = byId("picture");
    image.alt = `Page ${result.page} of ${result.name}${heat ? ", with the heat map of the question" : ""}`;
    byId("sheet").setAttribute("aria-busy", "true");
    const asked = { question: heat ? question : null, side: SIDE };
    const current = () => this.result === result && (byId("heat").getAttribute("aria-pressed") === "true") === heat;
    try {
      const address = await pictureOf(result.file, result.page, asked);
      if (!current()) return;
      image.src = address;
      await image.decode();
    } catch (error) {
      if (current() && error.name !== "EncodingError") this.refused(error);
    }
    if (current()) byId("sheet").removeAttribute("aria-busy");
  }

  #boxes() {
    return (this.result.regions ?? []).map((region, index) => {
      const [x0, y0, x1, y1] = region.box_fraction.map((side) => 100 * side);
      const box = element(
        "div", { class: index === this.box ? "chosen" : "", click: () => this.boxChosen(index) },
        element("b", { class: "rank" }, String(index + 1)),
      );
      Object.assign(box.style, { left: `${x0}%`, top: `${y0}%`, width: `${x1 - x0}%`, height: `${y1 - y0}%` });
      return box;
    });
  }

  #zoomBy(step) {
    this.#zoomTo(ZOOMS[Math.min(ZOOMS.length - 1, Math.max(0, ZOOMS.indexOf(this.zoom) + step))]);
  }

  #zoomTo(zoom) {
    const pane = byId("pane");
    const middle = (pane.scrollTop + pane.clientHeight / 2) / pane.scrollHeight;
    const centre = (pane.scrollLeft + pane.clientWidth / 2) / pane.scrollWidth;
    this.zoom = zoom;
    this.#size();
    pane.scrollTop = middle * pane.scrollHeight - pane.clientHeight / 2;
    pane.scrollLeft = centre * pane.scrollWidth - pane.clientWidth / 2;
    const percent = `${100 * zoom} %`;
    byId("fit").textContent = percent;
    byId("fit").setAttribute("aria-label", `Fit the page, zoom is ${percent}`);
    byId("smaller").setAttribute("aria-disabled", String(zoom === ZOOMS[0]));
    byId("larger").setAttribute("aria-disabled", String(zoom === ZOOMS.at(-1)));
    pane.toggleAttribute("data-scrolls", zoom > 1); // then arrow keys scroll
  }

  /** The sheet's width: at 100 % the whole page is seen, or its whole width where the pane grows with it. */
  #size() {
    if (!this.result) return;
    const [width, height] = this.result.page_size ?? [210, 297];
    const pane = byId("pane");
    const style = getComputedStyle(pane);
    const room = pane.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const high = pane.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
    const grows = style.getPropertyValue("--grows").trim() === "1";
    const fitting = grows ? room : Math.min(room, (high * width) / height);
    const sheet = byId("sheet");
    sheet.style.aspectRatio = `${width} / ${height}`;
    sheet.style.width = `${Math.max(40, Math.floor(fitting * this.zoom))}px`;
  }
}
