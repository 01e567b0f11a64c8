// Upper half of the page: state of the run, curves, held-out evaluation and events.

const PHASES = { rollout: "rollout", reward: "reward", learn: "learn", sync: "weight sync" };

function showHead({ run, state, made }) {
  byId("name").textContent = run.name;
  byId("family").textContent = run.family;
  byId("state").replaceChildren(el("span", { class: `state ${state.word.replace(" ", "-")}` }, state.word), ` ${state.sentence}`);
  const how = run.overridden ? "set from outside" : run.mode === "adaptive" ? "measured" : run.mode.replace("_", " ");
  const facts = [
    ["Iteration", run.iteration.toLocaleString("en"), `of ${run.iterations.toLocaleString("en")}`],
    ["λ now", fixed(run.lambda, 3), how],
    ["Weight version", run.version === null ? "0" : `${run.version}`, "current"],
    ["Replies", run.replies.toLocaleString("en"), "sampled and scored"],
    ["Time", duration(run.seconds ?? run.seconds_iterations), run.seconds === null ? "in iterations" : "total"],
  ];
  byId("facts").replaceChildren(...facts.map(([name, value, more]) => el("div", {}, el("dt", {}, name), el("dd", {}, value, el("small", {}, more)))));
  const began = run.began ? `Started ${moment(run.began)}. ` : "";
  byId("made").textContent = `${began}Records read ${moment(made)}.`;
}

function showCourse({ run, series, held_out }) {
  const { lines, scores, seconds } = series, x = lines.iteration ?? [];
  forgetCharts(byId("charts"));
  forgetCharts(byId("scores"));
  byId("numbers").hidden = !x.length;
  byId("scores-note").hidden = !x.length;
  if (!x.length) {
    byId("charts").append(el("p", { class: "absent" }, "No iteration has finished yet."));
    return;
  }
  const named = (pairs) => pairs.filter(([, name]) => name in lines).map(([caption, name, kind]) => ({ name: caption, values: lines[name], kind }));
  const channels = (name) => named([["text", `${name}_text`, "text"], ["speech", `${name}_speech`, "speech"]]);
  const plots = [
    {
      title: "λ and its gates",
      note: `weight of the preference loss, and its two gates${lines.mix_overridden?.some(Boolean) ? "; shaded: set from outside" : ""}`,
      height: 230, low: 0,
      lines: named([["raw", "lambda_raw", "faint"], ["quality gate g", "gate_quality", "gate-quality"],
        ["information gate v", "gate_information", "gate-information"], ["λ", "lambda", "ink"]]),
      shaded: lines.mix_overridden,
    },
    { title: "KL to the reference model", note: "nats per token", lines: channels("kl") },
    { title: "Entropy", note: "nats per token", lines: channels("entropy") },
    { title: "Loss", note: "(1 − λ) · anchor + λ · preference",
      lines: named([["anchor", "loss_anchor", "speech"], ["preference", "loss_preference", "text"], ["total", "loss", "ink"]]) },
    { title: "Time by phase", note: "seconds per iteration", stacked: true,
      lines: Object.entries(PHASES).filter(([phase]) => phase in seconds).map(([phase, name]) => ({ name, values: seconds[phase], kind: phase })) },
  ];
  byId("charts").append(...plots.filter((plot) => plot.lines.length).map((plot) => chart({ ...plot, x })));

  const [low, high] = run.scale, measured = held_out[0]?.measures.filter((measure) => !measure.share) ?? [];
  const order = Object.keys(scores).sort((one, other) => (other === "total") - (one === "total"));
  byId("scores").append(...order.map((name) => {
    const marks = measured.find((measure) => measure.name === name) ?? null;
    const change = marks && marks.after !== null ? `, ${signed(marks.after - marks.before)} ± ${fixed(marks.margin)}` : "";
    return chart({ title: name.replaceAll("_", " "), note: marks ? `held out ${fixed(marks.before)} → ${fixed(marks.after)}${change}` : null,
      lines: [{ name: "mean", values: scores[name], kind: "ink" }], x, low, high, marks, height: 130, format: (value) => fixed(value) });
  }));
  byId("scores-note").textContent = "Means over the replies of each iteration. Each iteration has other prompts."
    + (measured.length ? ` Held-out means (${held_out[0].set}) are at both ends: a ring before, a disc after, with the paired 95 % interval of the change.` : "");
  showNumbers({ lines, scores, seconds }, x);
}

function showNumbers({ lines, scores, seconds }, x) {
  const columns = { ...lines };
  for (const [name, values] of Object.entries(scores)) columns[`score ${name}`] = values;
  for (const [name, values] of Object.entries(seconds)) columns[`seconds ${name}`] = values;
  const names = Object.keys(columns), details = byId("numbers"), host = details.querySelector("div");
  const write = () => host.replaceChildren(el("table", {},
    el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name.replaceAll("_", " "))))),
    el("tbody", {}, ...x.map((_, place) => el("tr", {}, ...names.map((name) => el("td", {}, short(columns[name][place]))))))));
  details.ontoggle = () => (details.open ? write() : host.replaceChildren());  // long runs have many cells
  if (details.open) write();
}

