"""The algorithms that are served: one row each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from alrao_rl.recipes.fields import ClipRange, Count, Finite, Fraction, NotNegative, Positive, Rate, Table, Widths

CLASSES = {
    "dqn": "DQN", "a2c": "A2C", "ppo": "PPO", "qrdqn": "QRDQN", "recurrent-ppo": "RecurrentPPO",
    "maskable-ppo": "MaskablePPO",
}  # fmt: skip
"""The classes of Stable-Baselines3, and of sb3-contrib, by their names in recipes."""
ALGORITHMS = tuple(CLASSES)
REPLAY_ALGORITHMS = ("dqn", "qrdqn")
"""Algorithms that learn values from a replay buffer."""
TIMESTEPS_OF = {"qrdqn": "dqn", "recurrent-ppo": "ppo", "maskable-ppo": "ppo"}
"""Algorithm whose budget applies if the environment file has none for this one."""
ACTIVATIONS = ("tanh", "relu", "elu", "gelu", "leaky-relu", "sigmoid", "silu", "softplus")


class DqnHyperparameters(Table):
    """Keywords of ``stable_baselines3.DQN``, and of sb3-contrib's QRDQN."""

    learning_rate: Rate | None = None
    buffer_size: Count | None = None
    learning_starts: Annotated[int, Field(ge=0)] | None = None
    batch_size: Count | None = None
    tau: Fraction | None = None
    gamma: Fraction | None = None
    train_freq: Count | None = None
    gradient_steps: Annotated[int, Field(ge=-1)] | None = None
    n_steps: Count | None = None
    target_update_interval: Count | None = None
    exploration_fraction: Fraction | None = None
    exploration_initial_eps: Fraction | None = None
    exploration_final_eps: Fraction | None = None
    max_grad_norm: Positive | None = None
    optimize_memory_usage: bool | None = None
    stats_window_size: Count | None = None


class _OnPolicyHyperparameters(Table):
    learning_rate: Rate | None = None
    n_steps: Count | None = None
    gamma: Fraction | None = None
    gae_lambda: Fraction | None = None
    ent_coef: Finite | None = None
    vf_coef: NotNegative | None = None
    max_grad_norm: Positive | None = None
    normalize_advantage: bool | None = None
    stats_window_size: Count | None = None


class _GaussianHyperparameters(_OnPolicyHyperparameters):
    use_sde: bool | None = None
    sde_sample_freq: Annotated[int, Field(ge=-1)] | None = None


class A2cHyperparameters(_GaussianHyperparameters):
    """Keywords of ``stable_baselines3.A2C``."""

    rms_prop_eps: Positive | None = None
    use_rms_prop: bool | None = None


class MaskablePpoHyperparameters(_OnPolicyHyperparameters):
    """Keywords of sb3-contrib's MaskablePPO, which has no Gaussian policies."""

    batch_size: Annotated[int, Field(ge=2)] | None = None
    n_epochs: Count | None = None
    clip_range: ClipRange | None = None
    clip_range_vf: ClipRange | None = None
    target_kl: Positive | None = None


class PpoHyperparameters(_GaussianHyperparameters, MaskablePpoHyperparameters):
    """Keywords of ``stable_baselines3.PPO`` and sb3-contrib's RecurrentPPO."""


HYPERPARAMETERS: dict[str, type[Table]] = {
    "dqn": DqnHyperparameters,
    "a2c": A2cHyperparameters,
    "ppo": PpoHyperparameters,
    "qrdqn": DqnHyperparameters,
    "recurrent-ppo": PpoHyperparameters,
    "maskable-ppo": MaskablePpoHyperparameters,
}


class DqnPolicyOptions(Table):
    """Keywords of DQN's policy that both stock and Alrao policies take."""

    net_arch: Widths | None = None
    activation_fn: Literal[ACTIVATIONS] | None = None  # type: ignore[valid-type]
    normalize_images: bool | None = None


class MaskableOptions(Table):
    """Keywords of MaskablePPO's policy that both stock and Alrao policies take."""

    net_arch: Widths | dict[Literal["pi", "vf"], Widths] | None = None
    activation_fn: Literal[ACTIVATIONS] | None = None  # type: ignore[valid-type]
    ortho_init: bool | None = None
    share_features_extractor: bool | None = None
    normalize_images: bool | None = None


class OnPolicyOptions(MaskableOptions):
    """Keywords of A2C's and PPO's policy."""

    log_std_init: Finite | None = None


class QrdqnPolicyOptions(DqnPolicyOptions):
    """Keywords of QR-DQN's policy."""

    n_quantiles: Annotated[int, Field(ge=1, le=10_000)] | None = None


class RecurrentOptions(OnPolicyOptions):
    """Keywords of RecurrentPPO's policy."""

    lstm_hidden_size: Annotated[int, Field(ge=1, le=10**5)] | None = None
    n_lstm_layers: Annotated[int, Field(ge=1, le=100)] | None = None
    shared_lstm: bool | None = None
    enable_critic_lstm: bool | None = None


POLICY_OPTIONS: dict[str, type[Table]] = {
    "dqn": DqnPolicyOptions,
    "a2c": OnPolicyOptions,
    "ppo": OnPolicyOptions,
    "qrdqn": QrdqnPolicyOptions,
    "recurrent-ppo": RecurrentOptions,
    "maskable-ppo": MaskableOptions,
}
DEFAULT_TIMESTEPS = {"dqn": 100_000, "a2c": 500_000, "ppo": 500_000}
"""Budgets for an environment without a file."""
