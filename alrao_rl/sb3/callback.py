"""Log what Alrao does inside: SB3 gives a policy class no logger, a callback has one."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from alrao_rl.sb3.base import AlraoPolicyMixin


class AlraoCallback(BaseCallback):
    """Record averaging weights, their entropy, the effective learning rate and the re-clones of every output layer.

    Keys: ``alrao/LAYER/weight_J``, ``alrao/LAYER/entropy`` (nats), ``alrao/LAYER/effective_lr`` and
    ``alrao/LAYER/reclones``, of all heads since the start, and ``alrao/LAYER/skipped``, updates of the whole network
    whose gradient was not finite. At the end of a rollout, or off policy of an episode. Does nothing under a stock
    policy.
    """

    def _on_step(self) -> bool:
        # A rollout may be a single step there; SB3 writes its log right after this where an episode has ended.
        if isinstance(self.model, OffPolicyAlgorithm) and np.any(self.locals["dones"]):
            self._record()
        return True

    def _on_rollout_end(self) -> None:
        if not isinstance(self.model, OffPolicyAlgorithm):
            self._record()

    def _record(self) -> None:
        if not isinstance(self.model.policy, AlraoPolicyMixin):
            return
        for layer, stats in self.model.policy.alrao_stats().items():
            self.logger.record(f"alrao/{layer}/entropy", stats["entropy"])
            self.logger.record(f"alrao/{layer}/effective_lr", stats["effective_lr"])
            self.logger.record(f"alrao/{layer}/reclones", int(stats["reclones"].sum()))
            self.logger.record(f"alrao/{layer}/skipped", stats["skipped"])
            for number, weight in enumerate(stats["weights"], start=1):
                self.logger.record(f"alrao/{layer}/weight_{number}", float(weight), exclude="stdout")
