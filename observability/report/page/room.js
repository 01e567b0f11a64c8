// The listening room: a list of questions, and of the chosen one everything that was answered.

const FILTERS = [
  ["all", "All", () => true],
  ["gain", "Largest gain", (prompt) => prompt.tags.includes("gain"), (one, other) => other.change - one.change],
  ["loss", "Largest loss", (prompt) => prompt.tags.includes("loss"), (one, other) => one.change - other.change],
  ["malformed", "Malformed or cut off", (prompt) => prompt.tags.includes("malformed")],
  ["disagreement", "Said ≠ heard", (prompt) => prompt.tags.includes("disagreement")],
  ["stages", "With stages between", (prompt) => prompt.tags.includes("stages")],
];
const CHANNELS = { text: "text", speech: "speech", boundary: "boundary", end: "end of reply", foreign: "outside every channel" };
const room = { data: null, filter: "all", chosen: null, scale: [1, 5] };

function showRoom({ room: data, run }) {
  room.data = data;
  for (const prompt of data.prompts) prompt.key = `${prompt.set} ${prompt.id}`;
  room.scale = run.scale;
  byId("room-lacks").replaceChildren(...data.lacks.map((lack) => el("li", {}, lack)));
  const held = data.prompts.filter((prompt) => prompt.set).length, trained = data.prompts.length - held;
  const parts = [held ? `${held} of the ${count(data.evaluated, "held-out question")}` : "", trained ? `${trained} of training` : ""].filter(Boolean);
  byId("room-note").textContent = data.prompts.length
    ? `${parts.join(" and ")}: those asked at every stage, a sample drawn blindly, and where something changed most or went wrong.`
    : "There is no reply on record yet.";
  byId("filters").hidden = byId("room-keys").hidden = !data.prompts.length;
  showList();
}

const nameOf = (prompt) => prompt.text || prompt.id;

function listed() {
  const [, , keep, order] = FILTERS.find(([key]) => key === room.filter);
  const found = room.data.prompts.filter(keep);
  return order ? found.toSorted(order) : found;
}

function showList() {
  pills(byId("filters"), FILTERS.map(([key, caption, keep]) => [key, caption, room.data.prompts.filter(keep).length]), room.filter, (key) => {
    room.filter = key;
    showList();
    byId("filters").querySelector(`[data-key="${key}"]`).focus();
  });
  const prompts = listed();
  if (!prompts.some((prompt) => prompt.key === room.chosen)) room.chosen = prompts[0]?.key ?? null;
  const focused = byId("questions").contains(document.activeElement);
  byId("questions").replaceChildren(...prompts.map((prompt) => {
    const chosen = prompt.key === room.chosen;
    const moved = signed(prompt.change, 1), sign = { "+": "good", "−": "bad" }[moved[0]] ?? "";
    return el("div", { role: "option", class: "asked", "data-key": prompt.key, "aria-selected": String(chosen), tabindex: chosen ? "0" : "-1",
      onclick: () => choose(prompt.key) },
      el("span", { class: "what" }, nameOf(prompt)), el("span", { class: `change ${sign}` }, moved),
      el("span", { class: "set" }, prompt.set ? prompt.set.replaceAll("_", " ") : "training"));
  }));
  const deaf = room.filter === "disagreement" && !room.data.prompts.some((prompt) => prompt.takes.some((take) => take.heard !== null));
  if (!prompts.length) byId("questions").append(el("p", { class: "absent" }, deaf ? "No rater of this run writes down what it hears." : "None."));
  if (focused) byId("questions").querySelector("[aria-selected=true]")?.focus({ preventScroll: true });
  showQuestion();
}

function choose(key, focus = false) {
  room.chosen = key;
  for (const option of byId("questions").querySelectorAll("[role=option]")) {
    const chosen = option.dataset.key === key;
    option.setAttribute("aria-selected", String(chosen));
    option.tabIndex = chosen ? 0 : -1;
    if (chosen && focus) option.focus({ preventScroll: true });
    if (chosen && focus) keepInSight(byId("questions"), option);
  }
  showQuestion();
}

function keepInSight(list, option) {
  const above = option.offsetTop - list.offsetTop, below = above + option.offsetHeight;
  if (above < list.scrollTop) list.scrollTop = above;
  else if (below > list.scrollTop + list.clientHeight) list.scrollTop = below - list.clientHeight;
}

