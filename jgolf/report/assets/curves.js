// The charts of the runs: what page.js has chosen, drawn by uPlot.

// --- a chart -------------------------------------------------------------------------------------

const charts = [];
let view = null; // from where to where the curves are shown

function nearest(xs, x) {
  let low = 0;
  let high = xs.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - xs[low - 1] < xs[low] - x ? low - 1 : low;
}

/** Draws curves, each {name, legend, place, xs, ys, faint}, into a figure. */
function draw(box, curves, options) {
  const tables = curves.map((curve) => (curve.faint ? [curve.xs, curve.faint, curve.ys] : [curve.xs, curve.ys]));
  const joined = tables.length ? uPlot.join(tables) : [[], []];
  const series = [{}];
  curves.forEach((curve, place) => {
    const line = { spanGaps: true, show: !state.off.includes(curve.legend), curve: place };
    if (curve.faint)
      series.push({ ...line, stroke: color(curve.place), alpha: 0.22, width: 0.7, points: { show: false } });
    series.push({ ...line, stroke: color(curve.place), width: 1.6, dash: dash(curve.place), main: true,
      points: { show: options.dots, size: 6, fill: color(curve.place) }, ...options.series });
  });
  const isVisible = (u, at) => u.series[at].show && u.series[at].main;
  const whole = joined[0].length ? [joined[0][0], joined[0][joined[0].length - 1]] : [0, 1];
  function range(u) {
    const [min, max] = (options.shared && view) || whole;
    const isWhole = !options.isLog && min <= whole[0];
    const from = isWhole && options.skip && !state.log_x ? Math.max(min, SKIPPED * max) : min;
    const found = [];
    series.forEach((_, at) => {
      if (at === 0 || !isVisible(u, at)) return;
      joined[at].forEach((value, row) => {
        const x = joined[0][row];
        if (value !== null && value !== undefined && x >= from && x <= max) found.push(value);
      });
    });
    if (!found.length) return options.isLog ? [1, 10] : [0, 1];
    found.sort((a, b) => a - b);
    const low = found[0];
    const high = found[Math.max(0, Math.ceil(found.length * (options.robust ? 0.98 : 1)) - 1)];
    if (options.isLog) {
      const pad = Math.max((high / low) ** 0.06, 1.0005);
      return [low / pad, high * pad];
    }
    const pad = 0.06 * (high - low) || 0.01 * Math.abs(high) || 1;
    return [options.zero ? 0 : low - pad, high + pad];
  }
  const axis = (isLog, isX) => ({
    stroke: style("--text"),
    grid: { stroke: style("--line"), width: 0.6 }, ticks: { stroke: style("--line"), width: 0.6 },
    font: "12px system-ui, sans-serif", size: isX ? 34 : 62, filter: (u, found) => found,
    splits: (u, at, min, max) => splits(min, max, isLog, isX ? u.width / 110 : 6),
    values: (u, found) => found.map(plain),
  });
  const tip = make("div", "tip");
  tip.hidden = true;
  const isLogX = Boolean(options.shared && state.log_x);
  const plot = new uPlot({
    width: Math.max(box.clientWidth, 120), height: 260, padding: [8, 22, 0, 0], legend: { show: false }, series,
    scales: {
      x: { time: false, distr: isLogX ? 3 : 1,
        range: (u, min, max) => (max > min ? [min, max] : [min - 0.5, max + 0.5]) },
      y: { distr: options.isLog ? 3 : 1, range },
    },
    axes: [axis(isLogX, true), axis(options.isLog, false)],
    cursor: { y: false, drag: { x: Boolean(options.shared), y: false, setScale: false }, points: { show: false },
      bind: { dblclick: () => (options.shared ? zoom : null) },
      ...(options.shared ? { sync: { key: "runs", scales: ["x", null],
        filters: { pub: (type) => type === "mousemove" || type === "mouseleave" } } } : {}) },
    hooks: {
      setCursor: [(u) => tell(u, tip, curves, options)],
      setSelect: [(u) => {
        const { left, width } = u.select;
        if (width > 3) zoomTo(u.posToVal(left, "x"), u.posToVal(left + width, "x"));
        u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
      }],
      draw: [(u) => options.draw && options.draw(u)],
    },
  }, joined, box);
  box.append(tip);
  const chart = { plot, box, curves, options };
  charts.push(chart);
  return chart;
}

