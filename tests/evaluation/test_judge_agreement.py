"""Agreement of judges with human scores. Expected numbers are derived by hand or by scipy."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from common.errors import InputError
from controller.mix_ratio import gates
from duet.__main__ import main
from duet.judge import mix_settings
from evaluation.judge_agreement import Ratings, compare_judges, human_agreement, read_ratings

HEAD = ["prompt_id", "reply_id", "human", "right", "turned", "note"]
ROWS = [
    ("a", "0", 1, 1.5, 5, "x"),
    ("a", "1", 2, 2.5, 3, "y"),
    ("a", "2", 3, 3.5, 2, ""),
    ("a", "3", 5, 5.0, 1, "z"),
    ("b", "0", 2, 2.0, None, "x"),
    ("b", "1", 4, 3.0, 2, "x"),
    ("b", "2", None, 5.0, 1, "x"),
    ("c", "0", 4, 4.0, 4, "x"),
    ("c", "1", 4, 1.0, 4, "x"),
]


SETTINGS = mix_settings()


@pytest.fixture(params=[".parquet", ".jsonl", ".csv", ".tsv"])
def file(request, tmp_path):
    """Write the same ratings in each format, with interleaved prompts."""
    rows = [ROWS[place] for place in (0, 4, 1, 7, 2, 5, 3, 6, 8)]
    path = tmp_path / f"ratings{request.param}"
    if request.param == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(zip(HEAD, row, strict=True)) for row in rows]), path)
    elif request.param == ".jsonl":
        path.write_text("\n".join(json.dumps(dict(zip(HEAD, row, strict=True))) for row in rows) + "\n")
    else:
        mark = "," if request.param == ".csv" else "\t"
        cells = [HEAD, *([("" if value is None else str(value)) for value in row] for row in rows)]
        path.write_text("".join(mark.join(line) + "\n" for line in cells))
    return path


def read(path, judges=None) -> Ratings:
    return read_ratings(path, "human", judges, 1.0, 5.0)


def test_agreement_is_what_scipy_says_and_missing_scores_are_left_out(file):
    ratings = read(file)
    assert list(ratings.judges) == ["right", "turned"]
    assert ratings.passed_over == ("note",)
    right, turned = (compare_judges(ratings, judge, SETTINGS) for judge in ratings.judges)
    human, own = [1, 2, 3, 5, 2, 4, 4, 4], [1.5, 2.5, 3.5, 5, 2, 3, 4, 1]
    assert (right.both, right.missing) == (8, 0)
    assert right.pearson == pytest.approx(stats.pearsonr(human, own)[0], abs=1e-12)
    assert right.spearman == pytest.approx(stats.spearmanr(human, own)[0], abs=1e-12)
    assert right.bias == pytest.approx((0.5 * 3 - 1 - 3) / 8)
    assert right.near == 7 / 8
    # a and b are ranked; human scores of c are equal.
    assert (right.within_spearman, right.within_kendall, right.within_prompts) == (1.0, 1.0, 2)
    assert right.unused == {"people constant": 1}
    assert (turned.both, turned.missing) == (7, 1)
    assert (turned.within_spearman, turned.within_kendall, turned.within_prompts) == (-1.0, -1.0, 1)
    assert turned.within_spearman_margin is None
    assert turned.unused == {"fewer than two replies with both scores": 1, "both constant": 1}
    assert turned.bias == pytest.approx((4 + 1 - 1 - 4 - 2 + 0 + 0) / 7)
    assert turned.near == 4 / 7


def test_the_variance_within_a_prompt_and_the_λ_that_follows(file):
    """Worked example of method §2: the variance of {1,2,3,5} is 2.1875, which gives 0.437."""
    ratings = read(file)
    people = human_agreement(ratings, SETTINGS)
    variances = [2.1875, 1.0, 0.0]
    assert people.prompts == 3
    assert people.variance == pytest.approx(np.mean(variances))
    assert people.alike == pytest.approx(1 / 3)
    raw = [0.8 * g * v for g, v in (gates(scores, SETTINGS) for scores in ([1, 2, 3, 5], [2, 4], [4, 4]))]
    assert raw[0] == pytest.approx(0.437, abs=1e-3)
    assert people.raw == pytest.approx(np.mean(raw))
    right, turned = (compare_judges(ratings, judge, SETTINGS) for judge in ratings.judges)
    assert right.human == people  # the judge rated every reply with a human score
    own = [np.var([1.5, 2.5, 3.5, 5]), np.var([2, 3]), np.var([4, 1])]
    assert right.own.variance == pytest.approx(np.mean(own))
    assert turned.own.prompts == turned.human.prompts == 2
    assert turned.human.variance == pytest.approx(np.mean([2.1875, 0.0]))


def test_a_judge_that_only_knows_which_prompts_are_hard(tmp_path):
    """A high overall correlation may have no agreement within a prompt."""
    rng = np.random.default_rng(0)
    level = rng.uniform(1.5, 4.5, 100)
    prompts = np.repeat(np.arange(100), 4)
    human = np.clip(level[prompts] + rng.normal(0, 0.3, 400), 1, 5)
    judge = np.clip(level[prompts] + rng.normal(0, 0.3, 400), 1, 5)
    ratings = Ratings(prompts=prompts, human=human, judges={"level": judge}, passed_over=())
    found = compare_judges(ratings, "level", SETTINGS)
    assert found.pearson > 0.85
    assert abs(found.within_spearman) < 0.15
    assert found.within_spearman_margin == pytest.approx(0.11, abs=0.03)


def test_nothing_in_common_is_no_number():
    nan = np.nan
    ratings = Ratings(
        prompts=np.array([0, 0, 1]),
        human=np.array([3.0, 3.0, nan]),
        judges={"same": np.array([2.0, 4.0, 1.0]), "none": np.array([nan, nan, 2.0])},
        passed_over=(),
    )
    same, none = (compare_judges(ratings, judge, SETTINGS) for judge in ratings.judges)
    assert (same.pearson, same.spearman, same.within_spearman, same.bias) == (None, None, None, 0.0)
    assert (none.both, none.missing) == (0, 2)
    assert (none.bias, none.near, none.own.variance, none.own.raw) == (None, None, None, None)


def test_the_command_prints_and_writes_the_same(file, tmp_path, capsys):
    out = tmp_path / "found.json"
    assert main(["judge", "calibrate", str(file), "--judges", "turned,right", "--out", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "9 replies to 3 prompts; people rated 8, 1 are without a human score" in shown
    assert "Nearest to people within a prompt: right (ρ 1.00)." in shown
    assert "turned: prompts without a ranking to compare: 1 fewer than two replies with both scores" in shown
    written = json.loads(out.read_text())
    assert written["scale"] == [1.0, 5.0]
    assert written["mix"] == {"largest": 0.8, "slope": 5.0, "threshold": 3.0}
    assert (written["replies"], written["prompts"], written["without_human_score"]) == (9, 3, 1)
    assert [judge["judge"] for judge in written["judges"]] == ["turned", "right"]
    assert written["judges"][1]["within_spearman"] == 1.0
    assert written["judges"][0]["missing"] == 1
    assert written["people"]["variance"] == pytest.approx(3.1875 / 3)


def test_another_scale_has_its_own_middle():
    assert mix_settings(lowest=0.0, highest=10.0).gate_threshold == 5.0
    assert mix_settings(lowest=0.0, highest=10.0).max_variance == 25.0
    assert mix_settings(threshold=3.7).gate_threshold == 3.7


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "has no rows"),
        ("prompt_id,reply_id,human,judge\n", "has no rows"),
        ("prompt_id,human,judge\na,1,2\n", "has no column 'reply_id'; columns: prompt_id, human, judge"),
        ("prompt_id,reply_id,score,judge\na,0,1,2\n", "has no column 'human'"),
        ("prompt_id,reply_id,human,note\na,0,1,good\n", "has no column of judge scores"),
        ("prompt_id,reply_id,human,judge\na,0,1\n", "line 2 has 3 fields; expected 4, as in the header"),
        ("prompt_id,reply_id,human,judge\na,0,1,2\na,1,6,2\n", "line 3: column 'human' holds '6'; expected a number"),
        ("prompt_id,reply_id,human,judge\na,0,1,2\na,1,2,x\n", "line 3: column 'judge' holds 'x'; expected a number"),
        ("prompt_id,reply_id,human,judge\na,0,1,2\na,0,2,3\n", "line 3: reply '0' to prompt 'a' is already in"),
        ("prompt_id,reply_id,human,judge\n,0,1,2\n", "line 2: column 'prompt_id' holds ''"),
        ("prompt_id,reply_id,human,judge,judge\na,0,1,2,3\n", "has two columns 'judge'"),
        ('prompt_id,reply_id,human,judge\na,0,1,"2\n', "line 2: unexpected end of data"),
    ],
)
def test_a_file_that_will_not_do_is_refused_in_a_sentence(tmp_path, capsys, content, complaint):
    path = tmp_path / "ratings.csv"
    path.write_text(content)
    assert main(["judge", "calibrate", str(path)]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--judges", "right,right"], "--judges: 'right' is a duplicate"),
        (["--judges", "human"], "--judges: 'human' is a duplicate or not a judge column"),
        (["--judges", "wrong"], "has no column 'wrong'"),
        (["--judges", "note"], "column 'note' holds 'x'; expected a number"),
        (["--human", "people"], "has no column 'people'"),
        (["--lowest", "5"], "--lowest: 5 is not below --highest, 5"),
        (["--threshold", "9"], "--threshold: 9 is outside the scale; give a number from 1 to 5"),
        (["--largest", "2"], "--largest: '2' is not allowed; input should be less than or equal to 1"),
        (["--slope", "0"], "--slope: 0 is too small; give a number above 0"),
        (["--out", "/no/such/folder/x.json"], "--out: /no/such/folder/x.json cannot be written"),
    ],
)
def test_options_that_will_not_do_are_refused(file, capsys, arguments, complaint):
    assert main(["judge", "calibrate", str(file), *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_other_files_are_refused(tmp_path):
    (tmp_path / "ratings.parquet").write_text("no table")
    (tmp_path / "ratings.jsonl").write_text('{"prompt_id": 1, "reply_id": 2, "human": true, "judge": 3}\n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "ratings.xlsx").write_text("x")
    for name, complaint in (
        ("ratings.parquet", "is not a valid Parquet file"),
        ("ratings.jsonl", "line 1: column 'human' holds True"),
        ("list.jsonl", "line 1 is not a JSON object"),
        ("ratings.xlsx", "has an unsupported suffix; use one of .parquet, .jsonl, .csv, .tsv"),
        ("gone.csv", "does not exist"),
    ):
        with pytest.raises(InputError, match=complaint):
            read(tmp_path / name)
