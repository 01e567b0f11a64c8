"""`duet set-lambda` and `duet scale`: requests to a running job."""

from typing import Annotated

import typer

from duet.options import Run

app = typer.Typer()

Wait = Annotated[
    float,
    typer.Option("--wait", metavar="SECONDS", min=0.0, max=1e9, help="deadline for the run to accept the request"),
]


@app.command("set-lambda")
def set_lambda(
    run: Run,
    value: Annotated[
        str,
        typer.Argument(
            metavar="fixed=NUMBER|adaptive|fixed|two_stage", help="a value of λ, or the schedule that computes it"
        ),
    ],
    wait: Wait = 120.0,
) -> None:
    """Set λ in a running job.

    The value holds from the run's next iteration on. The run records it in events.jsonl.

        duet set-lambda runs/first fixed=0.3
        duet set-lambda runs/first adaptive        (λ is computed again)
    """
    from controller.requests import parse_mix_value, send_request
    from observability.run_directory import run_directory

    parsed = parse_mix_value(value)
    iteration = send_request(run_directory(run), "mix", parsed, seconds=wait, say=print)
    print(f"accepted: λ is {value} from iteration {iteration} on")


@app.command()
def scale(
    run: Run,
    sizes: Annotated[list[str], typer.Argument(metavar="POOL=SIZE", help="for example rollout=4 reward=2")],
    wait: Wait = 120.0,
) -> None:
    """Resize the actor pools of a running job.

    The pools are rollout, reward and decoder. New actors join when they have started. Surplus actors finish their
    tasks and leave.

        duet scale runs/first rollout=4 reward=2
    """
    from controller.requests import parse_pool_sizes, send_request
    from observability.run_directory import run_directory

    parsed = parse_pool_sizes(sizes)
    iteration = send_request(run_directory(run), "scale", parsed, seconds=wait, say=print)
    listed = ", ".join(f"{pool} {size}" for pool, size in parsed.items())
    print(f"accepted at iteration {iteration}: {listed}; actors join after their start and leave after their tasks")
