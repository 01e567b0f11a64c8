"""The operator that DeepSpeed compiles on a machine when the first learner starts there, and never again."""

import fcntl
import os
import sys
from pathlib import Path


def compile_operator() -> None:
    """Has DeepSpeed compile and load its operator for processors; who comes second waits for who came first.

    torch marks a build that is under way by a file. A killed process leaves it behind, and everybody after it would
    wait for ever. Our own lock the system takes from the dead: whoever has it knows that the file is nobody's.
    """
    # With the first `ninja` on the path, and anew when that is another one than the last time: it must be the
    # environment's own, which is always there, however the job was started.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory  # no public name tells where it builds

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not deepspeed.ops.__compatible_ops__.get(builder.NAME, False):
        return  # DeepSpeed does without it, as on processors other than x86
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with (folder.parent / f"{builder.name}.held").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)
