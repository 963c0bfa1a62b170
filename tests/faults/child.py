"""``python child.py FACTS ARGUMENTS…``: ``alrao_rl.train``, telling what cannot be seen from outside.

Into the folder FACTS go ``log``, a line at every start of a rollout and after every checkpoint with the clock, the step
and when the next checkpoint is due, and at the end ``final.json``: a hash of all that the run holds in memory. With
BREAK_AT=n in the environment the n-th checkpoint cannot be written.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from unittest import mock

from common import bits

import alrao_rl.runs.checkpoint
import alrao_rl.train.callback
from alrao_rl.train import state
from alrao_rl.train.callback import TrainingCallback
from alrao_rl.train.command import main

alrao_rl.train.callback.N_EVALUATIONS = 10  # they take most of the time of a short run
alrao_rl.runs.checkpoint.MAX_SHARE = 1.0  # a checkpoint at every interval, however slow the machine is
facts, left = Path(sys.argv[1]), int(os.environ.get("BREAK_AT", -1))
log = os.open(facts / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
on_rollout_start, save, on_training_end = (
    getattr(TrainingCallback, name) for name in ("_on_rollout_start", "_save", "_on_training_end")
)


def tell(callback, what):
    os.write(log, f"{what} {time.perf_counter()} {callback.num_timesteps} {callback._timer._next}\n".encode())


def start_rollout(self):
    tell(self, "rollout")
    on_rollout_start(self)


def write_checkpoint(self):
    global left
    left -= 1
    odd = mock.patch.object(state, "take", return_value={"odd": {1}})
    with odd if left == 0 else contextlib.nullcontext():
        save(self)
    tell(self, "checkpoint")


def end(self):
    on_training_end(self)
    leaves = bits([state.take(self.model), self._evaluations.state()])
    final = {path: hashlib.sha256(repr(leaf).encode()).hexdigest() for path, leaf in leaves}
    (facts / "final.json").write_text(json.dumps(final))


TrainingCallback._on_rollout_start = start_rollout
TrainingCallback._save = write_checkpoint
TrainingCallback._on_training_end = end

sys.exit(main(sys.argv[2:]))
