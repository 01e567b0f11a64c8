// SVG plots, drawn at their displayed width so that lines and text stay sharp.

const MARGIN = { top: 10, right: 12, bottom: 22, left: 40 };
const drawn = new Map();
const widths = new ResizeObserver((entries) => {
  for (const entry of entries) drawn.get(entry.target)?.();
});

/**
 * Create a plot over iterations.
 * x: iteration numbers. lines: [{name, values, kind}], with kind a class of style.css. stacked: stack the lines.
 * low, high: limits of the axis; by default from the values. marks: {before, after, margin}, held-out means at both ends.
 * shaded: 1 for iterations to shade. format: formats a value.
 */
function chart({ title, note, x, lines, low, high, stacked = false, marks = null, shaded = null, height = 190, format = short }) {
  const values = el("p", { class: "reading" });
  const picture = svg("svg", { role: "img", tabindex: "0", height });
  const figure = el("figure", { class: stacked ? "chart stacked" : "chart" },
    el("figcaption", {}, el("strong", {}, title), note ? el("span", {}, note) : null), picture, values);
  let at = x.length - 1;

  const tops = stacked ? stack(lines) : lines.map((line) => line.values);
  const [bottom, top] = range(tops, marks, low, high, stacked);
  picture.setAttribute("aria-label", describe(title, x, lines, format));

  const read = (place) => {
    at = Math.max(0, Math.min(x.length - 1, place));
    values.replaceChildren(
      el("span", {}, `iteration ${x[at]}`),
      ...lines.map((line) => el("span", { class: `key ${line.kind}` }, el("i"), `${line.name} `, el("b", {}, format(line.values[at])))),
    );
    draw();
  };

  const draw = () => {
    const width = picture.clientWidth || 320;
    const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
    const first = x[0], last = x[x.length - 1];
    const across = (value) => MARGIN.left + (first === last ? inner.width / 2 : ((value - first) / (last - first)) * inner.width);
    const down = (value) => MARGIN.top + inner.height - ((value - bottom) / (top - bottom || 1)) * inner.height;
    const parts = [];
    for (const tick of ticks(bottom, top, height < 150 ? 2 : 4)) {
      parts.push(svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: down(tick), y2: down(tick) }));
      parts.push(svg("text", { class: "tick", x: MARGIN.left - 6, y: down(tick) + 4, "text-anchor": "end" }, short(tick)));
    }
    for (const tick of ticks(first, last, Math.max(2, Math.floor(inner.width / 90))).filter(Number.isInteger)) {
      parts.push(svg("text", { class: "tick", x: across(tick), y: height - 5, "text-anchor": "middle" }, String(tick)));
    }
    if (shaded) parts.push(...shades(shaded, x, across, inner.height));
    if (stacked) {
      for (let place = lines.length - 1; place >= 0; place -= 1) {
        parts.push(svg("path", { class: `area ${lines[place].kind}`, d: area(tops[place], tops[place - 1], x, across, down) }));
      }
    } else {
      for (const line of lines) parts.push(svg("path", { class: `line ${line.kind}`, d: path(line.values, x, across, down) }));
    }
    if (marks) parts.push(...ends(marks, across(first), across(last), down));
    parts.push(svg("line", { class: "cursor", x1: across(x[at]), x2: across(x[at]), y1: MARGIN.top, y2: height - MARGIN.bottom }));
    if (!stacked) {
      for (const line of lines) {
        if (line.values[at] !== null) parts.push(svg("circle", { class: `dot ${line.kind}`, cx: across(x[at]), cy: down(line.values[at]), r: 3 }));
      }
    }
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.replaceChildren(...parts);
  };

  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const share = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
    const wanted = x[0] + share * (x[x.length - 1] - x[0]);
    let nearest = 0;
    x.forEach((value, place) => { if (Math.abs(value - wanted) < Math.abs(x[nearest] - wanted)) nearest = place; });
    read(nearest);
  });
  picture.addEventListener("pointerleave", () => read(x.length - 1));
  picture.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: x.length - 1 };
    if (event.key in steps) { event.preventDefault(); read(steps[event.key]); }
  });
  drawn.set(picture, draw);
  widths.observe(picture);
  read(at);
  return figure;
}

/** Remove the plots of a host from the page and from the observer. */
function forgetCharts(host) {
  for (const picture of host.querySelectorAll("svg")) {
    widths.unobserve(picture);
    drawn.delete(picture);
  }
  host.replaceChildren();
}

function stack(lines) {
  const below = lines[0].values.map(() => 0);
  return lines.map((line) => line.values.map((value, place) => (below[place] += value ?? 0)));
}

function range(rows, marks, low, high, fromZero) {
  let least = low ?? Infinity, most = high ?? -Infinity;
  const more = marks ? [marks.before, marks.after] : [];
  for (const value of [...rows.flat(), ...more]) {
    if (value === null || value === undefined) continue;
    least = Math.min(least, value);
    most = Math.max(most, value);
  }
  if (least === Infinity) [least, most] = [0, 1];
  if (fromZero) least = Math.min(0, least);
  if (least === most) [least, most] = [least - 0.5, most + 0.5];
  const room = (most - least) * 0.06;
  return [low ?? (least >= 0 && least < room * 4 ? 0 : least - room), high !== undefined && most <= high ? high : most + room];
}

/** Return round numbers between two limits. */
function ticks(low, high, about) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / about, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-6; tick += step) found.push(Number(tick.toPrecision(10)));
  return found;
}

/** Return a path that breaks at missing values; a single value is a short stroke. */
function path(values, x, across, down) {
  let found = "", open = false;
  values.forEach((value, place) => {
    if (value === null || value === undefined) { open = false; return; }
    const point = `${across(x[place]).toFixed(1)} ${down(value).toFixed(1)}`;
    found += open ? `L${point}` : `M${point}h.01`;
    open = true;
  });
  return found;
}

function area(top, below, x, across, down) {
  const over = top.map((value, place) => `${across(x[place]).toFixed(1)} ${down(value).toFixed(1)}`);
  const under = top.map((_, place) => `${across(x[place]).toFixed(1)} ${down(below ? below[place] : 0).toFixed(1)}`);
  return `M${over.join("L")}L${under.reverse().join("L")}Z`;
}

function shades(shaded, x, across, height) {
  const half = x.length > 1 ? (across(x[1]) - across(x[0])) / 2 : 6;
  return shaded.flatMap((on, place) =>
    on ? [svg("rect", { class: "shade", x: across(x[place]) - half, width: half * 2, y: MARGIN.top, height })] : []);
}

/** Draw held-out means: a ring before, a disc after, with the paired interval of the change. */
function ends({ before, after, margin }, left, right, down) {
  const parts = [];
  if (before !== null) parts.push(svg("circle", { class: "ring", cx: left, cy: down(before), r: 4.5 }));
  if (after !== null) {
    if (margin !== null) parts.push(svg("line", { class: "whisker", x1: right, x2: right, y1: down(after - margin), y2: down(after + margin) }));
    parts.push(svg("circle", { class: "disc", cx: right, cy: down(after), r: 4.5 }));
  }
  return parts;
}

function describe(title, x, lines, format) {
  const last = x.length - 1;
  const parts = lines.map((line) => `${line.name} ${format(line.values[0])} to ${format(line.values[last])}`);
  return `${title}, iterations ${x[0]} to ${x[last]}: ${parts.join("; ")}`;
}
