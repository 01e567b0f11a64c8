"""Panels of the three dashboards: their Prometheus queries and units.

`$run` is the run selected at the top of a dashboard. Counters are shown as their increase in `WINDOW`, which is longer
than a typical iteration.
"""

from dataclasses import dataclass

WINDOW = "15m"


@dataclass(frozen=True, kw_only=True)
class Panel:
    title: str
    queries: dict[str, str]
    """Expressions by legend."""
    unit: str = "none"
    """Grafana's name of the unit."""
    width: int = 8
    """Columns, of 24."""
    kind: str = "timeseries"
    """`timeseries`, or `stat` for a single number."""
    stacked: bool = False
    logarithmic: bool = False
    note: str = ""
    """How to read the panel, if the descriptions of its metrics do not say."""


def gauge(name: str, **labels: str) -> str:
    matchers = [f'{label}="{value}"' for label, value in {"run": "$run", **labels}.items()]
    return f"{name}{{{', '.join(matchers)}}}"


def increase(name: str) -> str:
    return f"increase({gauge(name)}[{WINDOW}])"


def rate(name: str) -> str:
    return f"rate({gauge(name)}[{WINDOW}])"


def per_reply(name: str) -> str:
    return f"{increase(name)} / on (run) group_left () {increase('duet_replies_total')}"


def beside_start(name: str) -> dict[str, str]:
    return {"now": gauge(name, when="now"), "first iteration": gauge(name, when="start")}