function tell(u, tip, curves, options) {
  const left = u.cursor.left;
  const rows = [];
  if (left >= 0) {
    const x = u.posToVal(left, "x");
    const seen = new Set(u.series.slice(1).filter((one) => one.show).map((one) => one.curve));
    for (const at of seen) {
      const curve = curves[at];
      const near = 0.02 * (u.scales.x.max - u.scales.x.min);
      if (x < curve.xs[0] - near || x > curve.xs[curve.xs.length - 1] + near) continue;
      const value = curve.ys[nearest(curve.xs, x)];
      if (value !== null) rows.push([value, curve]);
    }
    rows.sort((a, b) => a[0] - b[0]);
    const most = u.root.parentElement.matches(":hover") ? 9 : 4;
    tip.replaceChildren(make("div", "soft", `${options.x} ${plain(options.isWholeX ? Math.round(x) : +x.toFixed(1))}`));
    for (const [value, curve] of rows.slice(0, most))
      tip.append(make("div", "", swatch(curve.place), make("span", "name", curve.name), make("b", "", figure(value))));
    if (rows.length > most) tip.append(make("div", "soft", `and ${rows.length - most} more`));
  }
  tip.hidden = !rows.length;
  const isRight = left > u.over.clientWidth / 2;
  tip.style.left = isRight ? "70px" : "auto";
  tip.style.right = isRight ? "auto" : "14px";
}

function swatch(place) {
  const element = make("span", "swatch");
  paint(element, place);
  return element;
}

function paint(element, place) {
  let at = 0;
  const stops = dash(place).map((length, number) => {
    const from = at;
    at += length;
    return `${number % 2 ? "transparent" : color(place)} ${from}px ${at}px`;
  });
  element.style.background = "center / 100% 3px no-repeat " +
    (stops.length
      ? `repeating-linear-gradient(90deg, ${stops.join(", ")})`
      : `linear-gradient(${color(place)}, ${color(place)})`);
}

// --- the curves of the runs ----------------------------------------------------------------------

const lastStep = (run) =>
  Math.max(1, ...[run.train, run.validation].flatMap((of) => (of.step ? of.step.slice(-1) : [])));

function curveOf(run, kind) {
  const columns = run[kind.of];
  const values = columns[kind.id];
  const along = {
    step: columns.step,
    time: columns.train_time_s,
    share: columns.step?.map((step) => (100 * step) / lastStep(run)),
  };
  const places = along[state.x];
  if (!values || !places) return null;
  const isLogY = isLog(kind);
  const points = [];
  places.forEach((x, at) => {
    const y = values[at];
    if (x === null || y === null || (columns.step[at] === 0 && !state.start)) return;
    if ((state.log_x && x <= 0) || (isLogY && y <= 0)) return;
    if (points.length && points[points.length - 1][0] >= x) points.pop();
    points.push([x, y]);
  });
  if (!points.length) return null;
  const xs = points.map((point) => point[0]);
  const ys = points.map((point) => point[1]);
  const isSmooth = kind.of === "train" && kind.id !== "learning_rate_multiplier" && state.smooth > 0;
  const { name, legend, place } = run;
  return { name, legend, place, run, xs, ys: isSmooth ? smoothed(ys) : ys, faint: isSmooth ? ys : null };
}

const isLog = (kind) => kind.id === "grad_norm" || (state.log_y && kind.id !== "learning_rate_multiplier");

function lines(kind, curves) {
  return (u) => {
    const { left, top, width, height } = u.bbox;
    const context = u.ctx;
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    context.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    context.lineWidth = devicePixelRatio;
    if (state.records && kind.id === "val_bpb") {
      context.strokeStyle = context.fillStyle = style("--soft");
      context.setLineDash([3, 4]);
      context.textAlign = "left";
      let free = Infinity;
      for (const [name, bpb] of [...data.records].sort((a, b) => a[1] - b[1])) {
        if (!(bpb > u.scales.y.min && bpb < u.scales.y.max)) continue;
        const y = u.valToPos(bpb, "y", true);
        context.beginPath();
        context.moveTo(left, y);
        context.lineTo(left + width, y);
        context.stroke();
        if (free - y < 13 * devicePixelRatio) continue;
        free = y;
        const place = [`${name} ${bpb}`, left + 4 * devicePixelRatio, y - 3 * devicePixelRatio];
        context.save();
        context.strokeStyle = style("--panel");
        context.lineWidth = 4 * devicePixelRatio;
        context.setLineDash([]);
        context.strokeText(...place);
        context.fillText(...place);
        context.restore();
      }
    }
    if (state.events && kind.of === "train" && state.x !== "time") {
      const named = new Set();
      for (const { run } of curves) {
        if (state.off.includes(run.legend)) continue;
        for (const [event, step] of Object.entries(run.events)) {
          const x = u.valToPos(state.x === "share" ? (100 * step) / lastStep(run) : step, "x", true);
          context.strokeStyle = color(run.place);
          context.setLineDash([2, 3]);
          context.globalAlpha = 0.7;
          context.beginPath();
          context.moveTo(x, top);
          context.lineTo(x, top + height);
          context.stroke();
          if (named.has(event)) continue;
          context.globalAlpha = 1;
          context.fillStyle = style("--soft");
          context.textAlign = "right";
          context.fillText(event, x - 3 * devicePixelRatio, top + (12 + 13 * named.size) * devicePixelRatio);
          named.add(event);
        }
      }
    }
    context.restore();
  };
}

