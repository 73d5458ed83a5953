"""Action masks where the library has none: in what learners do, and in what they learn from."""

import itertools

import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN
from sb3_contrib.common.utils import quantile_huber_loss
from small_task import formula_task
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from amed_env.agents import make_agent
from amed_env.agents.learners.masking import FORBIDDEN_VALUE, ObservedMask, masked
from amed_env.agents.learners.sb3 import SB3Agent
from amed_env.envs import LayerWiseEnv
from amed_env.errors import AgentError

VALUE_BASED = {DQN: {}, QRDQN: {"n_quantiles": 5}}
TIGHT = {"latency": 0.35}


class Watched(LayerWiseEnv):
    """Remembers how many actions were forbidden."""

    clamped = 0

    def step(self, action):
        outcome = super().step(action)
        self.clamped += outcome[4]["action_clamped"]
        return outcome


def model_of(algorithm, task, masks=True, policy_kwargs=None, **options):
    env = Watched(task, reward="predicted")
    kind = masked(algorithm) if masks else algorithm
    kwargs = {**(policy_kwargs or {}), **({"mask": ObservedMask.of(env)} if masks else {})}
    return kind("MlpPolicy", DummyVecEnv([lambda: env]), seed=0, policy_kwargs=kwargs, **options), env


def walk(env, rng):
    """Observation and mask of every state of some random episodes."""
    for _ in range(5):
        observation, _ = env.reset()
        over = False
        while not over:
            yield observation, env.action_masks()
            action = env.action_space.sample() if env.task.separate else int(rng.integers(env.action_space.n))
            observation, _, over, _, _ = env.step(action)


@pytest.mark.parametrize("separate", [False, True])
def test_the_mask_is_read_back_from_the_observation(separate):
    env = LayerWiseEnv(formula_task(5, TIGHT, separate=separate), reward="predicted")
    env.action_space.seed(0)
    mask = ObservedMask.of(env)
    states = list(walk(env, np.random.default_rng(0)))
    assert any(not allowed.all() for _, allowed in states)
    read = mask(torch.as_tensor(np.stack([observation for observation, _ in states]))).numpy()
    np.testing.assert_array_equal(read, np.stack([allowed for _, allowed in states]))


@pytest.mark.parametrize("algorithm", [DQN, QRDQN, A2C, PPO])
def test_forbidden_actions_are_never_chosen(algorithm):
    value_based = algorithm in VALUE_BASED
    options = {"learning_starts": 60, "exploration_final_eps": 0.3} if value_based else {"n_steps": 20}
    model, env = model_of(algorithm, formula_task(5, TIGHT), policy_kwargs=VALUE_BASED.get(algorithm), **options)
    model.learn(400)
    assert env.clamped == 0
    control, env = model_of(
        algorithm, formula_task(5, TIGHT), False, policy_kwargs=VALUE_BASED.get(algorithm), **options
    )
    control.learn(400)
    assert env.clamped > 20  # the budget does forbid much: without masks it happens all the time


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("algorithm", [DQN, QRDQN])
def test_a_single_observation_gets_a_single_allowed_action(algorithm, deterministic):
    model, env = model_of(algorithm, formula_task(5, TIGHT), policy_kwargs=VALUE_BASED[algorithm])
    model.exploration_rate = 1.0
    for observation, allowed in walk(env, np.random.default_rng(1)):
        action, _ = model.predict(observation, deterministic=deterministic)
        assert np.shape(action) == () and allowed[int(action)]


def recorded_loss(model, algorithm, monkeypatch):
    """The loss of one update, and the batch that it was computed from."""
    batches, losses = [], []
    sample = model.replay_buffer.sample
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *a, **k: batches.append(sample(*a, **k)) or batches[-1])
    monkeypatch.setattr(model.logger, "record", lambda key, value, **_: losses.append(value) if "loss" in key else None)
    before = [tensor.clone() for tensor in model.policy.parameters()]
    model.train(1, batch_size=48)
    for tensor, old in zip(model.policy.parameters(), before, strict=True):
        tensor.data.copy_(old)  # so that the loss can be computed again with the weights of that moment
    return float(losses[-1]), batches[-1]