function showQuestion() {
  silence();
  const prompt = room.data.prompts.find((one) => one.key === room.chosen), host = byId("question");
  host.hidden = !prompt;
  if (!prompt) return;
  const quiet = prompt.quiet ? "its sound did not fit on this page" : null;
  const facts = Object.entries(prompt.facts);
  host.replaceChildren(
    el("h3", {}, nameOf(prompt)),
    el("p", { class: "of" }, prompt.set ? `Held-out question (${prompt.set})` : "Question of training", " · ", prompt.id,
      prompt.change === null ? null : ` · total ${signed(prompt.change)}`),
    facts.length ? el("dl", { class: "known" }, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))) : null,
    el("div", { class: "take asker", "data-play": "q" }, el("h4", {}, "The question"), player(prompt.question.sound, "the question", quiet ?? prompt.question.silence)),
    prompt.demonstration
      ? takeOf(prompt.demonstration, "d", quiet)
      : el("div", { class: "take none" }, el("h4", {}, "Demonstration"), el("p", { class: "silent" }, "There is none of this question.")),
    ...prompt.takes.map((take, place) => takeOf(take, String(place + 1), quiet)),
    prompt.takes.length ? legend() : null,
  );
  toScale(host);
}

/** Within a question a longer reply is longer to the eye, in time and in tokens. */
function toScale(host) {
  for (const [part, size] of [[".wave", "seconds"], [".strip", "tokens"]]) {
    const nodes = [...host.querySelectorAll(part)], longest = Math.max(...nodes.map((node) => Number(node.dataset[size])));
    for (const node of nodes) node.style.width = `${Math.max(12, (Number(node.dataset[size]) / longest) * 100)}%`;
  }
}

function takeOf(take, key, quiet) {
  const rated = take.stage !== "demonstration";
  const mark = take.unfinished ? ["cut off", take.defect ?? "the reply has no end of its own"] : take.defect ? ["malformed", take.defect] : null;
  return el("div", { class: `take ${take.stage}`, "data-play": key },
    el("h4", {}, take.label, rated ? el("small", {}, [take.place, `weights ${take.version}`].filter(Boolean).join(", ")) : null),
    player(take.sound, take.label, quiet ?? take.silence),
    el("div", { class: "words" },
      el("p", { class: "said" }, take.text || "(no words)"),
      take.differs ? el("p", { class: "heard" }, el("span", {}, "heard "), take.heard || "(nothing)") : null,
      mark ? el("p", { class: "mark" }, el("strong", {}, mark[0]), ` ${mark[1]}`) : null,
      stripOf(take.strip),
      rated ? scoresOf(take) : null,
      ...(rated ? Object.entries(take.reasons).map(([rater, reason]) => el("blockquote", {}, el("cite", {}, rater), ` ${reason}`)) : []),
      rated ? detailsOf(take) : null));
}

/** The tokens in order, coloured by channel, a cell each. */
function stripOf(runs) {
  const sums = {};
  for (const [kind, tokens] of runs) sums[kind] = (sums[kind] ?? 0) + tokens;
  const told = Object.entries(sums).map(([kind, tokens]) => `${tokens} ${CHANNELS[kind]}`).join(", ");
  const all = Object.values(sums).reduce((one, other) => one + other, 0);
  return el("div", { class: "strip", role: "img", "data-tokens": all, "aria-label": `Tokens: ${told || "none"}` }, ...runs.map(([kind, tokens, words]) => {
    const part = el("span", { class: kind, title: `${count(tokens, "token")}, ${CHANNELS[kind]}${words ? `: ${words}` : ""}` });
    part.style.flexGrow = tokens;
    part.style.backgroundSize = `${100 / tokens}% 100%`;
    return part;
  }));
}

function scoresOf(take) {
  const [low, high] = room.scale, scores = Object.entries(take.scores);
  if (take.total !== null) scores.unshift(["total", take.total]);
  return el("dl", { class: "rated" },
    ...scores.map(([name, value]) => {
      const bar = el("i", { "aria-hidden": "true" });
      bar.style.setProperty("--share", `${Math.max(0, Math.min(1, (value - low) / (high - low))) * 100}%`);
      return el("div", { class: name === "total" ? "total" : null }, el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, fixed(value, 1), bar));
    }),
    ...Object.entries(take.missing).map(([name, why]) => el("div", { class: "missing" }, el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, `missing: ${why}`))));
}

function detailsOf(take) {
  const rows = Object.entries(take.details);
  if (take.heard !== null && !take.differs) rows.unshift(["heard", take.heard]);
  rows.push(["sampled by", take.worker]);
  if (take.use) rows.push(["served as", take.use]);
  return el("p", { class: "details" }, rows.map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(" · "));
}

function legend() {
  return el("p", { class: "legend" }, ...Object.entries(CHANNELS).map(([kind, name]) => el("span", {}, el("i", { class: kind }), name)));
}

function roomKeys() {
  byId("room").addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.type === "range") return;
    const play = byId("question").querySelector(`[data-play="${CSS.escape(event.key)}"] .player`);
    if (play) { event.preventDefault(); play.play(); return; }
    const prompts = listed(), at = prompts.findIndex((prompt) => prompt.key === room.chosen);
    const steps = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: prompts.length - 1 };
    if (event.key in steps && prompts.length) {
      event.preventDefault();
      choose(prompts[Math.max(0, Math.min(prompts.length - 1, steps[event.key]))].key, true);
    }
  });
}
