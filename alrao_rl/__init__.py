"""Deep reinforcement learning without a learning rate, on unmodified Stable-Baselines3."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Resolved on first use (PEP 562): the command line answers without importing torch.
_NAMES = {
    "AlraoPolicy": "alrao_rl.sb3.policies",
    "AlraoCnnPolicy": "alrao_rl.sb3.policies",
    "AlraoMultiInputPolicy": "alrao_rl.sb3.policies",
    "AlraoDQNPolicy": "alrao_rl.sb3.policies",
    "AlraoActorCriticPolicy": "alrao_rl.sb3.policies",
    "AlraoSACPolicy": "alrao_rl.sb3.off_policy",
    "AlraoTD3Policy": "alrao_rl.sb3.off_policy",
    "AlraoQRDQNPolicy": "alrao_rl.sb3.contrib",
    "AlraoQRDQNCnnPolicy": "alrao_rl.sb3.contrib",
    "AlraoQRDQNMultiInputPolicy": "alrao_rl.sb3.contrib",
    "AlraoTQCPolicy": "alrao_rl.sb3.contrib",
    "AlraoTQCCnnPolicy": "alrao_rl.sb3.contrib",
    "AlraoTQCMultiInputPolicy": "alrao_rl.sb3.contrib",
    "AlraoCrossQPolicy": "alrao_rl.sb3.contrib",
    "AlraoLstmPolicy": "alrao_rl.sb3.contrib",
    "AlraoCnnLstmPolicy": "alrao_rl.sb3.contrib",
    "AlraoMultiInputLstmPolicy": "alrao_rl.sb3.contrib",
    "AlraoMaskablePolicy": "alrao_rl.sb3.contrib",
    "AlraoMaskableCnnPolicy": "alrao_rl.sb3.contrib",
    "AlraoMaskableMultiInputPolicy": "alrao_rl.sb3.contrib",
    "AlraoCallback": "alrao_rl.sb3.callback",
    "AlraoConfig": "alrao_rl.core",
    "AlraoOptimizer": "alrao_rl.fast",
    "Output": "alrao_rl.core",
    "averaged": "alrao_rl.plain",
    "convert": "alrao_rl.fast",
    "load_agent": "alrao_rl.agents.file",
    "load_results": "alrao_rl.runs.results",
    "save_agent": "alrao_rl.agents.file",
}

# Without sb3-contrib `from alrao_rl import *` gives the rest; its policies, asked for by name, say what to install.
_MISSING = () if importlib.util.find_spec("sb3_contrib") else ("alrao_rl.sb3.contrib",)
__all__ = [*(name for name, module in _NAMES.items() if module not in _MISSING), "__version__"]

if TYPE_CHECKING:
    from alrao_rl.agents.file import load_agent as load_agent
    from alrao_rl.agents.file import save_agent as save_agent
    from alrao_rl.core import AlraoConfig as AlraoConfig
    from alrao_rl.core import Output as Output
    from alrao_rl.fast import AlraoOptimizer as AlraoOptimizer
    from alrao_rl.fast import convert as convert
    from alrao_rl.plain import averaged as averaged
    from alrao_rl.runs.results import load_results as load_results
    from alrao_rl.sb3.callback import AlraoCallback as AlraoCallback
    from alrao_rl.sb3.off_policy import AlraoSACPolicy as AlraoSACPolicy
    from alrao_rl.sb3.off_policy import AlraoTD3Policy as AlraoTD3Policy
    from alrao_rl.sb3.policies import AlraoActorCriticPolicy as AlraoActorCriticPolicy
    from alrao_rl.sb3.policies import AlraoCnnPolicy as AlraoCnnPolicy
    from alrao_rl.sb3.policies import AlraoDQNPolicy as AlraoDQNPolicy
    from alrao_rl.sb3.policies import AlraoMultiInputPolicy as AlraoMultiInputPolicy
    from alrao_rl.sb3.policies import AlraoPolicy as AlraoPolicy


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'alrao_rl' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