def true_next_masks(task, batch):
    """Masks of the next states from costs alone: what they used, and the least that the rest needs.

    The observation before the mask tells the layer; the costs are added up along every allocation, so that nothing of
    the environment's own bookkeeping is used.
    """
    env = LayerWiseEnv(task, reward="predicted")
    table = task.costs["latency_ms"]
    limit = task.limits["latency_ms"] * (1 + 1e-9)
    least = table.min(axis=1)
    known = {}
    for choices in itertools.product(range(table.shape[1]), repeat=len(table)):
        env.reset()
        for step, choice in enumerate(choices):
            used = sum(table[i, c] for i, c in enumerate(choices[: step + 1]))
            rest = least[step + 1 :].sum()
            if used + rest > limit:
                break
            observation, _, over, _, _ = env.step(choice)
            if not over:
                after = least[step + 2 :].sum()
                known[observation.tobytes()] = [used + cost + after <= limit for cost in table[step + 1]]
    return [known.get(row.numpy().tobytes(), [True] * table.shape[1]) for row in batch.next_observations]


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("algorithm", [DQN, QRDQN])
def test_the_bootstrapped_target_is_masked(algorithm, masks, monkeypatch):
    """The loss equals one computed here with masks from costs; without masks (the control) it does not."""
    task = formula_task(4, TIGHT)
    model, _ = model_of(
        algorithm, task, masks, policy_kwargs=VALUE_BASED[algorithm], learning_starts=10, gamma=1.0, train_freq=1000
    )
    model.learn(300)
    network = model.q_net_target if algorithm is DQN else model.quantile_net_target
    with torch.no_grad():  # values that make the forbidden actions look best
        for target in (network, model.q_net if algorithm is DQN else model.quantile_net):
            final = list(target.modules())[-1]
            final.bias += 3.0 * torch.arange(len(final.bias)).remainder(3)
    loss, batch = recorded_loss(model, algorithm, monkeypatch)
    forbidden = ~torch.tensor(true_next_masks(task, batch))
    assert forbidden.any() and batch.dones.any()
    unmasked = super(type(network), network) if masks else network
    with torch.no_grad():
        if algorithm is DQN:
            best = unmasked.forward(batch.next_observations).masked_fill(forbidden, -np.inf).max(dim=1).values
            target = batch.rewards[:, 0] + (1 - batch.dones[:, 0]) * best
            value = model.q_net(batch.observations).gather(1, batch.actions.long())[:, 0]
            expected = torch.nn.functional.smooth_l1_loss(value, target)
        else:
            quantiles = unmasked.forward(batch.next_observations)
            choice = quantiles.mean(dim=1).masked_fill(forbidden, -np.inf).argmax(dim=1)
            best = quantiles[torch.arange(48), :, choice]
            target = batch.rewards + (1 - batch.dones) * best
            value = model.quantile_net(batch.observations)[torch.arange(48), :, batch.actions[:, 0].long()]
            expected = quantile_huber_loss(value, target, sum_over_quantiles=True)
    assert (loss == pytest.approx(float(expected), rel=1e-4)) is masks


def test_values_of_forbidden_actions_are_finite_and_below_everything():
    model, env = model_of(QRDQN, formula_task(5, TIGHT), policy_kwargs=VALUE_BASED[QRDQN])
    for observation, allowed in walk(env, np.random.default_rng(2)):
        values = model.quantile_net(torch.as_tensor(observation)[None])[0]
        assert torch.isfinite(values).all()
        assert (values[:, ~torch.as_tensor(allowed)] == FORBIDDEN_VALUE).all()
        assert (values[:, torch.as_tensor(allowed)] > FORBIDDEN_VALUE / 2).all()


def test_masks_can_be_switched_off_where_they_are_an_option_and_demanded_only_where_there_are_some():
    assert make_agent("dqn").masks and make_agent("a2c").masks and not make_agent("ppo").masks
    assert make_agent("ppo", masks=True).masks
    agent = make_agent("dqn", masks=False, warm_start_steps=0)
    agent.search(formula_task(4, TIGHT), 6)
    assert type(agent.model) is DQN
    with pytest.raises(AgentError, match="always masks"):
        make_agent("maskable-ppo", masks=False)
    with pytest.raises(AgentError, match="no masks for SAC"):
        SB3Agent("stable_baselines3:SAC", masks=True)
    with pytest.raises(AgentError, match="no algorithm"):
        SB3Agent("collections:OrderedDict")
