"""What happens around SB3's own loop while an agent trains: logs, evaluations, the best agent, checkpoints."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from alrao_rl.agents.build import timesteps_of
from alrao_rl.agents.file import save_agent
from alrao_rl.checks import NOT_FINITE
from alrao_rl.cli.console import print_warning
from alrao_rl.cli.interruption import Interruption
from alrao_rl.notation import plural
from alrao_rl.recipes.schema import Recipe
from alrao_rl.runs.checkpoint import CheckpointError, Checkpoints, Saved, Timer
from alrao_rl.runs.files import AGENTS, CHECKPOINT
from alrao_rl.runs.folder import RunFolder
from alrao_rl.sb3.base import AlraoPolicyMixin
from alrao_rl.sb3.callback import AlraoCallback
from alrao_rl.sb3.entropy import learned_ent_coef
from alrao_rl.train import state as snapshot
from alrao_rl.train.display import Display
from alrao_rl.train.evaluation import Budget, Evaluator, Returns

N_EVALUATIONS = 50
"""Times in ``heads.csv``, ``entropy.csv`` and ``timing.csv``, evenly spaced, the last at the end.

By default also chances to evaluate.
"""
CONFIRMATION = 4
"""A candidate for the best agent gets this many times as many episodes again, as long as it stays the best."""
FIRST_ROUND = 10
"""An evaluation begins with a tenth of the affordable episodes, at least one, because they may turn out longer."""
HOPELESS = 100
"""A run that has skipped all of its updates fails after this many, not only at its end."""


class TrainingCallback(AlraoCallback):
    """Writes a run folder: every episode, evaluations on separate environments, the best and the last agent.

    Args:
        recipe: what is trained.
        folder: where to write; open before training starts.
        seed: of the evaluation environments.
        evaluation: ``eval_episodes`` per evaluation, ``eval_freq`` in timesteps, None for a fiftieth of the run, and
            ``eval_budget``, steps of evaluation per timestep.
        quiet: show nothing.
        config: what a checkpoint has to match to be continued from.
        checkpoint_interval: wall seconds between checkpoints; 0 for none.
        interruption: asked whether to stop.
    """

    saved: Saved | None = None
    """Set before training starts: the checkpoint to continue from."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        seed: int,
        evaluation: Mapping[str, Any],
        quiet: bool,
        config: Mapping[str, Any],
        checkpoint_interval: float,
        interruption: Interruption,
    ) -> None:
        super().__init__()
        self.config, self.checkpoints = config, Checkpoints(folder.path / CHECKPOINT)
        self._timer, self._wanted = Timer(checkpoint_interval), checkpoint_interval > 0
        self._interruption = interruption
        self.recipe, self.folder = recipe, folder
        self._interval = max(recipe.timesteps // N_EVALUATIONS, 1)
        self._eval_freq = evaluation["eval_freq"] or self._interval
        self._next, self._next_evaluation = self._interval, self._eval_freq
        self._episodes: int = evaluation["eval_episodes"]
        self._evaluations = Evaluator(recipe, seed)
        self._budget = Budget(evaluation["eval_budget"], recipe.timesteps)
        self._best: tuple[float, int, int] | None = None
        self._judged = 0
        """Updates that the network had when it was last evaluated; with 0, untrained, it is not evaluated."""
        self._last: tuple[float, int, int] | None = None
        """Mean return, timestep and episodes of the last evaluation."""
        self._returns: deque[float] = deque(maxlen=100)
        self._display = Display(recipe, quiet)
        self._started = time.perf_counter()
        self._evaluating = 0.0
        self._restarts: list[dict[str, Any]] = []

    def result(self) -> dict[str, Any]:
        """Scores of the run for ``status.json``; None for what was not evaluated."""
        best = self._best or self._end()
        return {
            "best_return": best[0],
            "best_timestep": best[1],
            "last_return": self._end()[0],
            "evaluation_steps": self._budget.spent,
            "wall_seconds": round(self._elapsed(), 1),
            "seconds_evaluating": round(self._evaluating, 1),
            **({"restarted_episodes": self._restarts} if self._restarts else {}),
            **({"skipped_updates": skipped} if (skipped := self.updates()[0]) else {}),
        }

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()
        total = timesteps_of(self.model, self.recipe.timesteps)
        self._display.start(total, 0 if self.saved is None else self.saved.state["step"])

    @property
    def step(self) -> int:
        """Timesteps so far; before training starts, those of the checkpoint."""
        return self.num_timesteps if self.saved is None else int(self.saved.state["step"])

    def _on_rollout_start(self) -> None:
        if self._interruption.asked:
            self._stop()
        if self.saved is not None:
            self._continue(self.saved)
            self.saved = None
        elif self.num_timesteps and self._timer.is_due():
            self._save()

    def _on_step(self) -> bool:
        super()._on_step()
        rows = []
        for info in self.locals["infos"]:
            if "episode" in info:
                rows.append((self.num_timesteps, info["episode"]["r"], info["episode"]["l"]))
        if rows:
            self.folder.append("episodes.csv", rows)
            self._returns.extend(row[1] for row in rows)
            self._budget.note(row[1:] for row in rows)
        # The last step is left to _on_training_end, when the last update is done.
        if self.num_timesteps < self.recipe.timesteps:
            if self.num_timesteps >= self._next_evaluation:
                self._next_evaluation += self._eval_freq
                self._judge()
            if self.num_timesteps >= self._next:
                self._next += self._interval
                self._fail_without_updates(HOPELESS)
                self._log()
        self._display.update(self.num_timesteps, self._returns, self._weights)
        return True

    def _on_training_end(self) -> None:
        if not self.model._n_updates:
            raise RuntimeError(f"no update was made in {plural(self.num_timesteps, 'step')}: the agent is untrained")
        self._fail_without_updates(1)
        self._judge(last=True)
        self._log()
        self._save_agent("last", self._end())
        if self._best is None:
            self._save_agent("agent", self._end())
        self._display.update(self.num_timesteps, self._returns, self._weights, final=True)

    def close(self) -> None:
        """Release the terminal and the evaluation environments, also after a failure."""
        self._display.stop()
        self._evaluations.close()

    def lost_heads(self) -> int:
        """How often a head was replaced because it was not finite."""
        return sum(int(stats["lost"].sum()) for stats in self._weights().values())

    def updates(self) -> tuple[int, int]:
        """How many updates were skipped because something was not finite, and how many there were.

        Of several optimizers that of which most were skipped.
        """
        policy = self.model.policy
        if not isinstance(policy, AlraoPolicyMixin):
            return 0, 0
        counts = [(one.skipped, one.param_groups[0]["n_updates"]) for one in policy.optimizers().values()]
        return max(counts, key=lambda count: count[0] / max(count[1], 1))

    def _fail_without_updates(self, least: int) -> None:
        """Fail a run that has learned nothing in ``least`` updates or more.

        Raises:
            FloatingPointError: if all were skipped.
        """
        skipped, n_updates = self.updates()
        if skipped == n_updates >= least:
            which = "the only update was" if n_updates == 1 else f"all {n_updates:,} updates were"
            raise FloatingPointError(f"{which} skipped: the loss or the gradient was nan or infinite, {NOT_FINITE}")

    def _elapsed(self) -> float:
        """Wall seconds of training, those before an interruption included."""
        return time.perf_counter() - self._started

    def _save(self) -> None:
        """Write a checkpoint."""
        before = time.perf_counter()
        state = {
            "step": self.num_timesteps,
            "config": self.config,
            "logs": self.folder.logs(),
            "training": snapshot.take(self.model),
            "evaluations": self._evaluations.state(),
            "callback": {
                "n_calls": self.n_calls,
                "next": self._next,
                "next_evaluation": self._next_evaluation,
                "budget": self._budget.state(),
                "best": self._best,
                "judged": self._judged,
                "last": self._last,
                "returns": list(self._returns),
                "elapsed": self._elapsed(),
                "evaluating": self._evaluating,
                "restarts": self._restarts,
            },
        }
        # With the best agent: if a run cannot be repeated exactly, one saved later belongs to another run.
        agents = {name: path.read_bytes() for name in AGENTS if (path := self.folder.path / name).exists()}
        self.checkpoints.save(self.num_timesteps, state, agents)
        self._timer.wrote(time.perf_counter() - before)

    def _stop(self) -> NoReturn:
        """Stop, with a checkpoint if there is something to save that is certain to be complete."""
        if self._interruption.stop_in_order() and self._wanted and self.saved is None and self.num_timesteps:
            try:
                self._save()
            except CheckpointError as error:
                previous = "; the one before it can be used" if self.checkpoints.last_step() else ""
                print_warning(f"{error}{previous}")
        raise KeyboardInterrupt

    def _continue(self, saved: Saved) -> None:
        """Continue from a checkpoint, at the place in SB3's loop where it was taken."""
        mine = saved.state["callback"]
        self._next, self._best, self._last = mine["next"], mine["best"], mine["last"]
        self._judged = mine["judged"]
        # Sooner if evaluations are more frequent from here on.
        self._next_evaluation = min(mine["next_evaluation"], saved.state["step"] + self._eval_freq)
        self._budget.put_back(mine["budget"])
        self._evaluations.put_back(saved.state["evaluations"])
        self._returns.extend(mine["returns"])
        self._evaluating, self._restarts = mine["evaluating"], mine["restarts"]
        self._started = time.perf_counter() - mine["elapsed"]
        lost = snapshot.put_back(saved.state["training"], self.model)
        self.n_calls, self.num_timesteps = mine["n_calls"], self.model.num_timesteps
        self.model._num_timesteps_at_start = self.num_timesteps  # SB3's time/fps counts from here
        for number, reason in lost.items():
            self._restarts.append({"timestep": self.num_timesteps, "environment": number + 1, "reason": reason})
            print_warning(
                f"{self.recipe.environment.id} cannot be replayed ({reason}): environment {number + 1} of "
                f"{self.training_env.num_envs} starts a new episode, so the run differs from an uninterrupted one"
            )

    def _weights(self) -> dict[str, Any]:
        policy = self.model.policy
        return policy.alrao_stats() if isinstance(policy, AlraoPolicyMixin) else {}

    def _log(self) -> None:
        """Write all logs."""
        step = self.num_timesteps
        self.folder.append(
            "heads.csv",
            [
                (step, layer, number, float(rate), float(weight), int(reclones))
                for layer, stats in self._weights().items()
                for number, (rate, weight, reclones) in enumerate(
                    zip(stats["rates"], stats["weights"], stats["reclones"], strict=True), start=1
                )
            ],
        )
        if (ent_coef := learned_ent_coef(self.model)) is not None:
            self.folder.append("entropy.csv", [(step, ent_coef)])
        elapsed = self._elapsed()
        training = elapsed - self._evaluating
        self.folder.append("timing.csv", [(step, round(elapsed, 3), round(step / max(training, 1e-9), 1))])
        self.folder.flush()
        self._display.logged(step, None if self._last is None else self._last[0])

    def _judge(self, last: bool = False) -> None:
        """Evaluate the network, if that is worth the steps, and keep it if none was better."""
        if self.model._n_updates == self._judged or not (self._budget.is_promising() or last):
            return
        returns = np.empty(0)
        while (more := self._play(self._episodes_wanted(returns, last), last, len(returns) > 0)) is not None:
            returns = np.concatenate([returns, more])
        if not len(returns):
            return
        self._judged = self.model._n_updates
        mean, step = float(returns.mean()), self.num_timesteps
        row = (step, len(returns), mean, float(returns.std()), float(returns.min()), float(returns.max()))
        self.folder.append("evaluations.csv", [row])
        # The name that SB3's own EvalCallback uses.
        self.logger.record("eval/mean_reward", mean)
        self.logger.dump(step)
        self._last = (mean, step, len(returns))
        if self._leads(returns):
            self._best = self._last
            self.folder.flush()  # the evaluation is on disk before the agent
            self._save_agent("agent", self._best)

    def _episodes_wanted(self, returns: Returns, last: bool) -> int:
        """Episodes to play next, given the returns ``[n]`` so far: a few, then as many again, and again.

        The best of many noisy means is luck: a network that looks as good as the best so far has to show it in more
        episodes than others, which are given up as soon as they are behind.
        """
        if not len(returns):
            affordable, _ = self._budget.share(self._episodes * FIRST_ROUND, self.num_timesteps, last)
            return max(affordable // FIRST_ROUND, min(self._episodes, 1))
        most = self._episodes * (1 + CONFIRMATION) if self._leads(returns) else self._episodes if last else 0
        return max(min(len(returns), most - len(returns)), 0)

    def _leads(self, returns: Returns) -> bool:
        return self._best is None or bool(returns.mean() >= self._best[0])

    def _play(self, wanted: int, last: bool, begun: bool) -> Returns | None:
        """Returns of ``wanted`` episodes, or of fewer if the budget allows no more; None if it allows none."""
        before = time.perf_counter()
        episodes, most_steps = self._budget.share(wanted, self.num_timesteps, last, begun)
        if not episodes:
            return None
        returns, steps = self._evaluations.play(self.model, episodes, most_steps)
        self._budget.spend(steps, episodes)
        self._evaluating += time.perf_counter() - before
        return returns

    def _end(self) -> tuple[float | None, int, int]:
        """Mean return of the current network, timestep and episodes; None and 0 episodes if it was not evaluated."""
        mean, _, episodes = self._last or (None, 0, 0)
        seen = self._judged == self.model._n_updates
        return (mean, self.num_timesteps, episodes) if seen else (None, self.num_timesteps, 0)

    def _save_agent(self, name: str, evaluation: tuple[float | None, int, int]) -> None:
        environment = self.recipe.environment.model_dump(exclude_none=True, exclude={"timesteps"})
        facts = dict(zip(("mean_return", "timestep", "eval_episodes"), evaluation, strict=True))
        save_agent(self.model, self.recipe.agent, self.folder.path / name, environment=environment, **facts)
