"""What the pages say is so: commands parse, keys exist, links lead somewhere, examples run."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from omegaconf import OmegaConf

from configs.load import TABLES, load_resolved_config, merge
from configs.schema import Config, config_keys
from configs.validate import build_config
from data.records import DEMONSTRATIONS, PROMPTS, read_prompts
from duet.__main__ import COMMANDS, load_command
from reward.types import MissingScore, SpokenReply
from speech.audio import Waveform
from speech.families import PLAYGROUND, Family
from speech.vocabulary import Vocabulary
from tests.conftest import ROOMS, ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "deploy").glob("*.md"))]
SECTIONS = "|".join(Config.model_fields)
COMMAND = re.compile(r"(?:^|[\s`(])(?:\.venv/bin/)?(?:duet|python -m duet) (?P<arguments>[a-z][^`\n]*)")
KEY = re.compile(rf"(?<![\w./'-])(?P<key>(?:{SECTIONS})(?:\.[a-z_]+)+)(?P<what>=?)(?![\w:/(])")
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)|src=\"(?P<image>[^\"]+)\"")
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL)
SEEN = re.compile(r"^\| (?P<seen>[^|]*`[^|]*) \|", re.MULTILINE)


def code(text: str) -> list[str]:
    """Lines of indented and fenced blocks, and what stands between backticks in the rest."""
    blocks = [line for match in FENCE.finditer(text) for line in match["content"].splitlines()]
    text = FENCE.sub("", text)
    indented = [line for line in text.splitlines() if line.startswith("    ")]
    rest = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return [*blocks, *indented, *re.findall(r"`([^`]+)`", rest)]


def commands(text: str) -> list[list[str]]:
    """The arguments of every `duet …` that is shown, comments and what a shell does with them left out."""
    found = []
    for line in code(text):
        for match in COMMAND.finditer(line):
            words = shlex.split(re.split(r"\s[|&>]\s", match["arguments"])[0], comments=True)
            found.append([word for word in words if word not in ("…", "key=value")])
    return found


def fenced(language: str) -> list:
    return [
        pytest.param(path, match["content"], id=f"{path.stem}-{number}")
        for path in PAGES
        for number, match in enumerate(FENCE.finditer(path.read_text("utf-8")))
        if match["language"] == language
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_command_that_is_shown_exists_with_its_options(page):
    for name, *arguments in commands(page.read_text("utf-8")):
        assert name in COMMANDS, f"duet {name}"
        if not arguments:
            continue  # named in a sentence
        command = load_command(name)
        if hasattr(command, "commands"):
            command, arguments = command.commands[arguments[0]], arguments[1:]
        try:
            options = command.make_context(name, [*arguments]).params
        except typer.TyperException as error:
            pytest.fail(f"duet {name} {shlex.join(arguments)}: {error.format_message()}")
        for override in options.get("overrides", []):
            assert known(override.partition("=")[0]), f"duet {name} {shlex.join(arguments)}: no key {override}"


def known(key: str) -> bool:
    """Whether it is a key, or stands in a table of the user's own names."""
    return key in config_keys() or any(key.startswith(f"{table}.") for table in TABLES)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_key_that_is_named_exists(page):
    for text in code(page.read_text("utf-8")):
        for match in KEY.finditer(text):
            key = match["key"]
            # evaluation.diagnosis.gradient_geometry is a module, reward.llm_judges a package, config.yaml a file
            room = ROOT / key.replace(".", "/")
            if not match["what"] and (room.is_dir() or room.with_suffix(".py").exists() or is_file(key)):
                continue
            assert known(key), f"{page.name}: no key {key!r} in {text!r}"


def is_file(name: str) -> bool:
    module = name.rpartition(".")[0].replace(".", "/")
    return name.endswith((".yaml", ".json", ".jsonl", ".md", ".parquet", ".py")) or (
        (ROOT / module).with_suffix(".py").exists()
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_link_leads_somewhere(page):
    for match in LINK.finditer(page.read_text("utf-8")):
        target = match["target"] or match["image"]
        if target.startswith(("http://", "https://")):
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target} leads nowhere"
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\s-]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in slugs, f"{page.name}: no heading for {target}"


def test_every_page_is_linked_from_the_first():
    targets = [match["target"] or match["image"] for match in LINK.finditer(PAGES[0].read_text("utf-8"))]
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in targets}
    for other in PAGES[1:]:
        assert other in linked, f"README.md does not link {other.relative_to(ROOT)}"


