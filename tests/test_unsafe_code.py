"""No code of ours unpickles, evaluates or runs what lies on a disk, and none loads a checkpoint's own code unasked."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOMS

UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "pickle5", "_pickle"}
CALLS = {"eval", "exec", "compile", "__import__", "input"}
ATTRIBUTES = {
    ("torch", "load"), ("torch.jit", "load"), ("torch.package", "PackageImporter"), ("torch.hub", "load"),
    ("yaml", "load"), ("yaml", "load_all"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("pd", "read_pickle"),
    ("pandas", "read_pickle"), ("os", "system"), ("os", "popen"), ("runpy", "run_path"), ("runpy", "run_module"),
}  # fmt: skip
LOADERS = {
    "from_pretrained": {"use_safetensors", "trust_remote_code"},
    "LLM": {"load_format", "trust_remote_code"},
}
"""Calls that load a checkpoint, and what each must say itself."""
ALLOWED = {
    # What a configuration names by `target: module:Class` is run, by design (docs/security.md).
    ("speech/registry.py", "importlib.import_module"),
    # Released codecs: the code of their authors, in the folder that the configuration names (docs/own-model.md).
    ("speech/codecs/external_package.py", "importlib.import_module"),
    # A method of that code, which takes the files of its own layout.
    (
        "speech/codecs/kimi_audio.py",
        "module.PrefixStreamingFlowMatchingDetokenizer.from_pretrained without trust_remote_code, use_safetensors",
    ),
    # And so is a family of the user's own, `model.family: module:NAME`.
    ("speech/families/__init__.py", "importlib.import_module"),
    # Settings that `duet import` has just written itself.
    ("speech/checkpoint_conversion.py", "AutoConfig.from_pretrained without trust_remote_code, use_safetensors"),
    # The command line's own modules, from a constant.
    ("duet/__main__.py", "importlib.import_module"),
}


def problems(source: str) -> Iterator[str]:
    """What a module does that reads data as code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            for name in [module] if module else [alias.name for alias in node.names]:
                if name.partition(".")[0] in UNPICKLERS:
                    yield f"import {name}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, attribute = called.rpartition(".")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        true = {name for name, value in given.items() if isinstance(value, ast.Constant) and value.value is True}
        if called in CALLS or (owner, attribute) in ATTRIBUTES or attribute in ("import_module", "allow_pickle"):
            yield called
        for name in ("allow_pickle", "trust_remote_code", "shell"):
            if name in true:
                yield f"{called}({name}=True)"
        if attribute in LOADERS or called in LOADERS:
            lacking = LOADERS[attribute or called] - given.keys()
            if lacking:
                yield f"{called} without {', '.join(sorted(lacking))}"


def test_nothing_reads_data_as_code(root):
    rooms = (*ROOMS, "requirements", "scripts")
    files = [path for room in rooms for path in sorted((root / room).rglob("*.py"))]
    assert len(files) > 70
    found = {
        (path.relative_to(root).as_posix(), problem) for path in files for problem in problems(path.read_text("utf-8"))
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import dill as safe", "torch.load(path)", "eval(text)",
        "np.load(path, allow_pickle=True)", "yaml.load(text, Loader=yaml.Loader)", "subprocess.run(c, shell=True)",
        "AutoModel.from_pretrained(path)", "LLM(model=path, trust_remote_code=trusted)",
        "AutoModel.from_pretrained(path, use_safetensors=True, trust_remote_code=True)",
        "importlib.import_module(name)", "def f():\n    import joblib.memory",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(source):
    assert list(problems(source))


def test_the_search_leaves_the_rest_alone():
    kept = "import json; re.compile(x); np.load(path); model.eval(); config = OmegaConf.load(path); load_file(path)"
    assert list(problems(kept)) == []


def test_configurations_are_read_without_building_objects(tmp_path):
    from common.errors import InputError
    from configs.load import load_config

    trap = tmp_path / "trap"
    for tag in ("python/object/apply:os.system", "python/object/new:os.system", "python/name:os.system"):
        file = tmp_path / "evil.yaml"
        file.write_text(f"run: !!{tag} ['touch {trap}']\n")
        with pytest.raises(InputError, match="not valid YAML"):
            load_config(Path(file), [])
    with pytest.raises(InputError):
        load_config(tmp_path / "evil.yaml", [f"run.name=!!python/object/apply:os.system ['touch {trap}']"])
    assert not trap.exists()


def test_the_page_on_security_names_tests_that_exist(root):
    named = re.findall(r"`(tests/\S+?\.py)::(\w+)`", (root / "docs/security.md").read_text("utf-8"))
    assert len(named) > 15
    for path, test in named:
        assert f"def {test}(" in (root / path).read_text("utf-8"), f"{path}::{test}"
