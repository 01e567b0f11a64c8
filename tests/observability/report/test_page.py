"""The page of runs of every kind: whole, under way, killed, without evaluation, without codec."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import soundfile

from duet.__main__ import main
from observability.report import audio, listening
from observability.report import html as pages
from observability.report.audio import LOSSLESS, LOSSY, ReportAudio, encode_audio, waveform_bars
from observability.report.html import build_report
from observability.report.source import ReportSource
from observability.run_directory import RunDirectory, RunLock
from playground.codec import PlaygroundCodec
from tests.observability.report.made import SCRIPT, begin, evaluate, train, whole


class Parts(HTMLParser):
    """The elements of a page: the text of its scripts, and every address that it names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self._into: str | None = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.addresses += [found[name] for name in ("src", "href", "action", "data") if name in found]
        self._into = found.get("id", "script") if tag == "script" else None

    def handle_data(self, data):
        if self._into:
            self.scripts[self._into] = self.scripts.get(self._into, "") + data

    @property
    def data(self) -> dict:
        return json.loads(self.scripts["data"])

    @property
    def clips(self) -> dict:
        return json.loads(self.scripts["sounds"])


def report(run) -> Parts:
    source = ReportSource.open(run)
    return Parts(build_report(source, ReportAudio.of(source.config, source.world.vocabulary)))


@pytest.fixture(scope="module")
def made(page) -> Parts:
    return Parts(page.read_text("utf-8"))


def question(data: dict, prompt: str) -> dict:
    return next(one for one in data["room"]["prompts"] if one["id"] == prompt)


def test_a_page_needs_nothing_but_itself(page, made):
    assert all(address.startswith(("#", "data:")) for address in made.addresses), made.addresses
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg|startsWith\(\"http\"\)", "", made.scripts["script"])
    assert page.stat().st_size < 5_000_000


def test_what_a_judge_says_is_no_markup(page, made):
    assert SCRIPT not in page.read_text("utf-8")
    takes = [take for prompt in made.data["room"]["prompts"] for take in prompt["takes"]]
    assert SCRIPT in [take["reasons"].get("judge") for take in takes]
    assert made.tags.count("script") == 3
    assert "img" not in made.tags


def test_a_run_cannot_fill_the_page_s_own_places():
    made = pages.assemble('{{data}} </title><b>"&', {"text": "{{script}}<!--"}, {})
    assert "<title>{{data}} &lt;/title>&lt;b>&quot;&amp; · Duet</title>" in made
    assert Parts(made).data == {"text": "{{script}}<!--"}


def test_the_policy_allows_the_page_s_own_parts_only():
    policy = pages.content_security_policy()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("sha256-") == 2


def test_a_question_comes_with_everything_that_was_answered(made, playground):
    asked = question(made.data, playground.held_out[0].id)
    assert [take["label"] for take in asked["takes"]] == ["Before", "Iteration 2", "Iteration 4", "After"]
    assert [take["version"] for take in asked["takes"]] == [0, 2, 4, 6]
    assert asked["text"] == playground.held_out[0].text
    assert asked["demonstration"] is None
    assert asked["change"] == pytest.approx(asked["takes"][-1]["total"] - asked["takes"][0]["total"], abs=1e-3)
    assert {"gain", "stages", "sample"} <= set(asked["tags"])
    trained = question(made.data, playground.prompts[0].id)
    assert trained["set"] == ""
    assert trained["demonstration"]["text"] == playground.demonstrations[0].text
    assert [take["stage"] for take in trained["takes"]] == ["before", "between", "between", "after"]


def test_what_was_cut_off_or_heard_otherwise_can_be_found(made, playground):
    deaf, cut = (question(made.data, playground.held_out[place].id) for place in (1, 3))
    assert "disagreement" in deaf["tags"]
    assert {take["heard"] for take in deaf["takes"] if take["differs"]} == {"oh seven it is"}
    assert "malformed" in cut["tags"]
    assert cut["takes"][-1]["missing"] == dict.fromkeys(("answer", "heard", "manner"), "truncated reply")
    assert cut["takes"][-1]["total"] is None
    assert cut["change"] is None
    training = [p for p in made.data["room"]["prompts"] if p["set"] == "" and "malformed" in p["tags"]]
    assert [take["label"] for take in training[0]["takes"]] == ["Training, iteration 6"] * 2
    assert [take["place"] for take in training[0]["takes"]] == ["reply 1 of 2", "reply 2 of 2"]


def test_every_sound_is_what_the_codec_makes_of_the_tokens(made, playground):
    clips, data = made.clips, made.data
    take = question(data, playground.held_out[0].id)["takes"][-1]
    clip = clips[take["sound"]]
    assert clip["form"] == LOSSLESS
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(clip["content"])))
    assert rate == 16000
    assert len(samples) / rate == pytest.approx(clip["seconds"], abs=0.01)
    speech = sum(tokens for kind, tokens, _ in take["strip"] if kind == "speech")
    assert clip["seconds"] == pytest.approx(speech / 25)
    assert max(clip["bars"]) == 99
    used = {
        one.get("sound")
        for p in data["room"]["prompts"]
        for one in (p["question"], p["demonstration"] or {}, *p["takes"])
    }
    assert set(clips) == used - {None}