def test_the_first_page_stays_one():
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 70
    assert all(len(line) <= 200 for line in lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_targets_of_make_exist(page):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for text in code(page.read_text("utf-8")):
        for target in re.findall(r"(?:^|\s)make ([a-z]+)", text):
            assert target in targets, f"{page.name}: make {target}"


@pytest.mark.parametrize(("page", "content"), fenced("yaml"))
def test_configurations_that_are_shown_fit(page, content):
    given = OmegaConf.create(yaml.safe_load(content))
    base = given.pop("extends", None)
    assert base is None or (ROOT / base).is_file()
    own = load_resolved_config(ROOT / "configs/playground.yaml")
    build_config(OmegaConf.to_container(merge(own, given)))  # raises for a key or a value that does not fit
    if {"functions", "weights"} <= set(given.get("reward", {})):
        assert set(given.reward.weights) <= {rater.name for rater in given.reward.functions}


@pytest.mark.parametrize(("schema", "heading"), [(PROMPTS, "Prompts:"), (DEMONSTRATIONS, "Demonstrations:")])
def test_columns_of_data_are_those_of_the_schema(schema, heading):
    text = (ROOT / "docs/own-data.md").read_text("utf-8").partition(heading)[2]
    table = re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", text.partition("\n\n")[2].partition("\n\n")[0], re.MULTILINE)
    words = {"string": "string", "list<element: int32>": "list of int32", "map<string, string>": "map of strings"}
    assert table == [(field.name, words[str(field.type).replace("item:", "element:")]) for field in schema]


def example(page: str, number: int = 0) -> str:
    found = [match["content"] for match in FENCE.finditer((ROOT / page).read_text("utf-8"))]
    return [content for content in found if "import" in content][number]


def test_prompts_are_made_as_the_page_says(tmp_path, monkeypatch, world):
    (tmp_path / "playground").symlink_to(ROOT / "playground")
    noise = np.random.default_rng(0).normal(0, 0.1, 22050).astype(np.float32)
    for name in ("a", "b"):
        Waveform(noise, 22050).write(tmp_path / f"questions/{name}.wav")
    monkeypatch.chdir(tmp_path)
    exec(compile(example("docs/own-data.md"), "own-data.md", "exec"), {})
    vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
    prompts = read_prompts(tmp_path / "questions.parquet", vocabulary)
    assert [prompt.id for prompt in prompts] == ["a", "b"]
    assert prompts[0].facts == {"answer": "seven", "manner": "high-fast"}
    assert len(prompts[0].token_ids) == 25 + 4  # a second of sound between boundaries and turns


def test_a_family_is_written_as_the_page_says():
    found: dict = {}
    exec(compile(example("docs/own-model.md"), "own-model.md", "exec"), found)
    assert isinstance(found["MINE"], Family)
    assert [found["MINE"].interleave.chunk(number) for number in range(3)] == [(1, 8), (4, 8), (4, 8)]


def test_a_rater_is_written_as_the_page_says():
    found: dict = {"__name__": "own_judge"}
    exec(compile(example("docs/own-judge.md"), "own-judge.md", "exec"), found)
    rater = found["Length"]()

    def rated(seconds: float | None):
        sound = None if seconds is None else Waveform(np.zeros(int(16000 * seconds), dtype=np.float32), 16000)
        return rater.rate(SpokenReply(prompt=None, reply=None, text="", waveform=sound))

    assert rated(2.0) == 5.0
    assert rated(3.0) == 3.0
    assert rated(9.0) == 1.0
    assert isinstance(rated(None), MissingScore)


def test_what_is_seen_when_something_goes_wrong_is_what_is_said():
    """The words between backticks in the tables' first column are words of ours, or keys."""
    sources = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    said = re.sub(r"\{[^{}]*\}", "…", "\n".join(path.read_text("utf-8") for path in sources))
    system = ("No space left on device", "/dev/shm")
    quoted = 0
    for match in SEEN.finditer((ROOT / "docs/troubleshooting.md").read_text("utf-8")):
        for words in re.findall(r"`([^`]+)`", match["seen"]):
            if words in system or known(words):
                continue
            quoted += 1
            assert words in said, f"nobody says {words!r}"
    assert quoted >= 4


@pytest.mark.parametrize("name", ["System", "Training", "Speech health"])
def test_panels_that_are_to_be_looked_at_exist(name):
    page = (ROOT / "docs/dashboards.md").read_text("utf-8")
    (section,) = [part for part in page.split("\n## ") if f"(*{name}*)" in part]
    dashboard = json.loads((ROOT / f"deploy/grafana/dashboards/{name.lower().replace(' ', '-')}.json").read_text())
    titles = {panel["title"] for panel in dashboard["panels"] if panel["type"] != "row"}
    named = re.findall(r"\*\*([^*]+)\*\*", section)
    assert len(named) >= 4
    assert set(named) <= titles


def test_pages_that_the_doctor_points_to_exist():
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "deploy/preflight").glob("*.py"))
    pages = set(re.findall(r"\b((?:docs|requirements)/[\w.-]+)", sources))
    assert len(pages) > 4
    for page in pages:
        assert (ROOT / page).exists(), page


def test_keys_that_the_doctor_names_exist():
    names = {key for path in (ROOT / "deploy/preflight").glob("*.py") for key in named_in(path)}
    assert len(names) > 20
    assert not {key for key in names if not known(key)}


def named_in(path: Path) -> list[str]:
    """Keys in sentences, not in code: within quotation marks."""
    texts = re.findall(r'"((?:[^"\\\n]|\\.)*)"', re.sub(r'"""', "", path.read_text("utf-8")))
    return [match["key"] for text in texts for match in KEY.finditer(re.sub(r"\{[^{}]*\}", "…", text))]


def test_every_table_exists():
    assert set(TABLES) <= set(config_keys())


def test_every_command_is_named_in_the_readme():
    shown = {arguments[0] for arguments in commands((ROOT / "README.md").read_text("utf-8"))}
    assert set(COMMANDS) <= shown
