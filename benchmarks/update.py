"""One update of PPO, DQN and SAC, line by line: ``python benchmarks/update.py``.

The lines are those of Stable-Baselines3's ``train()``, with a clock between them; stock and Alrao take turns update by
update. The tables give tenth percentiles: what a line costs when nothing else disturbs it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import polyak_update

Lap = Callable[[str], None]


def ppo(model: Any, data: Any, lap: Lap) -> None:
    """A minibatch of PPO, as in SB3 2.9; the models' ``ent_coef`` is 0."""
    policy, actions = model.policy, data.actions.long().flatten()
    low, high = 0.8, 1.2
    lap("")
    latent_pi, latent_vf = policy.mlp_extractor(policy.extract_features(data.observations))
    lap("trunk")
    distribution = policy._get_action_dist_from_latent(latent_pi)
    lap("policy heads, distribution")
    log_prob = distribution.log_prob(actions)
    lap("log-probability")
    values = policy.value_net(latent_vf).flatten()
    lap("value heads")
    entropy = distribution.entropy()
    lap("entropy")
    advantages = (data.advantages - data.advantages.mean()) / (data.advantages.std() + 1e-8)
    lap("advantages")
    ratio = torch.exp(log_prob - data.old_log_prob)
    policy_loss = -torch.min(advantages * ratio, advantages * torch.clamp(ratio, low, high)).mean()
    policy_loss.item()
    lap("policy loss")
    torch.mean((torch.abs(ratio - 1) > high - 1).float()).item()
    lap("clip fraction")
    value_loss = F.mse_loss(data.returns, values)
    value_loss.item()
    lap("value loss")
    entropy_loss = -torch.mean(entropy)
    entropy_loss.item()
    lap("entropy loss")
    loss = policy_loss + 0.0 * entropy_loss + model.vf_coef * value_loss
    lap("sum of losses")
    with torch.no_grad():
        log_ratio = log_prob - data.old_log_prob
        torch.mean((torch.exp(log_ratio) - 1) - log_ratio).cpu().numpy()
    lap("approximate KL")
    _update(model, loss, lap)


def dqn(model: Any, data: Any, lap: Lap) -> None:
    """A batch of DQN."""
    lap("")
    with torch.no_grad():
        next_values = model.q_net_target(data.next_observations)
        lap("target network")
        target = data.rewards + (1 - data.dones) * model.gamma * next_values.max(dim=1)[0].reshape(-1, 1)
    lap("target")
    values = model.q_net(data.observations)
    lap("network")
    values = torch.gather(values, dim=1, index=data.actions.long())
    lap("values of the actions")
    loss = F.smooth_l1_loss(values, target)
    loss.item()
    lap("loss")
    _update(model, loss, lap)


def sac(model: Any, data: Any, lap: Lap) -> None:
    """A batch of SAC, whose entropy coefficient is learned."""
    actor, critic = model.actor, model.critic
    lap("")
    actions, log_prob = actor.action_log_prob(data.observations)
    lap("actor, log-density")
    log_prob = log_prob.reshape(-1, 1)
    ent_coef = torch.exp(model.log_ent_coef.detach())
    ent_coef_loss = -(model.log_ent_coef * (log_prob + model.target_entropy).detach()).mean()
    ent_coef_loss.item()
    model.ent_coef_optimizer.zero_grad()
    ent_coef_loss.backward()
    model.ent_coef_optimizer.step()
    lap("entropy coefficient")
    with torch.no_grad():
        next_actions, next_log_prob = actor.action_log_prob(data.next_observations)
        lap("next actions")
        next_values = torch.cat(model.critic_target(data.next_observations, next_actions), dim=1)
        next_values = torch.min(next_values, dim=1, keepdim=True)[0] - ent_coef * next_log_prob.reshape(-1, 1)
        target = data.rewards + (1 - data.dones) * model.gamma * next_values
        lap("target")
    values = critic(data.observations, data.actions)
    lap("critics")
    loss = 0.5 * sum(F.mse_loss(value, target) for value in values)
    loss.item()
    lap("critics' loss")
    critic.optimizer.zero_grad()
    loss.backward()
    lap("critics' backward")
    critic.optimizer.step()
    lap("critics' optimizer, averaging")
    values = torch.cat(critic(data.observations, actions), dim=1)
    lap("values of the actor's actions")
    loss = (ent_coef * log_prob - torch.min(values, dim=1, keepdim=True)[0]).mean()
    loss.item()
    lap("actor's loss")
    actor.optimizer.zero_grad()
    loss.backward()
    lap("actor's backward")
    actor.optimizer.step()
    lap("actor's optimizer, averaging")
    polyak_update(critic.parameters(), model.critic_target.parameters(), model.tau)
    lap("sync")


def _update(model: Any, loss: Any, lap: Lap) -> None:
    model.policy.optimizer.zero_grad()
    lap("zero_grad")
    loss.backward()
    lap("backward")
    torch.nn.utils.clip_grad_norm_(model.policy.parameters(), model.max_grad_norm)
    lap("clipping")
    model.policy.optimizer.step()
    lap("optimizer, averaging")


UPDATES = (("ppo", ppo, "CartPole-v1"), ("dqn", dqn, "CartPole-v1"), ("sac", sac, "Pendulum-v1"))


def table(update: Callable[[Any, Any, Lap], None], stock: BaseAlgorithm, alrao: BaseAlgorithm, n: int = 1_500) -> str:
    """Markdown table of µs for every line, of two models that have begun to learn."""
    models: list[Any] = [stock, alrao]
    found: list[dict[str, list[float]]] = [defaultdict(list), defaultdict(list)]
    for model in models:
        model.policy.set_training_mode(True)
    for _ in range(n):
        for model, times in zip(models, found, strict=True):
            if getattr(model, "replay_buffer", None) is not None:
                data = model.replay_buffer.sample(model.batch_size, env=model._vec_normalize_env)
            else:
                data = next(model.rollout_buffer.get(model.batch_size))
            last = time.perf_counter()

            def lap(line: str, times: dict[str, list[float]] = times) -> None:
                nonlocal last
                now = time.perf_counter()
                times[line].append((now - last) * 1e6)
                last = time.perf_counter()

            update(model, data, lap)
    lines = [line for line in found[1] if line]
    micro = np.array([[np.percentile(times[line], 10) for times in found] for line in lines])
    rows = [f"| {line} | {a:.0f} | {b:.0f} | {b - a:+.0f} |" for line, (a, b) in zip(lines, micro, strict=True)]
    a, b = micro.sum(0)
    total = f"| **all** | {a:.0f} | {b:.0f} | {b - a:+.0f}, ratio {b / a:.2f} |"
    return "\n".join(["| µs | stock | Alrao | difference |", "|---|---|---|---|", *rows, total])


def main() -> None:
    """Print both tables."""
    import speed

    torch.set_num_threads(1)
    for name, update, env_id in UPDATES:
        models = speed.training(name, env_id, "net_arch=[64, 64]")
        for model in models:
            model.learn(2_048, reset_num_timesteps=False)
        print(f"{name.upper()}, {env_id}, 64×64\n\n{table(update, *models)}\n", flush=True)


if __name__ == "__main__":
    main()
