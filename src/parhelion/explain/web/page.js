// Shows what weights.js computes: an explorer for each model of the page.
"use strict";

const models = JSON.parse(document.getElementById("models").textContent);

// ---- Words ---------------------------------------------------------------------------------------------------------

const PART_NAMES = { both: "both", content: "content", position: "position", columns: "columns", rows: "rows" };
const COLUMNS = [
  ["name", "layer"],
  ["map", "map"],
  ["distance", "distance, px", "mean distance from query to key in pixels of the image, weighted by the weights"],
  ["entropy", "entropy, bits", "of the weights of a query; 3 bits are as spread as 8 equal weights"],
  ["halo", "halo", "share of weight in the image but beyond the query's block"],
  ["padding", "outside", "share of weight on zeros outside the image"],
  ["negative", "negative", "share of weight below zero; global layers have no softmax over keys"],
];

function short(value) {
  return value === 0 ? "0" : Math.abs(value) < 1e-3 ? value.toExponential(2) : value.toPrecision(4);
}

function percent(value) {
  return (100 * value).toFixed(1) + "%";
}

function average(values) {
  return values && values.reduce((sum, value) => sum + value, 0) / values.length;
}

function make(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, properties);
}

// ---- One model -----------------------------------------------------------------------------------------------------

class Explorer {
  constructor(model, linked) {
    this.model = model;
    this.linked = linked;
    this.root = document.getElementById("explorer").content.cloneNode(true).firstElementChild;
    this.find = (selector) => this.root.querySelector(selector);
    this.layer = model.layers[0];
    this.head = 0;
    this.part = this.layer.parts[0];
    this.query = this.layer.querySize.map((size) => Math.floor(size / 2));
    this.pointed = null; // the key under the pointer; null: the one of largest weight
    this.sort = null;
    this.opacity = 0.8;
    this.image = new Image();
    this.image.onload = () => this.drawMap();
    this.image.src = model.picture;
    this.describe();
    this.listen();
    this.chooseLayer(this.layer);
  }

  describe() {
    const { model } = this;
    this.find("h2").textContent = model.title;
    const rounding = model.rounding
      ? ` Queries and keys are rounded to 16 bits: weights differ by up to ${short(100 * model.rounding)}% of the largest.` : "";
    this.find(".note").textContent = model.note + rounding;
    this.find(".top").append(...model.top.map(([name, share]) => make("li", `${name} ${percent(share)}`)));
    if (models.length > 1) this.root.classList.add("beside");
    const [rows, cols] = model.size;
    if (model.rollout) {
      const words = "Rollout: where attention could have read from, over all layers. Not causal.";
      this.addCheck(words, model.rollout, false, (value) => `holds ${percent(value)} of the last map`, [rows, cols]);
    }
    if (model.occlusion) {
      const { class: name, losses, patch, probability } = model.occlusion;
      const words = `Occlusion: what ${name} (${percent(probability)}) loses when a patch of ${patch} px is hidden.`;
      const covered = [losses.length * patch, losses[0].length * patch];
      this.addCheck(words, losses, true, (value) => `loses ${(100 * value).toFixed(2)} points`, covered);
    }
  }

  addCheck(words, values, signed, say, [height, width]) {
    const best = values.flat().reduce((most, value) => (Math.abs(value) > Math.abs(most) ? value : most), 0);
    const figure = make("figure", ""), canvas = make("canvas", "");
    const caption = make("figcaption", `${words} The strongest ${say(best)}.`);
    heatmap(canvas, values.flat(), values.length, values[0].length, signed);
    canvas.style.aspectRatio = `${width} / ${height}`;
    canvas.onpointermove = (event) => {
      const [row, col] = cell(event, canvas, values.length, values[0].length);
      caption.textContent = `${words} Row ${row}, column ${col} ${say(values[row][col])}.`;
    };
    figure.append(canvas, caption);
    this.find(".checks").append(figure);
  }

  listen() {
    const map = this.find(".map");
    map.addEventListener("pointerdown", (event) => this.moveTo(...this.queryAt(event)));
    map.addEventListener("pointermove", (event) => this.point(this.keyAt(event)));
    map.addEventListener("pointerleave", () => this.point(null));
    map.addEventListener("keydown", (event) => this.press(event));
    this.find(".opacity").addEventListener("input", (event) => {
      this.opacity = Number(event.target.value);
      this.drawMap();
    });
  }

  press(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    if (event.shiftKey) this.point(this.key().map((place, axis) => place + move[axis]));
    else this.moveTo(...this.query.map((place, axis) => place + move[axis]));
  }