function drawAll() {
  for (const chart of charts) chart.plot.destroy();
  charts.length = 0;
  const boxes = [];
  for (const [parent, kinds] of [[find("curves"), data.charts], [find("levels"), data.levels]]) {
    if (!parent) continue;
    parent.replaceChildren();
    for (const kind of kinds) {
      const isCurve = parent.id === "curves";
      const found = isCurve ? data.runs.map((run) => curveOf(run, kind)) : kind.series.map(levelsOf);
      const curves = found.filter(Boolean);
      const box = make("div", "canvas");
      const download = make("button", "", "CSV");
      download.type = "button";
      download.addEventListener("click", () => save(kind, isCurve));
      const unit = kind.unit ? [" ", make("small", "", kind.unit)] : [];
      parent.append(make("figure", "", make("figcaption", "", make("h3", "", kind.title, ...unit), download), box));
      boxes.push([box, curves, isCurve
        ? { shared: true, isLog: isLog(kind), dots: kind.of === "validation", skip: kind.of === "train",
          robust: kind.id === "step_ms", x: axisName[state.x], isWholeX: state.x === "step", draw: lines(kind, curves) }
        : { shared: false, isLog: false, dots: false, zero: true, x: "level", isWholeX: true,
          series: { paths: uPlot.paths.stepped({ align: 1 }) } }]);
    }
  }
  for (const one of boxes) draw(...one); // when all have their places, and so their widths
  zoom();
}

function levelsOf(series) {
  const half = series.share.length / 2;
  const xs = [...series.share.map((_, at) => at - half - 0.5), half - 0.5];
  return { ...series, xs, ys: [...series.share, series.share[series.share.length - 1]], faint: null };
}

function zoom() {
  const shown = charts.filter((chart) => chart.options.shared);
  const ends = shown.flatMap((chart) => chart.curves.filter((curve) => !state.off.includes(curve.legend))
    .map((curve) => [curve.xs[0], curve.xs[curve.xs.length - 1]]));
  if (!ends.length) return;
  const max = Math.max(...ends.map((end) => end[1]));
  const min = state.tail ? 0.9 * max : Math.min(...ends.map((end) => end[0]));
  zoomTo(min, max > min ? max : min + 1);
}

function zoomTo(min, max) {
  view = [min, max];
  for (const chart of charts) if (chart.options.shared) chart.plot.setScale("x", { min, max });
}

// As jgolf.files.csv_text writes it: a name that a spreadsheet would run as a formula has an apostrophe before it.
function csvCell(value) {
  let text = String(value);
  if (typeof value === "string" && /^[=+\-@\t\r\n＝＋－＠]/.test(text) && !/^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/.test(text))
    text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function save(kind, isCurve) {
  const rows = [["run", ...(isCurve ? ["step", "train_time_s", kind.id] : ["level", "percent"])]];
  if (isCurve)
    for (const run of data.runs) {
      const columns = run[kind.of];
      (columns[kind.id] || []).forEach((value, at) => {
        if (value !== null) rows.push([run.name, columns.step[at], columns.train_time_s?.[at] ?? "", value]);
      });
    }
  else
    for (const one of kind.series)
      one.share.forEach((share, at) => rows.push([one.name, at - one.share.length / 2, share]));
  const text = rows.map((row) => row.map(csvCell).join(",")).join("\n");
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text + "\n"], { type: "text/csv" }));
  link.download = `${kind.id}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
