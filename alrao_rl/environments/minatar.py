"""MinAtar's games for Gymnasium: images in Stable-Baselines3's format, and all randomness from ``np_random``.

Young and Tian, "MinAtar: An Atari-Inspired Testbed for Thorough and Reproducible Reinforcement Learning Experiments"
(https://arxiv.org/abs/1903.03176). The package's own class for Gymnasium gives 10×10×C of bool, which SB3 does not
treat as an image, draws from a generator that cannot be saved, and lets the last action of an episode stick into the
next one.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
from gymnasium import spaces
from minatar import Environment

Frame = np.ndarray[Any, np.dtype[np.uint8]]

_PIXELS = 16
"""Side of a cell in a rendered frame."""


class MinAtar(gym.Env[Frame, np.int64]):
    """A game of MinAtar with its minimal set of actions, those that do something in it.

    Observations are ``[C, 10, 10]``: a channel for every kind of object, 255 where there is one, 0 elsewhere.

    Args:
        game: MinAtar's name for it, such as ``breakout``.
        render_mode: None or ``rgb_array``.
        sticky_action_prob: probability that the last action is repeated instead of the given one.
        difficulty_ramping: whether the game becomes harder as it goes on, if it can.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  Gymnasium's own form

    def __init__(
        self,
        game: str,
        render_mode: str | None = None,
        sticky_action_prob: float = 0.1,
        difficulty_ramping: bool = True,
    ) -> None:
        self.render_mode = render_mode
        self._game = Environment(game, sticky_action_prob, difficulty_ramping)
        self._actions = self._game.minimal_action_set()
        height, width, channels = self._game.state_shape()
        self.observation_space = spaces.Box(0, 255, (channels, height, width), np.uint8)
        self.action_space = spaces.Discrete(len(self._actions))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Begin an episode, which then depends only on ``np_random`` and the actions."""
        super().reset(seed=seed)
        # NumPy's old interface, which MinAtar uses, on the generator that Gymnasium seeds and that can be saved.
        self._game.random = self._game.env.random = np.random.RandomState(self.np_random.bit_generator)
        self._game.last_action = 0
        self._game.reset()
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Play one frame."""
        reward, terminated = self._game.act(self._actions[action])
        return self._observe(), float(reward), bool(terminated), False, {}

    def render(self) -> Any:
        """The state in MinAtar's own colours, ``[160, 160, 3]``; if two objects share a cell, the later channel's."""
        state = self._game.state()
        n_channels = state.shape[-1]
        top = (state * np.arange(1, n_channels + 1)).max(2)
        colours = matplotlib.colormaps["cubehelix"](np.linspace(0, 1, n_channels + 2)[:-1], bytes=True)[:, :3]
        return colours[top].repeat(_PIXELS, 0).repeat(_PIXELS, 1)

    def _observe(self) -> Frame:
        return np.ascontiguousarray(self._game.state().transpose(2, 0, 1), np.uint8) * np.uint8(255)