  // What is chosen

  chooseLayer(layer) {
    const before = this.layer;
    this.query = this.query.map((place, axis) =>
      Math.floor(((place + 0.5) * layer.querySize[axis]) / before.querySize[axis]));
    this.layer = layer;
    this.head = Math.min(this.head, layer.heads); // the one after the last is the mean
    if (!layer.parts.includes(this.part)) this.part = layer.parts[0];
    this.pointed = null;
    this.showParts();
    this.showTables();
    this.showLayers();
    this.update();
  }

  chooseHead(head) {
    this.head = head;
    this.update();
  }

  choosePart(part) {
    this.part = part;
    this.showParts();
    this.update();
  }

  // Linked explorers follow to the same place of the image.
  moveTo(row, col, follow = true) {
    const [rows, cols] = this.layer.querySize;
    this.query = [Math.min(Math.max(row, 0), rows - 1), Math.min(Math.max(col, 0), cols - 1)];
    this.pointed = null;
    this.update();
    if (!follow) return;
    for (const other of this.linked) {
      if (other === this) continue;
      other.moveTo(...this.query.map((place, axis) =>
        Math.floor(((place + 0.5) * other.layer.querySize[axis]) / this.layer.querySize[axis])), false);
    }
  }

  point(key) {
    const { top, left, rows, cols } = this.keys;
    const there = key && key[0] >= top && key[0] < top + rows && key[1] >= left && key[1] < left + cols;
    this.pointed = there ? key : null;
    this.drawMap();
    this.say();
  }

  key() {
    if (this.pointed) return this.pointed;
    const { values, top, left, cols } = this.keys;
    let best = 0;
    values.forEach((value, i) => { if (Math.abs(value) > Math.abs(values[best])) best = i; });
    return [top + Math.floor(best / cols), left + (best % cols)];
  }

  update() {
    this.ofHeads = keysOfHeads(this.layer, this.part, ...this.query);
    this.keys = this.ofHeads[this.head];
    this.signed = this.layer.kind === "global";
    this.showHeads();
    this.drawMap();
    this.drawLegend();
    this.say();
  }

  // Lists

  showParts() {
    this.find(".parts").replaceChildren(...this.layer.parts.map((part) => {
      const button = make("button", PART_NAMES[part], { onclick: () => this.choosePart(part) });
      button.setAttribute("aria-pressed", part === this.part);
      return button;
    }));
  }

  showHeads() {
    const { layer, ofHeads } = this, box = this.find(".heads");
    if (box.children.length !== ofHeads.length) {
      box.replaceChildren(...ofHeads.map((_, head) => {
        const button = make("button", "", { onclick: () => this.chooseHead(head) });
        button.append(make("canvas", ""), make("span", ""));
        return button;
      }));
    }
    ofHeads.forEach((keys, head) => {
      const button = box.children[head], isMean = head === layer.heads;
      const far = isMean ? average(layer.summary.distance) : layer.summary.distance[head];
      heatmap(button.firstChild, keys.values, keys.rows, keys.cols, this.signed);
      button.lastChild.textContent = `${isMean ? "mean" : "head " + head} · ${far.toFixed(1)} px`;
      button.setAttribute("aria-pressed", head === this.head);
    });
  }

  showLayers() {
    const value = (layer, name) => name === "name" ? this.model.layers.indexOf(layer)
      : name === "map" ? layer.size[0] * layer.size[1] : average(layer.summary[name]) ?? -Infinity;
    const layers = [...this.model.layers];
    if (this.sort) {
      const [name, up] = this.sort;
      layers.sort((a, b) => (up ? 1 : -1) * (value(a, name) - value(b, name)));
    }
    const head = make("tr", "");
    for (const [name, words, meaning] of COLUMNS) {
      const cell = make("th", "", { title: meaning ?? "" }), up = this.sort && this.sort[0] === name && this.sort[1];
      const arrow = !this.sort || this.sort[0] !== name ? "" : up ? " ↑" : " ↓";
      cell.setAttribute("aria-sort", arrow === "" ? "none" : up ? "ascending" : "descending");
      cell.append(make("button", words + arrow, { onclick: () => this.sortBy(name, !up) }));
      head.append(cell);
    }
    this.find(".layers thead").replaceChildren(head);
    this.find(".layers tbody").replaceChildren(...layers.map((layer) => this.layerRow(layer)));
  }

  sortBy(name, up) {
    this.sort = [name, up];
    this.showLayers();
  }

