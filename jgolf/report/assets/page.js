// The page: its data, what the reader chose, groups and their baseline, tables, controls.

const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const root = document.documentElement;
root.classList.add("js");
const style = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const color = (place) => style(`--line-${place % data.colors}`);
const DASHES = [[], [7, 4], [7, 3, 2, 3], [2, 3]];
const dash = (place) => DASHES[place % DASHES.length];
const SKIPPED = 0.02; // of the run, whose high losses would flatten the rest
const minus = (text) => text.replace("-", "−");

const make = (tag, name, ...inside) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...inside);
  return element;
};

// --- what the reader chose, kept over a reload ---------------------------------------------------

const KEY = `jgolf report ${location.pathname}`;
const state = { x: "step", smooth: 2, tail: false, log_x: false, log_y: false, start: false, events: true,
  records: false, off: [], baseline: data.baseline };
try {
  Object.assign(state, JSON.parse(sessionStorage.getItem(KEY) || "{}"));
} catch { /* a browser that keeps nothing */ }
const keep = () => {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(state));
  } catch { /* the same */ }
};

// --- numbers -------------------------------------------------------------------------------------

const plain = (value) => minus(value.toLocaleString("en-US", { maximumFractionDigits: 6 }));
const figure = (value) => {
  const size = Math.abs(value);
  return minus(size >= 1000 ? value.toFixed(0) : size >= 100 ? value.toFixed(1) : value.toFixed(4));
};
const delta = (one) => (one.told === data.baseline_told ? one.told : signed(one.difference));
const signed = (value) => (value === null ? "–" : minus((value < 0 ? "" : "+") + value.toFixed(4)));
const axisName = { step: "step", time: "training time in seconds", share: "percent of the run" };

function splits(min, max, isLog, count) {
  if (!(max > min)) return [min];
  if (isLog && max / min >= 20) {
    const found = [];
    for (let power = Math.floor(Math.log10(min)); power <= Math.ceil(Math.log10(max)); power++)
      for (const step of max / min > 1e4 ? [1] : [1, 2, 5]) found.push(step * 10 ** power);
    return found.filter((value) => value >= min && value <= max);
  }
  const rough = (max - min) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const width = [1, 2, 5, 10].map((step) => step * power).find((step) => step >= rough);
  const found = [];
  for (let at = Math.ceil(min / width); at * width <= max; at++) found.push(+(at * width).toPrecision(12));
  return found;
}

function smoothed(values) {
  const half = Math.floor((state.smooth / 100) * values.length / 2);
  if (half === 0) return values;
  const sums = [0];
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  return values.map((_, at) => {
    const first = Math.max(at - half, 0);
    const end = Math.min(at + half + 1, values.length);
    return (sums[end] - sums[first]) / (end - first);
  });
}

function legend() {
  const parent = find("legend");
  if (!parent) return;
  const legends = new Map(data.runs.map((run) => [run.legend, run.place]));
  parent.replaceChildren();
  for (const [name, place] of legends.size > 1 ? legends : []) {
    const button = make("button", "", swatch(place), name);
    button.type = "button";
    button.setAttribute("aria-pressed", String(!state.off.includes(name)));
    button.addEventListener("click", () => {
      const isOff = state.off.includes(name);
      state.off = isOff ? state.off.filter((one) => one !== name) : [...state.off, name];
      button.setAttribute("aria-pressed", String(isOff));
      keep();
      for (const { plot, curves } of charts)
        plot.series.forEach((one, at) => {
          if (at && curves[one.curve].legend === name) plot.setSeries(at, { show: isOff });
        });
    });
    parent.append(button);
  }
}

// --- groups and their baseline -------------------------------------------------------------------