PROGRESS = (
    Panel(
        title="Iteration", kind="stat", width=6,
        queries={"done": gauge("duet_iteration"), "of": gauge("duet_iterations_wanted")},
    ),
    Panel(title="λ", kind="stat", width=6, queries={"λ": gauge("duet_mix_ratio")}),
    Panel(
        title="Since the last progress", kind="stat", unit="s", width=6,
        queries={"": f"time() - {gauge('duet_last_progress_timestamp_seconds')}"},
    ),
    Panel(
        title="Members that are not ready", kind="stat", width=6,
        queries={
            "{{role}}": f"{gauge('duet_members_wanted')} - on (run, role) {gauge('duet_members', state='ready')}",
        },
        note="Rollout workers are stale for a moment after every step, until they hold the new weights.",
    ),
)  # fmt: skip
TRAINING = (
    *PROGRESS,
    Panel(
        title="λ", width=12,
        queries={
            "λ": gauge("duet_mix_ratio"), "before smoothing": gauge("duet_mix_raw_ratio"),
            "set from outside": gauge("duet_mix_overridden"),
        },
    ),
    Panel(
        title="Gates of λ", width=12, queries={"{{gate}}": gauge("duet_mix_gate")},
        note="Both must be open for λ: some reply of a group is good (quality), and its scores differ (information).",
    ),
    Panel(title="Scores by rater", width=12, queries={"{{rater}}": gauge("duet_score")}),
    Panel(title="Loss", width=12, queries={"{{part}}": gauge("duet_loss")}),
    Panel(title="KL to the start model", unit="nats", width=12, queries={"{{channel}}": gauge("duet_kl_nats")}),
    Panel(title="Entropy", unit="nats", width=12, queries={"{{channel}}": gauge("duet_entropy_nats")}),
    Panel(
        title="Log-probability gap of sampler and learner", unit="nats", width=12, logarithmic=True,
        queries={"{{channel}}": gauge("duet_logp_gap_nats"), "probe": gauge("duet_probe_gap_nats")},
        note="float32 stays below 1e-4, bfloat16 near 5e-2. More means that the two compute different models.",
    ),
    Panel(title="Clipped tokens", unit="percentunit", width=12, queries={"": gauge("duet_clipped_tokens_ratio")}),
    Panel(
        title="Without a preference gradient", unit="percentunit",
        queries={
            "replies": per_reply("duet_replies_dropped_total"),
            "groups, per reply": per_reply("duet_groups_dropped_total"),
        },
    ),
    Panel(title="Gradient norm", queries={"": gauge("duet_gradient_norm")}),
    Panel(title="Learning rate", queries={"": gauge("duet_learning_rate")}),
    Panel(title=f"Steps skipped in {WINDOW}", width=12, queries={"": increase("duet_steps_skipped_total")}),
    Panel(
        title=f"Pairs in {WINDOW}", width=12,
        queries={"pairs": increase("duet_pairs_total"), "in the right order": gauge("duet_pair_accuracy_ratio")},
        note="Only where pairs train (algorithm.name=dpo).",
    ),
)  # fmt: skip
SPEECH = (
    Panel(
        title="Heard against said", unit="percentunit", width=12, queries=beside_start("duet_heard_word_error_ratio"),
        note="Needs a rater that records its transcript.",
    ),
    Panel(
        title="Divergence of the voice", unit="nats", width=12,
        queries={"KL, speech": gauge("duet_kl_nats", channel="speech")},
    ),
    Panel(title="Pitch, semitones above 100 Hz", queries=beside_start("duet_speech_pitch_semitones")),
    Panel(title="Words per second", queries=beside_start("duet_speech_words_per_second")),
    Panel(title="Length of a reply", unit="s", queries=beside_start("duet_speech_reply_seconds")),
    Panel(title="Silence", unit="percentunit", queries=beside_start("duet_speech_silence_ratio")),
    Panel(title="Entropy of the codebook", unit="nats", queries=beside_start("duet_codebook_entropy_nats")),
    Panel(
        title="Truncated and malformed replies", unit="percentunit",
        queries={
            "truncated": per_reply("duet_replies_truncated_total"),
            "malformed": per_reply("duet_replies_malformed_total"),
        },
    ),
    Panel(
        title="Speech produced", unit="s", width=24,
        queries={"seconds of speech a second": rate("duet_audio_seconds_total")},
    ),
)  # fmt: skip
ITERATIONS = (
    Panel(
        title="Iteration time by phase", unit="s", width=12, stacked=True,
        queries={"{{phase}}": gauge("duet_phase_last_seconds")},
    ),
    Panel(
        title="Share of the time by phase", unit="percentunit", width=12, stacked=True,
        queries={
            "{{phase}}": f"{rate('duet_phase_seconds_total')} / on (run) group_left () sum by (run) "
            f"({rate('duet_phase_seconds_total')})"
        },
    ),
    Panel(
        title="Phase now", width=12, stacked=True, queries={"{{phase}}": gauge("duet_phase_now")},
        note="other: the start, evaluation, checkpoints, records.",
    ),
    Panel(
        title="Longest waits", unit="s", width=12,
        queries={
            "in this phase": gauge("duet_phase_now_seconds"), "last iteration": gauge("duet_iteration_last_seconds"),
        },
    ),
    Panel(title="Tokens per second", width=8, queries={"{{channel}}": gauge("duet_tokens_per_second")}),
    Panel(title=f"Tokens in {WINDOW}", queries={"{{channel}}": increase("duet_tokens_total")}),
    Panel(
        title="Weights",
        queries={
            "staleness of replies": gauge("duet_staleness_versions"),
            "oldest worker behind the learner": f"{gauge('duet_weight_version', role='learner')} "
            f"- ignoring (role) {gauge('duet_weight_version', role='rollout')}",
        },
    ),
    Panel(title="Idle", unit="percentunit", width=12, queries={"{{role}}": gauge("duet_idle_ratio")}),
    Panel(title="Weight sync", unit="s", width=12, queries={"": gauge("duet_phase_last_seconds", phase="sync")}),
    Panel(
        title="Weights sent",
        unit="Bps",
        width=12,
        queries={"on average": rate("duet_sync_bytes_total"), "during a sync": gauge("duet_sync_bytes_per_second")},
    ),
)  # fmt: skip
POOLS = (
    Panel(title="Work in hand and waiting", queries={"{{role}} {{work}}": gauge("duet_work_items")}),
    Panel(
        title="Members",
        stacked=True,
        queries={"{{role}} {{state}}": f"{gauge('duet_members')} > 0"},
    ),
    Panel(title="Members wanted", queries={"{{role}}": gauge("duet_members_wanted")}),
    Panel(title=f"Restarts in {WINDOW}", width=12, queries={"{{role}}": increase("duet_restarts_total")}),
    Panel(title=f"Faults in {WINDOW}", width=12, queries={"{{kind}}": increase("duet_faults_total")}),
)
JUDGES = (
    Panel(
        title="Missing scores per reply", unit="percentunit", width=12,
        queries={"{{reason}}": per_reply("duet_scores_missing_total")},
    ),
    Panel(
        title="Judge: seconds an answer", unit="s", width=12,
        queries={"{{rater}}": f"{increase('duet_judge_seconds_total')} / {increase('duet_judge_requests_total')}"},
    ),
    Panel(
        title=f"Judge: requests in {WINDOW}", width=12,
        queries={
            f"{{{{rater}}}} {what}": increase(f"duet_judge_{name}_total")
            for name, what in (
                ("requests", "requests"), ("retries", "retries"), ("cache_hits", "known already"),
                ("failures", "failures"), ("unavailable", "not asked"),
            )
        },
    ),
    Panel(
        title="Judge: left alone", width=12,
        queries={
            "{{rater}}, servers now": gauge("duet_judge_left_alone_servers"),
            f"{{{{rater}}}}, times in {WINDOW}": increase("duet_judge_breaker_openings_total"),
        },
    ),
    Panel(
        title="Judge: tokens", width=12,
        queries={
            "{{rater}} read": increase("duet_judge_input_tokens_total"),
            "{{rater}} written": increase("duet_judge_output_tokens_total"),
        },
        note="If the judge reports it.",
    ),
    Panel(
        title="Judge: cost", width=12,
        queries={
            "{{rater}}, an hour": f"3600 * {rate('duet_judge_cost_total')}",
            "{{rater}}, so far": gauge("duet_judge_cost_total"),
        },
        note="In the judge's own currency, if it reports costs. So far: since the start of the controller.",
    ),
)  # fmt: skip
PROCESSES = (
    Panel(
        title="vLLM: requests", stacked=True,
        queries={
            "{{instance}} running": gauge("vllm:num_requests_running"),
            "{{instance}} waiting": gauge("vllm:num_requests_waiting"),
        },
    ),
    Panel(
        title="vLLM: keys and values", unit="percentunit",
        queries={"{{instance}}": gauge("vllm:kv_cache_usage_perc")},
    ),
    Panel(title="vLLM: tokens per second", queries={"{{instance}}": rate("vllm:generation_tokens_total")}),
    Panel(
        title="vLLM: seconds a reply, 95 %", unit="s",
        queries={
            "{{instance}}": "histogram_quantile(0.95, sum by (instance, le) "
            f"({rate('vllm:e2e_request_latency_seconds_bucket')}))",
        },
    ),
    Panel(title=f"vLLM: preemptions in {WINDOW}", queries={"{{instance}}": increase("vllm:num_preemptions_total")}),
    Panel(title="Memory", unit="bytes", queries={"{{instance}}": gauge("process_resident_memory_bytes")}),
    Panel(
        title="Cost of metrics", unit="percentunit", width=12,
        queries={"of the controller's time": rate("duet_metrics_seconds_total")},
    ),
    Panel(title="Scrapes", unit="s", width=12, queries={"{{instance}}": gauge("scrape_duration_seconds")}),
)  # fmt: skip
ROWS: dict[str, dict[str, tuple[Panel, ...]]] = {
    "Training": {"": TRAINING},
    "Speech health": {"": SPEECH},
    "System": {"Iterations": ITERATIONS, "Pools": POOLS, "Judges": JUDGES, "Processes": PROCESSES},
}
"""Panels by dashboard and heading."""
