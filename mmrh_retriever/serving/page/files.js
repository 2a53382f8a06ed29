/** The list of files: sending, choosing and removing them. */

import { byId, count, element, icon, say } from "./elements.js";
import { deleteFile, listFiles, upload } from "./server.js";

const WORTH_ANOTHER_TRY = new Set([0, 401, 429, 503, 504]);

/** The files of the server, and which of them are asked. `changed` and `refused` are called with what happened. */
export class Files {
  constructor({ changed, refused }) {
    this.known = new Map(); // id -> file
    this.chosen = new Set();
    this.changed = changed;
    this.refused = refused;
    this.line = Promise.resolve();
    byId("choose").addEventListener("click", () => byId("chosen").click());
    byId("chosen").addEventListener("change", (event) => {
      this.send([...event.target.files]);
      event.target.value = ""; // so that the same file can be chosen again
    });
    byId("all").addEventListener("change", (event) => this.#chooseAll(event.target.checked));
    this.#takeDrops();
  }

  /** Read the server's list; `wanted` are beginnings of the ids to choose. */
  async load(wanted) {
    this.known = new Map((await listFiles()).map((file) => [file.id, file]));
    this.chosen.clear();
    for (const id of this.known.keys()) {
      if (wanted.some((beginning) => id.startsWith(beginning))) this.chosen.add(id);
    }
    this.#draw();
  }

  /** The chosen ids, in the list's order. */
  get ids() {
    return [...this.known.keys()].filter((id) => this.chosen.has(id));
  }

  /** How many pages the chosen files have. */
  get pages() {
    return this.ids.reduce((sum, id) => sum + this.known.get(id).page_count, 0);
  }

  /** Send files, one after the other. */
  send(files) {
    for (const file of files) {
      const row = element("li");
      byId("uploads").append(row);
      this.#sendLater(file, row);
    }
  }

  #sendLater(file, row) {
    const bar = element("progress", { max: 1, value: 0, "aria-label": `Sending ${file.name}` });
    const state = element("span", { class: "soft" }, "Waiting");
    row.replaceChildren(element("span", { class: "name" }, file.name), state, bar);
    row.className = "";
    this.line = this.line.then(() => this.#send(file, row, bar, state));
  }

  async #send(file, row, bar, state) {
    say(`Sending ${file.name}.`);
    try {
      const { pages: _, ...read } = await upload(file, (part) => {
        if (part < 1) bar.value = part;
        else bar.removeAttribute("value"); // the bar moves to and fro
        state.textContent = part < 1 ? `Sent ${Math.round(100 * part)} %` : "Being read";
      });
      row.remove();
      this.known = new Map([[read.id, read], ...[...this.known].filter(([id]) => id !== read.id)]);
      this.chosen.add(read.id);
      this.#draw();
      say(`${read.name} is there, with ${count(read.page_count, "page")}.`);
      this.changed();
    } catch (error) {
      this.#failed(file, row, error);
    }
  }

  #failed(file, row, error) {
    const again = WORTH_ANOTHER_TRY.has(error.status)
      && element("button", { type: "button", class: "plain", click: () => this.#sendLater(file, row) }, "Try again");
    const close = element(
      "button", { type: "button", class: "sign", "aria-label": `Dismiss ${file.name}`, click: () => {
        row.remove();
        byId("choose").focus();
      } }, icon("close"),
    );
    row.className = "bad";
    row.replaceChildren(
      element("span", { class: "name" }, file.name), close,
      element("p", { role: "alert" }, error.message), ...(again ? [again] : []),
    );
    if (error.status === 401) this.refused(error);
  }

  async #remove(file) {
    const dialog = byId("removing");
    byId("removing-name").textContent = `${file.name}, ${count(file.page_count, "page")}`;
    dialog.returnValue = "keep";
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    if (dialog.returnValue !== "remove") return;
    try {
      await deleteFile(file.id);
    } catch (error) {
      if (error.status !== 404) return this.refused(error); // 404: somebody else removed it
    }
    this.known.delete(file.id);
    this.chosen.delete(file.id);
    this.#draw();
    byId("choose").focus();
    say(`${file.name} is removed.`);
    this.changed(file.id);
  }

  #draw() {
    byId("files").replaceChildren(...[...this.known.values()].map((file, index) => {
      const box = element("input", { type: "checkbox", id: `file-${index}`, change: (event) => {
        if (event.target.checked) this.chosen.add(file.id);
        else this.chosen.delete(file.id);
        this.#drawAll();
        this.changed();
      } });
      box.checked = this.chosen.has(file.id);
      const kind = file.kind === "pdf" ? count(file.page_count, "page") : "Image";
      return element(
        "li", {}, box,
        element("label", { for: box.id, title: file.name }, element("span", { class: "name" }, file.name), element("span", { class: "soft" }, kind)),
        element("button", {
          type: "button", class: "sign", "aria-label": `Remove ${file.name}`, click: () => this.#remove(file),
        }, icon("bin")),
      );
    }));
    this.#drawAll();
  }

  #drawAll() {
    byId("all-row").hidden = this.known.size < 2;
    byId("all").checked = this.chosen.size === this.known.size;
    byId("all").indeterminate = this.chosen.size > 0 && this.chosen.size < this.known.size;
    byId("all-label").textContent = `Ask all files (${this.chosen.size} of ${this.known.size} chosen)`;
  }

  #chooseAll(wanted) {
    this.chosen = new Set(wanted ? this.known.keys() : []);
    this.#draw();
    this.changed();
  }

  #takeDrops() {
    const over = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    addEventListener("dragover", (event) => {
      if (!over(event)) return;
      event.preventDefault();
      byId("drop").classList.add("over");
    });
    addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) byId("drop").classList.remove("over");
    });
    addEventListener("drop", (event) => {
      if (!over(event)) return;
      event.preventDefault();
      byId("drop").classList.remove("over");
      this.send([...event.dataTransfer.files]);
    });
  }
}
