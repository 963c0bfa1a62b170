"""The supported algorithms, one row each in :data:`ALGORITHMS`, and the tables that the rows refer to.

To add an algorithm, add a row, tables for what its class takes if no existing ones fit, and a policy in
``alrao_rl.sb3``, named in its ``served.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from alrao_rl.recipes.fields import (
    ClipRange,
    Count,
    EntropyCoefficient,
    Finite,
    Fraction,
    NotNegative,
    Positive,
    Rate,
    Table,
    TargetEntropy,
    TrainFreq,
    Widths,
)

ACTIVATIONS = ("tanh", "relu", "elu", "gelu", "leaky-relu", "sigmoid", "silu", "softplus")


class DdpgHyperparameters(Table):
    """Keywords of ``stable_baselines3.DDPG``; ``action_noise`` is the deviation of normal noise on all actions."""

    learning_rate: Rate | None = None
    buffer_size: Count | None = None
    learning_starts: Annotated[int, Field(ge=0)] | None = None
    batch_size: Count | None = None
    tau: Fraction | None = None
    gamma: Fraction | None = None
    train_freq: TrainFreq = None
    gradient_steps: Annotated[int, Field(ge=-1)] | None = None
    n_steps: Count | None = None
    action_noise: Positive | None = None
    optimize_memory_usage: bool | None = None


class Td3Hyperparameters(DdpgHyperparameters):
    """Keywords of ``stable_baselines3.TD3``."""

    policy_delay: Count | None = None
    target_policy_noise: NotNegative | None = None
    target_noise_clip: NotNegative | None = None
    stats_window_size: Count | None = None


class SacHyperparameters(DdpgHyperparameters):
    """Keywords of ``stable_baselines3.SAC``."""

    ent_coef: EntropyCoefficient | None = None
    target_entropy: TargetEntropy | None = None
    target_update_interval: Count | None = None
    use_sde: bool | None = None
    sde_sample_freq: Annotated[int, Field(ge=-1)] | None = None
    use_sde_at_warmup: bool | None = None
    stats_window_size: Count | None = None


class CrossqHyperparameters(Table):
    """Keywords of sb3-contrib's CrossQ, which has no targets."""

    learning_rate: Rate | None = None
    buffer_size: Count | None = None
    learning_starts: Annotated[int, Field(ge=0)] | None = None
    batch_size: Count | None = None
    gamma: Fraction | None = None
    train_freq: TrainFreq = None
    gradient_steps: Annotated[int, Field(ge=-1)] | None = None
    n_steps: Count | None = None
    policy_delay: Count | None = None
    action_noise: Positive | None = None
    ent_coef: EntropyCoefficient | None = None
    target_entropy: TargetEntropy | None = None
    use_sde: bool | None = None
    sde_sample_freq: Annotated[int, Field(ge=-1)] | None = None
    use_sde_at_warmup: bool | None = None
    optimize_memory_usage: bool | None = None
    stats_window_size: Count | None = None


class TqcHyperparameters(SacHyperparameters):
    """Keywords of sb3-contrib's TQC."""

    top_quantiles_to_drop_per_net: Annotated[int, Field(ge=0)] | None = None


class DqnHyperparameters(Table):
    """Keywords of ``stable_baselines3.DQN``, and of sb3-contrib's QRDQN."""

    learning_rate: Rate | None = None
    buffer_size: Count | None = None
    learning_starts: Annotated[int, Field(ge=0)] | None = None
    batch_size: Count | None = None
    tau: Fraction | None = None
    gamma: Fraction | None = None
    train_freq: TrainFreq = None
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


class Td3PolicyOptions(Table):
    """Keywords of TD3's and DDPG's policy that both stock and Alrao policies take."""

    net_arch: Widths | dict[Literal["pi", "qf"], Widths] | None = None
    activation_fn: Literal[ACTIVATIONS] | None = None  # type: ignore[valid-type]
    n_critics: Annotated[int, Field(ge=1, le=100)] | None = None
    share_features_extractor: bool | None = None
    normalize_images: bool | None = None


class SacPolicyOptions(Td3PolicyOptions):
    """Keywords of SAC's policy."""

    log_std_init: Finite | None = None
    use_expln: bool | None = None
    clip_mean: NotNegative | None = None


class CrossqPolicyOptions(SacPolicyOptions):
    """Keywords of CrossQ's policy."""

    batch_norm: bool | None = None
    batch_norm_momentum: Fraction | None = None
    batch_norm_eps: Positive | None = None
    renorm_warmup_steps: Annotated[int, Field(ge=0)] | None = None


class TqcPolicyOptions(SacPolicyOptions):
    """Keywords of TQC's policy."""

    n_quantiles: Annotated[int, Field(ge=1, le=10_000)] | None = None


