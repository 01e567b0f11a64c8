// DOM helpers. Text of a run is always set as text, never as markup.

const byId = (id) => document.getElementById(id);

/** Create an element. attributes: "class", "on…" handlers or plain attributes; null and false are left out. */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const NONE = "–";

/** Format a number with fixed decimals and a real minus sign. */
function fixed(value, digits = 2) {
  if (value === null || value === undefined) return NONE;
  const text = value.toFixed(digits);
  return Number(text) === 0 ? (0).toFixed(digits) : text.replace("-", "−");
}

/** Format a number with its sign; a value that rounds to zero has none. */
function signed(value, digits = 2) {
  if (value === null || value === undefined) return NONE;
  const text = fixed(value, digits);
  return value > 0 && Number(text) !== 0 ? `+${text}` : text;
}

/** Format a number with three significant digits, for axes and readings. */
function short(value) {
  if (value === null || value === undefined) return NONE;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000 || size < 0.001) return value.toExponential(1).replace("e+", "e").replaceAll("-", "−");
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  const whole = Math.round(seconds), hours = Math.floor(whole / 3600), minutes = Math.floor((whole % 3600) / 60);
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

function moment(iso) {
  const when = new Date(iso);
  return Number.isNaN(when.getTime()) ? String(iso) : when.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

/** Show a row of buttons with one selected. choices: [key, caption, count]. */
function pills(host, choices, chosen, choose) {
  host.replaceChildren(
    ...choices.map(([key, caption, many]) =>
      el("button", { type: "button", class: "pill", "data-key": key, "aria-pressed": String(key === chosen), onclick: () => choose(key) },
        caption, el("span", { class: "many" }, String(many)))),
  );
}
