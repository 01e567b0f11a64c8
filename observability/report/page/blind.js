// The blind test: two replies to a question, before and after in an order that nobody knows, and which is the better.

const Z = 1.959964;
const blind = { pairs: null, at: 0, votes: [], over: false };

/** The 95 % interval of a share by Wilson's score (1927), which holds for few votes and for none lost. */
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

/** Questions with a first and a last reply that both sound, and differ. Of the sample that nothing decided, where there is one. */
function blindPairs() {
  const found = room.data.prompts.flatMap((prompt) => {
    const takes = prompt.takes.filter((take) => take.stage !== "training");
    const first = takes[0], last = takes[takes.length - 1];
    const both = takes.length > 1 && first.sound in clips && last.sound in clips;
    return both && first.sound !== last.sound ? [{ prompt, first, last }] : [];
  });
  // Before the end only a few questions were answered again, and these are all there is to compare.
  const sample = found.filter(({ prompt, last }) => prompt.tags.includes("sample") && last.stage === "after");
  return { pairs: sample.length ? sample : found, drawn: sample.length > 0 };
}

function showBlind() {
  if (blind.pairs && !blind.over) return;  // somebody is listening
  const { pairs, drawn } = blindPairs(), host = byId("blind-body");
  if (blind.over) return;
  if (!pairs.length) {
    host.replaceChildren(el("p", { class: "absent" }, "It needs questions that were answered twice, with other weights; this run has none yet."));
    return;
  }
  const names = [...new Set(pairs.map(({ first, last }) => `${first.label.toLowerCase()} and ${last.label.toLowerCase()}`))].join(", or ");
  host.replaceChildren(
    el("p", { class: "lead" }, `${count(pairs.length, "question")}, each with two replies: ${names}, in an order drawn anew. `
      + (drawn ? "They were chosen without a look at their scores. " : "") + "Neither text nor score is shown until the end."),
    el("button", { type: "button", class: "big", id: "blind-start", onclick: () => startBlind(pairs) }, "Begin"));
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
    prompt.question.sound ? el("div", { class: "take", "data-play": "q" }, el("h4", {}, "The question ", el("kbd", {}, "q")), player(prompt.question.sound, "the question")) : null,
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
  const verdict = low > 0.5 ? "Better than before, by more than chance." : high < 0.5 ? "Worse than before, by more than chance."
    : "Undecided: the interval holds 50 %.";
  const again = el("button", { type: "button", class: "big", onclick: () => { blind.over = false; blind.pairs = null; showBlind(); byId("blind-start")?.focus(); } }, "Again");
  const result = el("div", { id: "blind-result", role: "status", tabindex: "-1" },
    decided.length
      ? [el("p", { class: "share" }, el("b", {}, percent(wins / decided.length)), ` for the later reply, ${wins} of ${count(decided.length, "vote")}`),
        el("p", {}, `95 % interval ${percent(low)} to ${percent(high)} (Wilson). ${verdict}`)]
      : el("p", {}, "No vote was cast for either reply."),
    blind.votes.length > decided.length ? el("p", {}, `${blind.votes.length - decided.length} without a difference, not counted.`) : null);
  byId("blind-body").replaceChildren(result, again, ...(blind.votes.length ? [el("table", { class: "voted" },
    el("thead", {}, el("tr", {}, ...["question", "earlier", "later", "your vote"].map((name) => el("th", { scope: "col" }, name)))),
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
