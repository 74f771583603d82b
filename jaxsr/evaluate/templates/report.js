(() => {
  "use strict";
  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // Tables: numbers by value with what is missing last, words by alphabet.
  const order = (a, b) => {
    const [x, y] = [a, b].map((cell) => cell.dataset.value);
    if (x === undefined) return a.textContent.localeCompare(b.textContent, "en", { numeric: true });
    const value = (text) => (text === "" ? NaN : Number(text.replace("inf", "Infinity")));
    return value(x) - value(y);
  };
  for (const button of document.querySelectorAll("table.sortable button.sort")) {
    button.addEventListener("click", () => {
      const heading = button.parentElement;
      const body = heading.closest("table").tBodies[0];
      const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const cell = (row) => row.cells[heading.cellIndex];
      const missing = (row) => cell(row).dataset.value === "";
      body.append(...[...body.rows].sort((a, b) => missing(a) - missing(b) || (missing(a) ? 0 : sign * order(cell(a), cell(b)))));
    });
  }

  const store = document.getElementById("viewer-data");
  if (!store) return;
  const data = JSON.parse(store.textContent);
  const [chooser, volumes, errors, smooth, position, top] = ["subject", "volumes", "error", "smooth", "position", "top"].map((name) =>
    document.getElementById(`viewer-${name}`)
  );
  const stage = document.querySelector("#stage > div");
  const colours = Array.from({ length: 256 }, (_, i) => [0, 2, 4].map((j) => parseInt(data.errorColours.substr(6 * i + j, 2), 16)));
  const FREE = 10; // pixels around the point that the crosshair leaves free
  const AXES = ["X", "Y", "Z"];
  const EDGES = { X: ["P", "A", "S", "I"], Y: ["R", "L", "S", "I"], Z: ["R", "L", "A", "P"] }; // left, right, top, bottom
  const ALONG = { X: ["Y", "Z"], Y: ["X", "Z"], Z: ["X", "Y"] }; // axes to the right and up
  const brains = {};
  let plane = "Z";
  let latest = 0; // the last request of a picture, which earlier ones that end later must not replace

  const decode = (source) =>
    new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => resolve(image);
      image.onerror = () => reject(new Error("a picture of the viewer cannot be read"));
      image.src = source;
    });

  const decoded = (subject, index) => {
    const volume = data.subjects[subject].volumes[index];
    volume.image ??= decode(volume.picture);
    return volume.image;
  };

  const pixels = (image) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.width, image.height];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return [canvas, context, context.getImageData(0, 0, image.width, image.height)];
  };

  const difference = async (subject, index) => {
    const [canvas, context, ours] = pixels(await decoded(subject, index));
    const truth = pixels(await decoded(subject, 0))[2].data;
    const scale = 1 / data.subjects[subject].errorTop;
    for (let i = 0; i < truth.length; i += 4) {
      ours.data.set(colours[Math.min(255, Math.round(scale * Math.abs(ours.data[i] - truth[i])))], i);
    }
    context.putImageData(ours, 0, 0);
    return canvas;
  };

  const current = () => brains[chooser.value];
  const chosen = () => Number(volumes.querySelector("input:checked").value);

  const tell = (brain) => {
    const { affine } = data.subjects[chooser.value];
    const index = AXES.map((axis) => brain.numSlice[axis]);
    const mm = affine.slice(0, 3).map((row) => row[3] + index.reduce((sum, v, i) => sum + row[i] * v, 0));
    const words = mm.map((v, i) => `${"LPI RAS"[v < 0 ? i : i + 4]} ${Math.abs(v).toFixed(1)}`);
    position.textContent = `${words.join(", ")} mm (scanner)`;
    brain.canvas.dataset.position = index.join(",");
  };

  // brainsprite draws planes; a crosshair that leaves its middle free, and letters on all sides, are ours.
  const label = (brain) => {
    const { context, widthCanvas, heightCanvas, numSlice, nbSlice } = brain;
    const size = Math.max(11, Math.round(0.05 * heightCanvas.max));
    context.save();
    context.font = `bold ${size}px system-ui, sans-serif`;
    [context.fillStyle, context.strokeStyle, context.lineWidth] = ["#ffd24a", "#000", 3];
    [context.textAlign, context.textBaseline] = ["center", "middle"];
    let left = 0;
    for (const axis of AXES) {
      const [width, height] = [widthCanvas[axis], heightCanvas[axis]];
      const over = (heightCanvas.max - height) / 2;
      const [x, y] = ALONG[axis].map((side) => (numSlice[side] + 0.5) / nbSlice[side]);
      const middle = [left + x * width, over + (1 - y) * height];
      const line = (x, y, w, h) => w > 0 && h > 0 && context.fillRect(x, y, w, h);
      line(left, middle[1], middle[0] - left - FREE, 1);
      line(middle[0] + FREE, middle[1], left + width - middle[0] - FREE, 1);
      line(middle[0], over, 1, middle[1] - over - FREE);
      line(middle[0], middle[1] + FREE, 1, over + height - middle[1] - FREE);
      const places = [[size, height / 2], [width - size, height / 2], [width / 2, size], [width / 2, height - size]];
      EDGES[axis].forEach((letter, i) => {
        context.strokeText(letter, left + places[i][0], over + places[i][1]);
        context.fillText(letter, left + places[i][0], over + places[i][1]);
      });
      left += width;
    }
    context.restore();
  };

  const begin = async (subject) => {
    const { shape, start } = data.subjects[subject];
    const sprite = await decoded(subject, 0);
    if (brains[subject]) return;
    const name = `sprite-${Object.keys(data.subjects).indexOf(subject)}`;
    const canvas = document.createElement("canvas");
    canvas.id = `${name}-planes`;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", `${subject}: sagittal, coronal and axial plane through the crosshair`);
    Object.assign(sprite, { id: name, hidden: true, alt: "" });
    stage.append(canvas, sprite);
    const xyz = (values) => Object.fromEntries(AXES.map((axis, i) => [axis, values[i]]));
    const brain = brainsprite({
      canvas: canvas.id, sprite: name, nbSlice: xyz(shape), numSlice: xyz(start), smooth: smooth.checked, showLR: false,
    });
    const draw = brain.drawAll;
    brain.drawAll = () => {
      draw();
      label(brain);
      tell(brain);
    };
    addEventListener("mouseup", () => canvas.removeEventListener("mousemove", brain.clickBrain)); // also where it is let go outside
    canvas.addEventListener("pointerdown", (event) => {
      const x = event.clientX - canvas.getBoundingClientRect().left;
      plane = x < brain.widthCanvas.X ? "X" : x < brain.widthCanvas.X + brain.widthCanvas.Y ? "Y" : "Z";
    });
    canvas.addEventListener("keydown", (event) => press(event, brain));
    brains[subject] = brain;
  };

  const press = (event, brain) => {
    const [right, up] = ALONG[plane];
    const steps = {
      ArrowRight: [right, 1], ArrowLeft: [right, -1], ArrowUp: [up, 1], ArrowDown: [up, -1], PageUp: [plane, 1], PageDown: [plane, -1],
    };
    const volume = volumes.querySelectorAll("input")[Number(event.key) - 1];
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (steps[event.key]) {
      const [axis, step] = steps[event.key];
      brain.numSlice[axis] = Math.max(0, Math.min(brain.nbSlice[axis] - 1, brain.numSlice[axis] + step));
      brain.drawAll();
    } else if (volume) volume.click();
    else if (event.key.toLowerCase() === "e") errors.click();
    else return;
    event.preventDefault();
  };

  const show = async () => {
    const [subject, index, request] = [chooser.value, chosen(), ++latest];
    await begin(subject);
    const picture = errors.checked && index > 0 ? await difference(subject, index) : await decoded(subject, index);
    if (request !== latest) return;
    for (const [name, brain] of Object.entries(brains)) brain.canvas.hidden = name !== subject;
    const brain = current();
    brain.sprite = picture;
    brain.init();
    brain.smooth = brain.context.imageSmoothingEnabled = smooth.checked;
    brain.drawAll();
    brain.canvas.dataset.shown = `${data.subjects[subject].volumes[index].name}${errors.checked && index > 0 ? " error" : ""}`;
  };

  const list = () => {
    const { volumes: found, errorTop } = data.subjects[chooser.value];
    const before = volumes.querySelector("input:checked")?.dataset.name;
    volumes.querySelectorAll("label").forEach((one) => one.remove());
    found.forEach(({ name }, i) => {
      const one = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "radio", name: "volume", value: i, checked: i === 0 || name === before });
      input.dataset.name = name;
      one.append(input, ` ${name}`);
      volumes.append(one);
    });
    top.textContent = (100 * errorTop).toFixed(0);
    show();
  };

  chooser.addEventListener("change", list);
  for (const control of [volumes, errors, smooth]) control.addEventListener("change", show);
  list();
})();