  layerRow(layer) {
    const row = make("tr", ""), name = make("td", "");
    row.setAttribute("aria-selected", layer === this.layer);
    name.append(make("button", layer.name, { onclick: () => this.chooseLayer(layer) }));
    const { distance, entropy, halo, padding, negative } = layer.summary;
    const share = (values) => values ? percent(average(values)) : "–";
    const cells = [layer.size.join(" × "), average(distance).toFixed(1), average(entropy).toFixed(2),
      share(halo), share(padding), share(negative)];
    row.append(name, ...cells.map((text) => make("td", text)));
    return row;
  }

  showTables() {
    const { layer } = this;
    this.find(".tables-hint").textContent = layer.tables
      ? "One embedding for each offset from query to key, shared by all heads and the same for every image."
      : "This layer has none.";
    this.find(".table-readout").textContent = "";
    this.find(".tables").replaceChildren(...(layer.tables ?? []).map((table, axis) => {
      const figure = make("figure", ""), canvas = make("canvas", ""), values = numbers(table.numbers);
      const first = layer.firstOffset ?? -(table.rows - 1) / 2, last = first + table.rows - 1;
      heatmap(canvas, values, table.rows, table.channels, true);
      canvas.style.width = `${Math.min(200, 12 * table.channels)}px`;
      canvas.style.height = `${Math.min(260, 10 * table.rows)}px`;
      canvas.onpointermove = (event) => {
        const [row, channel] = cell(event, canvas, table.rows, table.channels);
        const words = `${axis ? "columns" : "rows"}, offset ${first + row}, channel ${channel}`;
        this.find(".table-readout").textContent = `${words}: ${short(values[row * table.channels + channel])}`;
      };
      const words = `${axis ? "columns" : "rows"}: offsets ${first} (top) to ${last}, ${table.channels} channels, ` +
        `±${short(largest(values))}`;
      figure.append(canvas, make("figcaption", words));
      return figure;
    }));
  }

  // The image

  // In pixels of the map of keys: what the canvas shows, which is the image, or all blocks and their halos.
  extent() {
    const { layer } = this, [h, w] = layer.size;
    if (layer.kind !== "halo") return { top: 0, left: 0, bottom: h, right: w };
    const { block, halo } = layer;
    return { top: -halo, left: -halo, bottom: Math.ceil(h / block) * block + halo,
      right: Math.ceil(w / block) * block + halo };
  }

  keyAt(event) {
    const { top, left, bottom, right } = this.extent();
    const [row, col] = cell(event, this.find(".map"), bottom - top, right - left);
    return [top + row, left + col];
  }

  queryAt(event) {
    return this.keyAt(event).map((place) => Math.floor(place / this.layer.stride));
  }

  drawMap() {
    const { layer, keys } = this, canvas = this.find(".map"), [tall, wide] = layer.keyPx;
    const { top, left, bottom, right } = this.extent();
    const scale = 1088 / Math.max((right - left) * wide, (bottom - top) * tall);
    canvas.width = Math.round((right - left) * wide * scale);
    canvas.height = Math.round((bottom - top) * tall * scale);
    const paper = canvas.getContext("2d");
    paper.imageSmoothingEnabled = false;
    const y = (row) => (row - top) * tall * scale, x = (col) => (col - left) * wide * scale;
    const box = (row, col, rows, cols) => [x(col), y(row), cols * wide * scale, rows * tall * scale];
    hatch(paper, canvas);
    const [height, width] = this.model.size;
    if (this.image.complete) paper.drawImage(this.image, x(0), y(0), width * scale, height * scale);
    const most = largest(keys.values);
    paper.globalAlpha = this.opacity;
    keys.values.forEach((value, i) => {
      const [red, green, blue] = colour(value, most, this.signed);
      paper.fillStyle = `rgb(${red} ${green} ${blue})`;
      paper.fillRect(...box(keys.top + Math.floor(i / keys.cols), keys.left + (i % keys.cols), 1, 1));
    });
    paper.globalAlpha = 1;
    const line = (colours, thick, dashes, rectangle) => colours.forEach((style, i) => {
      paper.setLineDash(dashes);
      paper.lineWidth = thick * (colours.length - i);
      paper.strokeStyle = style;
      paper.strokeRect(...rectangle);
    });
    line(["#888"], 1, [], [x(0), y(0), width * scale, height * scale]);
    if (layer.kind === "halo") {
      line(["#000", "#fff"], 2, [], box(keys.top, keys.left, keys.rows, keys.cols));
      line(["#000", "#fff"], 2, [8, 6], box(keys.top + layer.halo, keys.left + layer.halo, layer.block, layer.block));
    }
    line(["#000", "#ff3b8d"], 3, [], box(this.query[0] * layer.stride, this.query[1] * layer.stride, 1, 1));
    line(["#000", "#4cc9f0"], 2, [], box(...this.key(), 1, 1));
  }

