// The forms with which the viewer changes the prompt and the sources.

import { ask } from "./connection.js";

const MOST_SUGGESTIONS = 40;
const byId = (id) => document.getElementById(id);

export class Steering {
  constructor() {
    this.categories = [];
    this.may = { prompts: false, sources: false };
    this.marked = -1;
    this.input = byId("prompt");
    this.list = byId("suggestions");
    byId("prompt-form").onsubmit = (event) => this.#apply(event);
    byId("source-form").onsubmit = (event) => this.#add(event);
    this.input.oninput = () => this.#suggest();
    this.input.onfocus = () => this.#suggest();
    this.input.onblur = () => this.#show([]);
    this.input.onkeydown = (event) => this.#key(event);
  }

  /** Show what the pipeline looks for now; a prompt that is being edited stays. */
  update({ prompt, may, categories }) {
    this.categories = categories;
    this.may = may;
    const editing = document.activeElement === this.input || document.activeElement === byId("keypoints");
    if (prompt.id !== this.promptId || !may.prompts) {
      if (!editing) this.input.value = prompt.text;
      this.promptId = prompt.id;
    }
    this.input.readOnly = !may.prompts;
    byId("prompt-form").querySelector("button").hidden = !may.prompts;
    byId("keypoints").hidden = !(may.prompts && may.free_words);
    byId("source-form").hidden = !may.sources;
  }

  async #apply(event) {
    event.preventDefault();
    this.#show([]);
    const keypoints = byId("keypoints").value.trim();
    await this.#ask("prompt", "/api/prompt", { prompt: this.input.value, keypoints: keypoints || null });
  }

  async #add(event) {
    event.preventDefault();
    const added = await this.#ask("source", "/api/sources/add", { address: byId("address").value });
    if (added) byId("address").value = "";
  }

  /** Remove a source after the viewer has said yes. */
  async remove(name) {
    if (window.confirm(`Remove ${name}? Its tracks end.`)) {
      await this.#ask("source", "/api/sources/remove", { name });
    }
  }

  async #ask(form, path, body) {
    const button = byId(`${form}-form`).querySelector("button");
    const output = byId(`${form}-answer`);
    button.disabled = true;
    const answer = await ask(path, body);
    button.disabled = false;
    output.textContent = answer.error ?? answer.done;
    output.dataset.kind = answer.error ? "error" : "done";
    return !answer.error;
  }

  /** Suggest categories for the word that is being written, after the last comma. */
  #suggest() {
    const word = this.input.value.split(",").at(-1).trim().toLowerCase();
    const others = this.input.value.split(",").slice(0, -1).map((item) => item.trim().toLowerCase());
    const fits = (name) => name.toLowerCase() !== word && !others.includes(name.toLowerCase());
    const starting = this.categories.filter((name) => fits(name) && name.toLowerCase().startsWith(word));
    const holding = this.categories.filter((name) => fits(name) && name.toLowerCase().indexOf(word) > 0);
    this.#show(this.may.prompts ? [...starting, ...holding].slice(0, MOST_SUGGESTIONS) : []);
  }

  #show(names) {
    this.marked = -1;
    this.list.hidden = names.length === 0;
    this.input.setAttribute("aria-expanded", names.length > 0);
    this.input.removeAttribute("aria-activedescendant");
    this.list.replaceChildren(
      ...names.map((name, index) => {
        const item = document.createElement("li");
        item.id = `suggestion-${index}`;
        item.role = "option";
        item.textContent = name;
        item.onpointerdown = (event) => {
          event.preventDefault(); // the input keeps the focus
          this.#take(name);
        };
        return item;
      }),
    );
  }

  #take(name) {
    const before = this.input.value.split(",").slice(0, -1).map((item) => item.trim());
    this.input.value = [...before, name].join(", ");
    this.#show([]);
  }

  #key(event) {
    const items = [...this.list.children];
    if (event.key === "Escape") this.#show([]);
    if (event.key === "Enter" && this.marked >= 0) {
      event.preventDefault();
      this.#take(items[this.marked].textContent);
    }
    if ((event.key === "ArrowDown" || event.key === "ArrowUp") && items.length) {
      event.preventDefault();
      const step = event.key === "ArrowDown" ? 1 : -1;
      this.marked = (this.marked + step + items.length) % items.length;
      items.forEach((item, index) => item.setAttribute("aria-selected", index === this.marked));
      items[this.marked].scrollIntoView({ block: "nearest" });
      this.input.setAttribute("aria-activedescendant", items[this.marked].id);
    }
  }
}
