"""A slow, obvious Alrao step: one weight, one head, one loss at a time. The fast code has to match it."""

import math

import torch


class ReferenceBase:
    """Base updates of single numbers, keyed by whatever names the number."""

    def __init__(self, name, **options):
        self.name, self.options, self.memory = name, options, {}

    def direction(self, key, g, feature_gradients=None):
        memory = self.memory.setdefault(key, {"t": 0, "m": 0.0, "v": 0.0})
        memory["t"] += 1
        t, o = memory["t"], self.options
        if self.name == "sgd":
            memory["m"] = o.get("momentum", 0.0) * memory["m"] + g
            return memory["m"]
        if self.name == "adam":
            b1, b2, eps = o.get("beta1", 0.9), o.get("beta2", 0.999), o.get("eps", 1e-8)
            memory["m"] = b1 * memory["m"] + (1 - b1) * g
            memory["v"] = b2 * memory["v"] + (1 - b2) * g * g
            return (memory["m"] / (1 - b1**t)) / (math.sqrt(memory["v"] / (1 - b2**t)) + eps)
        if self.name == "rmsprop":
            decay, eps = o.get("decay", 0.99), o.get("eps", 1e-8)
            memory["v"] = decay * memory["v"] + (1 - decay) * g * g
            v = memory["v"] / (1 - decay**t) if o.get("bias_correction", False) else memory["v"]
            return g / math.sqrt(v + eps) if o.get("eps_inside", True) else g / (math.sqrt(v) + eps)
        # feature-normalized: v is the mean square of the feature's gradient
        beta, eps = o.get("beta", 0.99), o.get("eps", 1e-8)
        square = sum(one * one for one in feature_gradients) / len(feature_gradients)
        memory["v"] = beta * memory["v"] + (1 - beta) * square
        return g / (math.sqrt(memory["v"] / (1 - beta**t)) + eps)


def step(trunk, heads, weights, features_of_trunk, rates, head_rates, base, loss_of, forward, x):
    """One update in place.

    trunk: list of parameters. heads: list of J lists of parameters [weight, bias]. features_of_trunk: for each trunk
    parameter a tensor of its shape with feature numbers. rates: list of floats by feature. loss_of(output) is the loss;
    forward(trunk, x) the features.
    """
    phi = forward(trunk, x)
    average = sum(a * (phi @ w.detach().T + b.detach()) for a, (w, b) in zip(weights, heads, strict=True))
    trunk_gradients = torch.autograd.grad(loss_of(average), trunk)
    head_gradients = []
    for w, b in heads:
        head_gradients.append(torch.autograd.grad(loss_of(phi.detach() @ w.T + b), [w, b]))
    by_feature = {}
    for index, gradient in zip(features_of_trunk, trunk_gradients, strict=True):
        for feature, g in zip(index.reshape(-1).tolist(), gradient.reshape(-1).tolist(), strict=True):
            by_feature.setdefault(feature, []).append(g)
    with torch.no_grad():
        for number, (p, index, gradient) in enumerate(zip(trunk, features_of_trunk, trunk_gradients, strict=True)):
            flat = p.view(-1)
            for i, (feature, g) in enumerate(
                zip(index.reshape(-1).tolist(), gradient.reshape(-1).tolist(), strict=True)
            ):
                flat[i] -= rates[feature] * base.direction(("trunk", number, i), g, by_feature[feature])
        for j, (parameters, gradients) in enumerate(zip(heads, head_gradients, strict=True)):
            everything = torch.cat([g.reshape(-1) for g in gradients]).tolist()
            for number, (p, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                flat = p.view(-1)
                for i, g in enumerate(gradient.reshape(-1).tolist()):
                    flat[i] -= head_rates[j] * base.direction(("head", j, number, i), g, everything)
