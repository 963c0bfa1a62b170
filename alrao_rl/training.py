"""What happens beside SB3's own loop while an agent trains: logs, evaluations, the best agent, the display."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

from alrao_rl import snapshot
from alrao_rl.agent import save_agent
from alrao_rl.checkpoint import CheckpointError, Checkpoints, Saved, Timer
from alrao_rl.core.optim import NOT_FINITE, AlraoOptimizer
from alrao_rl.envs import close, make_env
from alrao_rl.errors import print_warning, say
from alrao_rl.interruption import Interruption
from alrao_rl.recipes import Recipe
from alrao_rl.runs import AGENTS, CHECKPOINT, RunFolder
from alrao_rl.sb3.callback import AlraoCallback
from alrao_rl.sb3.policies import AlraoPolicyMixin

N_EVALUATIONS = 50
"""Evaluations in a run, evenly spaced, the last one at its end; fewer if the network is updated less often."""

CONFIRMATION = 4
"""A candidate for the best agent is evaluated so many times more, as long as it stays the best."""

HOPELESS = 100
"""Updates after which a run fails that has skipped all of them, and not only at its end."""

_BARS = " ▁▂▃▄▅▆▇█"


class TrainingCallback(AlraoCallback):
    """Writes a run folder: every episode, 50 evaluations on environments of their own, the best and the last agent.

    Args:
        recipe: what is trained.
        folder: where to write; open before training starts.
        seed: of the evaluation environments.
        eval_episodes: episodes an evaluation.
        quiet: show nothing.
        config: what a checkpoint has to agree with to be continued from.
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
        eval_episodes: int,
        quiet: bool,
        config: Mapping[str, Any],
        checkpoint_interval: float,
        interruption: Interruption,
    ) -> None:
        super().__init__()
        self.config, self.checkpoints = config, Checkpoints(folder.path / CHECKPOINT)
        self._timer, self._wanted = Timer(checkpoint_interval), checkpoint_interval > 0
        self._interruption = interruption
        self.recipe, self.folder, self.eval_episodes = recipe, folder, eval_episodes
        self._evaluations = make_env(recipe, seed, training=False, n_envs=min(eval_episodes, 100))
        self._interval = max(recipe.timesteps // N_EVALUATIONS, 1)
        self._next = self._interval
        self._best: tuple[float, int] | None = None
        self._judged = -1
        """Updates of the network that was evaluated last."""
        self._last: tuple[float, int] = (float("nan"), 0)
        self._returns: deque[float] = deque(maxlen=100)
        self._display = Display(recipe, quiet)
        self._started = time.perf_counter()
        self._evaluating = 0.0
        self._restarts: list[dict[str, Any]] = []
        self._evaluate_policy: Callable[..., Any] = evaluate_policy
        if recipe.agent.algo == "maskable-ppo":
            from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_under_masks

            self._evaluate_policy = evaluate_under_masks

    def result(self) -> dict[str, Any]:
        """Scores of the run for ``status.json``."""
        best = self._best or self._last
        return {
            "best_return": best[0],
            "best_timestep": best[1],
            "last_return": self._last[0],
            "wall_seconds": round(self._elapsed(), 1),
            "seconds_evaluating": round(self._evaluating, 1),
            **({"restarted_episodes": self._restarts} if self._restarts else {}),
            **({"skipped_updates": skipped} if (skipped := self.updates()[0]) else {}),
        }

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()
        self._display.start(0 if self.saved is None else self.saved.state["step"])

    @property
    def step(self) -> int:
        """Timesteps so far; before training starts those of the checkpoint."""
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
        rows = []
        for info in self.locals["infos"]:
            if "episode" in info:
                rows.append((self.num_timesteps, info["episode"]["r"], info["episode"]["l"]))
        if rows:
            self.folder.append("episodes.csv", rows)
            self._returns.extend(row[1] for row in rows)
        # The last step has its evaluation in _on_training_end: there the last update is done.
        if self.num_timesteps >= self._next and self.num_timesteps < self.recipe.timesteps:
            self._next += self._interval
            self._evaluate()
        self._display.update(self.num_timesteps, self._returns, self._weights)
        return True

    def _on_training_end(self) -> None:
        self._evaluate(last=True)
        save_agent(self.model, self.recipe.agent, self.folder.path / "last", **self._facts(*self._last))
        self._display.update(self.recipe.timesteps, self._returns, self._weights, final=True)

    def close(self) -> None:
        """Give the terminal and the evaluation environments back, also after a failure."""
        self._display.stop()
        close(self._evaluations)

    def lost_heads(self) -> int:
        """How often a head was replaced because it was not finite."""
        return sum(int(stats["lost"].sum()) for stats in self._weights().values())

    def updates(self) -> tuple[int, int]:
        """How many updates were skipped because something was not finite, and how many there were."""
        optimizer = self.model.policy.optimizer
        if not isinstance(optimizer, AlraoOptimizer):
            return 0, 0
        return optimizer.skipped, optimizer.param_groups[0]["n_updates"]

    def _fail_without_updates(self, least: int) -> None:
        """Fail a run that has learned nothing in at least so many updates.

        Raises:
            FloatingPointError: all were skipped.
        """
        skipped, n_updates = self.updates()
        if skipped == n_updates >= least:
            raise FloatingPointError(
                f"all {n_updates:,} updates were skipped: the loss or the gradient was nan or infinite, {NOT_FINITE}"
            )

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
            "training": snapshot.take(self.model, self._evaluations),
            "callback": {
                "n_calls": self.n_calls,
                "next": self._next,
                "best": self._best,
                "judged": self._judged,
                "last": self._last,
                "returns": list(self._returns),
                "elapsed": self._elapsed(),
                "evaluating": self._evaluating,
                "restarts": self._restarts,
            },
        }
        # The best agent goes with it: where a run cannot be repeated exactly, what came after is another's.
        agents = {name: path.read_bytes() for name in AGENTS if (path := self.folder.path / name).exists()}
        self.checkpoints.save(self.num_timesteps, state, agents)
        self._timer.wrote(time.perf_counter() - before)

    def _stop(self) -> NoReturn:
        """Stop, with a checkpoint if there is something to save that is sure to be whole."""
        if self._interruption.stop_in_order() and self._wanted and self.saved is None and self.num_timesteps:
            try:
                self._save()
            except CheckpointError as error:
                serves = "; the one before serves" if self.checkpoints.last_step() else ""
                print_warning(f"{error}{serves}")
        raise KeyboardInterrupt

    def _continue(self, saved: Saved) -> None:
        """Go on from a checkpoint: the same place in SB3's loop where it was taken."""
        mine = saved.state["callback"]
        self._next, self._best, self._last = mine["next"], mine["best"], mine["last"]
        self._judged = mine["judged"]
        self._returns.extend(mine["returns"])
        self._evaluating, self._restarts = mine["evaluating"], mine["restarts"]
        self._started = time.perf_counter() - mine["elapsed"]
        lost = snapshot.put_back(saved.state["training"], self.model, self._evaluations)
        self.n_calls, self.num_timesteps = mine["n_calls"], self.model.num_timesteps
        self.model._num_timesteps_at_start = self.num_timesteps  # SB3's time/fps counts from here
        for number, reason in lost.items():
            self._restarts.append({"timestep": self.num_timesteps, "environment": number + 1, "reason": reason})
            print_warning(
                f"{self.recipe.environment.id} cannot be replayed ({reason}): environment {number + 1} of "
                f"{self.training_env.num_envs} starts a new episode, and the run is not the one it would have been"
            )

    def _weights(self) -> dict[str, Any]:
        policy = self.model.policy
        return policy.alrao_stats() if isinstance(policy, AlraoPolicyMixin) else {}

    def _evaluate(self, last: bool = False) -> None:
        """Evaluate, unless it is the network that was evaluated last, as within a rollout, and write all logs."""
        self._fail_without_updates(1 if last else HOPELESS)
        if last or self.model._n_updates != self._judged:
            self._judge()
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
        elapsed = self._elapsed()
        training = elapsed - self._evaluating
        self.folder.append("timing.csv", [(step, round(elapsed, 3), round(step / max(training, 1e-9), 1))])
        self.folder.flush()
        self._display.evaluated(step, self._last[0])

    def _judge(self) -> None:
        before = time.perf_counter()
        if isinstance(self._evaluations, VecNormalize):
            sync_envs_normalization(self.training_env, self._evaluations)
        returns = self._play()
        # The best of fifty noisy means is luck: what looks better than the best so far has to show it again, and again.
        new, self._judged = self.model._n_updates != self._judged, self.model._n_updates
        confirmed = 0
        while (leads := new and (self._best is None or returns.mean() > self._best[0])) and confirmed < CONFIRMATION:
            returns = np.concatenate([returns, self._play()])
            confirmed += 1
        self._evaluating += time.perf_counter() - before
        mean, step = float(returns.mean()), self.num_timesteps
        row = (step, len(returns), mean, float(returns.std()), float(returns.min()), float(returns.max()))
        self.folder.append("evaluations.csv", [row])
        # Under the name that SB3's own EvalCallback gives it.
        self.logger.record("eval/mean_reward", mean)
        self.logger.dump(step)
        self._last = (mean, step)
        if leads:
            self._best = self._last
            self.folder.flush()  # the agent's evaluation before the agent
            save_agent(self.model, self.recipe.agent, self.folder.path / "agent", **self._facts(mean, step))

    def _play(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Returns of the episodes of one evaluation, with the most likely actions."""
        policy = self.model.policy
        policy.set_training_mode(False)
        # SB3's ``predict`` does it again at every step: a walk through all modules, a sixth of an evaluation.
        policy.set_training_mode = lambda mode: None  # type: ignore[method-assign]
        try:
            returns, _ = self._evaluate_policy(
                self.model, self._evaluations, self.eval_episodes, deterministic=True, return_episode_rewards=True
            )
        finally:
            del policy.set_training_mode
        return np.asarray(returns, dtype=np.float64)

    def _facts(self, mean: float, step: int) -> dict[str, Any]:
        environment = self.recipe.environment.model_dump(exclude_none=True, exclude={"timesteps"})
        return {"environment": environment, "timestep": step, "mean_return": mean, "eval_episodes": self.eval_episodes}


class Display:
    """Progress: a live bar in a terminal, plain lines elsewhere, nothing when quiet."""

    def __init__(self, recipe: Recipe, quiet: bool) -> None:
        self._name = f"{recipe.agent_name} on {recipe.environment.id}"
        self._total, self._quiet = recipe.timesteps, quiet
        console = Console()
        self._live = console.is_terminal and not quiet
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]} steps/s"),
            TimeRemainingColumn(),
            TextColumn("return {task.fields[score]}"),
            console=console,
            expand=True,
        )
        self._screen = Live(console=console, auto_refresh=False)
        self._started = self._shown = 0.0
        self._first = 0
        self._returns: Sequence[float] = ()
        self._weights: Callable[[], dict[str, Any]] = dict

    def start(self, first: int = 0) -> None:
        """Begin, with step ``first``; the clock starts here."""
        self._started, self._first = time.perf_counter(), first
        if self._live:
            self._task = self._progress.add_task(self._name, total=self._total, rate="-", score="-")
            self._screen.start()
        elif not self._quiet:
            say(f"{self._name}: {self._total:,} steps" + (f", continued from step {first:,}" if first else ""))

    def update(
        self, step: int, returns: Sequence[float], weights: Callable[[], dict[str, Any]], final: bool = False
    ) -> None:
        """Show the state, in a terminal four times a second, elsewhere with the next evaluation."""
        self._returns, self._weights = returns, weights
        if not self._live:
            return
        now = time.perf_counter()
        if now - self._shown < 0.25 and not final:
            return
        self._shown = now
        score = f"{np.mean(returns):.1f}" if returns else "-"
        rate = f"{(step - self._first) / max(now - self._started, 1e-9):,.0f}"
        bars = "  ".join(f"{layer} |{bar_chart(stats['weights'])}|" for layer, stats in weights().items())
        completed = min(step, self._total)
        self._progress.update(self._task, completed=completed, rate=rate, score=score)
        with contextlib.suppress(OSError):  # the terminal may have gone away
            self._screen.update(Group(self._progress, bars), refresh=True)

    def evaluated(self, step: int, mean: float) -> None:
        """Say the result of an evaluation where there is no live bar."""
        if self._live or self._quiet:
            return
        seconds = max(time.perf_counter() - self._started, 1e-9)
        done = max(step - self._first, 1)
        left = (self._total - step) * seconds / done
        score = f"{np.mean(self._returns):.1f}" if self._returns else "-"
        bars = "".join(f", {layer} |{bar_chart(stats['weights'])}|" for layer, stats in self._weights().items())
        say(
            f"step {min(step, self._total):,} of {self._total:,}: return {score}, evaluation {mean:.1f}, "
            f"{done / seconds:,.0f} steps/s, {max(left, 0):.0f} s left{bars}"
        )

    def stop(self) -> None:
        """End the live bar."""
        if self._live:
            with contextlib.suppress(OSError):
                self._screen.stop()


def bar_chart(weights: Any) -> str:
    """Averaging weights as one character a head, slowest first: ``▁▁▃█▂``."""
    top = max(float(np.max(weights)), 1e-12)
    return "".join(_BARS[round(float(weight) / top * 8)] for weight in weights)