function forest(parent, rows, hasZero) {
  if (!parent) return;
  const shown = rows.filter((row) => row.mean !== null);
  const values = shown.flatMap((row) => [row.mean, ...row.points]).concat(hasZero ? [0] : []);
  if (!shown.length) return;
  const span = Math.max(...values) - Math.min(...values) || 0.001;
  const reach = (sign) => Math.max(...shown.map((row) => sign * row.mean + Math.min(row.half || 0, 1.5 * span)));
  const low = Math.min(-reach(-1), ...values) - 0.04 * span;
  const high = Math.max(reach(1), ...values) + 0.04 * span;
  const at = (value) => `${Math.min(100, Math.max(0, (100 * (value - low)) / (high - low)))}%`;
  const mark = (name, left, width) => {
    const element = make("i", name);
    element.style.left = left;
    if (width) element.style.width = width;
    return element;
  };
  const write = hasZero ? signed : figure;
  const grid = make("div", "forest");
  for (const row of shown) {
    const track = make("div", "track");
    track.style.color = color(row.place);
    if (hasZero) track.append(mark("zero", at(0)));
    const [first, last] = [at(row.mean - row.half), at(row.mean + row.half)];
    if (row.half) track.append(mark("range", first, `calc(${last} - ${first})`));
    for (const point of row.points) track.append(mark("seed", at(point)));
    track.append(mark("mean", at(row.mean)));
    const interval = row.half ? ` ± ${row.half.toFixed(4)}` : "";
    grid.append(make("span", "name", row.name), track, make("span", "", write(row.mean) + interval));
  }
  const axis = make("div", "axis", make("span", "", write(low)), make("span", "", write(high)));
  grid.append(make("span", "name"), axis, make("span"));
  parent.replaceChildren(grid);
}

function compare() {
  const found = data.against[state.baseline] || data.against[data.baseline];
  forest(find("scores"), data.groups, false);
  forest(find("differences"), data.groups.map((group, at) => (
    { name: group.name, place: group.place, mean: found[at].difference, half: found[at].half, points: [] })), true);
  for (const element of document.querySelectorAll(".told")) element.textContent = found[element.dataset.group].told;
  const groupOfRow = { results: data.runs.map((run) => run.group), seeds: data.groups.map((_, at) => at) };
  for (const [id, groupOf] of Object.entries(groupOfRow)) {
    const table = find(id);
    const column = table ? [...table.tHead.rows[0].cells].findIndex((head) => head.textContent === "Δ") : -1;
    if (column < 0) continue;
    for (const row of table.tBodies[0].rows) {
      const one = found[groupOf[row.dataset.row]];
      row.cells[column].textContent = delta(one);
      row.cells[column].dataset.value = one.difference ?? "";
    }
  }
}

// --- tables --------------------------------------------------------------------------------------

for (const table of document.querySelectorAll("table")) {
  [...table.tBodies[0].rows].forEach((row, at) => { row.dataset.row = at; });
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("button")?.parentElement;
    if (!head) return;
    const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => {
      const cell = row.cells[head.cellIndex];
      return cell.dataset.value ? Number(cell.dataset.value) : cell.textContent;
    };
    const isNumber = (value) => typeof value === "number";
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort((one, other) => {
      const [a, b] = [key(one), key(other)];
      if (isNumber(a) !== isNumber(b)) return isNumber(a) ? -1 : 1; // what is not known comes last
      return sign * (isNumber(a) ? a - b : a.localeCompare(b, "en", { numeric: true }));
    }));
  });
}

// --- controls ------------------------------------------------------------------------------------

for (const id of ["tail", "log_x", "log_y", "start", "events", "records"]) {
  const button = find(id);
  if (!button) continue;
  button.setAttribute("aria-pressed", String(state[id]));
  button.addEventListener("click", () => {
    state[id] = !state[id];
    button.setAttribute("aria-pressed", String(state[id]));
    keep();
    if (id === "tail") zoom();
    else drawAll();
  });
}
if (find("x")) {
  find("x").value = state.x;
  find("x").addEventListener("change", (event) => { state.x = event.target.value; keep(); drawAll(); });
  const tellSmoothing = () => { find("smooth_told").textContent = `${state.smooth} %`; };
  find("smooth").value = state.smooth;
  find("smooth").addEventListener("input", (event) => {
    state.smooth = Number(event.target.value);
    tellSmoothing();
    keep();
    drawAll();
  });
  tellSmoothing();
  find("reset").addEventListener("click", () => {
    state.tail = false;
    find("tail").setAttribute("aria-pressed", "false");
    keep();
    zoom();
  });
}
if (find("baseline")) {
  find("baseline").value = state.baseline;
  find("baseline").addEventListener("change", (event) => {
    state.baseline = Number(event.target.value);
    keep();
    compare();
  });
}

function drawPage() {
  for (const element of document.querySelectorAll(".swatch[data-place]")) paint(element, Number(element.dataset.place));
  legend();
  compare();
  drawAll();
}
drawPage();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPage);
new ResizeObserver(() => {
  for (const { plot, box } of charts)
    if (box.clientWidth && box.clientWidth !== plot.width) plot.setSize({ width: box.clientWidth, height: 260 });
}).observe(document.querySelector("main"));
