// Blind test: two replies to a prompt, before and after in random order; the listener votes for the better one.

const Z = 1.959964;
const blind = { pairs: null, at: 0, votes: [], over: false };

/** Return the 95 % Wilson score interval (1927) of a proportion; valid for few votes and for 0 or 100 %. */
function wilson(wins, all) {
  if (!all) return [0, 1];
  const share = wins / all, square = Z * Z;
  const middle = (share + square / (2 * all)) / (1 + square / all);
  const half = (Z / (1 + square / all)) * Math.sqrt((share * (1 - share)) / all + square / (4 * all * all));
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

function shuffled(list) {
  const found = [...list];
  for (let place = found.length - 1; place > 0; place -= 1) {
    const other = Math.floor(Math.random() * (place + 1));
    [found[place], found[other]] = [found[other], found[place]];
  }
  return found;
}

/** Return prompts whose first and last replies have audio and differ; those of the random sample, if there are any. */
function blindPairs() {
  const found = room.data.prompts.flatMap((prompt) => {
    const takes = prompt.takes.filter((take) => take.stage !== "training");
    const first = takes[0], last = takes[takes.length - 1];
    const both = takes.length > 1 && first.sound in clips && last.sound in clips;
    return both && first.sound !== last.sound ? [{ prompt, first, last }] : [];
  });
  // Before the final evaluation, only the prompts sampled at every stage can be compared.
  const sample = found.filter(({ prompt, last }) => prompt.tags.includes("sample") && last.stage === "after");
  return { pairs: sample.length ? sample : found, drawn: sample.length > 0 };
}

function showBlind() {
  if (blind.pairs && !blind.over) return;  // a test is in progress
  const { pairs, drawn } = blindPairs(), host = byId("blind-body");
  if (blind.over) return;
  if (!pairs.length) {
    host.replaceChildren(el("p", { class: "absent" }, "The blind test needs prompts with replies from two weight versions. This run has none yet."));
    return;
  }
  const names = [...new Set(pairs.map(({ first, last }) => `${first.label.toLowerCase()} and ${last.label.toLowerCase()}`))].join(", or ");
  host.replaceChildren(
    el("p", { class: "lead" }, `${count(pairs.length, "prompt")} with two replies each (${names}) in random order. `
      + (drawn ? "The prompts are a random sample, independent of the scores. " : "") + "Text and scores are hidden until the end."),
    el("button", { type: "button", class: "big", id: "blind-start", onclick: () => startBlind(pairs) }, "Start"));
}

function startBlind(pairs) {
  blind.pairs = shuffled(pairs).map((pair) => ({ ...pair, swapped: Math.random() < 0.5 }));
  blind.at = 0;
  blind.votes = [];
  blind.over = false;
  showPair();
}

function showPair() {
  silence();
  const { prompt, first, last, swapped } = blind.pairs[blind.at], [a, b] = swapped ? [last, first] : [first, last];
  const choice = (key, caption, vote) => el("button", { type: "button", class: "vote", "data-vote": key, onclick: () => voteBlind(vote) }, caption, el("kbd", {}, key));
  const stage = el("div", { class: "pair", id: "blind-pair", tabindex: "-1", role: "group", "aria-label": `Pair ${blind.at + 1} of ${blind.pairs.length}` },
    el("p", { class: "of" }, `${blind.at + 1} of ${blind.pairs.length}`),
    el("h3", {}, nameOf(prompt)),
    prompt.question.sound ? el("div", { class: "take", "data-play": "q" }, el("h4", {}, "Prompt ", el("kbd", {}, "q")), player(prompt.question.sound, "the prompt")) : null,
    el("div", { class: "take", "data-play": "1" }, el("h4", {}, "Reply A ", el("kbd", {}, "1")), player(a.sound, "reply A")),
    el("div", { class: "take", "data-play": "2" }, el("h4", {}, "Reply B ", el("kbd", {}, "2")), player(b.sound, "reply B")),
    el("div", { class: "votes" }, choice("a", "A is better", "a"), choice("b", "B is better", "b"), choice("x", "No difference", null)),
    el("button", { type: "button", class: "plain", onclick: endBlind }, "End and show the result ", el("kbd", {}, "Esc")));
  byId("blind-body").replaceChildren(stage);
  stage.focus({ preventScroll: true });
}

function voteBlind(vote) {
  const pair = blind.pairs[blind.at];
  const after = vote === null ? null : (vote === "a") === pair.swapped;
  blind.votes.push({ ...pair, after });
  blind.at += 1;
  if (blind.at < blind.pairs.length) showPair();
  else endBlind();
}

function endBlind() {
  silence();
  blind.over = true;
  const decided = blind.votes.filter((vote) => vote.after !== null), wins = decided.filter((vote) => vote.after).length;
  const [low, high] = wilson(wins, decided.length), percent = (share) => `${Math.round(share * 100)} %`;
  const verdict = low > 0.5 ? "The later replies are better (the interval is above 50 %)." : high < 0.5 ? "The later replies are worse (the interval is below 50 %)."
    : "Inconclusive: the interval includes 50 %.";
  const again = el("button", { type: "button", class: "big", onclick: () => { blind.over = false; blind.pairs = null; showBlind(); byId("blind-start")?.focus(); } }, "Restart");
  const result = el("div", { id: "blind-result", role: "status", tabindex: "-1" },
    decided.length
      ? [el("p", { class: "share" }, el("b", {}, percent(wins / decided.length)), ` for the later reply, ${wins} of ${count(decided.length, "vote")}`),
        el("p", {}, `95 % interval ${percent(low)} to ${percent(high)} (Wilson). ${verdict}`)]
      : el("p", {}, "No votes for either reply."),
    blind.votes.length > decided.length ? el("p", {}, `${blind.votes.length - decided.length} without a difference (not counted).`) : null);
  byId("blind-body").replaceChildren(result, again, ...(blind.votes.length ? [el("table", { class: "voted" },
    el("thead", {}, el("tr", {}, ...["prompt", "earlier", "later", "your vote"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...blind.votes.map(({ prompt, first, last, after }) => el("tr", {}, el("td", {}, nameOf(prompt)), el("td", {}, first.text), el("td", {}, last.text),
      el("td", { class: after === null ? null : after ? "good" : "bad" }, after === null ? "no difference" : after ? "later" : "earlier")))))] : []));
  result.focus({ preventScroll: true });
}

function blindKeys() {
  byId("blind").addEventListener("keydown", (event) => {
    const stage = byId("blind-pair");
    if (!stage || event.altKey || event.ctrlKey || event.metaKey || event.target.type === "range") return;
    const play = stage.querySelector(`[data-play="${CSS.escape(event.key)}"] .player`);
    const vote = stage.querySelector(`[data-vote="${CSS.escape(event.key)}"]`);
    if (!play && !vote && event.key !== "Escape") return;
    event.preventDefault();
    if (play) play.play();
    else if (vote) vote.click();
    else endBlind();
  });
}
