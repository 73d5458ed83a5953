"""The quantizers against the formulas of the paper, written out with numpy."""

import numpy as np
import pytest
import torch

from amed_env.training.lsq import quantize_activations, quantize_weights


def paper(values, step, low, high):
    """v̂, ∂v̂/∂v and ∂v̂/∂s of equations 1 to 5, element by element."""
    outputs, passes, slopes = [], [], []
    for v in values.ravel():
        s = float(step)
        if v / s <= low:
            outputs.append(low * s), passes.append(0.0), slopes.append(low)
        elif v / s >= high:
            outputs.append(high * s), passes.append(0.0), slopes.append(high)
        else:
            outputs.append(np.round(v / s) * s), passes.append(1.0), slopes.append(np.round(v / s) - v / s)
    return [np.reshape(found, values.shape) for found in (outputs, passes, slopes)]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("low", "high"), [(-2, 1), (-4, 3), (-128, 127)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_weights_per_channel_follow_the_paper(low, high, sign):
    weight, gradient = draw(5, 3, 3, 3).requires_grad_(), draw(5, 3, 3, 3, seed=1)
    step = (sign * torch.linspace(0.2, 0.9, 5, dtype=torch.float64)).view(5, 1, 1, 1).requires_grad_()
    result = quantize_weights(weight, step, low, high)
    result.backward(gradient)
    for channel in range(5):
        v, s, g = (t[channel].detach().numpy() for t in (weight, step, gradient))
        outputs, passes, slopes = paper(v, s.item(), low, high)
        np.testing.assert_allclose(result[channel].detach().numpy(), outputs, atol=1e-12)
        np.testing.assert_allclose(weight.grad[channel].numpy(), g * passes, atol=1e-12)
        expected = (g * slopes).sum() / np.sqrt(27 * high)  # 27 weights share a step
        np.testing.assert_allclose(step.grad[channel].item(), expected, atol=1e-12)


def test_one_step_for_all_weights():
    weight, gradient = draw(4, 6), draw(4, 6, seed=1)
    step = torch.full((1, 1), 0.4, dtype=torch.float64, requires_grad=True)
    quantize_weights(weight, step, -4, 3).backward(gradient)
    _, _, slopes = paper(weight.numpy(), 0.4, -4, 3)
    expected = (gradient.numpy() * slopes).sum() / np.sqrt(24 * 3)
    assert step.grad.shape == (1, 1) and step.grad.item() == pytest.approx(expected)


@pytest.mark.parametrize(("low", "high"), [(0, 3), (-2, 1), (-8, 7), (0, 255)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_activations_follow_the_paper(low, high, layout):
    values, gradient = draw(2, 3, 5, 5).to(memory_format=layout), draw(2, 3, 5, 5, seed=1)
    values = (values.abs() if low == 0 else values).requires_grad_()
    step = torch.tensor(0.37, dtype=torch.float64, requires_grad=True)
    result = quantize_activations(values, step, low, high)
    result.backward(gradient)
    outputs, passes, slopes = paper(values.detach().numpy(), 0.37, low, high)
    np.testing.assert_allclose(result.detach().numpy(), outputs, atol=1e-12)
    np.testing.assert_allclose(values.grad.numpy(), gradient.numpy() * passes, atol=1e-12)
    # N is the elements of one sample: 3 x 5 x 5.
    assert step.grad.item() == pytest.approx((gradient.numpy() * slopes).sum() / np.sqrt(75 * high))


def test_step_gradients_are_those_of_the_surrogate_by_finite_differences():
    """Straight through means: the rounding error, in steps, is held fixed while the step size changes."""
    values, weights = draw(1, 200), draw(1, 200, seed=1)
    step, low, high, tiny = 0.3, -4, 3, 1e-6
    position = values / step
    error = position.round() - position

    def surrogate(s):
        inside = values + error * s
        return (torch.where(position <= low, low * s, torch.where(position >= high, high * s, inside)) * weights).sum()

    difference = (surrogate(step + tiny) - surrogate(step - tiny)) / (2 * tiny)
    for quantize, shape in ((quantize_activations, ()), (quantize_weights, (1, 1))):
        learned = torch.full(shape, step, dtype=torch.float64, requires_grad=True)
        (quantize(values, learned, low, high) * weights).sum().backward()
        assert learned.grad.item() == pytest.approx(float(difference) / np.sqrt(200 * high), rel=1e-5)


def test_limits_count_as_outside():
    values = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 2.0]], requires_grad=True)
    quantize_activations(values, torch.tensor(1.0), -1, 1).sum().backward()
    assert values.grad.tolist() == [[0.0, 0.0, 1.0, 0.0, 0.0]]
