// Draws the poses of one message on a canvas. Coordinates of a message are pixels of the source.

const INK = "rgb(18 20 24)";
const PAPER = "rgb(250 250 248)";
const GOLDEN_RATIO = 0.618034;

const BRIGHT = 140; // luma (ITU-R BT.601) from which dark letters read better than light ones

/** Red, green and blue of a bright colour; neighbouring ids are far apart on the colour circle. */
function rgbOf(id) {
  const hue = (id * GOLDEN_RATIO + 0.12) % 1;
  const channel = (turn) => Math.min(1, Math.max(0, Math.abs((((hue + turn) % 1) * 6) - 3) - 1));
  return [1, 2 / 3, 1 / 3].map((turn) => Math.round(255 * (1 - 0.72 * (1 - channel(turn)))));
}

/** The colour of a track, the same as in annotated pictures and videos. */
export function colourOf(id) {
  return `rgb(${rgbOf(id).join(" ")})`;
}

/**
 * Draw a picture and its poses.
 * @param canvas its CSS size decides the number of pixels, so that lines stay sharp.
 * @param bitmap the picture, of any size; null for none.
 * @param message a message of poses; null for none.
 * @param edges joints by class name: pairs of indices of keypoints.
 */
export function draw(canvas, bitmap, message, edges) {
  const width = message?.width || bitmap?.width || 16;
  const height = message?.height || bitmap?.height || 9;
  canvas.style.aspectRatio = `${width} / ${height}`;
  const shown = canvas.getBoundingClientRect();
  const pixels = Math.min(window.devicePixelRatio || 1, 3);
  const zoom = Math.min((shown.width * pixels) / width, (shown.height * pixels) / height);
  resize(canvas, Math.max(1, Math.round(width * zoom)), Math.max(1, Math.round(height * zoom)));
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (bitmap) pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  if (!message) return;
  const unit = Math.max(pixels, Math.min(canvas.width, canvas.height) / 420);
  pen.lineCap = "round";
  pen.lineJoin = "round";
  for (const track of message.tracks) {
    drawBox(pen, track, zoom, unit);
    drawSkeleton(pen, track, edges[track.class] ?? [], zoom, unit);
  }
  for (const track of message.tracks) drawLabel(pen, track, zoom, unit);
}

function resize(canvas, width, height) {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
}

/** A thin rectangle with strong corners; a track that coasts has the corners alone. */
function drawBox(pen, track, zoom, unit) {
  const [left, top, right, bottom] = track.box_xyxy.map((value) => value * zoom);
  pen.strokeStyle = colourOf(track.id);
  if (track.measured) {
    pen.lineWidth = unit;
    pen.strokeRect(left, top, right - left, bottom - top);
  }
  const arm = 0.18 * Math.min(right - left, bottom - top);
  pen.lineWidth = 2.5 * unit;
  pen.beginPath();
  for (const [x, inwardX] of [[left, arm], [right, -arm]]) {
    for (const [y, inwardY] of [[top, arm], [bottom, -arm]]) {
      pen.moveTo(x + inwardX, y);
      pen.lineTo(x, y);
      pen.lineTo(x, y + inwardY);
    }
  }
  pen.stroke();
}

/** Limbs on a dark halo, and keypoints: light where measured, dark where they coast. */
function drawSkeleton(pen, track, edges, zoom, unit) {
  const points = track.keypoints.map(([x, y]) => (x === null || y === null ? null : [x * zoom, y * zoom]));
  const [left, top, right, bottom] = track.box_xyxy;
  // Limbs get thinner with the size of the box, so that the skeleton does not cover a small person.
  const figure = Math.min(1, Math.max(0.4, (Math.max(right - left, bottom - top) * zoom) / (200 * unit))) * unit;
  const limbs = edges.filter(([start, end]) => points[start] && points[end]);
  for (const [colour, width] of [[INK, 4.6 * figure], [colourOf(track.id), 2.6 * figure]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.beginPath();
    for (const [start, end] of limbs) {
      pen.moveTo(...points[start]);
      pen.lineTo(...points[end]);
    }
    pen.stroke();
  }
  points.forEach((point, index) => {
    if (!point) return;
    disc(pen, point, 4.2 * figure, INK);
    disc(pen, point, 3.2 * figure, track.keypoints_measured[index] ? PAPER : INK);
    disc(pen, point, 1.9 * figure, colourOf(track.id));
  });
}

function disc(pen, [x, y], radius, colour) {
  pen.fillStyle = colour;
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

/** Class, number and score on top of the box, or inside it where there is no room above. */
function drawLabel(pen, track, zoom, unit) {
  const text = `${track.class} ${track.id}  ${track.score.toFixed(2)}${track.measured ? "" : "  coasting"}`;
  const size = Math.round(12 * unit);
  const pad = 0.35 * size;
  pen.font = `600 ${size}px system-ui, "DejaVu Sans", sans-serif`;
  const width = pen.measureText(text).width + 2 * pad;
  const height = size + 2 * pad;
  const left = Math.max(0, Math.min(track.box_xyxy[0] * zoom, pen.canvas.width - width));
  let bottom = track.box_xyxy[1] * zoom - unit;
  if (bottom < height) bottom = Math.max(0, bottom) + height;
  pen.fillStyle = colourOf(track.id);
  pen.globalAlpha = 0.9;
  pen.fillRect(left, bottom - height, width, height);
  pen.globalAlpha = 1;
  const [red, green, blue] = rgbOf(track.id);
  pen.fillStyle = 0.3 * red + 0.59 * green + 0.11 * blue > BRIGHT ? INK : PAPER;
  pen.textBaseline = "middle";
  pen.fillText(text, left + pad, bottom - height / 2);
}
