"""What a report reads, while the run goes on writing it."""

from observability.report.source import ReportSource
from observability.run_directory import RunLock
from tests.controller.examples import iteration
from tests.observability.report.made import begin, config, listen


def test_the_state_changes_with_everything_that_a_report_shows(root, playground, tmp_path):
    records = begin(root, tmp_path / "runs" / "young")
    source, states = ReportSource.open(records.directory), []

    def seen() -> None:
        assert source.state_of_files() == source.state_of_files()
        states.append(source.state_of_files())

    seen()
    claim = RunLock.take(records.directory)
    seen()
    records.add_event("actor_died", member="rollout-0", reason="died")
    seen()
    records.add_iteration(iteration(1))
    seen()
    listen(records, playground, playground.prompts[:1], [1])
    seen()
    records.write_summary({"iterations": 1})
    seen()
    records.write_config(config(root, records.directory, num_recordings=1).yaml())
    seen()
    claim.release()
    seen()
    assert len(set(states)) == len(states) == 8


def test_looking_at_a_run_takes_nothing_from_it(tmp_path):
    assert not RunLock.held(tmp_path)
    claim = RunLock.take(tmp_path)
    assert RunLock.held(tmp_path)
    claim.release()
    assert not RunLock.held(tmp_path)
    RunLock.take(tmp_path, seconds=0).release()


def test_a_run_that_goes_on_with_other_settings_is_read_with_those(root, tmp_path):
    records = begin(root, tmp_path / "runs" / "young")
    source = ReportSource.open(records.directory)
    assert source.renewed() is source
    records.write_config(config(root, records.directory, num_recordings=1).yaml())
    assert source.renewed().config.validation.num_recordings == 1
