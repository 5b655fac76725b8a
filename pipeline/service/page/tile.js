// One source: its picture with poses, its state, its numbers, and, enlarged, its tracks.

import { colourOf, draw } from "./draw.js";

const HISTORY = 120; // a minute of statuses
const RATE_OVER_S = 3;
const TABLE_EVERY_MS = 200;
const FROZEN_S = 3;
const NOTICES = {
  connecting: () => "connecting…",
  late: (status) => `late: the newest picture is ${seconds(status.silent_s)} old`,
  lost: (status) => `lost\n${status.silent_s === null ? "no picture yet" : `no picture for ${seconds(status.silent_s)}`}`,
  ended: () => "ended",
};

export class Tile {
  /**
   * @param on.enlarge called when the tile is clicked.
   * @param on.remove called when the viewer wants to remove the source.
   */
  constructor(name, on) {
    this.name = name;
    this.edges = {};
    this.histories = { age: [], rate: [], lag: [] };
    this.counts = []; // [seconds, frames published]
    this.tabledMs = 0;
    this.picturedMs = null;
    this.intervalMs = 0;
    this.element = document.getElementById("tile").content.firstElementChild.cloneNode(true);
    this.find("h2").textContent = name;
    this.find("h2").title = name;
    this.canvas = this.find("canvas");
    this.find(".enlarge").setAttribute("aria-label", `${name}: enlarge`);
    this.find(".enlarge").onclick = () => on.enlarge();
    this.find(".remove").onclick = () => on.remove();
    new ResizeObserver(() => this.redraw()).observe(this.find(".picture"));
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  get large() {
    return this.element.classList.contains("large");
  }

  set large(large) {
    this.element.classList.toggle("large", large);
    this.find(".details").hidden = !large;
    this.find(".enlarge").setAttribute("aria-expanded", large);
    this.find(".enlarge").setAttribute("aria-label", `${this.name}: ${large ? "make small" : "enlarge"}`);
    this.tabledMs = 0;
    this.#table();
    this.redraw();
  }

  /** Show a picture with its poses. */
  async picture({ message, skeleton, jpeg }) {
    const bitmap = jpeg.length ? await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" })) : null;
    this.bitmap?.close();
    this.bitmap = bitmap;
    this.message = message;
    if (skeleton) this.edges = Object.fromEntries(skeleton.classes.map((entry) => [entry.name, entry.edges]));
    const nowMs = performance.now();
    if (this.picturedMs !== null) this.intervalMs = 0.8 * this.intervalMs + 0.2 * (nowMs - this.picturedMs);
    this.picturedMs = nowMs;
    this.frozen = false;
    this.#notice();
    this.redraw();
    this.#table();
  }

  redraw() {
    if (this.canvas.isConnected) draw(this.canvas, this.bitmap ?? null, this.message ?? null, this.edges);
  }

  /** Show what the pipeline says about the source. */
  update(status, removable) {
    const restarted = this.counts.length && status.published < this.counts.at(-1)[1];
    this.counts = [...(restarted ? [] : this.counts), [status.at_s, status.published]];
    while (this.counts.length > 2 && status.at_s - this.counts[1][0] >= RATE_OVER_S) this.counts.shift();
    const [[fromS, from], [toS, to]] = [this.counts[0], this.counts.at(-1)];
    const live = status.state === "live" || status.state === "late";
    this.status = status;
    this.#number("age", status.age_s, (value) => (value < 2 ? `${Math.round(value * 1000)} ms` : seconds(value)));
    this.#number("rate", toS > fromS ? (to - from) / (toS - fromS) : null, (value) => `${value.toFixed(1)}/s`);
    this.#number("lag", status.lag_s, (value) => `${Math.round(value * 1000)} ms`);
    this.find(".reason").textContent = reasons(status);
    this.find(".remove").hidden = !removable;
    const limitS = Math.max(FROZEN_S, (4 * this.intervalMs) / 1000);
    this.frozenS = live && this.picturedMs !== null ? (performance.now() - this.picturedMs) / 1000 : 0;
    this.frozen = this.frozenS > limitS;
    this.#state(status.state, status.state);
    this.#notice();
  }

  /** The monitor itself does not answer. */
  disconnect() {
    this.status = null;
    for (const number of this.element.querySelectorAll("dd")) number.textContent = "–";
    this.#state("lost", "no connection");
    this.#notice();
  }

  /** No pictures are requested now, so missing pictures are not reported. */
  pause() {
    this.picturedMs = null;
    this.intervalMs = 0;
  }

  #state(state, word) {
    this.element.dataset.state = state;
    this.find(".title .state").dataset.state = state;
    this.find(".title .state").textContent = word;
  }

  /** Show over the picture why it does not move, so that nobody takes an old picture for a live one. */
  #notice() {
    let text = null;
    if (!this.status) text = "no connection to the pipeline";
    else if (NOTICES[this.status.state]) text = NOTICES[this.status.state](this.status);
    else if (this.frozen) text = `no new picture for ${seconds(this.frozenS)}`;
    else if (this.message && !this.bitmap) text = "this picture could not be read";
    this.find(".notice").hidden = text === null;
    if (text !== null) {
      this.find(".notice").textContent = text;
      this.find("tbody").replaceChildren(); // remove old tracks
    }
  }

  #number(key, value, format) {
    const place = this.find(`[data-number="${key}"]`);
    place.querySelector("dd").textContent = value === null ? "–" : format(value);
    const history = this.histories[key];
    history.push(value);
    if (history.length > HISTORY) history.shift();
    const known = history.filter((item) => item !== null);
    const top = Math.max(...known, 1e-3) * 1.1;
    const start = HISTORY - history.length; // the newest value is at the right
    const points = history.map((item, index) =>
      item === null ? null : `${start + index},${(24 - (22 * item) / top).toFixed(1)}`,
    );
    place.querySelector("svg").setAttribute("viewBox", `0 0 ${HISTORY - 1} 25`);
    place.querySelector("svg").setAttribute("preserveAspectRatio", "none");
    place.querySelector("polyline").setAttribute("points", points.filter((point) => point !== null).join(" "));
  }

  #table() {
    const nowMs = performance.now();
    if (!this.large || !this.message || !this.find(".notice").hidden || nowMs - this.tabledMs < TABLE_EVERY_MS) return;
    this.tabledMs = nowMs;
    this.find("tbody").replaceChildren(...this.message.tracks.map(row));
  }
}

function row(track) {
  const [left, top, right, bottom] = track.box_xyxy;
  const measured = track.keypoints_measured.filter(Boolean).length;
  const cells = [
    String(track.id),
    track.class,
    track.score.toFixed(2),
    `${measured} of ${track.keypoints_measured.length}`,
    `${Math.round((left + right) / 2)}, ${Math.round((top + bottom) / 2)}`,
    track.measured ? "" : "coasting",
  ];
  const line = document.createElement("tr");
  line.dataset.track = track.id;
  for (const text of cells) line.insertCell().textContent = text;
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = colourOf(track.id);
  line.cells[0].prepend(swatch);
  return line;
}

function reasons(status) {
  const drops = Object.entries(status.drops).map(([reason, count]) => `${count} ${reason}`);
  const parts = [];
  if (status.last_error) parts.push(status.last_error);
  if (drops.length) parts.push(`dropped: ${drops.join(", ")}`);
  if (status.reconnects) parts.push(`reconnects: ${status.reconnects}`);
  return parts.join(" · ");
}

function seconds(value) {
  if (value === null) return "some time";
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  return value < 7200 ? `${Math.round(value / 60)} min` : `${Math.round(value / 3600)} h`;
}
