// Tables that sort and filter, and the explorer: no library.
const make = (tag, given = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), given);
  element.append(...children);
  return element;
};

for (const table of document.querySelectorAll("table.data")) {
  const body = table.tBodies[0], rows = [...body.rows];
  const number = (text) => (/^-?[\d,]*\.?\d+(e[-+]?\d+)?%?$/i.test(text) ? parseFloat(text.replaceAll(",", "")) : NaN);
  const compare = (a, b) => {
    const [x, y] = [number(a), number(b)];
    if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1; // numbers before words
    return isNaN(x) ? a.localeCompare(b) : x - y;
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.ariaSort === "ascending";
      for (const other of table.tHead.rows[0].cells) other.ariaSort = null;
      head.ariaSort = down ? "descending" : "ascending";
      const text = (row) => row.cells[column].textContent;
      body.append(...rows.sort((a, b) => (down ? -1 : 1) * compare(text(a), text(b))));
    });
  });
  if (rows.length < 15) continue;
  const field = make("input", { type: "search" }), count = make("output", {}, `${rows.length} rows`);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  });
  table.parentElement.before(make("p", { className: "filter" }, make("label", {}, "Filter ", field), " ", count));
}

const form = document.getElementById("explore"), data = window.EXPLORER;
if (form && data) {
  const { depth, tau } = form, state = { image: 0 };
  const sprite = (i) => {
    const element = make("span", { className: "sprite", role: "img", ariaLabel: data.classes[data.sprites[i][1]] });
    element.style.setProperty("--column", i % data.side);
    element.style.setProperty("--row", Math.floor(i / data.side));
    element.style.setProperty("--side", data.side);
    return element;
  };
  const named = (i) => {
    const [, label, said] = data.sprites[i];
    return data.classes[label] + (label === said ? "" : `, said: ${data.classes[said]}`);
  };
  const drawn = (bytes, [rows, columns], name, low, high) => {
    const canvas = make("canvas", { width: columns, height: rows, role: "img", ariaLabel: name });
    const grey = new ImageData(columns, rows);
    bytes.forEach((value, i) => {
      const light = (255 * (value - low)) / (high - low || 1);
      grey.data.set([light, light, light, 255], 4 * i);
    });
    canvas.getContext("2d").putImageData(grey, 0, 0);
    return canvas;
  };
  const figure = (picture, caption, other) =>
    make("figure", { className: other ? "other" : "" }, picture, make("figcaption", {}, caption));
  const choice = (name, value, picture, caption, other) =>
    make("label", { className: other ? "choice other" : "choice" },
      make("input", { type: "radio", name, value }), picture, make("span", {}, caption));

  const show = () => {
    const d = +depth.value, t = +tau.value, f = state.image, j = data.depths[d], shape = data.shapes[d];
    const size = shape[0] * shape[1], all = Uint8Array.from(atob(data.arrays[d][f]), (c) => c.charCodeAt(0));
    const array = (n) => all.subarray(n * size, (n + 1) * size), shift = data.taus[t] * shape[1];
    const moved = new Uint8Array([...array(0).subarray(size - shift), ...array(0).subarray(0, size - shift)]);
    const x = data.images[f], near = data.nearest[d][f], label = (i) => data.sprites[i][1];
    const scale = [Math.min(...array(0), ...array(t + 1)), Math.max(...array(0), ...array(t + 1))];
    const far = data.distance[d][f][t] > data.close[d] ? ", far" : "";
    depth.previousElementSibling.value = j;
    tau.previousElementSibling.value = data.taus[t];
    form.querySelector(".search").replaceChildren(
      figure(sprite(x), `x: ${named(x)}`),
      figure(drawn(array(0), shape, `array of x at depth ${j}`, ...scale), `x̄ at j = ${j}`),
      figure(drawn(moved, shape, `the same, translated by ${data.taus[t]}`, ...scale), `translated by ${data.taus[t]}`),
      figure(drawn(array(t + 1), shape, "the nearest array", ...scale), `nearest: distance ${data.distance[d][f][t]}${far}`),
      figure(sprite(near[t]), `x at τ = ${data.taus[t]}: ${named(near[t])}`, label(near[t]) !== label(x)));
    form.querySelector("[role=status]").textContent =
      `At j = ${j} and τ = ${data.taus[t]} the nearest of the training images is no. ${data.sprites[near[t]][0]}, ${named(near[t])}.`;
    const strip = form.querySelector(".taus"), focused = strip.contains(document.activeElement);
    strip.replaceChildren(strip.firstElementChild, ...near.map((i, n) =>
      choice("strip", n, sprite(i), `${data.taus[n]}: ${named(i)}`, label(i) !== label(x))));
    form.strip.value = t;
    if (focused) strip.querySelector(":checked").focus();
  };
  depth.max = data.depths.length - 1;
  tau.max = data.taus.length - 1;
  [depth.value, tau.value] = [depth.max, 2];
  form.querySelector(".images").append(...data.images.map((i, f) => choice("image", f, sprite(i), named(i))));
  form.image.value = 0;
  form.addEventListener("input", ({ target }) => {
    if (target.name === "image") state.image = +target.value;
    if (target.name === "strip") tau.value = target.value;
    show();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
}