  drawLegend() {
    const canvas = this.find(".legend"), paper = canvas.getContext("2d"), most = largest(this.keys.values);
    paper.clearRect(0, 0, canvas.width, canvas.height);
    for (let at = 0; at < canvas.width; at++) {
      const share = at / (canvas.width - 1), value = this.signed ? (2 * share - 1) * most : share * most;
      paper.fillStyle = `rgb(${colour(value, most, this.signed).join(" ")})`;
      paper.fillRect(at, 0, 1, 14);
    }
    paper.fillStyle = getComputedStyle(document.body).color;
    paper.font = "13px system-ui, sans-serif";
    paper.textBaseline = "top";
    paper.fillText(this.signed ? short(-most) : "0", 0, 18);
    paper.textAlign = "right";
    paper.fillText(short(most), canvas.width, 18);
    paper.textAlign = "left";
  }

  // The numbers, in words; exact ones in the element's data.
  say() {
    const { layer, keys, query } = this, out = this.find(".readout"), key = this.key(), [h, w] = layer.size;
    const i = (key[0] - keys.top) * keys.cols + key[1] - keys.left, weight = keys.values[i];
    const offset = key.map((place, axis) => place - query[axis] * layer.stride);
    const lines = [`Query: row ${query[0]}, column ${query[1]} of ${layer.querySize.join(" × ")}.`];
    const outside = key[0] < 0 || key[0] >= h || key[1] < 0 || key[1] >= w;
    lines.push(`${this.pointed ? "Key" : "Heaviest key"}: row ${key[0]}, column ${key[1]}, offset ` +
      `${offset.join(", ")}${outside ? ", outside the image" : ""}: weight ${short(weight)}.`);
    if (layer.kind === "halo") {
      lines.push(`Logits: content ${short(keys.content[i])}, position ${short(keys.position[i])}.`);
      lines.push(this.windowWords());
    } else {
      const sum = keys.values.reduce((total, value) => total + value, 0);
      lines.push(`All weights of this query add up to ${short(sum)}.`);
    }
    out.textContent = lines.join("\n");
    Object.assign(out.dataset, { row: key[0], col: key[1], weight, queryRow: query[0], queryCol: query[1] });
    if (keys.content) Object.assign(out.dataset, { content: keys.content[i], position: keys.position[i] });
  }

  windowWords() {
    const { layer, keys } = this, [h, w] = layer.size, sums = { block: 0, halo: 0, outside: 0 };
    let beyond = 0;
    keys.values.forEach((value, i) => {
      const a = Math.floor(i / keys.cols), c = i % keys.cols, row = keys.top + a, col = keys.left + c;
      const inBlock = [a, c].every((place) => place >= layer.halo && place < layer.halo + layer.block);
      const outside = row < 0 || row >= h || col < 0 || col >= w;
      beyond += outside;
      sums[outside ? "outside" : inBlock ? "block" : "halo"] += value;
    });
    const shares = Object.entries(sums).map(([name, sum]) => `${name} ${percent(sum)}`).join(", ");
    return `Window of ${keys.rows} × ${keys.cols} keys, ${beyond} of them outside the image. Weight: ${shares}.`;
  }
}

function hatch(paper, canvas) {
  paper.fillStyle = "#8a90a0";
  paper.fillRect(0, 0, canvas.width, canvas.height);
  paper.strokeStyle = "#b8bdc9";
  paper.lineWidth = 3;
  paper.setLineDash([]);
  paper.beginPath();
  for (let at = -canvas.height; at < canvas.width; at += 18) {
    paper.moveTo(at, canvas.height);
    paper.lineTo(at + canvas.height, 0);
  }
  paper.stroke();
}

// The row and column of a grid over a canvas that an event points to.
function cell(event, canvas, rows, cols) {
  const box = canvas.getBoundingClientRect();
  const place = (at, length, count) => Math.min(Math.max(Math.floor((at / length) * count), 0), count - 1);
  return [place(event.clientY - box.top, box.height, rows), place(event.clientX - box.left, box.width, cols)];
}

const explorers = [];
for (const model of models) {
  const explorer = new Explorer(model, explorers);
  explorers.push(explorer);
  document.getElementById("explorers").append(explorer.root);
}
