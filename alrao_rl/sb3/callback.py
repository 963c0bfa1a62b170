"""Log what Alrao does inside: SB3 gives a policy class no logger, a callback has one."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback

from alrao_rl.sb3.base import AlraoPolicyMixin


class AlraoCallback(BaseCallback):
    """Record averaging weights, their entropy, the effective learning rate and the re-clones of every output layer.

    Keys: ``alrao/LAYER/weight_J``, ``alrao/LAYER/entropy`` (nats), ``alrao/LAYER/effective_lr`` and
    ``alrao/LAYER/reclones``, of all heads since the start, and ``alrao/LAYER/skipped``, updates of the whole network
    whose gradient was not finite. Does nothing under a stock policy.
    """

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if not isinstance(self.model.policy, AlraoPolicyMixin):
            return
        for layer, stats in self.model.policy.alrao_stats().items():
            self.logger.record(f"alrao/{layer}/entropy", stats["entropy"])
            self.logger.record(f"alrao/{layer}/effective_lr", stats["effective_lr"])
            self.logger.record(f"alrao/{layer}/reclones", int(stats["reclones"].sum()))
            self.logger.record(f"alrao/{layer}/skipped", stats["skipped"])
            for number, weight in enumerate(stats["weights"], start=1):
                self.logger.record(f"alrao/{layer}/weight_{number}", float(weight), exclude="stdout")