class QrdqnPolicyOptions(DqnPolicyOptions):
    """Keywords of QR-DQN's policy."""

    n_quantiles: Annotated[int, Field(ge=1, le=10_000)] | None = None


class RecurrentOptions(OnPolicyOptions):
    """Keywords of RecurrentPPO's policy."""

    lstm_hidden_size: Annotated[int, Field(ge=1, le=10**5)] | None = None
    n_lstm_layers: Annotated[int, Field(ge=1, le=100)] | None = None
    shared_lstm: bool | None = None
    enable_critic_lstm: bool | None = None


@dataclass(frozen=True)
class Algorithm:
    """What the package needs to know about an algorithm.

    Args:
        name: in recipes, on command lines and in the names of folders.
        cls: name of its class, in Stable-Baselines3 or sb3-contrib.
        hyperparameters: keywords of the class.
        policy_options: keywords of its policy that both stock and Alrao policies take.
        learning_rate: of the class by default.
        timesteps: default budget for an environment whose file names none.
        timesteps_of: algorithm whose budget in an environment's file applies if the file has none for this one.
        stock_policies: SB3's names for its own policies; the braces stand for "Mlp", "Cnn" or "MultiInput".
        actions: the only kind of space that it acts in, by Gymnasium's name; "" if it acts in all.
        learns_from_replay: it learns from a replay buffer.
        masks_actions: its environments have a method ``action_masks()``.
        has_targets: its critics, if it has any, have target networks.
        exports_onnx: its deterministic action is a function of the observation alone.
    """

    name: str
    cls: str
    hyperparameters: type[Table]
    policy_options: type[Table]
    learning_rate: float
    timesteps: int
    timesteps_of: str = ""
    stock_policies: str = "{}Policy"
    actions: Literal["", "Discrete", "Box"] = ""
    learns_from_replay: bool = False
    masks_actions: bool = False
    has_targets: bool = True
    exports_onnx: bool = False

    @property
    def learns(self) -> Literal["rollouts", "q-values", "critics", "online critics"]:
        """What its network learns, as :meth:`alrao_rl.core.AlraoConfig.resolve` asks."""
        if not self.learns_from_replay:
            return "rollouts"
        if self.actions == "Discrete":
            return "q-values"
        return "critics" if self.has_targets else "online critics"


_ROWS = (
    Algorithm(
        "dqn", "DQN", DqnHyperparameters, DqnPolicyOptions, 1e-4, 100_000,
        actions="Discrete", learns_from_replay=True, exports_onnx=True,
    ),
    Algorithm("a2c", "A2C", A2cHyperparameters, OnPolicyOptions, 7e-4, 500_000, exports_onnx=True),
    Algorithm("ppo", "PPO", PpoHyperparameters, OnPolicyOptions, 3e-4, 500_000, exports_onnx=True),
    Algorithm(
        "qrdqn", "QRDQN", DqnHyperparameters, QrdqnPolicyOptions, 5e-5, 100_000, timesteps_of="dqn",
        actions="Discrete", learns_from_replay=True, exports_onnx=True,
    ),
    Algorithm(
        "recurrent-ppo", "RecurrentPPO", PpoHyperparameters, RecurrentOptions, 3e-4, 500_000, timesteps_of="ppo",
        stock_policies="{}LstmPolicy",
    ),
    Algorithm(
        "maskable-ppo", "MaskablePPO", MaskablePpoHyperparameters, MaskableOptions, 3e-4, 500_000, timesteps_of="ppo",
        masks_actions=True,
    ),
    Algorithm(
        "sac", "SAC", SacHyperparameters, SacPolicyOptions, 3e-4, 100_000,
        actions="Box", learns_from_replay=True, exports_onnx=True,
    ),
    Algorithm(
        "tqc", "TQC", TqcHyperparameters, TqcPolicyOptions, 3e-4, 100_000, timesteps_of="sac",
        actions="Box", learns_from_replay=True, exports_onnx=True,
    ),
    Algorithm(
        "crossq", "CrossQ", CrossqHyperparameters, CrossqPolicyOptions, 1e-3, 100_000, timesteps_of="sac",
        actions="Box", learns_from_replay=True, has_targets=False, exports_onnx=True,
    ),
    Algorithm(
        "td3", "TD3", Td3Hyperparameters, Td3PolicyOptions, 1e-3, 100_000, timesteps_of="sac",
        actions="Box", learns_from_replay=True, exports_onnx=True,
    ),
    Algorithm(
        "ddpg", "DDPG", DdpgHyperparameters, Td3PolicyOptions, 1e-3, 100_000, timesteps_of="sac",
        actions="Box", learns_from_replay=True, exports_onnx=True,
    ),
)  # fmt: skip
ALGORITHMS = {row.name: row for row in _ROWS}
"""By name, in the order in which they are listed to users."""
