// The monitor: a tile for each source, kept up to date over one WebSocket.

import { Connection } from "./connection.js";
import { Steering } from "./steering.js";
import { Tile } from "./tile.js";

const FOUND_S = 3; // a source is sorted to the front for this long after something was found in it
const THEMES = ["auto", "dark", "light"];
const byId = (id) => document.getElementById(id);

const tiles = new Map();
const visible = new Set();
const steering = new Steering();
const foundFirst = byId("found-first");
let sources = []; // of the last status

const connection = new Connection({
  status: showStatus,
  picture: (picture) => tiles.get(picture.source)?.picture(picture),
  change: showConnection,
});

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const name = entry.target.dataset.name;
    if (entry.isIntersecting) visible.add(name);
    else visible.delete(name);
  }
  look();
});

/** Ask for the pictures of the visible tiles; a page in the background asks for none. */
function look() {
  const seen = document.hidden ? [] : [...tiles.keys()].filter((name) => visible.has(name));
  for (const [name, tile] of tiles) if (!seen.includes(name)) tile.pause();
  connection.look(seen);
}

function showStatus(status) {
  byId("engine").textContent = status.engine;
  steering.update(status);
  const names = new Set(status.sources.map((source) => source.name));
  for (const [name, tile] of tiles) if (!names.has(name)) removeTile(name, tile);
  for (const source of status.sources) {
    if (!tiles.has(source.name)) addTile(source.name);
    tiles.get(source.name).update({ ...source, at_s: status.at_s }, status.may.sources);
  }
  byId("empty").hidden = tiles.size > 0;
  sources = status.sources;
  order();
  look();
}

function showConnection(connected) {
  const place = byId("connection");
  if (connected === (place.dataset.state === "live")) return;
  place.dataset.state = connected ? "live" : "lost";
  place.textContent = connected ? "connected" : "no connection, trying again";
  if (!connected) for (const tile of tiles.values()) tile.disconnect();
}

function addTile(name) {
  const tile = new Tile(name, { enlarge: () => enlarge(tile), remove: () => steering.remove(name) });
  tile.element.dataset.name = name;
  tiles.set(name, tile);
  byId("tiles").append(tile.element);
  watcher.observe(tile.element);
}

function removeTile(name, tile) {
  watcher.unobserve(tile.element);
  tile.element.remove();
  tiles.delete(name);
  visible.delete(name);
}

function enlarge(tile) {
  const large = !tile.large;
  for (const other of tiles.values()) if (other.large && other !== tile) other.large = false;
  tile.large = large;
  order();
  tile.element.scrollIntoView({ block: "nearest" });
}

/** Large tiles first; then, if the viewer wants that, those where something was just found. */
function order() {
  const found = (source) => source.found_ago_s !== null && source.found_ago_s < FOUND_S;
  sources.forEach((source, index) => {
    const tile = tiles.get(source.name);
    if (!tile) return;
    const rank = foundFirst.checked && !found(source) ? sources.length : 0;
    tile.element.style.order = tile.large ? -1 : rank + index;
  });
}

/** Arrow keys move over the tiles in the order in which they are shown; Escape makes the large tile small. */
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input")) return;
  if (event.key === "Escape") for (const tile of tiles.values()) if (tile.large) enlarge(tile);
  if (event.key === "/") {
    event.preventDefault();
    byId("prompt").focus();
  }
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  if (!(event.key in steps) || !tiles.size || !document.activeElement.matches(".enlarge, body")) return;
  event.preventDefault();
  const shown = [...byId("tiles").children].sort((a, b) => a.style.order - b.style.order);
  const at = shown.findIndex((element) => element.contains(document.activeElement));
  const next = at < 0 ? 0 : (at + steps[event.key] + shown.length) % shown.length;
  shown[next].querySelector(".enlarge").focus();
});

document.addEventListener("visibilitychange", look);

function showTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `◐ ${theme}`;
  byId("theme").setAttribute("aria-label", `Theme: ${theme}`);
}

let theme = localStorage.getItem("theme") ?? "auto";
showTheme(THEMES.includes(theme) ? theme : "auto");
byId("theme").onclick = () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  localStorage.setItem("theme", theme);
  showTheme(theme);
};

foundFirst.checked = localStorage.getItem("found-first") === "yes";
foundFirst.onchange = () => {
  localStorage.setItem("found-first", foundFirst.checked ? "yes" : "no");
  order();
};