function showHeldOut({ run, held_out, state }) {
  const host = byId("held-out-tables"), note = byId("held-out-note");
  if (!held_out.length) {
    note.textContent = "This run has no recorded evaluation.";
    host.replaceChildren();
    return;
  }
  const after = held_out.some((one) => one.measures.some((measure) => measure.after !== null));
  note.textContent = after
    ? "The same prompts before and after, with one reply each. The interval is that of the change, paired by prompt."
    : `Evaluated before training; ${state.word === "running" ? "the final evaluation follows at the end" : "the final evaluation is missing"}.`;
  host.replaceChildren(...held_out.map((one) => el("div", { class: "held" },
    el("h3", {}, one.set.replaceAll("_", " "), el("small", {}, count(one.prompts, "prompt"))),
    el("table", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "measure"), el("th", { scope: "col" }, "before"), el("th", { scope: "col" }, "after"),
        el("th", { scope: "col" }, "change"), el("th", { scope: "col", class: "interval" }, "± 95 %"), el("th", { "aria-hidden": "true", class: "span" }))),
      el("tbody", {}, ...one.measures.map((measure) => heldOutRow(measure, run.scale)))))));
}

function heldOutRow(measure, scale) {
  const [factor, digits, unit] = measure.share ? [100, 1, " %"] : [1, 2, ""];
  const written = (value) => (value === null ? NONE : fixed(value * factor, digits) + unit);
  const change = measure.after === null || measure.before === null ? null : measure.after - measure.before;
  // Colour only changes outside the 95 % interval, if it is known.
  const moved = change === null ? NONE : signed(change * factor, digits);
  const sure = /[1-9]/.test(moved) && measure.margin !== null && Math.abs(change) > measure.margin;
  return el("tr", {},
    el("th", { scope: "row" }, measure.caption),
    el("td", {}, written(measure.before)), el("td", {}, written(measure.after)),
    el("td", { class: sure ? (change > 0 ? "good" : "bad") : null }, moved),
    el("td", { class: "interval" }, measure.margin === null ? NONE : fixed(measure.margin * factor, digits)),
    el("td", { class: "span", "aria-hidden": "true" }, spanOf(measure, measure.share ? [0, 1] : scale)));
}

/** Draw the change from before to after on the full scale. */
function spanOf({ before, after, margin }, [low, high]) {
  const across = (value) => 6 + (Math.max(0, Math.min(1, (value - low) / (high - low)))) * 148;
  const picture = svg("svg", { viewBox: "0 0 160 16", width: 160, height: 16 }, svg("line", { class: "grid", x1: 6, x2: 154, y1: 8, y2: 8 }));
  if (before !== null && after !== null) picture.append(svg("line", { class: "move", x1: across(before), x2: across(after), y1: 8, y2: 8 }));
  if (after !== null && margin !== null) picture.append(svg("line", { class: "whisker", x1: across(after - margin), x2: across(after + margin), y1: 8, y2: 8 }));
  if (before !== null) picture.append(svg("circle", { class: "ring", cx: across(before), cy: 8, r: 4 }));
  if (after !== null) picture.append(svg("circle", { class: "disc", cx: across(after), cy: 8, r: 4 }));
  return picture;
}

let eventsShown = "notable";

function showEvents({ events }) {
  const { rows, all } = events, groups = { notable: ["fault", "scale"], fault: ["fault"], scale: ["scale"], all: ["fault", "scale", "other"] };
  const captions = { notable: "Errors and scaling", fault: "Errors", scale: "Scaling", all: "All" };
  const of = (key) => rows.filter((row) => groups[key].includes(row.group));
  pills(byId("event-filters"), Object.entries(captions).map(([key, caption]) => [key, caption, of(key).length]), eventsShown, (key) => {
    eventsShown = key;
    showEvents({ events });
  });
  const found = of(eventsShown);
  const left = all > rows.length ? [el("p", { class: "absent" }, `Showing the newest ${rows.length} of ${all} events; events.jsonl has all of them.`)] : [];
  if (!found.length) {
    byId("event-table").replaceChildren(el("p", { class: "absent" }, all ? "None." : "The run has no recorded events."), ...left);
    return;
  }
  byId("event-table").replaceChildren(el("table", { class: "events" },
    el("thead", {}, el("tr", {}, ...["time", "iteration", "event", "details"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...found.map((row) => el("tr", { class: row.group },
      el("td", {}, el("time", { datetime: row.time }, moment(row.time))), el("td", {}, row.iteration === null ? "" : String(row.iteration)),
      el("td", {}, el("span", { class: "kind" }, row.kind)), el("td", {}, row.words))))), ...left);
}
