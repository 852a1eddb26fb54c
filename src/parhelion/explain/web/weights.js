// Computes what a pixel attends to from queries, keys and tables, and its colours. The formulas are those of
// parhelion.explain.halo and parhelion.explain.gsa; maps are (row, column, head, channel).
"use strict";

// ---- Numbers -------------------------------------------------------------------------------------------------------

const decoded = new Map();

function numbers(stored) {
  if (!decoded.has(stored.at)) {
    const text = atob(document.getElementById("numbers" + stored.at).textContent);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    decoded.set(stored.at, stored.scale ? scaled(new Int16Array(bytes.buffer), stored.scale)
      : new Float32Array(bytes.buffer));
  }
  return decoded.get(stored.at);
}

function scaled(whole, scale) {
  const values = new Float32Array(whole.length), steps = Float32Array.from(scale), count = steps.length;
  for (let first = 0; first < whole.length; first += count) {
    for (let i = 0; i < count; i++) values[first + i] = whole[first + i] * steps[i];
  }
  return values;
}

function dot(a, atA, b, atB, count) {
  let sum = 0;
  for (let i = 0; i < count; i++) sum += a[atA + i] * b[atB + i];
  return sum;
}

function softmax(logits) {
  let most = -Infinity, sum = 0;
  for (const logit of logits) most = Math.max(most, logit);
  const weights = Float64Array.from(logits, (logit) => Math.exp(logit - most));
  for (const weight of weights) sum += weight;
  return weights.map((weight) => weight / sum);
}

// ---- Weights -------------------------------------------------------------------------------------------------------
// Both kinds of layers give a rectangle of keys: {top, left, rows, cols, values, content, position}. The latter two are
// the two parts of halo attention's logits.

function haloRow(layer, part, row, col, head) {
  const { block, halo, stride, step, channels: d, heads } = layer;
  const [h, w] = layer.size, queries = block / stride, side = block + 2 * halo;
  const top = Math.floor(row / queries) * block - halo, left = Math.floor(col / queries) * block - halo;
  const q = numbers(layer.q), k = numbers(layer.k);
  const at = ((row * layer.querySize[1] + col) * heads + head) * d;
  const content = new Float64Array(side * side), position = new Float64Array(side * side);
  const relative = layer.tables && [row, col].map((place, axis) => {
    const table = layer.tables[axis], rows = numbers(table.numbers);
    const from = axis === 1 && !layer.summed ? d - table.channels : 0;
    const first = block - 1 - (place % queries) * step;
    return Float64Array.from({ length: side }, (_, key) =>
      layer.scale * dot(q, at + from, rows, (key + first) * table.channels, table.channels));
  });
  const logits = new Float64Array(side * side);
  for (let a = 0; a < side; a++) {
    for (let c = 0; c < side; c++) {
      const i = a * side + c, inside = top + a >= 0 && top + a < h && left + c >= 0 && left + c < w;
      if (inside) content[i] = layer.scale * dot(q, at, k, (((top + a) * w + left + c) * heads + head) * d, d);
      if (relative) position[i] = relative[0][a] + relative[1][c];
      const sum = (part !== "position" ? content[i] : 0) + (part !== "content" ? position[i] : 0);
      logits[i] = layer.masked && !inside ? -Infinity : sum;
    }
  }
  return { top, left, rows: side, cols: side, values: softmax(logits), content, position };
}

function globalRow(layer, part, row, col, head) {
  const { channels: d, heads } = layer, [h, w] = layer.size, q = numbers(layer.q);
  const at = (y, x) => ((y * w + x) * heads + head) * d;
  const values = new Float64Array(h * w);
  if (layer.k && (part === "both" || part === "content")) {
    const keys = numbers(layer.k), own = q.slice(at(row, col), at(row, col) + d);
    const query = layer.normalizeQueries ? softmax(own) : own;
    for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) values[y * w + x] = dot(query, 0, keys, at(y, x), d);
  }
  if (layer.positional && part !== "content") {
    const [down, across] = layer.tables.map((table) => numbers(table.numbers));
    // What the pixel (row, x) reads of its own column, and the query of its own row.
    const column = (x, y) => dot(q, at(row, x), down, (y - row + h - 1) * d, d);
    for (let x = 0; x < w; x++) {
      const alongRow = dot(q, at(row, col), across, (x - col + w - 1) * d, d);
      if (part === "rows") values[row * w + x] = alongRow;
      if (part === "columns" && x === col) for (let y = 0; y < h; y++) values[y * w + x] = column(x, y);
      if (part === "both" || part === "position") {
        for (let y = 0; y < h; y++) values[y * w + x] += layer.normScale[head] * alongRow * column(x, y);
      }
    }
  }
  return { top: 0, left: 0, rows: h, cols: w, values };
}

// The keys of every head and, after them, of their mean.
function keysOfHeads(layer, part, row, col) {
  const compute = layer.kind === "halo" ? haloRow : globalRow;
  const all = Array.from({ length: layer.heads }, (_, head) => compute(layer, part, row, col, head));
  const mean = (name) => all[0][name] &&
    all[0][name].map((_, i) => all.reduce((sum, one) => sum + one[name][i], 0) / all.length);
  return [...all, { ...all[0], values: mean("values"), content: mean("content"), position: mean("position") }];
}

// ---- Colours: safe for colour-blind eyes ---------------------------------------------------------------------------

// Cividis for what is positive, purple to orange (PuOr) for what has a sign.
const SEQUENTIAL = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"].map(parts);
const DIVERGING = ["#542788", "#998ec3", "#d8daeb", "#f7f7f7", "#fee0b6", "#f1a340", "#b35806"].map(parts);

function parts(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

const SHADES = [SEQUENTIAL, DIVERGING].map((stops) => Array.from({ length: 256 }, (_, shade) => {
  const at = (shade / 255) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((from, i) => Math.round(from + (stops[low + 1][i] - from) * (at - low)));
}));

function colour(value, most, signed) {
  const share = most > 0 ? (signed ? (value / most + 1) / 2 : value / most) : signed ? 0.5 : 0;
  return SHADES[signed ? 1 : 0][Math.round(255 * Math.min(Math.max(share, 0), 1))];
}

function largest(values) {
  return values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
}

// A small canvas with a pixel for each number.
function heatmap(canvas, values, rows, cols, signed, most = largest(values)) {
  canvas.width = cols;
  canvas.height = rows;
  const picture = new ImageData(cols, rows);
  values.forEach((value, i) => {
    picture.data.set(colour(value, most, signed), 4 * i);
    picture.data[4 * i + 3] = 255;
  });
  canvas.getContext("2d").putImageData(picture, 0, 0);
}
