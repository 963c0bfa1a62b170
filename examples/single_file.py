"""Your own algorithm in one file: PPO as in CleanRL, on a network that ``convert`` has turned into its Alrao version.

Only two lines differ from the same file with Adam, those marked below. Whatever loss is computed of the outputs is
computed once for their average and once for every head.
"""

from collections import deque

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

from alrao_rl import AlraoOptimizer, Output, convert

N_ENVS, N_STEPS, N_EPOCHS, BATCH = 8, 128, 4, 256
GAMMA, LAMBDA, CLIP = 0.99, 0.95, 0.2


class Agent(nn.Module):
    """Policy and values of CartPole."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
        self.values = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))


def advantages_of(rewards, values, last_values, ends):
    """Generalised advantages ``[N_STEPS, N_ENVS]``; after an episode's end nothing more is to come."""
    advantages, running = torch.zeros_like(rewards), torch.zeros(N_ENVS)
    for t in reversed(range(N_STEPS)):
        following = last_values if t == N_STEPS - 1 else values[t + 1]
        delta = rewards[t] + GAMMA * following * ~ends[t] - values[t]
        advantages[t] = running = delta + GAMMA * LAMBDA * running * ~ends[t]
    return advantages


def main(timesteps: int = 100_000, seed: int = 0) -> float:
    """Train; return the mean return of the last 100 episodes."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # small networks only lose by sharing work
    at_once = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    envs = gym.make_vec("CartPole-v1", N_ENVS, "sync", vector_kwargs=at_once)
    agent = Agent()
    convert(agent, {"policy.4": Output("categorical"), "values.4": "values"}, {"seed": seed})  # in place of nothing
    # If a script anneals its rate, from 2.5e-4 say, the optimizer is made with lr=2.5e-4: only the ratio counts.
    optimizer = AlraoOptimizer(agent)  # in place of torch.optim.Adam(agent.parameters(), lr=...)
    observation, finished, returns = torch.as_tensor(envs.reset(seed=seed)[0]), deque([0.0], 100), np.zeros(N_ENVS)
    for update in range(timesteps // (N_STEPS * N_ENVS)):
        rollout = []
        for _ in range(N_STEPS):
            with torch.no_grad():
                distribution, value = Categorical(logits=agent.policy(observation)), agent.values(observation)
                action = distribution.sample()
            following, reward, terminated, truncated, _ = envs.step(action.numpy())
            returns += reward
            end = terminated | truncated
            finished.extend(returns[end])
            returns[end] = 0.0
            reward, end = torch.as_tensor(reward, dtype=torch.float32), torch.as_tensor(end)
            rollout.append((observation, action, distribution.log_prob(action), value[:, 0], reward, end))
            observation = torch.as_tensor(following)
        observations, actions, log_probs, values, rewards, ends = map(torch.stack, zip(*rollout, strict=True))
        with torch.no_grad():
            advantages = advantages_of(rewards, values, agent.values(observation)[:, 0], ends)
        data = [x.flatten(0, 1) for x in (observations, actions, log_probs, advantages, advantages + values)]
        for _ in range(N_EPOCHS):
            for indices in torch.randperm(N_STEPS * N_ENVS).split(BATCH):
                x, a, old_log_prob, advantage, target = (part[indices] for part in data)
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                ratio = (Categorical(logits=agent.policy(x)).log_prob(a) - old_log_prob).exp()
                policy_loss = -torch.min(advantage * ratio, advantage * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
                loss = policy_loss + 0.5 * nn.functional.mse_loss(agent.values(x)[:, 0], target)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        if update % 10 == 9:
            print(f"step {(update + 1) * N_STEPS * N_ENVS:,}: return {np.mean(finished):.1f}", flush=True)
    envs.close()
    return float(np.mean(finished))


if __name__ == "__main__":
    main()
