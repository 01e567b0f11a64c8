// Build the page; a served page polls for new records and updates.

const POLL_INTERVAL_MS = 5000;

const madeIn = (page) => JSON.parse(page.getElementById("data").textContent).made;

function show(page) {
  const data = JSON.parse(page.getElementById("data").textContent);
  clips = JSON.parse(page.getElementById("sounds").textContent);
  showHead(data);
  showCourse(data);
  showHeldOut(data);
  showRoom(data);
  showBlind();
  showEvents(data);
}

show(document);
roomKeys();
blindKeys();

if (location.protocol.startsWith("http")) {
  let tag = null, waiting = null, shown = madeIn(document);
  const look = async () => {
    try {
      const answer = await fetch(location.pathname, { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
      byId("made").classList.remove("gone");
      if (answer.status === 200) {
        tag = answer.headers.get("ETag");
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        waiting = madeIn(page) === shown ? null : page;
      }
    } catch {
      byId("made").classList.add("gone");
    }
    // Do not replace the page during playback or a blind test.
    if (waiting && !isPlaying() && !(blind.pairs && !blind.over)) {
      show(waiting);
      shown = madeIn(waiting);
      waiting = null;
    }
    setTimeout(look, POLL_INTERVAL_MS);
  };
  look();
}
