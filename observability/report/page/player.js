// Audio players. A clip becomes a blob URL when first played; one clip plays at a time.

let clips = {};
let playing = null;
const files = new Map();

function fileOf(key) {
  if (!files.has(key)) {
    const bytes = Uint8Array.from(atob(clips[key].content), (letter) => letter.charCodeAt(0));
    files.set(key, URL.createObjectURL(new Blob([bytes], { type: clips[key].form })));
  }
  return files.get(key);
}

/** Create a player, or a text if there is no clip. reason: why there is none. */
function player(key, caption, reason = null) {
  const clip = key ? clips[key] : null;
  if (!clip) return el("p", { class: "silent" }, reason ?? "no audio");
  const audio = el("audio", { preload: "none" });
  const button = el("button", { type: "button", class: "play", "aria-label": `Play ${caption}` }, icon(false));
  const bars = svg("svg", { class: "bars", viewBox: `0 0 ${clip.bars.length * 4} 32`, preserveAspectRatio: "none", "aria-hidden": "true" },
    ...clip.bars.map((value, place) => {
      const height = Math.max(1.5, value * 0.3);
      return svg("rect", { x: place * 4, y: 16 - height / 2, width: 2.4, height, rx: 1 });
    }));
  const time = el("span", { class: "time" }, `${clip.seconds.toFixed(1)} s`);
  const seek = el("input", { type: "range", min: 0, max: clip.seconds, step: 0.01, value: 0, "aria-label": `Position in ${caption}`,
    "aria-valuetext": `0 of ${clip.seconds.toFixed(1)} seconds` });
  const node = el("div", { class: "player", "data-sound": key }, button, el("div", { class: "track" }, el("div", { class: "wave", "data-seconds": clip.seconds }, bars, seek)), time, audio);

  const show = () => {
    const share = audio.currentTime / (audio.duration || clip.seconds);
    [...bars.children].forEach((bar, place) => bar.classList.toggle("past", place < share * clip.bars.length));
    seek.value = audio.currentTime;
    seek.setAttribute("aria-valuetext", `${audio.currentTime.toFixed(1)} of ${clip.seconds.toFixed(1)} seconds`);
    time.textContent = `${(audio.paused && audio.currentTime === 0 ? clip.seconds : audio.currentTime).toFixed(1)} s`;
    if (!audio.paused && node.isConnected) requestAnimationFrame(show);
  };
  const state = () => {
    node.classList.toggle("on", !audio.paused);
    button.replaceChildren(icon(!audio.paused));
    button.setAttribute("aria-label", `${audio.paused ? "Play" : "Pause"} ${caption}`);
    show();
  };
  node.play = () => {
    if (!audio.src) audio.src = fileOf(key);
    if (playing && playing !== audio) playing.pause();
    playing = audio;
    audio.currentTime = audio.ended ? 0 : audio.currentTime;
    return audio.play().catch((error) => { if (error.name !== "AbortError") time.textContent = "cannot be played"; });
  };
  button.addEventListener("click", () => (audio.paused ? node.play() : audio.pause()));
  seek.addEventListener("input", () => {
    if (!audio.src) audio.src = fileOf(key);
    audio.currentTime = Number(seek.value);
    show();
  });
  audio.addEventListener("play", state);
  audio.addEventListener("pause", state);
  audio.addEventListener("ended", () => { audio.currentTime = 0; state(); });
  return node;
}

function icon(on) {
  return svg("svg", { viewBox: "0 0 16 16", width: 14, height: 14, "aria-hidden": "true" },
    on ? svg("path", { d: "M4 2.5h3v11H4zM9 2.5h3v11H9z" }) : svg("path", { d: "M4 2.2v11.6L13.4 8z" }));
}

function silence() {
  playing?.pause();
  playing = null;
}

const isPlaying = () => playing !== null && !playing.paused && !playing.ended;
