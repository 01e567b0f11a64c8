// Listening room: a list of prompts and all replies to the selected one.

const FILTERS = [
  ["all", "All", () => true],
  ["gain", "Largest gain", (prompt) => prompt.tags.includes("gain"), (one, other) => other.change - one.change],
  ["loss", "Largest loss", (prompt) => prompt.tags.includes("loss"), (one, other) => one.change - other.change],
  ["malformed", "Malformed or truncated", (prompt) => prompt.tags.includes("malformed")],
  ["disagreement", "Transcript differs", (prompt) => prompt.tags.includes("disagreement")],
  ["stages", "With intermediate replies", (prompt) => prompt.tags.includes("stages")],
];
const CHANNELS = { text: "text", speech: "speech", boundary: "boundary", end: "end of reply", foreign: "unknown channel" };
const room = { data: null, filter: "all", chosen: null, scale: [1, 5] };

function showRoom({ room: data, run }) {
  room.data = data;
  for (const prompt of data.prompts) prompt.key = `${prompt.set} ${prompt.id}`;
  room.scale = run.scale;
  byId("room-lacks").replaceChildren(...data.lacks.map((lack) => el("li", {}, lack)));
  const held = data.prompts.filter((prompt) => prompt.set).length, trained = data.prompts.length - held;
  const parts = [held ? `${held} of the ${count(data.evaluated, "held-out prompt")}` : "", trained ? `${trained} from training` : ""].filter(Boolean);
  byId("room-note").textContent = data.prompts.length
    ? `${parts.join(" and ")}: the prompts sampled at every stage, a random sample, and the largest changes and malformed replies.`
    : "No replies are recorded yet.";
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
  const noTranscripts = room.filter === "disagreement" && !room.data.prompts.some((prompt) => prompt.takes.some((take) => take.heard !== null));
  if (!prompts.length) byId("questions").append(el("p", { class: "absent" }, noTranscripts ? "No reward function of this run records a transcript." : "None."));
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
  const quiet = prompt.quiet ? "the audio did not fit on this page" : null;
  const facts = Object.entries(prompt.facts);
  host.replaceChildren(
    el("h3", {}, nameOf(prompt)),
    el("p", { class: "of" }, prompt.set ? `Held-out prompt (${prompt.set})` : "Training prompt", " · ", prompt.id,
      prompt.change === null ? null : ` · total ${signed(prompt.change)}`),
    facts.length ? el("dl", { class: "known" }, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))) : null,
    el("div", { class: "take asker", "data-play": "q" }, el("h4", {}, "Prompt"), player(prompt.question.sound, "the prompt", quiet ?? prompt.question.silence)),
    prompt.demonstration
      ? takeOf(prompt.demonstration, "d", quiet)
      : el("div", { class: "take none" }, el("h4", {}, "Demonstration"), el("p", { class: "silent" }, "This prompt has no demonstration.")),
    ...prompt.takes.map((take, place) => takeOf(take, String(place + 1), quiet)),
    prompt.takes.length ? legend() : null,
  );
  toScale(host);
}

/** Scale waveforms and token strips of a prompt to the longest reply. */
function toScale(host) {
  for (const [part, size] of [[".wave", "seconds"], [".strip", "tokens"]]) {
    const nodes = [...host.querySelectorAll(part)], longest = Math.max(...nodes.map((node) => Number(node.dataset[size])));
    for (const node of nodes) node.style.width = `${Math.max(12, (Number(node.dataset[size]) / longest) * 100)}%`;
  }
}

function takeOf(take, key, quiet) {
  const scored = take.stage !== "demonstration";
  const mark = take.unfinished ? ["truncated", take.defect ?? "the reply reached the length limit"] : take.defect ? ["malformed", take.defect] : null;
  return el("div", { class: `take ${take.stage}`, "data-play": key },
    el("h4", {}, take.label, scored ? el("small", {}, [take.place, `weights ${take.version}`].filter(Boolean).join(", ")) : null),
    player(take.sound, take.label, quiet ?? take.silence),
    el("div", { class: "words" },
      el("p", { class: "said" }, take.text || "(no words)"),
      take.differs ? el("p", { class: "heard" }, el("span", {}, "transcript "), take.heard || "(nothing)") : null,
      mark ? el("p", { class: "mark" }, el("strong", {}, mark[0]), ` ${mark[1]}`) : null,
      stripOf(take.strip),
      scored ? scoresOf(take) : null,
      ...(scored ? Object.entries(take.reasons).map(([rater, reason]) => el("blockquote", {}, el("cite", {}, rater), ` ${reason}`)) : []),
      scored ? detailsOf(take) : null));
}

/** Draw the tokens in order, one cell each, coloured by channel. */
function stripOf(runs) {
  const sums = {};
  for (const [kind, tokens] of runs) sums[kind] = (sums[kind] ?? 0) + tokens;
  const summary = Object.entries(sums).map(([kind, tokens]) => `${tokens} ${CHANNELS[kind]}`).join(", ");
  const all = Object.values(sums).reduce((one, other) => one + other, 0);
  return el("div", { class: "strip", role: "img", "data-tokens": all, "aria-label": `Tokens: ${summary || "none"}` }, ...runs.map(([kind, tokens, words]) => {
    const part = el("span", { class: kind, title: `${count(tokens, "token")}, ${CHANNELS[kind]}${words ? `: ${words}` : ""}` });
    part.style.flexGrow = tokens;
    part.style.backgroundSize = `${100 / tokens}% 100%`;
    return part;
  }));
}

function scoresOf(take) {
  const [low, high] = room.scale, scores = Object.entries(take.scores);
  if (take.total !== null) scores.unshift(["total", take.total]);
  return el("dl", { class: "scored" },
    ...scores.map(([name, value]) => {
      const bar = el("i", { "aria-hidden": "true" });
      bar.style.setProperty("--share", `${Math.max(0, Math.min(1, (value - low) / (high - low))) * 100}%`);
      return el("div", { class: name === "total" ? "total" : null }, el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, fixed(value, 1), bar));
    }),
    ...Object.entries(take.missing).map(([name, why]) => el("div", { class: "missing" }, el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, `missing: ${why}`))));
}

function detailsOf(take) {
  const rows = Object.entries(take.details);
  if (take.heard !== null && !take.differs) rows.unshift(["transcript", take.heard]);
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