def test_a_run_under_way_is_shown_as_far_as_it_is(root, playground, tmp_path):
    records = begin(root, tmp_path / "runs" / "young")
    young = report(records.directory).data
    assert young["series"]["lines"] == {}
    assert young["held_out"] == young["room"]["prompts"] == []
    assert young["run"]["lambda"] is None
    claim = RunLock.acquire(records.directory)
    evaluate(records, playground, "before", playground.held_out[:4], 0)
    train(records, playground, 2)
    now = report(records.directory).data
    assert now["state"]["word"] == "running"
    assert now["series"]["lines"]["iteration"] == [1, 2]
    assert all(measure["after"] is None for measure in now["held_out"][0]["measures"])
    assert {prompt["change"] for prompt in now["room"]["prompts"]} == {None}
    claim.release()
    assert report(records.directory).data["state"]["word"] == "interrupted"


def test_a_run_without_evaluation_shows_training(root, playground, tmp_path):
    records = begin(root, tmp_path / "runs" / "bare")
    train(records, playground, 2)
    data = report(records.directory).data
    assert data["held_out"] == []
    assert {prompt["set"] for prompt in data["room"]["prompts"]} == {""}
    assert all(prompt["demonstration"] and len(prompt["takes"]) == 2 for prompt in data["room"]["prompts"])


def test_without_the_codec_the_run_s_own_recordings_are_played(root, playground, tmp_path):
    directory = tmp_path / "runs" / "moved"
    whole(root, directory, playground)
    config = directory / "config.yaml"
    config.write_text(config.read_text().replace("world/codec", "world/gone"))
    silent = report(directory)
    assert silent.clips == {}
    assert any("gone" in lack for lack in silent.data["room"]["lacks"])
    sound = playground.held_out[0].id + "-after.wav"
    (directory / "audio").mkdir()
    soundfile.write(directory / "audio" / sound, [0.0, 0.5] * 4000, 16000)
    asked = report(directory)
    take = question(asked.data, playground.held_out[0].id)["takes"][-1]
    assert asked.clips[take["sound"]]["seconds"] == 0.5


def test_what_is_gone_is_said_to_be_gone(run, root, tmp_path):
    moved = tmp_path / "made"
    shutil.copytree(run, moved)
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace("demonstrations.parquet", "none.parquet"))
    data = report(moved).data
    assert all(prompt["demonstration"] is None for prompt in data["room"]["prompts"])
    assert any("none.parquet" in lack for lack in data["room"]["lacks"])
    (moved / "config.yaml").write_text(config.replace("world/base", "world/nowhere"))
    data = report(moved).data
    assert any("nowhere" in lack for lack in data["room"]["lacks"])
    assert data["series"]["lines"]["iteration"]


def test_sounds_that_do_not_fit_are_left_out_and_counted(run, monkeypatch):
    monkeypatch.setattr(listening, "MAX_AUDIO_CHARS", 100_000)
    data = report(run)
    quiet = [prompt for prompt in data.data["room"]["prompts"] if prompt.get("quiet")]
    assert 0 < len(quiet) < len(data.data["room"]["prompts"])
    assert any(f"audio of {len(quiet)} of" in lack for lack in data.data["room"]["lacks"])
    assert sum(len(clip["content"]) for clip in data.clips.values()) <= 100_000
    # The lossy format was tried first.
    assert {clip["form"] for clip in data.clips.values()} == {LOSSY}


def test_a_codec_that_fails_leaves_its_reason(playground):
    class Broken:
        rate, codebook, tokens_per_second = 16000, 512, 25.0

        def decode(self, codes):
            raise RuntimeError("no table")

    ids = playground.demonstrations[0].reply_ids
    found = ReportAudio(Broken(), playground.vocabulary, None).sound(ids, None, LOSSLESS)
    assert found["lack"] == "the codec cannot decode it: no table"
    assert ReportAudio(None, None, "gone").sound(ids, None, LOSSLESS) is None


def test_the_picture_of_a_sound():
    assert waveform_bars([]) == []
    assert waveform_bars([0.0] * 100) == [0] * audio.BARS
    found = waveform_bars([0.1] * 560 + [0.5] * 560)
    assert found[0] == pytest.approx(20, abs=1)
    assert found[-1] == 99


def test_a_sound_has_two_forms(playground, world):
    source = playground.demonstrations[0]

    waveform = PlaygroundCodec.load(world / "codec").decode(playground.vocabulary.codes(source.reply_ids))
    assert encode_audio(waveform, LOSSLESS)[:4] == b"fLaC"
    lossy = encode_audio(waveform, LOSSY)
    assert len(lossy) < len(encode_audio(waveform, LOSSLESS)) / 2
    assert soundfile.info(io.BytesIO(lossy)).format == "MP3"


def test_the_command_writes_the_page_beside_the_run(run, tmp_path, capsys):
    moved = tmp_path / "runs" / "made"
    shutil.copytree(run, moved)
    assert main(["report", str(moved)]) == 0
    assert (moved / "report.html").is_file()
    assert str(moved / "report.html") in capsys.readouterr().out
    assert not list(moved.glob(".*.part"))
    assert main(["report", str(tmp_path)]) == 2
    assert "is not the directory of a run" in capsys.readouterr().err


def test_records_can_be_opened_by_the_run_itself_meanwhile(run):
    assert RunDirectory.open(run).last == 6
